/**
 * Guests that call what is not there: a BIOS, a kernel. Without a handler such a call leads to address 0, where a guest
 * executes zeroes until somebody ends it. So each way there ends the run, and the account says what was called.
 */
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';
import { Exit } from '../uapi/exit.ts';
import { readLinear } from '../vmm/disassemble.ts';
import type { Machine } from '../vmm/machine.ts';

const VECTORS = 256;
const HLT = 0xf4;
const MIB = 2 ** 20;
/** Where in its 64 KiB the page of HLTs is: at the end, where a PC has its BIOS. */
const STUBS = 0xff00;
/** Vector 0 leads to this one of them: so the byte at address 0 is a HLT too. */
const FIRST = HLT;
const MSR_LSTAR = 0xc000_0082;
/** Canonical, and not among the 4 GiB that are mapped: a fetch from there faults. */
const NO_KERNEL = 0xffff_ffff_ffff_f000n;

/** In real mode: vectors of their own for a guest that brings none. Before its program is placed, which may bring some. */
export function layVectors({ memory }: Machine): void {
  const segment = (Math.min(memory.size, MIB) - 0x1_0000) / 16;
  const table = new DataView(new ArrayBuffer(4 * VECTORS));
  for (let vector = 0; vector < VECTORS; vector++) {
    table.setUint16(4 * vector, STUBS + ((FIRST + vector) % VECTORS), true);
    table.setUint16(4 * vector + 2, segment, true);
  }
  memory.write(0, new Uint8Array(table.buffer));
  memory.write(segment * 16 + STUBS, new Uint8Array(VECTORS).fill(HLT));
}

/** In 64-bit mode: SYSCALL faults at an address that tells of it, until the guest sets another. */
export const layNoKernel = (vcpu: Vcpu): number => vcpu.setMsrs([{ index: MSR_LSTAR, data: NO_KERNEL }]);

/** What a PC's BIOS, and DOS, do by vector. */
const services: { readonly [vector: number]: string } = {
  16: 'BIOS: video',
  17: 'BIOS: equipment',
  18: 'BIOS: memory size',
  19: 'BIOS: disks',
  20: 'BIOS: serial ports',
  21: 'BIOS: memory map and system services',
  22: 'BIOS: keyboard',
  23: 'BIOS: printer',
  25: 'BIOS: boot',
  26: 'BIOS: clock',
  32: 'DOS: end of a program',
  33: 'DOS',
};
/** SDM volume 3, table 7-1. */
const exceptions: { readonly [vector: number]: string } = {
  0: '#DE, a division',
  1: '#DB',
  3: '#BP, INT3',
  4: '#OF',
  5: '#BR',
  6: '#UD, an invalid opcode',
  7: '#NM',
  12: '#SS',
  13: '#GP',
  16: '#MF',
};

const hex = (value: number | bigint) => `0x${value.toString(16)}`;
const startsWith = (code: Uint8Array | string, ...bytes: number[]) =>
  typeof code !== 'string' && bytes.every((byte, i) => code[i] === byte);

/** What has the guest called that is not there? Undefined when it has ended otherwise. After the exit, as it stands. */
export function missingSystem(vm: Vm, vcpu: Vcpu): string | undefined {
  if (vcpu.outcome === Exit.HLT) return missingBios(vm, vcpu);
  // An emulator that has no INT n in protected mode ends KVM_RUN at it, whether there is a handler or not.
  const gaveUp = vcpu.outcome === Exit.INTERNAL_ERROR && !hasHandler(vm, vcpu, 0x80);
  return vcpu.outcome === Exit.SHUTDOWN || gaveUp ? missingKernel(vm, vcpu) : undefined;
}

/** Of 64-bit mode: whether a gate is present. */
function hasHandler(vm: Vm, vcpu: Vcpu, vector: number): boolean {
  const { base, limit } = vcpu.getSregs().idt;
  const at = vector * 16;
  if (at + 15 > limit) return false;
  const gate = readLinear(vm, vcpu, base + BigInt(at), 16);
  return typeof gate !== 'string' && (gate[5]! & 0x80) !== 0;
}

function missingBios(vm: Vm, vcpu: Vcpu): string | undefined {
  const { rip, rsp } = vcpu.getRegs();
  const { cr0, cs, ss } = vcpu.getSregs();
  if ((cr0 & 1n) !== 0n) return undefined;
  const at = Number(rip) - 1;
  if (cs.base === 0n && at === 0 && startsWith(readLinear(vm, vcpu, 0n, 2), HLT, STUBS >> 8))
    return 'the guest is at address 0, in the interrupt vectors: a return without a caller, or a jump to nowhere';
  const stubs = readLinear(vm, vcpu, cs.base + BigInt(STUBS), VECTORS);
  if (at < STUBS || typeof stubs === 'string' || stubs.some((byte) => byte !== HLT)) return undefined;
  const vector = (at - STUBS + VECTORS - FIRST) % VECTORS;
  const frame = readLinear(vm, vcpu, ss.base + (rsp & 0xffffn), 4);
  if (typeof frame === 'string') return undefined;
  const [ip, segment] = [frame[0]! + frame[1]! * 256, frame[2]! + frame[3]! * 256];
  const called = BigInt(segment * 16 + ip - 2);
  if (startsWith(readLinear(vm, vcpu, called, 2), 0xcd, vector)) {
    const whose = services[vector];
    return (
      `int ${hex(vector)} at ${hex(called)}${whose ? ` (${whose})` : ''}: the guest has no handler for it, and here is ` +
      'no BIOS and no DOS; it can write to the serial port (0x3f8)'
    );
  }
  const what = exceptions[vector];
  return `exception ${vector}${what ? ` (${what})` : ''} at ${hex(segment * 16 + ip)}: the guest has no handler for it`;
}

/** Ways into a kernel that fault where they are, by their bytes. */
const calls: readonly (readonly [name: string, ...bytes: number[]])[] = [
  ['int 0x80', 0xcd, 0x80],
  ['sysenter', 0x0f, 0x34],
];

function missingKernel(vm: Vm, vcpu: Vcpu): string | undefined {
  const { rip, rcx, rax } = vcpu.getRegs();
  const { cs } = vcpu.getSregs();
  const code = readLinear(vm, vcpu, BigInt.asUintN(64, cs.base + rip), 2);
  const [name] =
    rip === NO_KERNEL ? ['syscall'] : (calls.find(([, ...bytes]) => startsWith(code, ...bytes)) ?? []);
  if (name === undefined) return undefined;
  const at = rip === NO_KERNEL ? rcx - 2n : rip;
  return `${name} at ${hex(at)}, with ${hex(rax)} in rax: a system call, and here is no kernel to serve it`;
}
