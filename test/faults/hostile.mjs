// Single attacks on the addon, each of which something is there to stop: scenarios of hostile.test.ts.
import { Buffer } from 'node:buffer';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { boot, code, codeOf, DEADLINE_MS, exitName, inLab, main, native, requests } from './fixture.mjs';

const attempts = [
  () => native.close(1),
  () => native.open({}),
  () => native.ioctl({}, 0),
  () => native.requests().length,
  () => native.allocate(-1),
  () => native.runner(null),
];

await main({
  /** Node-API's C++ wrapper ends the process when such a setter throws something that is no object. */
  setters() {
    const thrown = [];
    for (const value of [null, undefined, 1, Symbol('s'), new Error('mine')]) {
      for (const owner of [Object.prototype, Error.prototype, TypeError.prototype]) {
        for (const name of ['code', 'name', 'request', 'message']) {
          const set = () => {
            throw value;
          };
          const before = Object.getOwnPropertyDescriptor(owner, name);
          Object.defineProperty(owner, name, { set, get: () => undefined, configurable: true });
          for (const attempt of attempts) {
            try {
              attempt();
            } catch (error) {
              thrown.push(error);
            }
          }
          delete owner[name];
          if (before !== undefined) Object.defineProperty(owner, name, before);
        }
      }
    }
    return thrown.length;
  },

  /** The last frames of the stack, from its end upwards. */
  deepStack() {
    let calls = 0;
    for (let i = 0; i < attempts.length; i++) {
      const end = calls + 300;
      const deeper = () => {
        try {
          deeper();
        } catch (overflow) {
          if (calls < end) {
            try {
              attempts[(calls++ + i) % attempts.length]();
            } catch {
              // The addon's own, or RangeError: Maximum call stack size exceeded.
            }
          }
          throw overflow;
        }
      };
      try {
        deeper();
      } catch {
        // The RangeError, once more.
      }
    }
    return calls > 1000;
  },

  /** All of a guest's memory where a struct should be. */
  hugeArgument() {
    const memory = native.allocate(2 ** 32);
    const all = new Uint8Array(native.buffer(memory));
    const vm = native.create(native.open('/dev/kvm'), requests.KVM_CREATE_VM, 0);
    const codes = [
      codeOf(() => native.ioctl(vm, requests.KVM_SET_MEMORY_ATTRIBUTES, all)),
      codeOf(() => native.create(vm, requests.KVM_CREATE_GUEST_MEMFD, all)),
      codeOf(() => native.ioctl(vm, requests.KVM_SET_USER_MEMORY_REGION, all, [null])),
    ];
    return { codes, maxRssMiB: process.resourceUsage().maxRSS / 1024 };
  },

  paths() {
    const nul = codeOf(() => native.open('/dev/kvm\0.txt'));
    return {
      nul,
      long: native.open('x'.repeat(2 ** 20)),
      folder: native.open('/'),
      device: native.open('/dev/null'),
    };
  },

  /** A host whose limits are reached. */
  limits() {
    const { vm } = boot(code.halt);
    const page = vm.allocate(4096);
    const said = (call) => {
      try {
        call();
        return 'ok';
      } catch (error) {
        return `${error.name} ${error.message}`;
      }
    };
    const limit = (what) => execFileSync('prlimit', ['--pid', String(process.pid), what]);
    const addresses = Number(/VmSize:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
    limit(`--as=${addresses + 2 ** 30}:`);
    const memory = said(() => vm.allocate(2 ** 32));
    limit('--as=unlimited:');
    limit(`--nofile=${readdirSync('/proc/self/fd').length - 1}:`);
    let allocated = 'ok';
    while (allocated === 'ok') allocated = said(() => vm.allocate(4096));
    const files = [allocated, said(() => vm.createVcpu(1)), said(() => boot(code.halt))];
    page.close();
    return { memory, files, after: said(() => vm.allocate(4096)) };
  },

  /** Run under a profiler, whose signals come all the time. */
  signals() {
    const exits = [];
    for (let i = 0; i < (inLab ? 50 : 300); i++) {
      const { hv, vm, ram, vcpu } = boot(code.out);
      exits.push(exitName(vcpu.run(DEADLINE_MS)));
      for (const object of [vcpu, vm, ram, hv]) object.close();
    }
    return { count: exits.length, exits: [...new Set(exits)].sort() };
  },

  /** Whatever JS writes into kvm_run, the next run comes back, and so does the reading of its exit. */
  kvmRunPage() {
    const { vcpu } = boot(code.out);
    const { bytes } = vcpu.raw;
    const codes = new Set();
    for (let i = 0; i < 3000; i++) {
      for (let k = 0; k < 1 + (i % 5); k++)
        bytes[(i * 2_654_435 + k * 40_503) % 2048] = (i * 31 + k * 7) & 0xff;
      if (i % 64 === 0) bytes.fill(i & 0xff);
      codes.add(codeOf(() => vcpu.run(2)));
      codes.add(codeOf(() => vcpu.io.value));
      codes.add(codeOf(() => vcpu.io.data.length));
      codes.add(codeOf(() => vcpu.exit));
    }
    bytes.fill(0);
    return [...codes];
  },

  /** The one capability whose argument is an address that KVM writes to. */
  pointers() {
    const { vcpu } = boot(code.halt);
    const HYPERV_ENLIGHTENED_VMCS = 163;
    const target = Buffer.alloc(16);
    return {
      code: codeOf(() => vcpu.enableCap({ cap: HYPERV_ENLIGHTENED_VMCS, args: [0x1000n] })),
      target: target[0],
    };
  },
});
