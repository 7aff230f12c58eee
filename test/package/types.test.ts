/** The declarations of the packed package, as the compilers of its users read them. */
import { cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { installTools, must, root, run, Workplace } from './packed.ts';

const MINUTES = 60_000;

let work: Workplace;
let tools = '';
let tarball = '';
let project = '';
beforeAll(() => {
  work = new Workplace();
  tools = installTools();
  tarball = work.pack(root, '--ignore-scripts');
  project = work.project(tarball);
  cpSync(join(root, 'test', 'package', 'consumer', 'index.ts'), join(project, 'index.ts'));
  cpSync(join(root, 'examples', 'browser', 'main.ts'), join(project, 'page.ts'));
}, 10 * MINUTES);
afterAll(() => work?.[Symbol.dispose]());

interface Check {
  readonly file?: string;
  readonly module?: string;
  readonly lib?: readonly string[];
  readonly types?: readonly string[];
}

/** Type-checks a file of the project, the declarations that it reaches included: what the compiler says. */
function check(typescript: string, { file = 'index.ts', module = 'nodenext', lib = [], types = [] }: Check) {
  const compilerOptions = {
    target: 'es2022',
    module,
    moduleResolution: module === 'esnext' ? 'bundler' : module,
    lib: ['es2022', ...lib],
    types,
    typeRoots: [join(tools, '@types')],
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noPropertyAccessFromIndexSignature: true,
    isolatedModules: true,
    verbatimModuleSyntax: true,
    skipLibCheck: false,
    noEmit: true,
  };
  writeFileSync(join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: [file] }));
  return run(project, process.execPath, [join(tools, `typescript-${typescript}`, 'bin', 'tsc')]);
}
const passes = { status: 0, stdout: '', stderr: '' };

describe.each(['5.7', '5.9', '7'])('a strict project without the DOM, with TypeScript %s', (typescript) => {
  it.each([
    ['node16', 'node16'],
    ['nodenext', 'nodenext'],
    ['bundler', 'esnext'],
  ])('has the types of every entry by moduleResolution %s', { timeout: 5 * MINUTES }, (_, module) => {
    expect(check(typescript, { module, types: ['node'] })).toEqual(passes);
  });

  it('needs no types of Node for them', { timeout: 5 * MINUTES }, () => {
    expect(check(typescript, {})).toEqual(passes);
  });

  it('has errors where something is used wrongly', { timeout: 5 * MINUTES }, () => {
    writeFileSync(
      join(project, 'wrong.ts'),
      "import { openHypervisor } from 'vmexit';\nopenHypervisor(1);\n",
    );
    const { status, stdout } = check(typescript, { file: 'wrong.ts' });
    expect(status).not.toBe(0);
    expect(stdout).toMatch(/^wrong\.ts\(2,16\): error TS2559/);
  });
});

it.each(['5.9', '7'])(
  'a page has the types of vmexit/sim beside the DOM’s, with TypeScript %s',
  {
    timeout: 5 * MINUTES,
  },
  (typescript) => {
    const lib = ['dom', 'dom.iterable'];
    expect(check(typescript, { file: 'page.ts', module: 'esnext', lib })).toEqual(passes);
  },
);

it('is not for TypeScript 5.6, whose Uint8Array is not generic', { timeout: 5 * MINUTES }, () => {
  const { status, stdout } = check('5.6', { types: ['node'] });
  expect(status).toBe(2);
  expect(stdout).toContain("Type 'Uint8Array' is not generic");
});

describe('the tarball', () => {
  it('is as publint wants it', () => {
    expect(
      must(project, process.execPath, [join(tools, 'publint', 'src', 'cli.js'), '--strict', tarball]),
    ).toMatch(/All good!/);
  });

  it('has entries that resolve to types and code of the same kind (attw)', () => {
    const attw = join(tools, '@arethetypeswrong', 'cli', 'dist', 'index.js');
    const { status, stdout } = run(project, process.execPath, [
      attw,
      '--profile',
      'esm-only',
      '--no-color',
      tarball,
    ]);
    expect(status, stdout).toBe(0);
    for (const entry of ['vmexit', 'vmexit/sim', 'vmexit/uapi']) expect(stdout).toContain(`"${entry}"`);
  });
});
