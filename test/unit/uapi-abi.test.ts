/** What src/uapi claims of the kernel's ABI, held against headers: recorded ones, the host's, and the lab kernels'. */
import { beforeAll, describe, expect, it as test } from 'vitest';
import { kernelHeaders } from '../../src/lab/index.ts';
import { pmuEvent, pmuMaskedEntry, RegType, regId } from '../../src/uapi/index.ts';
import { type Comparison, compare, describeOtherwise } from '../uapi/compare.ts';
import { type Facts, isField, isMacro, isStruct } from '../uapi/facts.ts';
import { readRecorded } from '../uapi/fixture.ts';
import { noHeaderTools, readHeaders } from '../uapi/headers.ts';
import { leftOut } from '../uapi/left-out.ts';

/** In no released kernel. */
const PROPOSALS = [
  'KVM_MEM_USERFAULT',
  'KVM_MEMORY_EXIT_FLAG_USERFAULT',
  'kvm_userspace_memory_region2.userfault_bitmap',
];

/** Those that took bytes of what was padding behind them. */
const GROWN = ['kvm_svm_nested_state_hdr', 'kvm_nested_state.hdr.svm'];

const recorded = readRecorded();
const unknownNames = ({ unknown }: Comparison) => unknown.map(({ name }) => name).sort();

describe(`the ABI tables against ${recorded.of}, as recorded`, () => {
  const compared = compare(recorded.facts);

  test('have every macro, ioctl, struct and field of KVM, or a reason why not', () => {
    const names = [...recorded.facts.keys()];
    expect(names.filter((name) => isMacro(name) && /^KVM_/.test(name)).length).toBeGreaterThan(700);
    expect(names.filter(isStruct).length).toBeGreaterThan(90);
    expect(names.filter(isField).length).toBeGreaterThan(600);
    expect(compared.lacking).toEqual([]);
  });

  test('give each of them the values, sizes and offsets that they have there', () => {
    expect(compared.otherwise.map(describeOtherwise)).toEqual([]);
  });

  test('have nothing else but proposals', () => {
    expect(unknownNames(compared)).toEqual([...PROPOSALS].sort());
  });

  test('leave out only what is there', () => {
    const names = [...recorded.facts.keys()];
    const idle = leftOut.filter(
      ({ names: pattern, older }) => !older && !names.some((name) => pattern.test(name)),
    );
    expect(idle.map(({ why }) => why)).toEqual([]);
  });

  test('would be seen to lack what a kernel has more, and to have otherwise what it has otherwise', () => {
    const changed: Facts = new Map([
      ...recorded.facts,
      ['KVM_CAP_OF_TOMORROW', [999n]],
      ['kvm_regs.of_tomorrow', [144n, 8n]],
      ['KVM_EXIT_HLT', [6n]],
      ['kvm_regs.rip', [0n, 8n]],
    ]);
    const { lacking, otherwise } = compare(changed);
    expect(lacking).toEqual(['KVM_CAP_OF_TOMORROW', 'kvm_regs.of_tomorrow']);
    expect(otherwise.map(describeOtherwise)).toEqual([
      'KVM_EXIT_HLT is 5 in Exit.HLT and 6 in the headers',
      'kvm_regs.rip is 8 bytes at 128 in its table and 8 bytes at 0 in the headers',
    ]);
  });
});

/** Headers that may be older than the tables, and newer than what is recorded. */
function suite(why: string | undefined, folders: () => readonly string[]) {
  let compared: Comparison;
  beforeAll(() => {
    if (why === undefined) compared = compare(readHeaders(folders()));
  });
  const it = (sentence: string, shows: () => void) =>
    test(sentence, (context) => {
      context.skip(why !== undefined, why);
      shows();
    });

  it('have every macro, ioctl, struct and field of KVM, or a reason why not', () => {
    expect(compared.lacking).toEqual([]);
  });

  it('give each of them the values, sizes and offsets that they have there, but for what has grown since', () => {
    const grown = ({ name, values, header }: Comparison['otherwise'][number]) =>
      GROWN.includes(name) && header.at(-1)! < values.at(-1)!;
    // Linux 6.1's KVM_ASYNC_PF_VEC_MASK needs a macro that userspace has not.
    const otherwise = compared.otherwise.filter(
      (difference) => !grown(difference) && difference.header.length > 0,
    );
    expect(otherwise.map(describeOtherwise)).toEqual([]);
  });

  it('have nothing else but what the recorded headers have too', () => {
    const unknown = unknownNames(compared);
    expect(unknown.filter((name) => !recorded.facts.has(name) && !PROPOSALS.includes(name))).toEqual([]);
  });
}

describe("the ABI tables against the system's <linux/kvm.h>", () => {
  suite(noHeaderTools, () => []);
});

describe("the ABI tables against the lab kernel's headers", () => {
  const headers = process.env.VMEXIT_KERNEL_HEADERS ?? kernelHeaders();
  suite(noHeaderTools ?? (headers === undefined ? "the lab's kernel is not built" : undefined), () => [
    headers!,
  ]);
});

describe("the proposals in the ABI tables against the lab's kernel that has them", () => {
  const headers = kernelHeaders('userfault');
  test('have the values, offsets and sizes of its header', (context) => {
    context.skip(noHeaderTools !== undefined, noHeaderTools);
    context.skip(headers === undefined, "the lab's kernel `userfault` is not built");
    const facts = readHeaders([headers!]);
    expect(PROPOSALS.filter((name) => !facts.has(name))).toEqual([]);
    const { otherwise } = compare(facts);
    expect(otherwise.filter(({ name }) => PROPOSALS.includes(name)).map(describeOtherwise)).toEqual([]);
  });
});

describe('what macros with arguments make', () => {
  test('is made by functions: the ids of registers, and PMU events with masks', () => {
    // KVM_X86_REG_MSR(MSR_IA32_TSC), KVM_X86_REG_KVM(KVM_REG_GUEST_SSP)
    expect(regId(RegType.MSR, 0x10)).toBe(0x2030_0002_0000_0010n);
    expect(regId(RegType.MSR, 0xc000_0080)).toBe(0x2030_0002_c000_0080n);
    expect(regId(RegType.KVM, 0)).toBe(0x2030_0003_0000_0000n);
    // KVM_PMU_ENCODE_MASKED_ENTRY(0x1c4, 0xff, 0x20, true)
    expect(pmuMaskedEntry(0x1c4, 0xff, 0x20, true)).toBe(0xff80_0001_0000_20c4n);
    expect(pmuEvent(0x1c4, 0x20)).toBe(0x1_0000_20c4n);
  });
});
