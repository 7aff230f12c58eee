// How compiled code comes to Node's own modules: not by import, which makes a namespace of all their names, and of node:fs
// loads the streams with it. What few programs need is loaded when a function of it is called.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const LATE = new Set(['node:child_process', 'node:crypto', 'node:net', 'node:zlib']);
const PREFIX = '\0builtin:';

/** A plugin of rolldown. @param src where the sources are, which say what is used */
export function builtins(src) {
  const names = new Map();
  for (const file of readdirSync(src, { recursive: true, encoding: 'utf8' })) {
    if (!file.endsWith('.ts')) continue;
    const text = readFileSync(join(src, file), 'utf8');
    for (const [, list, module] of text.matchAll(/^import \{([^}]*)\} from '(node:[\w/]+)';/gm)) {
      const used = names.get(module) ?? new Set();
      names.set(module, used);
      for (const name of list.split(',').map((part) => part.trim()))
        if (name !== '' && !name.startsWith('type ')) used.add(name.split(' as ')[0]);
    }
  }
  return {
    name: 'builtins',
    resolveId: (id) => (id.startsWith('node:') ? { id: PREFIX + id, moduleSideEffects: false } : undefined),
    load(id) {
      if (!id.startsWith(PREFIX)) return undefined;
      const module = id.slice(PREFIX.length);
      const loaded = `process.getBuiltinModule('${module}')`;
      return [...names.get(module)]
        .sort()
        .map((name) =>
          LATE.has(module)
            ? `export const ${name} = (...args) => ${loaded}.${name}(...args);`
            : `export const ${name} = /* @__PURE__ */ (() => ${loaded}.${name})();`,
        )
        .join('\n');
    },
  };
}
