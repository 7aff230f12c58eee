/** The documents are held to what they say: programs are run as they stand, commands and links exist. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Hypervisor, Vcpu, Vm } from '../../src/index.ts';
import { ioctls } from '../../src/uapi/index.ts';
import {
  agrees,
  type Block,
  blocks,
  commandsOf,
  documents,
  examplesOf,
  isTest,
  Programs,
  printsOf,
  type Ran,
  read,
  root,
} from '../support/documents.ts';
import { noAssembler, noCompiler } from '../support/host.ts';
import { TEST_MS } from '../support/limits.ts';
import { vmexit } from './cli-vmexit.ts';

const where = ({ file, line }: Block) => `${file}:${line}`;
const of = (...languages: string[]) => blocks.filter(({ language }) => languages.includes(language));

function expectPrinted({ status, stdout, stderr }: Ran, says: string): void {
  // Beside each other, for whoever has to see where they differ.
  if (!agrees(stdout, says)) expect(`${stdout}${stderr}`).toBe(says);
  expect(status, stderr).toBe(0);
}

/** What a program has said that this host lacks: KVM is there, and not all that it can be. */
const lacking = ({ stderr }: Ran): string | undefined =>
  /reason: 'feature'/.test(stderr) ? /UnavailableError: (.*)/.exec(stderr)?.[1] : undefined;

const programs = new Programs(of('ts', 'js'));
afterAll(() => programs.remove());

describe('the programs of the documents and docstrings', () => {
  const runs = new Map<Block, Promise<Ran>>();
  beforeAll(() => {
    for (const block of of('ts', 'js')) runs.set(block, programs.run(block));
  });

  for (const block of of('ts', 'js')) {
    it(`${where(block)} has the right types and prints what it says`, {
      timeout: TEST_MS,
    }, async (context) => {
      expect(await programs.typeErrors(block)).toEqual([]);
      const lacks = lacking(await runs.get(block)!);
      context.skip(lacks !== undefined, lacks);
      expectPrinted(await runs.get(block)!, isTest(block) ? '...' : printsOf(block));
    });
  }

  it('are found in docstrings, and would be seen to print something else', () => {
    const docstring = `
      /**
       * Does something.
       * @example
       * \`\`\`ts
       * console.log('a', 1);
       * // prints: a 1
       * \`\`\`
       */
      export const something = '\`\`\`ts';
    `;
    const [block, ...others] = examplesOf('src/something.ts', docstring);
    expect(others).toEqual([]);
    expect(block).toMatchObject({ line: 5, language: 'ts', code: "console.log('a', 1);\n// prints: a 1\n" });
    expect(printsOf(block!)).toBe('a 1\n');
    expect(agrees('a 1\n', 'a 1\n')).toBe(true);
    expect(agrees('a 1\nand more\n', 'a 1\n')).toBe(false);
    expect(agrees('a 1\nand more\n', 'a ...\n')).toBe(true);
    expect(agrees('b\n', 'a ...\n')).toBe(false);
  });

  it('are those of the README, of the guides, and nothing that only looks like one', () => {
    const files = new Set(of('ts', 'js').map(({ file }) => file));
    for (const file of ['README.md', 'docs/first-vmm.md', 'docs/testing.md']) expect(files).toContain(file);
    const known = ['ts', 'js', 'sh', 'console', 'text', 'yaml', 'c', 'rust', 'asm'];
    expect(blocks.filter(({ language }) => !known.includes(language)).map(where)).toEqual([]);
  });
});

describe('the commands of the documents', () => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
  const helps = new Map<string, string>();
  const helpOf = (...command: string[]): string => {
    const key = command.join(' ');
    if (!helps.has(key)) helps.set(key, vmexit([...command, '--help']).stdout);
    return helps.get(key)!;
  };

  const file = (path: string) => (existsSync(join(root, path)) ? undefined : `there is no ${path}`);
  const script = (name: string) => (name in scripts ? undefined : `there is no script ${name}`);
  /** @param words behind `vmexit`: a command and its options. What follows `--` is another command's. */
  function command(words: string): string | undefined {
    const [name = '', ...rest] = words.split(/ --(?: |$)/)[0]!.split(' ');
    if (!name.startsWith('-') && !helpOf().includes(`  vmexit ${name} `))
      return `there is no command ${name}`;
    const help =
      name === 'lab' && rest[0] ? helpOf('lab', rest[0]) : helpOf(...(name.startsWith('-') ? [] : [name]));
    const options = help.split(/[^\w-]+/);
    const flag = [name, ...rest].find((word) => /^--\w/.test(word) && !['--help', ...options].includes(word));
    return flag && `${name} has no ${flag}`;
  }
  /** Lines that somebody may type, by how they begin; of others nothing is known. */
  const rules: readonly (readonly [RegExp, (name: string) => string | undefined])[] = [
    [/^npm (?:run )?(start|test|(?<=run )[\w:]+)(?=\s|$)/, script],
    [/^node dist\/examples\/([\w-]+)\.js/, (name) => file(`examples/${name}.ts`)],
    [/^node ((?:scripts|bench)\/[\w/-]+\.mjs)/, file],
    [/^(?:npx )?vmexit (.*)/, command],
  ];
  const wrong = (line: string): string | undefined =>
    rules
      .map(([begins, check]) => {
        const [, name] = begins.exec(line.replace(/\s+#.*/, '')) ?? [];
        return name === undefined ? undefined : check(name);
      })
      .find((what) => what !== undefined);

  it('exist, with the options that are named', () => {
    const typed = of('sh', 'yaml').flatMap(({ file, code }) =>
      code.split('\n').map((line) => [file, line.trim().replace(/^- run: /, '')] as const),
    );
    const inline = documents.flatMap((file) =>
      Array.from(
        read(file).matchAll(/`((?:npx |npm |node |vmexit )[^`]*)`/g),
        ([, line = '']) => [file, line] as const,
      ),
    );
    const lines = [...typed, ...inline];
    expect(lines.length).toBeGreaterThan(20);
    const found = lines
      .map(([at, line]) => [at, line, wrong(line)])
      .filter(([, , what]) => what !== undefined);
    expect(found).toEqual([]);
    // And what it is that would be found.
    expect(wrong('npx vmexit run --colour guest.bin')).toBe('run has no --colour');
    expect(wrong('npx vmexit walk')).toBe('there is no command walk');
    expect(wrong('vmexit lab run --fast -- ls --size')).toBe('lab has no --fast');
    expect(wrong('npm run nothing  # at all')).toBe('there is no script nothing');
    expect(wrong('node dist/examples/none.js')).toBe('there is no examples/none.ts');
  });

  it('are all in the README', () => {
    const names = Array.from(helpOf().matchAll(/^ {2}vmexit (\w+) /gm), ([, name]) => name);
    expect(names).toContain('run');
    for (const name of names) expect(read('README.md')).toMatch(new RegExp(`\`vmexit ${name}\\b`));
  });

  for (const block of of('console')) {
    it(`${where(block)} prints what it shows`, { timeout: TEST_MS }, async (context) => {
      const commands = commandsOf(block);
      expect(commands).not.toEqual([]);
      if (commands.some(({ command }) => command.startsWith('as ')))
        context.skip(noAssembler !== undefined, noAssembler);
      for (const { command, prints } of commands) expectPrinted(await programs.command(command), prints);
    });
  }
});

it('the links of the documents lead somewhere', () => {
  /** As GitHub makes them of headings. */
  const anchors = (text: string) =>
    Array.from(text.matchAll(/^#+ (.*)$/gm), ([, title = '']) =>
      title
        .toLowerCase()
        .replaceAll(/[^\w\- ]/g, '')
        .replaceAll(' ', '-'),
    );
  const broken = documents.flatMap((file) =>
    Array.from(read(file).matchAll(/\]\(([^)\s]+)\)/g), ([, link = '']) => link)
      .filter((link) => !/^https?:/.test(link))
      .filter((link) => {
        const [path = '', anchor] = link.split('#');
        const target = path === '' ? file : join(dirname(file), path);
        if (!existsSync(join(root, target))) return true;
        return anchor !== undefined && !anchors(read(target)).includes(anchor);
      })
      .map((link) => `${file}: ${link}`),
  );
  expect(broken).toEqual([]);
});

/** What the page shows in the place of values. */
const shown: readonly [string, string][] = [
  ['device', '/dev/kvm'],
  [
    'what}; ${setupCommand()',
    'is not built (looked for FILES); npx vmexit setup builds it\nthe addon does not load: WHY; npx vmexit setup',
  ],
  ['PAGE_SIZE', '4096'],
  ['config', 'CONFIG_KVM_SW_PROTECTED_VM'],
  ['name} lacks ${list', "this host's KVM lacks "],
];

/** The sources' messages, each in one piece. */
function messages(): string {
  const text = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => read(join('src', name)).replaceAll(/['`]\s*\+\s*['`]/g, ''))
    .join('\n');
  return shown.reduce((text, [name, value]) => text.replaceAll(`\${${name}}`, value), text);
}

it('the messages of Troubleshooting are those of the code, and each reason is there', () => {
  const page = read('docs/troubleshooting.md');
  const reasons = /type UnavailableReason =([^;]*);/.exec(read('src/hypervisor/errors.ts'))![1]!;
  for (const [, reason] of reasons.matchAll(/'(\w+)'/g)) expect(page).toContain(`### Reason ${reason}`);

  const texts = of('text').filter(({ file }) => file === 'docs/troubleshooting.md');
  const lines = [
    ...texts.flatMap(({ code }) => code.trim().split('\n')),
    // KVM_CREATE_VM failed with EINVAL: what is known of it.
    ...Array.from(page.matchAll(/`KVM_\w+ failed with E\w+: ([^`]*)`/g), ([, remedy = '']) => remedy),
  ];
  expect(lines.length).toBeGreaterThan(10);
  const code = messages();
  const pieces = lines.flatMap((line) => line.split(/\.\.\.|\[|\)/)).map((piece) => piece.trim());
  expect(pieces.filter((piece) => piece.length > 8 && !code.includes(piece))).toEqual([]);
});

it('each ioctl of From kvm-ioctls or C is one, and each method is there', () => {
  const page = read('docs/from-kvm-ioctls-or-c.md');
  const [, table = ''] = page.split('## Names');
  for (const [name] of table.matchAll(/\bKVM_[A-Z0-9_]+(?=[ ,].*\|.*\|)/g))
    expect(ioctls).toHaveProperty(name);
  const classes = { hv: Hypervisor, vm: Vm, vcpu: Vcpu } as const;
  const named = Array.from(table.matchAll(/`(hv|vm|vcpu)\.(\w+)/g), ([, on, method]) => [on, method]) as [
    keyof typeof classes,
    string,
  ][];
  expect(named.length).toBeGreaterThan(60);
  for (const [on, method] of named) expect(method in classes[on].prototype, `${on}.${method}`).toBe(true);
});

it('the C program of From kvm-ioctls or C is one', (context) => {
  context.skip(noCompiler !== undefined, noCompiler);
  const [block] = of('c');
  const args = ['-x', 'c', '-std=c11', '-D_GNU_SOURCE', '-Wall', '-Werror', '-fsyntax-only', '-'];
  const { status, stderr } = spawnSync('gcc', args, { input: block!.code, encoding: 'utf8' });
  expect(status, stderr).toBe(0);
});

describe('docs/security.md', () => {
  const rows = [...read('docs/security.md').matchAll(/`(test\/[\w/.-]+\.test\.ts)`(?: "([^"]+)")?/g)];

  it('names tests that there are', () => {
    expect(rows.length).toBeGreaterThan(20);
    const missing = rows.filter(
      ([, file, title]) =>
        !existsSync(join(root, file!)) || (title !== undefined && !read(file!).includes(title)),
    );
    expect(missing.map(([row]) => row)).toEqual([]);
  });
});
