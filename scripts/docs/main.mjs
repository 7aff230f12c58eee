// Makes docs/api/ from the declarations in dist/, whose docstrings are those of src/: `npm run docs -- --help`.
// TypeDoc and its TypeScript are this folder's own, and installed here when they are needed first.
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { pages } from './pages.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '..', '..');
const target = join(root, 'docs', 'api');

const help = `npm run docs [-- --check]

Makes the API reference in docs/api/ from the docstrings in src/.

  --check  changes nothing, and says whether docs/api/ is what would be made: status 1 if it is not
  --help   this text
`;

function run(command, args, cwd) {
  const { status, error } = spawnSync(command, args, { cwd, stdio: 'inherit' });
  if (status === 0) return;
  console.error(`docs: ${command} ${args.join(' ')} failed${error ? `: ${error.message}` : ''}`);
  process.exit(1);
}

function prepare() {
  run(process.execPath, [join(root, 'scripts', 'setup.mjs')], root);
  // npm writes it last.
  const installed = join(here, 'node_modules', '.package-lock.json');
  const since = statSync(installed, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (since > statSync(join(here, 'package-lock.json')).mtimeMs) return;
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'], here);
}

/** The entries of package.json that have declarations: what users import, and the file. */
function entries() {
  const { name, exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const typesOf = (conditions) => {
    if (typeof conditions !== 'object' || conditions === null) return undefined;
    return conditions.types ?? Object.values(conditions).map(typesOf).find(Boolean);
  };
  return Object.entries(exports).flatMap(([path, conditions]) => {
    const types = typesOf(conditions);
    return types === undefined ? [] : [{ from: name + path.slice(1), file: resolve(root, types) }];
  });
}

/** By page: what each name on it is imported from. */
function sorted(ts, options) {
  const found = new Map(pages.map(({ page }) => [page, new Map()]));
  const all = entries();
  const program = ts.createProgram(
    all.map(({ file }) => file),
    options,
  );
  const checker = program.getTypeChecker();
  for (const { from, file } of all) {
    for (const symbol of checker.getExportsOfModule(
      checker.getSymbolAtLocation(program.getSourceFile(file)),
    )) {
      const original = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
      const declared = relative(join(root, 'dist'), original.declarations[0].getSourceFile().fileName);
      const source = declared.replace(/\.d\.ts$/, '');
      const page = pages.find(({ files }) => files.some((pattern) => pattern.test(source)));
      if (page === undefined)
        throw new Error(
          `${symbol.name} is declared in src/${source}.ts, which has no page in scripts/docs/pages.mjs`,
        );
      const names = found.get(page.page);
      names.set(symbol.name, { from: [...(names.get(symbol.name)?.from ?? []), from], file });
    }
  }
  return found;
}

/** A module for each page, which exports what is on it. */
function writeModules(folder, byPage) {
  return pages
    .filter(({ page }) => byPage.get(page).size > 0)
    .map((page) => {
      const names = byPage.get(page.page);
      const from = new Map();
      for (const [name, { from: where }] of names) {
        const key = where.map((entry) => `\`${entry}\``).join(' and ');
        from.set(key, [...(from.get(key) ?? []), name]);
      }
      const note = [...from].map(([where, which]) =>
        from.size === 1 ? `Exported by ${where}.` : `Exported by ${where}: ${which.toSorted().join(', ')}.`,
      );
      const file = join(folder, `${page.page}.ts`);
      const lines = [...names].map(
        ([name, { file }]) => `export { ${name} } from '${file.replace(/\.d\.ts$/, '.js')}';`,
      );
      const comment = `/**\n${`${page.about}\n\n${note.join('\n\n')}\n@module ${page.page}`.replace(/^/gm, ' * ')}\n */`;
      writeFileSync(file, `${comment}\n${lines.join('\n')}\n`);
      return file;
    });
}

async function typedoc(folder, modules, compilerOptions, out) {
  const tsconfig = join(folder, 'tsconfig.json');
  writeFileSync(tsconfig, JSON.stringify({ compilerOptions, files: modules }));
  const { Application, Converter, ReflectionKind } = await import('typedoc');
  const title = new Map(pages.map((page) => [page.page, page.title]));
  const app = await Application.bootstrapWithPlugins({
    name: 'vmexit',
    entryPoints: modules,
    tsconfig,
    plugin: ['typedoc-plugin-markdown'],
    outputs: [{ name: 'markdown', path: out }],
    router: 'module',
    readme: 'none',
    disableSources: true,
    disableGit: true,
    excludePrivate: true,
    excludeProtected: true,
    skipErrorChecking: true,
    sort: ['source-order'],
    // Of a page, and of a class.
    groupOrder: [
      ...['Functions', 'Classes', 'Variables', 'Interfaces', 'Type Aliases'],
      ...['Constructors', 'Properties', 'Accessors', 'Methods'],
    ],
    // Types that no entry exports are shown by name alone.
    validation: { notExported: false, invalidLink: true, invalidPath: true, rewrittenLink: true },
    treatWarningsAsErrors: true,
    logLevel: 'Warn',
    hideBreadcrumbs: true,
    hidePageHeader: true,
    hideGroupHeadings: false,
    useCodeBlocks: true,
    pageTitleTemplates: { module: ({ name }) => title.get(name) ?? name },
    parametersFormat: 'table',
    interfacePropertiesFormat: 'table',
    classPropertiesFormat: 'table',
    typeDeclarationFormat: 'table',
    propertyMembersFormat: 'table',
  });
  // As they are written, not worked out: `Input<Sregs>` says more than its hundred fields.
  const written = (context, reflection, node) => {
    if (/^(readonly )?(Input<|Value<|Feature\b)/.test(node?.getText() ?? ''))
      reflection.type = context.converter.convertType(context, node);
  };
  app.converter.on(Converter.EVENT_CREATE_SIGNATURE, (context, signature, declaration) => {
    written(context, signature, declaration?.type);
    for (const [i, parameter] of (signature.parameters ?? []).entries())
      written(context, parameter, declaration?.parameters[i]?.type);
  });
  const project = await app.convert();
  if (project === undefined || app.logger.hasErrors()) throw new Error('TypeDoc failed');
  listWords(project.getReflectionsByKind(ReflectionKind.TypeAlias));
  hideParts(project);
  await app.generateOutputs(project);
  if (app.logger.hasErrors() || app.logger.hasWarnings()) throw new Error('TypeDoc failed');
}

/** A class that no entry exports is a part of another one's text, and no name for a reader. */
function hideParts(project) {
  const isPart = (type) => type?.reflection === undefined && /^Vm|^Vcpu/.test(type?.name);
  for (const reflection of Object.values(project.reflections)) {
    for (const relation of ['inheritedFrom', 'overwrites'])
      if (isPart(reflection[relation])) delete reflection[relation];
    if (reflection.extendedTypes?.every(isPart)) delete reflection.typeHierarchy;
  }
}

/** What each word of a union means, which the plugin leaves out. */
function listWords(aliases) {
  for (const { type, comment } of aliases) {
    if (type?.type !== 'union' || !type.types.every((word) => word.type === 'literal')) continue;
    const parts = (type.elementSummaries ?? []).flatMap((summary, i) => [
      { kind: 'text', text: '\n- ' },
      { kind: 'code', text: `\`${type.types[i].value}\`` },
      { kind: 'text', text: ': ' },
      ...summary,
    ]);
    if (parts.length > 0) comment.summary.push({ kind: 'text', text: '\n' }, ...parts);
  }
}

/** The headings of a page, with the anchors that code hosts give them. */
function headings(markdown) {
  const seen = new Map();
  const text = markdown.replace(/^```.*?^```/gms, '');
  return [...text.matchAll(/^(#+) (.*)$/gm)].map(([, { length: level }, heading]) => {
    const name = heading.replaceAll('\\', '');
    const slug = name
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-');
    const before = seen.get(slug) ?? 0;
    seen.set(slug, before + 1);
    return { level, name, anchor: before === 0 ? slug : `${slug}-${before}` };
  });
}

function writeIndex(out) {
  const parts = [
    '# API reference',
    'Made from the docstrings by `npm run docs`. Sizes and addresses are in bytes.',
  ];
  for (const { page, title, about } of pages) {
    const file = join(out, `${page}.md`);
    if (!existsSync(file)) continue;
    const names = new Map();
    for (const { level, name, anchor } of headings(readFileSync(file, 'utf8')))
      if (level === 3 && !names.has(name)) names.set(name, `[${name}](${page}.md#${anchor})`);
    parts.push(`## [${title}](${page}.md)`, about, [...names.values()].join(' · '));
  }
  writeFileSync(join(out, 'README.md'), `${parts.join('\n\n')}\n`);
}

/** Links that lead nowhere. */
function broken(out) {
  const files = readdirSync(out);
  const anchors = new Map(
    files.map((file) => {
      const text = readFileSync(join(out, file), 'utf8');
      const named = [...text.matchAll(/<a id="([^"]+)">/g)].map(([, id]) => id);
      return [file, new Set([...headings(text).map(({ anchor }) => anchor), ...named])];
    }),
  );
  return files.flatMap((file) =>
    [...readFileSync(join(out, file), 'utf8').matchAll(/\]\(([^)\s]*)\)/g)]
      .map(([, link]) => link)
      .filter((link) => !/^https?:/.test(link))
      .filter((link) => {
        const [to, anchor] = link.split('#');
        const there = anchors.get(to === '' ? file : to);
        return there === undefined || (anchor !== undefined && !there.has(anchor));
      })
      .map((link) => `${file}: ${link}`),
  );
}

async function make(out) {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-docs-'));
  try {
    const { default: ts } = await import('typescript');
    const options = {
      module: 'nodenext',
      target: 'es2022',
      lib: ['ES2023', 'ESNext.Disposable'],
      types: ['node'],
      typeRoots: [join(root, 'node_modules', '@types')],
      skipLibCheck: true,
      noEmit: true,
    };
    const { options: parsed } = ts.convertCompilerOptionsFromJson(options, root);
    const modules = writeModules(folder, sorted(ts, parsed));
    await typedoc(folder, modules, options, out);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  writeIndex(out);
  const wrong = broken(out);
  if (wrong.length > 0) throw new Error(`links that lead nowhere:\n${wrong.join('\n')}`);
}

/** What of the first folder is not so in the second. */
function differences(made, there) {
  const names = (folder) => (existsSync(folder) ? readdirSync(folder) : []);
  const text = (folder, name) => {
    const file = join(folder, name);
    return existsSync(file) ? readFileSync(file, 'utf8') : undefined;
  };
  return [...new Set([...names(made), ...names(there)])].filter(
    (name) => text(made, name) !== text(there, name),
  );
}

const { values } = parseArgs({ options: { check: { type: 'boolean' }, help: { type: 'boolean' } } });
if (values.help) {
  process.stdout.write(help);
} else {
  prepare();
  const out = mkdtempSync(join(tmpdir(), 'vmexit-api-'));
  try {
    await make(out);
    const changed = differences(out, target).toSorted();
    if (values.check) {
      for (const name of changed)
        console.error(`docs/api/${name} is not what the docstrings give: npm run docs`);
      process.exitCode = changed.length > 0 ? 1 : 0;
    } else {
      rmSync(target, { recursive: true, force: true });
      mkdirSync(target, { recursive: true });
      for (const name of readdirSync(out)) writeFileSync(join(target, name), readFileSync(join(out, name)));
    }
    console.log(
      changed.length > 0 ? `docs/api: ${changed.length} pages differ` : 'docs/api: nothing has changed',
    );
  } catch (error) {
    console.error(`docs: ${error.message}`);
    process.exitCode = 1;
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}
