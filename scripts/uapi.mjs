// Holds the tables of src/uapi against a kernel's headers, by test/uapi, which is TypeScript: --help says how.
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createViteServer } from 'vitest/node';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
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
  const { main } = await server.ssrLoadModule('/test/uapi/cli.ts');
  process.exitCode = await main(process.argv.slice(2));
} finally {
  await server.close();
}
