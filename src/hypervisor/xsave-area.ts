/** A typed view of the XSAVE area: the x87, SSE and AVX registers of a vCPU. */
import { type Input, type Value, viewOf } from '../uapi/layout.ts';
import { fpstate, xstate } from '../uapi/xsave.ts';
import { integer } from './args.ts';
import { outOfRange, wrongType } from './errors.ts';

/** The x87 and SSE registers, with MXCSR, as FXSAVE writes them. */
export type FxsaveArea = Value<typeof fpstate>;

/** Components by their bit in `xfeatures` and in XCR0 (SDM volume 1, 13.1). */
export const Xfeature = {
  /** x87 registers. */
  FP: 1 << 0,
  /** XMM registers and MXCSR. */
  SSE: 1 << 1,
  /** The upper halves of the YMM registers. */
  YMM: 1 << 2,
} as const;
/** One of the numbers in the table {@link Xfeature}. */
export type Xfeature = (typeof Xfeature)[keyof typeof Xfeature];

const { offset: HEADER } = xstate.fields.xstateHdr;
const { offset: YMM_HIGH } = xstate.fields.ymmh;
const XMM = fpstate.fields.xmmSpace.offset;
const XMM_BYTES = 16;

/**
 * The bytes of Vcpu.getXsave(), read and changed by the names of what is in them. A copy: Vcpu.setXsave() puts it back.
 * @example
 * ```ts
 * import { openHypervisor, XsaveArea } from 'vmexit';
 *
 * const hv = openHypervisor();
 * const vm = hv.createVm();
 * const vcpu = vm.createVcpu();
 * vcpu.setCpuid2(hv.getSupportedCpuid());
 * const area = new XsaveArea(vcpu.getXsave());
 * area.change({ mxcsr: 0x1fa0, xmmSpace: [Uint8Array.of(42)] }); // a sticky PE
 * vcpu.setXsave(area.bytes);
 *
 * const { mxcsr, xmmSpace } = new XsaveArea(vcpu.getXsave()).fxsave;
 * console.log(`MXCSR is 0x${mxcsr.toString(16)}, XMM0 begins with ${xmmSpace[0]![0]}`);
 * for (const opened of [vcpu, vm, hv]) opened.close();
 * // prints: MXCSR is 0x1fa0, XMM0 begins with 42
 * ```
 */
export class XsaveArea {
  /** The area itself. */
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  /**
   * @param bytes what Vcpu.getXsave() gave, not copied: at least the 832 bytes up to AVX's component
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG
   */
  constructor(bytes: Uint8Array) {
    if (!(bytes instanceof Uint8Array)) throw wrongType('bytes', bytes, 'a Uint8Array from getXsave()');
    if (bytes.length < xstate.size) throw outOfRange("bytes' length", bytes.length, `${xstate.size} or more`);
    this.bytes = bytes;
    this.#view = viewOf(bytes);
  }

  /** The x87 and SSE registers: a copy. */
  get fxsave(): FxsaveArea {
    return fpstate.get(this.#view, 0);
  }

  /** Components that hold something, by the bits of Xfeature: what the area's header has as its bit vector. */
  get components(): bigint {
    return this.#view.getBigUint64(HEADER, true);
  }

  /**
   * Changes some of the x87 and SSE registers; what is left out stays as it is. Both components count from then on.
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG for fields that there are not, and values that they cannot hold
   */
  change(registers: Input<FxsaveArea>): void {
    // First into a copy: nothing has changed when a value is refused.
    const copy = this.bytes.slice(0, fpstate.size);
    fpstate.set(viewOf(copy), 0, registers as FxsaveArea);
    this.bytes.set(copy);
    this.#holds(Xfeature.FP | Xfeature.SSE);
  }

  /**
   * A YMM register: 32 bytes, a copy. The lower 16 are those of the XMM register with the same number.
   * @param index 0 to 15
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG
   */
  getYmm(index: number): Uint8Array {
    const [low, high] = ymmAt(index);
    const value = new Uint8Array(2 * XMM_BYTES);
    value.set(this.bytes.subarray(low, low + XMM_BYTES));
    if ((this.components & BigInt(Xfeature.YMM)) !== 0n)
      value.set(this.bytes.subarray(high, high + XMM_BYTES), XMM_BYTES);
    return value;
  }

  /**
   * Sets a YMM register. AVX's component counts from then on, and setXsave() needs a host that has it.
   * @param index 0 to 15
   * @param value up to 32 bytes; the rest becomes 0
   * @throws TypeError, RangeError ERR_KVM_INVALID_ARG
   */
  setYmm(index: number, value: Uint8Array): void {
    const [low, high] = ymmAt(index);
    if (!(value instanceof Uint8Array)) throw wrongType('value', value, 'a Uint8Array');
    if (value.length > 2 * XMM_BYTES) throw outOfRange("value's length", value.length, '32 or less');
    const all = new Uint8Array(2 * XMM_BYTES);
    all.set(value);
    if ((this.components & BigInt(Xfeature.YMM)) === 0n)
      this.bytes.fill(0, YMM_HIGH, YMM_HIGH + 16 * XMM_BYTES);
    this.bytes.set(all.subarray(0, XMM_BYTES), low);
    this.bytes.set(all.subarray(XMM_BYTES), high);
    this.#holds(Xfeature.SSE | Xfeature.YMM);
  }

  #holds(features: number): void {
    this.#view.setBigUint64(HEADER, this.components | BigInt(features), true);
  }
}

function ymmAt(index: number): [low: number, high: number] {
  const at = integer('index', index, 15) * XMM_BYTES;
  return [XMM + at, YMM_HIGH + at];
}
