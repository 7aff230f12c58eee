/** Facts from a kernel's headers: macros by gcc's preprocessor and a small program, structs by gcc's debug information. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Entry, entries } from './dwarf.ts';
import type { Facts } from './facts.ts';

/** What src/uapi has tables of. */
const INCLUDES = ['errno.h', 'asm/sigcontext.h', 'linux/kvm.h', 'linux/kvm_para.h']
  .map((name) => `#include <${name}>\n`)
  .join('');

/** The headers whose macros are facts: KVM's, and the errnos. */
const WANTED =
  /\/(linux\/kvm|linux\/kvm_para|asm\/kvm|asm\/kvm_para|asm-generic\/errno|asm-generic\/errno-base)\.h$/;
const STRUCTS = /^(kvm_\w+|_fpstate_64|_header|_xstate|_ymmh_state)$/;

interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function run(command: string, args: readonly string[]): Ran {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: 'utf8',
    env: { ...process.env, LC_ALL: 'C' },
    maxBuffer: 64 << 20,
  });
  if (error) throw new Error(`${command} cannot be run: ${error.message}`);
  return { status, stdout, stderr };
}

function output(command: string, args: readonly string[]): string {
  const { status, stdout, stderr } = run(command, args);
  if (status !== 0) throw new Error(`${command} exited with ${status}:\n${stderr}`);
  return stdout;
}

/** Why headers cannot be read here; undefined where they can. */
export const noHeaderTools = ['gcc', 'readelf'].some((name) => spawnSync(name, ['--version']).status !== 0)
  ? "reading headers needs gcc and readelf (Debian's packages gcc and binutils)"
  : undefined;

/**
 * The facts of the headers in these folders together, or of the system's without one.
 * @throws Error naming the folders, where they have not both halves of KVM's header
 */
export function readHeaders(folders: readonly string[] = []): Facts {
  for (const name of ['linux/kvm.h', 'asm/kvm.h']) {
    if (folders.length > 0 && !folders.some((folder) => existsSync(join(folder, name))))
      throw new Error(`there is no ${name} in ${folders.join(' or ')}`);
  }
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-uapi-'));
  try {
    return factsOf(
      folder,
      folders.flatMap((each) => ['-isystem', each]),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function factsOf(folder: string, where: readonly string[]): Facts {
  const source = join(folder, 'facts.c');
  writeFileSync(source, INCLUDES);
  const macros = defines(output('gcc', [...where, '-E', '-dD', source]));

  // A macro a line, so that the compiler's complaints say which are no numbers: those whose struct another
  // architecture has.
  const names = [...macros].filter(([, text]) => text !== '' && !text.startsWith('"')).map(([name]) => name);
  const constants = names.filter((name) => !name.endsWith('()'));
  const program = (list: readonly string[]) =>
    `${INCLUDES}#include <stdio.h>\n` +
    '#define SHOW(name, x) printf((x) < 0 ? "%s %lld\\n" : "%s %llu\\n", name, (unsigned long long)(x));\n' +
    `int main(void) {\n#line 1 "macros"\n${list.map((name) => `SHOW("${name}", ${name})\n`).join('')}return 0; }\n`;
  writeFileSync(source, program(constants));
  // Without the tracking, a complaint stands where the macro is used, and not in a header, whose warnings are none.
  const complaints = run('gcc', [
    ...where,
    '-fsyntax-only',
    '-fmax-errors=0',
    '-ftrack-macro-expansion=0',
    '-Werror=implicit-function-declaration',
    source,
  ]).stderr;
  const bad = new Set(
    Array.from(complaints.matchAll(/^macros:(\d+):\d+: error/gm), ([, line]) => Number(line)),
  );
  const good = constants.filter((_, index) => !bad.has(index + 1));

  writeFileSync(source, program(good));
  const binary = join(folder, 'facts');
  output('gcc', [...where, '-gdwarf-4', '-fno-eliminate-unused-debug-types', source, '-o', binary]);
  const values = new Map(
    output(binary, [])
      .trim()
      .split('\n')
      .map((line) => {
        const [name, value] = line.split(' ');
        return [name!, BigInt(value!)] as const;
      }),
  );
  const debug = entries(output('readelf', ['--debug-dump=info', binary]));
  for (const { tag, name, value } of debug.values()) {
    if (tag === 'enumerator' && /^KVM_/.test(name ?? '')) values.set(name!, value!);
  }

  const facts = new Map<string, readonly bigint[]>();
  for (const name of [...new Set([...names, ...values.keys()])].sort())
    facts.set(name, values.has(name) ? [values.get(name)!] : []);
  const structs = [...debug.values()]
    .filter(
      ({ tag, name, size }) => tag === 'structure_type' && STRUCTS.test(name ?? '') && size !== undefined,
    )
    .sort((a, b) => (a.name! < b.name! ? -1 : 1));
  for (const type of structs) {
    facts.set(type.name!, [BigInt(type.size!)]);
    addFields(facts, debug, type, type.name!, 0);
  }
  return facts;
}

/** Of `gcc -E -dD`: the definitions of the headers that are wanted. A macro with arguments is `NAME()`. */
function defines(text: string): Map<string, string> {
  const found = new Map<string, string>();
  let wanted = false;
  for (const line of text.split('\n')) {
    const marker = /^# \d+ "(.*?)"/.exec(line);
    if (marker) wanted = WANTED.test(marker[1]!);
    const [, name, args, value] = /^#define (\w+)(\(.*?\))? ?(.*)/.exec(line) ?? [];
    if (wanted && name) found.set(args ? `${name}()` : name, value!.trim());
  }
  return found;
}

/** The fields of a struct, and through those of its nameless structs and unions. */
function addFields(
  facts: Map<string, readonly bigint[]>,
  debug: ReadonlyMap<string, Entry>,
  type: Entry,
  path: string,
  base: number,
): void {
  for (const { name, type: of, offset = 0 } of type.children) {
    const inner = resolved(debug, of!);
    const own = name ? `${path}.${name}` : path;
    const at = base + offset;
    if (name && sizeOf(debug, inner) > 0) facts.set(own, [BigInt(at), BigInt(sizeOf(debug, inner))]);
    if (/^(structure|union)_type$/.test(inner.tag) && !inner.name) addFields(facts, debug, inner, own, at);
  }
}

function resolved(debug: ReadonlyMap<string, Entry>, type: string): Entry {
  const entry = debug.get(type);
  if (entry === undefined) throw new Error(`the debug information has no type ${type}`);
  return /^(typedef|const_type|volatile_type)$/.test(entry.tag) ? resolved(debug, entry.type!) : entry;
}

function sizeOf(debug: ReadonlyMap<string, Entry>, entry: Entry): number {
  if (entry.tag !== 'array_type') return entry.size ?? 0;
  const element = sizeOf(debug, resolved(debug, entry.type!));
  return entry.children.reduce((size, { bound }) => size * ((bound ?? -1) + 1), element);
}
