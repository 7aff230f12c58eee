// Runs a command of test/ that is TypeScript.
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createViteServer } from 'vitest/node';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

/** Calls `main` of a module, whose path begins with a slash at the tree's root, with this process's arguments; its status. */
export async function runMain(path) {
  const server = await createViteServer({
    root,
    configFile: false,
    logLevel: 'warn',
    appType: 'custom',
    // Node 20 does not parse `using`.
    oxc: { target: 'es2022' },
    server: { middlewareMode: true, watch: null, hmr: false, ws: false },
    optimizeDeps: { noDiscovery: true },
  });
  try {
    const { main } = await server.ssrLoadModule(path);
    process.exitCode = await main(process.argv.slice(2));
  } finally {
    await server.close();
  }
}
