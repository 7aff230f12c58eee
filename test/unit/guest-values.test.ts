/**
 * What a guest controls reaches the VMM in kvm_run. Whatever is there, of any exit, the loop and its services answer it or end
 * with an error of their own. These pages are more hostile than a guest can be: the kernel fills in some of the fields.
 */
import { describe, expect, it } from 'vitest';
import {
  Bus,
  DebugExit,
  describeExit,
  Exit,
  exitName,
  Hypercall,
  KvmError,
  RunLoop,
  Serial,
  VmexitError,
  VmType,
} from '../../src/index.ts';
import { Errno } from '../../src/uapi/errno.ts';
import { EXIT_OFFSET, exitArms, kvm_run } from '../../src/uapi/kvm-run.ts';
import { machine, PAGE } from '../support/scripted-machine.ts';

const SEED = Number(process.env.VMEXIT_SEED ?? 1);
/** Where the numbers of a guest's fields end: bits, signs, pages, and what the buses and slots below have. */
const EDGES = [
  ...[0n, 1n, 2n, 3n, 4n, 8n, 16n, 0xffn, 0xffffn, 0x1000n, 0x1_0000n, 0x1_8000n, 0x2_0000n, 0x10_0000n],
  ...[31n, 32n, 52n, 53n, 63n, 64n].flatMap((bits) => [(1n << bits) - 1n, 1n << bits, (1n << bits) + 1n]),
];
const PORTS = [0, 0xf3, 0xf4, 0xf7, 0x3f8, 0x3ff, 0xffff];
const UNKNOWN_EXITS = [99, 0x7fff_ffff];
/** What the loop and its services answer, and so what there is to be got wrong. */
const SERVED: ReadonlySet<number> = new Set([Exit.IO, Exit.MMIO, Exit.HYPERCALL, Exit.MEMORY_FAULT]);
const reasons = [...Object.values(Exit).filter((exit) => exit >= 0), ...UNKNOWN_EXITS];

function random(seed: number) {
  let state = seed >>> 0 || 1;
  const below = (most: number): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % most;
  };
  const bits = (): bigint => (BigInt(below(2 ** 32)) << 32n) | BigInt(below(2 ** 32));
  return { below, word: () => (below(4) ? BigInt.asUintN(64, EDGES[below(EDGES.length)]!) : bits()) };
}

const text = (value: unknown): string =>
  JSON.stringify(value, (_, inner) => (typeof inner === 'bigint' ? String(inner) : inner));

/** A kvm_run after an exit, with anything in it. */
function spoil(page: DataView, reason: number, { below, word }: ReturnType<typeof random>): void {
  page.setUint32(kvm_run.fields.exitReason.offset, reason, true);
  for (let at = EXIT_OFFSET; at < EXIT_OFFSET + 256; at += 4)
    page.setUint32(at, Number(word() & 0xffff_ffffn), true);
  for (let at = EXIT_OFFSET; at < EXIT_OFFSET + 256; at += 8)
    if (below(3)) page.setBigUint64(at, word(), true);
  // In half of them the rest is as it should be: only then does anything come as far as a device or a conversion.
  const { io, hypercall } = exitArms;
  if (reason === Exit.IO && below(2)) {
    page.setUint8(EXIT_OFFSET + io.fields.size.offset, 1 << below(3));
    page.setUint16(EXIT_OFFSET + io.fields.port.offset, PORTS[below(PORTS.length)]!, true);
    page.setBigUint64(EXIT_OFFSET + io.fields.dataOffset.offset, BigInt(PAGE), true);
  }
  if (reason === Exit.HYPERCALL && below(2)) {
    const at = EXIT_OFFSET + hypercall.fields.args.offset;
    page.setBigUint64(EXIT_OFFSET + hypercall.fields.nr.offset, BigInt(Hypercall.MAP_GPA_RANGE), true);
    if (below(2)) page.setBigUint64(at, BigInt(below(40) * PAGE), true);
    if (below(2)) page.setBigUint64(at + 8, BigInt(below(40)), true);
  }
}

describe('what a guest puts into an exit', () => {
  it(`is answered, or ends the run with an error of vmexit's, whatever it is (VMEXIT_SEED=${SEED})`, async () => {
    const chance = random(SEED);
    const { below } = chance;
    const ends = new Set<string>();
    let converted = 0;
    for (const reason of reasons)
      for (let round = 0; round < (SERVED.has(reason) ? 400 : 30); round++) {
        const type = below(2) ? VmType.SW_PROTECTED : VmType.DEFAULT;
        const made = machine(type, { policy: () => 'allow', preFault: below(2) > 0 });
        const { backend, vcpu, service, conversions, punches } = made;
        const ports = new Bus();
        Serial.attach(ports, (byte) => expect(byte).toBe(byte & 0xff));
        DebugExit.attach(ports, (value) => loop.stop(value));
        const mmio = new Bus().attach(0x10_0000, 8, new Serial(() => {}));
        // As a trace does.
        const onExit = () => expect(text([vcpu.exit, vcpu.raw])).toBeTypeOf(typeof describeExit(vcpu.exit));
        const loop = new RunLoop(vcpu, { ports, mmio, handlers: [service], onExit });
        backend.script.push(
          (page) => {
            spoil(page, reason, chance);
            if (reason !== Exit.MEMORY_FAULT) return reason;
            return -(below(2) ? Errno.EFAULT : Errno.EHWPOISON);
          },
          () => Exit.HLT,
        );
        const name = exitName(reason);
        try {
          const end = await loop.run({ timeoutMs: 10_000 });
          ends.add(`${name}: ${end.reason}`);
        } catch (error) {
          const { code } = error as VmexitError;
          const own =
            error instanceof VmexitError || error instanceof KvmError || code === 'ERR_KVM_INVALID_ARG';
          if (!own) throw new Error(`${name}, round ${round}`, { cause: error });
          ends.add(`${name}: ${code}`);
        }
        if (reason !== Exit.HYPERCALL) continue;
        // The guest's own ranges: whole pages of slots, and in the guest_memfd.
        for (const { address, size } of conversions()) {
          converted++;
          expect([address % PAGE, size % PAGE, made.vm.memoryMap.slotAt(address + size - 1)?.end]).toEqual([
            ...[0, 0],
            expect.any(Number),
          ]);
        }
        for (const { offset, size } of punches() as { offset: number; size: number }[])
          expect(offset >= 0 && offset + size <= 0x4_0000).toBe(true);
      }
    expect(converted).toBeGreaterThan(0);
    expect([...ends]).toEqual(
      expect.arrayContaining([
        ...['IO: halt', 'IO: stop', 'IO: ERR_KVM_INVALID_ARG', 'MMIO: halt', 'HYPERCALL: halt'],
        ...[
          'HYPERCALL: unhandled',
          'MEMORY_FAULT: halt',
          'MEMORY_FAULT: ERR_KVM_REFUSED',
          'SHUTDOWN: unhandled',
        ],
      ]),
    );
  });
});
