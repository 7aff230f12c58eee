/** Registers by their ids, and which events a guest's counters may count (api.rst, KVM_GET_ONE_REG, KVM_SET_PMU_EVENT_FILTER). */
import { describe, expect } from 'vitest';
import { Cap, PmuCap, PmuEvent, pmuEvent, pmuMaskedEntry, RegType, regId } from '../../src/index.ts';
import { Agent } from '../support/agent.ts';
import { on, onKvm } from '../support/host.ts';
import { errnoOf } from '../support/run.ts';

const MSR_STAR = 0xc000_0081;
const STAR = regId(RegType.MSR, MSR_STAR);
const CYCLES = pmuEvent(0x76, 0);

describe('registers by their ids (kvm)', () => {
  onKvm(
    'KVM_SET_ONE_REG sets the MSR that KVM_GET_MSRS reads, where KVM has registers by id',
    (hv, context) => {
      using agent = Agent.boot(hv);
      const { vcpu } = agent;
      context.skip(hv.checkExtension(Cap.ONE_REG) === 0, 'KVM_CAP_ONE_REG is 0 (since 6.18 on x86)');
      vcpu.setOneReg(STAR, new Uint8Array(BigUint64Array.of(0x1234_5678_9abcn).buffer));
      expect(vcpu.getMsrs([MSR_STAR])).toMatchObject([{ data: 0x1234_5678_9abcn }]);
      expect(new BigUint64Array(vcpu.getOneReg(STAR).buffer)).toEqual(BigUint64Array.of(0x1234_5678_9abcn));
      for (const id of vcpu.getRegList()) expect(errnoOf(() => vcpu.getOneReg(id))).toBe('ok');
    },
  );

  onKvm('KVM without registers by id refuses them all', (hv, context) => {
    using agent = Agent.boot(hv);
    context.skip(hv.checkExtension(Cap.ONE_REG) > 0, 'KVM_CAP_ONE_REG is 1');
    for (const issue of [
      () => agent.vcpu.getRegList(),
      () => agent.vcpu.getOneReg(STAR),
      () => agent.vcpu.setOneReg(STAR, new Uint8Array(8)),
    ])
      expect(errnoOf(issue)).toBe('EINVAL');
  });

  onKvm('a value has as many bytes as its id says', (hv) => {
    using agent = Agent.boot(hv);
    const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
    expect(() => agent.vcpu.setOneReg(STAR, new Uint8Array(4))).toThrow(invalid);
    expect(() => agent.vcpu.setOneReg(STAR, 8 as never)).toThrow(invalid);
    expect(() => agent.vcpu.getOneReg('x' as never)).toThrow(invalid);
  });
});

describe("the filter of counters' events (kvm)", () => {
  onKvm('KVM takes events with and without masks, and refuses what none can be', (hv, context) => {
    using vm = hv.createVm();
    context.skip(hv.checkExtension(Cap.PMU_EVENT_FILTER) === 0, 'KVM_CAP_PMU_EVENT_FILTER is 0');
    const { ALLOW, DENY, FLAG_MASKED_EVENTS } = PmuEvent;
    const set = (filter: Parameters<typeof vm.setPmuEventFilter>[0]) =>
      errnoOf(() => vm.setPmuEventFilter(filter));
    expect(set({ action: ALLOW, events: [CYCLES] })).toBe('ok');
    expect(set({ action: DENY, fixedCounterBitmap: 1, events: [] })).toBe('ok');
    expect(set({ action: DENY, flags: 1 << 5, events: [] })).toBe('EINVAL');
    context.skip(
      hv.checkExtension(Cap.PMU_EVENT_MASKED_EVENTS) === 0,
      'KVM_CAP_PMU_EVENT_MASKED_EVENTS is 0',
    );
    const masked = (event: bigint) => set({ action: ALLOW, flags: FLAG_MASKED_EVENTS, events: [event] });
    expect(masked(pmuMaskedEntry(0x76, 0xff, 0x01, false))).toBe('ok');
    expect(masked(1n << 40n)).toBe('EINVAL');
  });

  onKvm('names a filter that cannot be before anything changes', (hv) => {
    using vm = hv.createVm();
    const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
    expect(() => vm.setPmuEventFilter({ action: 2, events: [] })).toThrow(invalid);
    expect(() => vm.setPmuEventFilter({ action: 0, events: new Array(301).fill(CYCLES) })).toThrow(invalid);
    expect(() => vm.setPmuEventFilter({ action: 0, events: 5 as never })).toThrow(invalid);
    expect(() => vm.setPmuEventFilter({ action: 0, flags: -1, events: [] })).toThrow(invalid);
  });

  onKvm('KVM_CAP_PMU_CAPABILITY takes the counters from a VM that could have some', (hv) => {
    using vm = hv.createVm();
    const can = hv.checkExtension(Cap.PMU_CAPABILITY) & PmuCap.DISABLE;
    const disable = () => vm.enableCap({ cap: Cap.PMU_CAPABILITY, args: [PmuCap.DISABLE] });
    expect(errnoOf(disable)).toBe(can ? 'ok' : 'EINVAL');
  });
});

on('sim')('the simulator has neither registers by id nor counters, and says so', (hv) => {
  using agent = Agent.boot(hv);
  for (const cap of [Cap.ONE_REG, Cap.PMU_EVENT_FILTER, Cap.PMU_CAPABILITY])
    expect(hv.checkExtension(cap)).toBe(0);
  for (const issue of [
    () => agent.vcpu.getRegList(),
    () => agent.vcpu.getOneReg(STAR),
    () => agent.vcpu.setOneReg(STAR, new Uint8Array(8)),
    () => agent.vm.setPmuEventFilter({ action: PmuEvent.ALLOW, events: [CYCLES] }),
  ])
    expect(errnoOf(issue)).toBe('ENOTTY');
});
