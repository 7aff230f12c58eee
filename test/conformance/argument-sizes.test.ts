/**
 * How long an argument is said to be, in the struct itself. The kernel believes what stands there and writes that much: more
 * than there is must be refused before it sees it.
 */
import { describe, expect } from 'vitest';
import { Cap, Errno, ioctls, kvm_nested_state } from '../../src/uapi/index.ts';
import { on, onKvm } from '../support/host.ts';
import { Tap } from '../support/tap.ts';

const refused = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });

/** What the backend throws for an ioctl of a vCPU with these bytes; or its result. */
function answerTo(backend: 'kvm' | 'sim', request: number, bytes: Uint8Array): unknown {
  using tap = new Tap(backend);
  using vm = tap.hv.createVm();
  using _vcpu = vm.createVcpu();
  try {
    return tap.backend.ioctl(tap.handle(ioctls.KVM_CREATE_VCPU), request, bytes);
  } catch (error) {
    return error;
  }
}

describe('the length of an argument', () => {
  onKvm('a list that counts in 64 bits has as many elements as all of them say', () => {
    const { request } = ioctls.KVM_GET_REG_LIST;
    for (const n of [1n, 1n << 32n, 1n << 63n, (1n << 64n) - 1n]) {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, n, true);
      expect(answerTo('kvm', request, bytes), `${n}`).toEqual(refused);
    }
  });

  for (const backend of ['kvm', 'sim'] as const) {
    on(backend)(`an XSAVE area has 4096 to 65536 bytes, and no others (${backend})`, () => {
      const { request } = ioctls.KVM_GET_XSAVE2;
      for (const size of [0, 4095, 65_537])
        expect(answerTo(backend, request, new Uint8Array(size)), `${size}`).toEqual(refused);
      expect(answerTo(backend, request, new Uint8Array(4096))).toBe(0);
    });
  }

  onKvm('a nested state has no more bytes than were given, whatever it says', (hv) => {
    for (const { request } of [ioctls.KVM_GET_NESTED_STATE, ioctls.KVM_SET_NESTED_STATE]) {
      for (const [length, says] of [
        [128, 129],
        [128, 0xffff_ffff],
        [4224, 4225],
        [16_384, 16_385],
        [127, 0],
        [16_385, 128],
      ] as const) {
        const bytes = new Uint8Array(length);
        new DataView(bytes.buffer).setUint32(4, says, true);
        expect(answerTo('kvm', request, bytes), `${length} ${says}`).toEqual(refused);
      }
    }
    using vm = hv.createVm();
    using vcpu = vm.createVcpu();
    const set = (state: Uint8Array) => () => vcpu.setNestedState(state);
    expect(set(new Uint8Array(100))).toThrow(/state's length/);
    expect(set(kvm_nested_state.encode({ size: 129 }))).toThrow(/state\.size/);
    expect(set('x' as never)).toThrow(TypeError);
  });

  onKvm('a buffer that is too short for the state is told so, and how long it must be', (hv, context) => {
    context.skip(hv.checkExtension(Cap.NESTED_STATE) === 0, 'this KVM has no nested guests');
    const bytes = new Uint8Array(128);
    const view = new DataView(bytes.buffer);
    view.setUint32(4, 127, true);
    expect(answerTo('kvm', ioctls.KVM_GET_NESTED_STATE.request, bytes)).toBe(-Errno.E2BIG);
    expect(view.getUint32(4, true)).toBeGreaterThanOrEqual(128);
  });
});
