/** examples/browser as its reader makes it: of the packed package, bundled without plugins, in a real browser. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { installTools, must, root, Workplace } from './packed.ts';

const MINUTES = 60_000;

const browser = spawnSync('sh', ['-c', 'command -v chromium || command -v google-chrome'], {
  encoding: 'utf8',
}).stdout?.trim();

/** Nothing of a fresh profile's housekeeping, and nothing outside this host. */
const flags = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
const isolating = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
};
const types: { readonly [ending: string]: string } = { '.html': 'text/html', '.js': 'text/javascript' };

/** Serves the files of a folder on a port of its own. */
function serve(folder: string, headers: { readonly [name: string]: string }): Promise<Server> {
  const server = createServer(({ url = '/' }, response) => {
    const path = new URL(url, 'http://localhost').pathname.replace(/\/$/, '/index.html');
    try {
      const body = readFileSync(join(folder, path));
      response.writeHead(200, { 'Content-Type': types[extname(path)] ?? 'text/plain', ...headers }).end(body);
    } catch {
      response.writeHead(204).end(); // the icon that a browser asks for
    }
  });
  return new Promise((done) => server.listen(0, '127.0.0.1', () => done(server)));
}

let work: Workplace;
let tools = '';
let page = '';
beforeAll(() => {
  if (!browser) return;
  work = new Workplace();
  tools = installTools();
  const project = work.project(work.pack(root, '--ignore-scripts'));
  page = join(project, 'page');
  mkdirSync(page);
  for (const file of ['index.html', 'main.ts'])
    cpSync(join(root, 'examples', 'browser', file), join(page, file));
  const how = [
    'main.ts',
    '--bundle',
    '--platform=browser',
    '--format=esm',
    '--target=es2022',
    '--outfile=main.js',
  ];
  must(page, join(tools, '.bin', 'esbuild'), [...how, '--log-level=warning']);
}, 10 * MINUTES);
afterAll(() => work?.[Symbol.dispose]());

interface Seen {
  readonly serial: string | null;
  readonly end: string | null;
  readonly isolated: boolean;
  readonly sharedBuffers: string;
  /** Modules that were compiled at once: what the simulator makes of hot code. */
  readonly modules: number;
  readonly errors: readonly string[];
}

/** The example, opened in the browser, when its guest has ended. */
async function open(headers: { readonly [name: string]: string }): Promise<Seen> {
  const { chromium } = await import(pathToFileURL(join(tools, 'playwright-core', 'index.mjs')).href);
  const server = await serve(page, headers);
  const instance = await chromium.launch({ executablePath: browser, args: flags });
  try {
    const tab = await instance.newPage();
    const errors: string[] = [];
    tab.on('pageerror', (error: Error) => errors.push(error.message));
    await tab.addInitScript(`
      globalThis.modules = 0;
      WebAssembly.Module = class extends WebAssembly.Module {
        constructor(bytes) {
          super(bytes);
          globalThis.modules++;
        }
      };`);
    await tab.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
    await tab.waitForFunction("document.querySelector('#end').textContent !== ''", null, {
      timeout: 2 * MINUTES,
    });
    const seen = await tab.evaluate(`({
      serial: document.querySelector('#serial').textContent,
      end: document.querySelector('#end').textContent,
      isolated: crossOriginIsolated,
      sharedBuffers: typeof SharedArrayBuffer,
      modules,
    })`);
    return { ...seen, errors };
  } finally {
    await instance.close();
    server.close();
  }
}

describe('a page with vmexit/sim', () => {
  for (const [what, headers, isolated] of [
    ['that is cross-origin isolated', isolating, true],
    ['that is not, and has no SharedArrayBuffer', {}, false],
  ] as const) {
    it(`${what} runs a guest, as WebAssembly where it is hot`, { timeout: 5 * MINUTES }, async ({ skip }) => {
      skip(!browser, 'there is no browser: apt-get install chromium');
      const { modules, ...seen } = await open(headers);
      expect(seen).toEqual({
        serial: 'Hello, page!\n',
        end: 'The guest has ended: halt.',
        isolated,
        sharedBuffers: isolated ? 'function' : 'undefined',
        errors: [],
      });
      expect(modules).toBeGreaterThan(0);
    });
  }
});
