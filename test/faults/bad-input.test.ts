/**
 * Wrong arguments: each gives an error of a stated class and code that names the value and what to do instead, and
 * changes nothing.
 */
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { Exit, enterRealMode, type Hypervisor, openHypervisor } from '../../src/index.ts';
import { DEADLINE_MS } from '../support/limits.ts';
import { Program } from '../support/program.ts';
import { conformance } from '../support/suite.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const PAGE = 4096;
const OUT = [0xe6, 0x10, 0xeb, 0xfc]; // again: out 0x10, al ; jmp again
const OUT_BYTES = Uint8Array.from(OUT);

/** Two VMs, of which the second is only there to be the wrong one. */
function boot(hv: Hypervisor) {
  const vm = hv.createVm();
  const ram = vm.allocate(16 * PAGE);
  ram.bytes.set(OUT, PAGE);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  const vcpu = vm.createVcpu(0);
  enterRealMode(vcpu);
  vcpu.setRegs({ rip: PAGE, rflags: 2 });
  vcpu.run(DEADLINE_MS);
  const spare = vm.allocate(4 * PAGE);
  const other = hv.createVm();
  const closedMemory = vm.allocate(PAGE);
  closedMemory.close();
  const close = () => {
    for (const object of [vcpu, ram, spare, vm, other]) object.close();
  };
  return { hv, vm, ram, spare, vcpu, other, closedMemory, close };
}
type World = ReturnType<typeof boot>;

/** Everything that a refused call could have changed. */
const state = ({ vm, vcpu, ram, spare }: World) => ({
  slots: vm.memoryMap.slots.map(({ slot, start, end, flags, memoryOffset }) => [
    slot,
    start,
    end,
    flags,
    memoryOffset,
  ]),
  attributes: [...vm.memoryMap.attributesWithin(0, 2 ** 40)],
  regs: vcpu.getRegs(),
  sregs: vcpu.getSregs(),
  immediateExit: vcpu.immediateExit,
  sizes: [ram.bytes.length, spare.bytes.length, Buffer.from(ram.bytes).toString('base64')],
  fds: readdirSync('/proc/self/fd').length,
});

type Refusal = readonly [errorClass: string, code: string, ...says: (string | RegExp)[]];
const range = (...says: (string | RegExp)[]): Refusal => ['RangeError', 'ERR_KVM_INVALID_ARG', ...says];
const type = (...says: (string | RegExp)[]): Refusal => ['TypeError', 'ERR_KVM_INVALID_ARG', ...says];
const closed = (...says: (string | RegExp)[]): Refusal => ['VmexitError', 'ERR_KVM_CLOSED', ...says];
const errno = (code: string, ...says: (string | RegExp)[]): Refusal => ['KvmError', code, ...says];

// biome-ignore lint/suspicious/noExplicitAny: the arguments are wrong on purpose.
type Wrong = any;
type Row = readonly [call: string, make: (world: World & Wrong) => unknown, refusal: Refusal];

const rows: readonly Row[] = [
  ['allocate(0)', ({ vm }) => vm.allocate(0), range('size is 0', 'from 4096')],
  ['allocate(-4096)', ({ vm }) => vm.allocate(-4096), range('size is -0x1000')],
  ['allocate(4097)', ({ vm }) => vm.allocate(4097), range('0x1001', 'multiple of 4096', '0x2000')],
  ['allocate(1.5)', ({ vm }) => vm.allocate(1.5), range('size is 1.5', 'whole number')],
  ['allocate(NaN)', ({ vm }) => vm.allocate(Number.NaN), range('size is NaN')],
  ['allocate(8 GiB)', ({ vm }) => vm.allocate(2 ** 33), range('0x200000000', '0x100000000')],
  ['allocate(2^63)', ({ vm }) => vm.allocate(2n ** 63n), range('0x8000000000000000')],
  ['allocate("4096")', ({ vm }) => vm.allocate('4096'), type('size is "4096"', 'whole number')],
  ['allocate(undefined)', ({ vm }) => vm.allocate(undefined), type('size is undefined')],

  ['createVm(null)', ({ hv }) => hv.createVm(null), type('options is null', 'an object')],
  ['createVm of type -1', ({ hv }) => hv.createVm({ type: -1 }), range('type is -1')],
  [
    'createVm of type 77',
    ({ hv }) => hv.createVm({ type: 77 }),
    errno('EINVAL', 'VM type 77', 'KVM_CAP_VM_TYPES'),
  ],
  ['createVcpu("0")', ({ vm }) => vm.createVcpu('0'), type('id is "0"')],
  ['createVcpu(-1)', ({ vm }) => vm.createVcpu(-1), range('id is -1')],
  ['createVcpu(0) again', ({ vm }) => vm.createVcpu(0), errno('EEXIST', 'vCPU 0')],
  ['createVcpu(2^31)', ({ vm }) => vm.createVcpu(2 ** 31), errno('EINVAL', 'KVM_CAP_MAX_VCPU_ID')],
  ['checkExtension(2^32)', ({ hv }) => hv.checkExtension(2 ** 32), range('cap is 0x100000000')],
  ['getFeatureMsrs("0x10")', ({ hv }) => hv.getFeatureMsrs('0x10'), type('indices is "0x10"', 'array')],
  ['kick("1")', ({ hv }) => hv.kick('1'), type('kickId is "1"')],
  ['openMemory(undefined)', ({ hv }) => hv.openMemory(undefined), type('token is undefined')],
  ['openMemory({})', ({ hv }) => hv.openMemory({}), range('token.backend is undefined', "it must be '")],
  [
    'openMemory of a number that is no file',
    ({ hv }) => hv.openMemory({ backend: hv.backend, fd: 99_999, inode: 1 }),
    errno('EBADF', 'closed'),
  ],

  ['write at -1', ({ ram }) => ram.write(-1, OUT_BYTES), range('offset is -1')],
  ['write at 1.5', ({ ram }) => ram.write(1.5, OUT_BYTES), range('offset is 1.5', 'whole number')],
  ['write at "0"', ({ ram }) => ram.write('0', OUT_BYTES), type('offset is "0"')],
  ['write beyond the end', ({ ram }) => ram.write(16 * PAGE + 1, OUT_BYTES), range('0x10001', '0x10000')],
  ['write over the end', ({ ram }) => ram.write(16 * PAGE - 3, OUT_BYTES), range('length is 4', '0x3')],
  [
    'write of an array',
    ({ ram }) => ram.write(0, OUT),
    type('bytes is an object of class Array', 'Uint8Array'),
  ],
  ['write of a buffer', ({ ram }) => ram.write(0, OUT_BYTES.buffer), type('ArrayBuffer', 'Uint8Array')],
  [
    'write to closed memory',
    ({ closedMemory }) => closedMemory.write(0, OUT_BYTES),
    closed('this guest memory was'),
  ],
  ['read over the end', ({ ram }) => ram.read(PAGE, 16 * PAGE), range('length is 0x10000', '0xf000')],
  ['read of -1 bytes', ({ ram }) => ram.read(0, -1), range('length is -1')],
  ['read without a length', ({ ram }) => ram.read(0), type('length is undefined')],
  ['read of closed memory', ({ closedMemory }) => closedMemory.read(0, 1), closed('this guest memory was')],

  ['a region that is no object', ({ vm }) => vm.setUserMemoryRegion(null), type('region is null')],
  ['a region without a slot', ({ vm }) => vm.setUserMemoryRegion({}), type('slot is undefined')],
  ['slot -1', ({ vm, spare }) => vm.setUserMemoryRegion({ slot: -1, memory: spare }), range('slot is -1')],
  [
    'a slot beyond KVM_CAP_NR_MEMSLOTS',
    ({ vm, spare }) => vm.setUserMemoryRegion({ slot: 65_535, guestPhysAddr: 2 ** 20, memory: spare }),
    errno('EINVAL', 'slot 65535', 'KVM_CAP_NR_MEMSLOTS'),
  ],
  [
    'a slot at an unaligned address',
    ({ vm, spare }) => vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x10_0001, memory: spare }),
    errno('EINVAL', 'guestPhysAddr 0x100001', 'multiple of 4096'),
  ],
  [
    'a slot at a negative address',
    ({ vm, spare }) => vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: -4096, memory: spare }),
    range('guestPhysAddr is -0x1000'),
  ],
  [
    'a slot at 2^60',
    ({ vm, spare }) => vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2n ** 60n, memory: spare }),
    range('guestPhysAddr is 0x1000000000000000'),
  ],
  [
    'a slot of 100 bytes',
    ({ vm, spare }) =>
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2 ** 20, memory: spare, memorySize: 100 }),
    errno('EINVAL', 'memorySize 0x64', 'multiple of 4096'),
  ],
  [
    'a slot larger than its memory',
    ({ vm, spare }) =>
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2 ** 20, memory: spare, memorySize: 5 * PAGE }),
    range('memorySize is 0x5000', '0x4000'),
  ],
  [
    'a slot that begins after the end of its memory',
    ({ vm, spare }) => vm.setUserMemoryRegion({ slot: 1, memory: spare, memoryOffset: 5 * PAGE }),
    range('memoryOffset is 0x5000', '0x4000'),
  ],
  [
    'a slot that overlaps another',
    ({ vm, spare }) => vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: PAGE, memory: spare }),
    errno('EEXIST', '[0x1000, 0x5000)', 'overlaps'),
  ],
  [
    'a slot of memory that is closed',
    ({ vm, closedMemory }) =>
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2 ** 20, memory: closedMemory }),
    closed('this guest memory was'),
  ],
  [
    'a Uint8Array as memory',
    ({ vm }) => vm.setUserMemoryRegion({ slot: 1, memory: new Uint8Array(PAGE) }),
    type('memory is an object of class Uint8Array', 'Vm.allocate()'),
  ],
  [
    'a GuestMemory as guestMemfd',
    ({ vm, spare }) => vm.setUserMemoryRegion2({ slot: 1, memory: spare, guestMemfd: spare }),
    type('guestMemfd is an object of class GuestMemory', 'Vm.createGuestMemfd()'),
  ],
  [
    'a flag that is none',
    ({ vm, spare }) =>
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2 ** 20, memory: spare, flags: 1 << 30 }),
    errno('EINVAL', '0x40000000'),
  ],
  [
    'deleting a slot that is not there',
    ({ vm }) => vm.setUserMemoryRegion({ slot: 9, memorySize: 0 }),
    errno('EINVAL', 'no slot 9'),
  ],
  ['attributes of nothing', ({ vm }) => vm.setMemoryAttributes(undefined), type('range is undefined')],
  [
    'attributes of an address that is text',
    ({ vm }) => vm.setMemoryAttributes({ address: '0', size: PAGE, attributes: 0 }),
    type('address is "0"'),
  ],
  ['enableCap(null)', ({ vm }) => vm.enableCap(null), type('cap is null', 'an object')],
  [
    'enableCap of text',
    ({ vm }) => vm.enableCap({ cap: 'x' }),
    ['RangeError', 'ERR_KVM_INVALID_ARG', 'kvm_enable_cap.cap: x'],
  ],
  [
    'enableCap of no capability',
    ({ vm }) => vm.enableCap({ cap: 65_535 }),
    errno('EINVAL', 'cannot be enabled'),
  ],

  ['run(0)', ({ vcpu }) => vcpu.run(0), range('timeoutMs is 0; it must be above 0')],
  ['run(-1)', ({ vcpu }) => vcpu.run(-1), range('timeoutMs is -1; it must be above 0')],
  ['run(NaN)', ({ vcpu }) => vcpu.run(Number.NaN), range('timeoutMs is NaN; it must be above 0')],
  ['run("5")', ({ vcpu }) => vcpu.run('5'), type('milliseconds')],
  ['run(2^31)', ({ vcpu }) => vcpu.run(2 ** 31), range('timeoutMs is', 'below 2^31')],
  ['setRegs(null)', ({ vcpu }) => vcpu.setRegs(null), type('KVM_SET_REGS is null', 'kvm_regs')],
  ['setRegs of text', ({ vcpu }) => vcpu.setRegs({ rip: 'x' }), type('kvm_regs.rip: x')],
  [
    'setRegs of 65 bits',
    ({ vcpu }) => vcpu.setRegs({ rip: 2n ** 64n }),
    range('kvm_regs.rip: 18446744073709551616', '64 bits'),
  ],
  ['setRegs of a fraction', ({ vcpu }) => vcpu.setRegs({ rip: 0.5 }), range('kvm_regs.rip: 0.5')],
  ['setRegs of no register', ({ vcpu }) => vcpu.setRegs({ rpi: 1n }), type('no field rpi', 'rip')],
  ['changeSregs of a number', ({ vcpu }) => vcpu.changeSregs(8), type('KVM_SET_SREGS is 8', 'kvm_sregs')],
  ['changeSregs of no field', ({ vcpu }) => vcpu.changeSregs({ cs: { b: 1n } }), type('has no field b')],
  ['setSregs of a number', ({ vcpu }) => vcpu.setSregs({ cs: 8 }), type('kvm_sregs.cs: 8', 'kvm_segment')],
  ['setCpuid2 of no list', ({ vcpu }) => vcpu.setCpuid2({}), type('KVM_SET_CPUID2', 'array')],
  [
    'setCpuid2 of 257 entries',
    ({ vcpu }) => vcpu.setCpuid2(Array(257).fill({})),
    range('257', 'at most 256'),
  ],
  ['getMsrs(16)', ({ vcpu }) => vcpu.getMsrs(16), type('indices is 16', 'array')],
  [
    'setMsrs of text',
    ({ vcpu }) => vcpu.setMsrs([{ index: 'x', data: 0n }]),
    range('kvm_msr_entry.index: x'),
  ],
  ['interrupt(256)', ({ vcpu }) => vcpu.interrupt(256), range('vector is 256', '0xff')],
  ['translate("0")', ({ vcpu }) => vcpu.translate('0'), type('kvm_translation.linearAddress: 0')],
  ['setTscKhz(-1)', ({ vcpu }) => vcpu.setTscKhz(-1), range('khz is -1')],
  ['hypercall.arg(6)', ({ vcpu }) => vcpu.hypercall.arg(6), range('index is 6', '0 to 5')],
  [
    'io.value = "x"',
    ({ vcpu }) => {
      vcpu.io.value = 'x';
    },
    ['RangeError', 'ERR_KVM_INVALID_ARG', 'x is not an integer'],
  ],
  [
    'mmio.value = {}',
    ({ vcpu }) => {
      vcpu.mmio.value = {};
    },
    type('an object is not an integer'),
  ],

  [
    'discard of an unaligned offset',
    ({ spare }) => spare.discard(1, PAGE),
    range('offset is 1', 'multiple of 4096'),
  ],
  ['discard beyond the end', ({ spare }) => spare.discard(PAGE, 4 * PAGE), range('size is 0x4000', '0x3000')],
  ['discard(-4096, 4096)', ({ spare }) => spare.discard(-PAGE, PAGE), range('offset is -0x1000')],
  ['advise with advice that loses memory', ({ spare }) => spare.advise(100), range('advice is')],
  ['advise beyond the end', ({ spare }) => spare.advise(14, 0, 5 * PAGE), range('size is 0x5000')],
];

conformance('bad input', ({ it, needs }) => {
  it('gives the stated error, with the value and the remedy, and changes nothing', (hv) => {
    const world = boot(hv);
    try {
      for (const [call, make, [errorClass, code, ...says]] of rows) {
        const before = state(world);
        let thrown: unknown;
        try {
          make(world);
        } catch (error) {
          thrown = error;
        }
        const {
          name,
          code: given,
          message,
        } = (thrown ?? {}) as { name?: string; code?: string; message?: string };
        expect([name, given], `${call}: ${message}`).toEqual([errorClass, code]);
        for (const part of says) expect(message, call).toMatch(part);
        expect(state(world), call).toEqual(before);
      }
      expect(world.vcpu.run(DEADLINE_MS)).toBe(Exit.IO);
    } finally {
      world.close();
    }
  });

  needs('guest-memfd')('of guest_memfds: sizes, flags, ranges, and one of another VM', (hv) => {
    const world = boot(hv);
    const { vm, other, spare } = world;
    const secret = vm.createGuestMemfd(4 * PAGE);
    const foreign = other.createGuestMemfd(4 * PAGE);
    const of = (call: () => unknown) => {
      try {
        call();
        return 'ok';
      } catch (error) {
        const { name, code, message } = error as { name: string; code: string; message: string };
        return `${name} ${code}: ${message}`;
      }
    };
    const wrong = secret as Wrong;
    try {
      const before = state(world);
      expect(of(() => vm.createGuestMemfd(0))).toMatch(
        /^KvmError EINVAL: .*size 0x0 is not a multiple of 4096/,
      );
      expect(of(() => vm.createGuestMemfd(100))).toMatch(/^KvmError EINVAL: .*size 0x64/);
      expect(of(() => vm.createGuestMemfd(-1))).toMatch(/^RangeError ERR_KVM_INVALID_ARG: size is -1/);
      expect(of(() => vm.createGuestMemfd(PAGE, 2 ** 40))).toMatch(/^KvmError EINVAL: .*flags 0x10000000000/);
      expect(of(() => secret.punchHole(1, PAGE))).toMatch(/^KvmError EINVAL: .*offset 1/);
      expect(of(() => secret.allocate(4 * PAGE, PAGE))).toMatch(/^KvmError EINVAL: .*offset 16384/);
      expect(of(() => secret.allocate(5 * PAGE))).toMatch(
        /^RangeError ERR_KVM_INVALID_ARG: offset is 0x5000/,
      );
      expect(of(() => wrong.punchHole('0', PAGE))).toMatch(/^TypeError ERR_KVM_INVALID_ARG: offset is "0"/);
      expect(of(() => secret.map())).toMatch(/^VmexitError ERR_KVM_REFUSED: .*MMAP and INIT_SHARED/);
      const region = { slot: 1, guestPhysAddr: 2 ** 20, memory: spare } as const;
      expect(of(() => vm.setUserMemoryRegion2({ ...region, guestMemfd: foreign }))).toMatch(
        /^KvmError EINVAL: .*must be of this VM/,
      );
      expect(state(world)).toEqual(before);
    } finally {
      secret.close();
      foreign.close();
      world.close();
    }
  });

  it('and memory beyond what the host gives this process has its errno, and the remedy', async ({
    backend,
  }) => {
    // What is soonest reached: on KVM the limit of files, for each memory is one; on the simulator its own of memory.
    const [size, says] = {
      kvm: [PAGE, /^KvmError EMFILE .*too many files are open/],
      sim: [2 ** 28, /^KvmError ENOMEM .*the host cannot map 268435456 bytes/],
    }[backend] as [number, RegExp];
    const program = `
      import { openHypervisor } from 'vmexit';
      const vm = openHypervisor({ backend: '${backend}' }).createVm();
      const all = [];
      try {
        for (;;) all.push(vm.allocate(${size}));
      } catch (error) {
        console.log(error.name, error.code, error.message);
      }`;
    const limited = [
      '-c',
      'ulimit -n 64 && exec "$0" --input-type=module -e "$1"',
      process.execPath,
      program,
    ];
    const { status, stdout, stderr } = await new Program(limited, { command: 'sh', cwd: root }).end;
    expect(status, stderr).toBe(0);
    expect(stdout).toMatch(says);
  });
});

describe('openHypervisor', () => {
  const wrong = openHypervisor as Wrong;
  it.each([
    [{ backend: 'xen' }, RangeError, 'backend is "xen"'],
    [{ needs: ['flying'] }, RangeError, 'needs is "flying"'],
    [{ needs: 'private-memory' }, TypeError, 'needs is "private-memory"'],
    [{ needs: null }, TypeError, 'needs is null'],
    [{ device: 5 }, TypeError, 'device is 5'],
    [null, TypeError, 'options is null'],
  ])('of %o gives an error that names the value', (options, ErrorType, message) => {
    expect(() => wrong(options)).toThrow(ErrorType as typeof TypeError);
    expect(() => wrong(options)).toThrow(message as string);
    expect(() => wrong(options)).toThrow(expect.objectContaining({ code: 'ERR_KVM_INVALID_ARG' }));
  });
});
