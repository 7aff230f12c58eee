/**
 * The code blocks of the documents and of the docstrings' examples. A ts or js block is a whole program, and the
 * `// prints: TEXT` lines at its end are what it prints, a line each. A console block is a transcript: commands behind
 * `$`, and what they print. In both, `...` stands for whatever is printed there.
 */
import { execFile } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PROGRAM_MS } from './limits.ts';

export const root = fileURLToPath(new URL('../../', import.meta.url));
const main = join(root, 'dist/cli/main.js');
const tsc = join(root, 'node_modules/typescript/bin/tsc');

/** Processes at a time: the suite counts on two processors. */
const AT_ONCE = 2;

export interface Block {
  /** The document, from the root of the package. */
  readonly file: string;
  readonly line: number;
  /** `ts`, `js`, `sh`, `console`, `c`, `text`, ... */
  readonly language: string;
  readonly code: string;
}

const markdown = (folder: string): string[] =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(folder, name));

export const documents: readonly string[] = ['README.md', ...markdown('docs'), 'examples/README.md'];

const sources: readonly string[] = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => join('src', name));

export const read = (file: string): string => readFileSync(join(root, file), 'utf8');

/** The text of a source's docstrings, each line where it was. */
const comments = (source: string): string =>
  source
    .split('\n')
    .map((line) => /^\s*\*(?!\/) ?(.*)$/.exec(line)?.[1] ?? '')
    .join('\n');

const FENCED = /^( *)```(\w+)[^\n]*\n(.*?)^ *```$/gms;

function blocksOf(file: string, text: string): Block[] {
  return Array.from(text.matchAll(FENCED), ({ 1: indent = '', 2: language = '', 3: code = '', index }) => ({
    file,
    line: text.slice(0, index).split('\n').length,
    language,
    code: code.replaceAll(new RegExp(`^${indent}`, 'gm'), ''),
  }));
}

export const examplesOf = (file: string, source: string): Block[] => blocksOf(file, comments(source));

export const blocks: readonly Block[] = [
  ...documents.flatMap((file) => blocksOf(file, read(file))),
  ...sources.flatMap((file) => examplesOf(file, read(file))),
];

/** What a program says that it prints. */
export function printsOf({ code }: Block): string {
  const lines = code.trimEnd().split('\n');
  const first = lines.findLastIndex((line) => !/^\/\/ prints:/.test(line)) + 1;
  return lines
    .slice(first)
    .map((line) => `${line.slice('// prints:'.length).replace(/^ /, '')}\n`)
    .join('');
}

/** The commands of a transcript, each with what it prints. */
export const commandsOf = ({ code }: Block): { readonly command: string; readonly prints: string }[] =>
  code
    .split(/^\$ /m)
    .slice(1)
    .map((text) => {
      const lines = text.split('\n');
      // As a shell prompts for the rest of a command.
      const end = lines.findIndex((line, i) => i > 0 && !line.startsWith('> '));
      const command = lines.slice(0, end).map((line) => line.replace(/^> /, ''));
      return { command: command.join('\n'), prints: lines.slice(end).join('\n') };
    });

const escaped = (text: string) => text.replaceAll(/[\\^$.*+?()[\]{}|/]/g, '\\$&');

/** Whether it was printed, `...` standing for anything. */
export const agrees = (printed: string, says: string): boolean =>
  new RegExp(`^${says.split('...').map(escaped).join('[^]*?')}$`).test(printed);

/** One that vitest runs. What that prints is not compared. */
export const isTest = ({ code }: Block): boolean => /from 'vitest'/.test(code);
const vitest = [join(root, 'node_modules/vitest/vitest.mjs'), 'run', '--root=.', '--dir=.', 'test.ts'];

export interface Ran {
  /** Undefined when it was ended. */
  readonly status: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/** In its turn: so many at once. */
const turns: (() => void)[] = [];
let running = 0;
async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (running === AT_ONCE) await new Promise<void>((turn) => turns.push(turn));
  else running++;
  try {
    return await work();
  } finally {
    const next = turns.shift();
    if (next) next();
    else running--;
  }
}

const run = (command: string, args: readonly string[], cwd: string, env = {}): Promise<Ran> =>
  inTurn(
    () =>
      new Promise((resolve) => {
        const child = execFile(
          command,
          args,
          {
            cwd,
            encoding: 'utf8',
            env: { ...process.env, ...env },
            timeout: PROGRAM_MS,
            killSignal: 'SIGKILL',
          },
          (_, stdout, stderr) => resolve({ status: child.exitCode ?? undefined, stdout, stderr }),
        );
        child.stdin?.end();
      }),
  );

/** The programs in a folder inside the tree, so that node finds the package by its own name. */
export class Programs {
  readonly folder: string = mkdtempSync(join(root, 'test', '.documents-'));
  readonly #names = new Map<Block, string>();
  #compiled: Promise<Ran> | undefined;
  #tested: Promise<Ran> | undefined;

  constructor(programs: readonly Block[]) {
    for (const block of programs) {
      const name = `${block.file.replaceAll(/\W/g, '-')}-${block.line}${isTest(block) ? '.test' : ''}`;
      this.#names.set(block, name);
      writeFileSync(join(this.folder, `${name}.${block.language === 'ts' ? 'ts' : 'mjs'}`), block.code);
    }
    // A reader's vitest has a project of its own, not this one's configuration.
    writeFileSync(join(this.folder, 'vitest.config.mjs'), 'export default {};');
    writeFileSync(
      join(this.folder, 'tsconfig.json'),
      JSON.stringify({
        extends: '../../tsconfig.json',
        compilerOptions: { rootDir: '.', outDir: '.', declaration: false, emitDeclarationOnly: false },
        include: ['*.ts'],
        // Without it, outDir is.
        exclude: [],
      }),
    );
  }

  /** What the compiler says of a block, or of itself; all of them are checked, and compiled, in one run. */
  async typeErrors(block: Block): Promise<string[]> {
    this.#compiled ??= run(process.execPath, [tsc, '-p', this.folder, '--pretty', 'false'], this.folder);
    const { stdout } = await this.#compiled;
    const name = `${this.#names.get(block)}.ts`;
    return stdout.split('\n').filter((line) => line.startsWith(name) || line.startsWith('error '));
  }

  async run(block: Block): Promise<Ran> {
    const name = this.#names.get(block);
    // All in one run: what takes long of it is vitest's own start.
    if (isTest(block)) {
      this.#tested ??= run(process.execPath, vitest, this.folder);
      return this.#tested;
    }
    if (block.language === 'ts') await this.typeErrors(block);
    return run(process.execPath, [`${name}.${block.language === 'ts' ? 'js' : 'mjs'}`], this.folder);
  }

  /** A line of a transcript, in which npx runs the command that was compiled here. */
  command(line: string): Promise<Ran> {
    const npx = `npx() { shift; "${process.execPath}" "${main}" "$@"; }`;
    return run('sh', ['-c', `${npx}\n${line}`], this.folder, { NO_COLOR: '1' });
  }

  remove(): void {
    rmSync(this.folder, { recursive: true });
  }
}
