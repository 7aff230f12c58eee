/**
 * KVM_MEMORY_ENCRYPT_OP, whose hardware no host at hand has: the addon's table of commands against the one in src/uapi, and
 * what reaches the kernel, by a double of it.
 */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it as test } from 'vitest';
import { loadNative } from '../../src/kvm/native.ts';
import { type EncryptCommand, encryptCommands, type Struct, viewOf } from '../../src/uapi/index.ts';
import { noAddon, noCompiler } from '../support/host.ts';
import { Preload, support } from '../support/preload.ts';

const commands = Object.entries(encryptCommands) as [string, EncryptCommand][];
const LIST = 65_535;
/** Reference::Is and Reference::Way of native/references.h. */
const kinds = { memory: [1, 0], in: [2, 1], out: [2, 2] } as const;

interface Line {
  readonly name: string;
  readonly reached: Record<string, string>;
  readonly targets: readonly { field: string; to: string; size: number; at: number; before: string }[];
  readonly after: readonly string[];
  readonly answer: { data?: Record<string, unknown>; entries: readonly object[]; status: number };
  readonly error?: { code: string; message: string };
}

const whyNot = noAddon ?? noCompiler;
const it = (sentence: string, shows: () => void) =>
  test(sentence, (context) => {
    context.skip(whyNot !== undefined, whyNot);
    shows();
  });

/** The row of each command as the addon describes it. */
it("the addon's table has the same commands as src/uapi, with the same structs and pointers", () => {
  const row = loadNative()
    .requests()
    .find(({ name }) => name === 'KVM_MEMORY_ENCRYPT_OP');
  const native = row!.references[0]!.inside.map(({ family, id, size, references }) => ({
    family,
    id,
    size,
    pointers: references.map(({ name, is, way, offset }) => [name, is, way, offset]),
  }));
  const known = commands.map(([, { family, id, data, list, pointers }]) => ({
    family,
    id,
    size: list ? LIST : (data?.size ?? 0),
    pointers: Object.entries(pointers).map(([name, { to }]) => [
      name,
      ...kinds[to],
      data!.fields[name]!.offset,
    ]),
  }));
  const order = (a: { family: string; id: number }, b: { family: string; id: number }) =>
    a.family < b.family ? -1 : a.family > b.family ? 1 : a.id - b.id;
  expect(native.sort(order)).toEqual(known.sort(order));
});

describe('what reaches the kernel of a command', () => {
  let preload: Preload | undefined;
  const lines = new Map<string, Line>();
  const run = (status: number): Line[] => {
    const out = execFileSync(process.execPath, [support('encrypt-op.mjs'), String(status)], {
      encoding: 'utf8',
      env: { ...preload!.env, FAKE_KVM_LOG: join(preload!.folder, 'log') },
    });
    return out
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Line);
  };

  beforeAll(() => {
    if (whyNot !== undefined) return;
    preload = new Preload('fake-kvm');
    for (const line of run(0)) lines.set(line.name, line);
  });
  afterAll(() => preload?.[Symbol.dispose]());

  for (const [name, command] of commands) {
    it(`${name}: its struct with every pointer filled in, and back what was written there`, () => {
      const { reached, targets, after, answer, error } = lines.get(name)!;
      expect(error).toBeUndefined();
      const head = viewOf(Buffer.from(reached.command!, 'hex'));
      expect(head.getUint32(0, true)).toBe(command.id);
      const isSev = command.family === 'Sev';
      expect(head.getUint32(isSev ? 20 : 4, true)).toBe(isSev ? 9 : 1);
      if (command.data === undefined) {
        expect(head.getBigUint64(8, true)).toBe(0x1234n);
        return;
      }
      expect(head.getBigUint64(8, true)).toBeGreaterThan(0x1_0000n);
      for (const [i, { at, before, to }] of targets.entries()) {
        expect(reached[`at${at}`]).toBe(before);
        const inverted = Buffer.from(Buffer.from(before, 'hex').map((byte) => ~byte & 0xff)).toString('hex');
        expect(after[i]).toBe(to === 'in' ? before : inverted);
      }
      // No address of this process comes back; everything else does.
      for (const field of Object.keys(command.pointers)) expect(Number(answer.data![field])).toBe(0);
      expect(reached.data!.endsWith('aa')).toBe(false);
      const struct = command.data as Struct;
      const sent = struct.decode(Buffer.from(reached.data!, 'hex').subarray(0, struct.size));
      for (const [field, { length }] of Object.entries(command.pointers))
        if (length !== undefined)
          expect(Number((sent as Record<string, number>)[length])).toBe(
            targets.find((target) => target.field === field)!.size,
          );
      if (command.list)
        expect(answer.entries).toMatchObject([
          { function: 1, eax: 0x11 },
          { function: 7, ebx: 0x77 },
        ]);
    });
  }

  it("the firmware's refusal is an error that has its status, and the struct as it was answered", () => {
    const refused = run(0x17).find(({ name }) => name === 'KVM_SEV_LAUNCH_MEASURE')!;
    expect(refused.error).toEqual({
      code: 'EIO',
      message: 'KVM_MEMORY_ENCRYPT_OP failed with EIO: KVM_SEV_LAUNCH_MEASURE: status 0x17',
    });
    expect(refused.answer.data).toMatchObject({ uaddr: 0, len: 48, pad0: 0xaa00_0000 });
  });
});
