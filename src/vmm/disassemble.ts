/** A guest's code as people read it: for traces, and for the report of a guest that has crashed. */
import type * as iced from 'iced-x86';
import type { Vcpu } from '../hypervisor/vcpu.ts';
import type { Vm } from '../hypervisor/vm.ts';

export interface Instruction {
  readonly rip: bigint;
  readonly bytes: Uint8Array;
  /** In Intel's syntax. */
  readonly text: string;
}

/** The longest instruction, in bytes (SDM volume 2, 2.3.11). */
const LONGEST = 15;
const PAGE = 4096n;

export class Disassembler {
  readonly #iced: typeof iced;
  readonly #formatter: iced.Formatter;

  /** @param module iced-x86, which is handed in: its npm build needs Node to load */
  constructor(module: typeof iced) {
    this.#iced = module;
    const formatter = new module.Formatter(module.FormatterSyntax.Intel);
    this.#formatter = Object.assign(formatter, {
      hexPrefix: '0x',
      hexSuffix: '',
      uppercaseHex: false,
      addLeadingZeroToHexNumbers: false,
      branchLeadingZeros: false,
      showBranchSize: false,
      spaceAfterOperandSeparator: true,
    });
  }

  /** The instructions that the bytes begin with, at most so many; the last is `(bad)` where they are none. */
  decode(bytes: Uint8Array, bits: number, rip: bigint, most = 1): Instruction[] {
    const decoder = new this.#iced.Decoder(bits, bytes, this.#iced.DecoderOptions.None);
    const instruction = new this.#iced.Instruction();
    const found: Instruction[] = [];
    try {
      decoder.ip = rip;
      while (found.length < most && decoder.canDecode) {
        const start = decoder.position;
        decoder.decodeOut(instruction);
        const bad = instruction.isInvalid;
        const end = bad ? Math.min(bytes.length, start + 1) : decoder.position;
        const text = bad ? '(bad)' : this.#formatter.format(instruction);
        found.push({ rip: rip + BigInt(start), bytes: bytes.subarray(start, end), text });
        if (bad) break;
      }
      return found;
    } finally {
      instruction.free();
      decoder.free();
    }
  }
}

const hex = (value: bigint) => `0x${value.toString(16)}`;

/** A line for each: address, bytes, text. */
export function describeInstructions(instructions: readonly Instruction[], indent = ''): string {
  const column = ({ bytes }: Instruction) =>
    [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
  const width = Math.max(...instructions.map((instruction) => column(instruction).length));
  const lines = instructions.map(
    (instruction) =>
      `${indent}${hex(instruction.rip)}  ${column(instruction).padEnd(width)}  ${instruction.text}`,
  );
  return lines.join('\n');
}

/**
 * The instructions from RIP on, at most so many, of a vCPU that is not in run(); or in words why they cannot be seen.
 * What lies before RIP has no known boundaries, so only who has watched it execute can tell.
 */
export function codeAtRip(
  vm: Vm,
  vcpu: Vcpu,
  disassembler: Disassembler,
  most: number,
): Instruction[] | string {
  const { rip } = vcpu.getRegs();
  const { cs, efer } = vcpu.getSregs();
  const long = (efer & EFER_LMA) !== 0n && cs.l !== 0;
  const linear = long ? rip : BigInt.asUintN(32, cs.base + rip);
  const code = readLinear(vm, vcpu, linear, most * LONGEST);
  return typeof code === 'string' ? code : disassembler.decode(code, long ? 64 : cs.db ? 32 : 16, rip, most);
}

const EFER_LMA = 0x400n;

/** Bytes of guest memory by linear address, as far as they can be seen; why, where there is not one. */
export function readLinear(vm: Vm, vcpu: Vcpu, linear: bigint, size: number): Uint8Array | string {
  const bytes: number[] = [];
  while (bytes.length < size) {
    const at = linear + BigInt(bytes.length);
    const length = Math.min(size - bytes.length, Number(PAGE - (at % PAGE)));
    const part = readPage(vm, vcpu, at, length);
    if (typeof part === 'string') return bytes.length > 0 ? Uint8Array.from(bytes) : part;
    bytes.push(...part);
  }
  return Uint8Array.from(bytes);
}

function readPage(vm: Vm, vcpu: Vcpu, linear: bigint, length: number): Uint8Array | string {
  const { valid, physicalAddress } = vcpu.translate(BigInt.asUintN(64, linear));
  if (!valid) return "the guest's page tables do not map it";
  const gpa = Number(physicalAddress);
  const slot = vm.memoryMap.slotAt(gpa);
  if (vm.memoryMap.isPrivate(gpa)) return 'it is in private memory, which the host does not see';
  if (slot?.memory === undefined || slot.memory.closed) return `there is no memory (${hex(physicalAddress)})`;
  return slot.memory.read(slot.memoryOffset + gpa - slot.start, length);
}
