/** Which backend openHypervisor() gives, and what it says of the one that it does not. */
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { Exit, type OpenOptions, openHypervisor, UnavailableError } from '../../src/index.ts';
import { enterRealMode } from '../../src/vmm/modes.ts';
import { noAddon, onKvm, onLinux } from '../support/host.ts';
import { scratchFolder } from './cli-vmexit.ts';

const scratch = scratchFolder();
const NOWHERE = '/nonexistent/kvm';

/** The error of opening with these options. */
function refusal(options: OpenOptions): UnavailableError {
  try {
    openHypervisor(options).close();
  } catch (error) {
    if (error instanceof UnavailableError) return error;
    throw error;
  }
  throw new Error('it was opened');
}

describe("backend 'auto'", () => {
  onKvm('is KVM where that can do all that is needed, and there is no fallback to tell of', () => {
    using hv = openHypervisor({ needs: ['real-mode'] });
    expect([hv.backend, hv.fallback]).toEqual(['kvm', undefined]);
  });

  onLinux('is the simulator where there is no KVM, and says why', () => {
    using hv = openHypervisor({ device: NOWHERE });
    expect(hv.backend).toBe('sim');
    expect(hv.fallback).toMatch(/^\/nonexistent\/kvm does not exist: \S/);
    expect(() => openHypervisor({ device: '' })).toThrow(RangeError);
  });

  const others = { 'another device': () => '/dev/null', 'a file': () => scratch.file('kvm', '') };
  for (const [what, make] of Object.entries(others))
    onLinux(`is the simulator where ${what} is in the place of KVM`, (context) => {
      context.skip(noAddon !== undefined, noAddon);
      const device = make();
      using hv = openHypervisor({ device });
      expect(hv.backend).toBe('sim');
      expect(hv.fallback).toContain(`${device} cannot be opened as KVM`);
    });

  it('is whichever has private memory, and says what KVM lacks if that is the simulator', () => {
    const needs = ['private-memory', 'map-gpa-range'] as const;
    using hv = openHypervisor({ needs });
    if (hv.backend === 'kvm') expect(hv.fallback).toBeUndefined();
    else expect(hv.fallback).toBe(refusal({ backend: 'kvm', needs }).message);
    using vm = hv.createVm({ type: 1 });
    expect(vm.type).toBe(1);
  });

  onLinux('says of both what they lack where neither will do', () => {
    const error = refusal({ device: NOWHERE, needs: ['irqchip'] });
    expect(error.reason).toBe('device');
    expect(error.message).toMatch(/does not exist.*; and the simulator lacks irqchip/);
  });
});

describe("backend 'sim'", () => {
  it('is the simulator, with nothing to explain', () => {
    using hv = openHypervisor({ backend: 'sim', needs: ['private-memory', 'memory-fault', 'long-mode'] });
    expect([hv.backend, hv.fallback]).toEqual(['sim', undefined]);
  });

  it('says which of the needed features it lacks', () => {
    const error = refusal({ backend: 'sim', needs: ['irqchip'] });
    expect([error.reason, error.code]).toEqual(['feature', 'ERR_KVM_UNAVAILABLE']);
    expect(error.message).toMatch(/the simulator lacks irqchip/);
  });
});

describe("backend 'kvm'", () => {
  it('is KVM or nothing', () => {
    expect(refusal({ backend: 'kvm', device: NOWHERE }).message).not.toContain('simulator');
  });
});

describe('wrong options', () => {
  const wrong = (options: object) => () => openHypervisor(options as OpenOptions);
  const invalid = expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' });
  it.each([
    { backend: 'qemu' },
    { needs: 'everything' },
    { needs: ['flying'] },
    { device: 7 },
    { simulated: 'all of it' },
  ])('are refused, with the value: %o', (options) => {
    expect(wrong(options)).toThrow(invalid);
  });
});

/** Data of the worker: the source of the package, a vCPU's number and a token of memory. */
const kicksAndWrites = `
  const { workerData, parentPort } = require('node:worker_threads');
  import(workerData.dist).then(({ openHypervisor }) => {
    const hv = openHypervisor({ backend: 'sim' });
    const memory = hv.openMemory(workerData.token);
    memory.write(8, Uint8Array.of(7));
    parentPort.postMessage({ kicked: hv.kick(workerData.kickId), seen: memory.read(0, 1)[0] });
    memory.close();
    hv.close();
  });
`;

describe('threads', () => {
  it('share memory of the simulator by a token, and kick its vCPUs by their number', async () => {
    using hv = openHypervisor({ backend: 'sim' });
    using vm = hv.createVm();
    using memory = vm.allocate(0x1_0000);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
    using vcpu = vm.createVcpu();
    enterRealMode(vcpu);
    vcpu.setRegs({ rip: 0, rflags: 2n });
    memory.bytes[0] = 0xf4; // hlt
    const dist = new URL('../../dist/index.js', import.meta.url).href;
    const workerData = { dist, token: memory.share(), kickId: vcpu.kickId };
    const worker = new Worker(kicksAndWrites, { eval: true, workerData });
    const answer = await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    expect(answer).toEqual({ kicked: true, seen: 0xf4 });
    expect(memory.bytes[8]).toBe(7);
    expect([vcpu.run(1000), vcpu.run(1000)]).toEqual([Exit.INTERRUPTED, Exit.HLT]);
    await worker.terminate();
  });
});
