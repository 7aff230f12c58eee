import { totalmem } from 'node:os';
import { describe, expect, it } from 'vitest';
import {
  describeRegisters,
  Exit,
  flatImage,
  type Guest,
  guest,
  type Hypervisor,
  isReset,
  MAX_MACHINE_MEMORY,
  Machine,
  type MachineOptions,
  MIN_MACHINE_MEMORY,
  openHypervisor,
  RunLoop,
  type RunLoopOptions,
  Serial,
  VmType,
} from '../../src/index.ts';
import { onEach } from '../support/host.ts';
import { DEADLINE_MS } from '../support/limits.ts';

/** Generous: the loop's limits are under test, not the machine's speed. */
const SAFE = { timeoutMs: 15_000 };

/** Gives a machine with the guest in it, and a loop around it, to `use`. */
async function withLoop(
  hv: Hypervisor,
  { bits, code }: Guest,
  options: RunLoopOptions,
  use: (loop: RunLoop, machine: Machine) => Promise<void>,
): Promise<void> {
  using machine = new Machine(hv, { memory: MIN_MACHINE_MEMORY });
  machine.load(flatImage(code, bits === 64 ? 'long' : 'real'));
  await use(new RunLoop(machine.vcpu, options), machine);
}

const spins = guest(
  16,
  `
     eb fe | jmp .
`,
);
const prints = guest(
  16,
  `
     ba f8 03 |        mov dx, 0x3f8
     b0 61    |        mov al, 'a'
     ee       | next:  out dx, al
     eb fd    |        jmp next
`,
);
const haltsTwice = guest(
  16,
  `
     f4 | hlt
     f4 | hlt
`,
);
const crashes = guest(
  64,
  `
     0f 0b | ud2
`,
);
const asksNobody = guest(
  64,
  `
     e4 70          | in al, 0x70
     88 c3          | mov bl, al
     66 ba 34 12    | mov dx, 0x1234
     ed             | in eax, dx
     bf 00 00 00 c0 | mov edi, 0xc0000000
     48 8b 0f       | mov rcx, [rdi]
     48 89 0f       | mov [rdi], rcx
     e6 70          | out 0x70, al
     f4             | hlt
`,
);
const movesString = guest(
  16,
  `
     e8 00 00    |        call here
     5e          | here:  pop si
     81 c6 1a 00 |        add si, text - here
     ba f8 03    |        mov dx, 0x3f8
     b9 03 00    |        mov cx, 3
     2e f3 6e    |        cs rep outsb
     ba 60 00    |        mov dx, 0x60
     bf 00 80    |        mov di, 0x8000
     b9 04 00    |        mov cx, 4
     f3 6d       |        rep insw
     f4          |        hlt
     61 62 63    | text:  .ascii "abc"
`,
);
const readsModifies = guest(
  64,
  `
     bf 00 00 00 c0 | mov edi, 0xc0000000
     48 ff 07       | inc qword ptr [rdi]
     48 8b 07       | mov rax, [rdi]
     f4             | hlt
`,
);
const stops = guest(
  64,
  `
     b8 05 00 00 00 | mov eax, 5
     e7 10          | out 0x10, eax
     b8 06 00 00 00 | mov eax, 6
     e7 10          | out 0x10, eax
     f4             | hlt
`,
);

describe('the run loop', () => {
  onEach('ends with the guest: at HLT', (hv) =>
    withLoop(hv, readsModifies, {}, async (loop) => {
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
      expect(loop.exits.HLT).toBe(1);
    }),
  );

  onEach('begins a flat binary in real mode where it is put, with a stack that is not in it', (hv) => {
    using machine = new Machine(hv, { memory: 2 ** 20 });
    const { vcpu } = machine;
    const code = Uint8Array.of(0xf4);
    const beginning = (at: number, size = 1) => {
      machine.load(
        flatImage(new Uint8Array(size).fill(code[0]!), 'real', 'guest', { at, entry: at + size - 1 }),
      );
      const { rip, rsp } = vcpu.getRegs();
      const { cs, ss, ds } = vcpu.getSregs();
      expect([ss.base, ds.base]).toEqual([0n, 0n]);
      return [cs.selector, cs.base, rip, rsp];
    };
    expect(beginning(0x1000)).toEqual([0, 0n, 0x1000n, 0x1000n]);
    expect(beginning(0x7c00)).toEqual([0, 0n, 0x7c00n, 0x1000n]);
    expect(beginning(0x100)).toEqual([0, 0n, 0x100n, 0xff00n]);
    expect(beginning(0xf_0000, 0xfff1)).toEqual([0xf000, 0xf_0000n, 0xfff0n, 0x1000n]);
    expect(vcpu.run(DEADLINE_MS)).toBe(Exit.HLT);
  });

  onEach('tells a guest that waits for an interrupt in HLT from one that has ended', async (hv) => {
    const waits = guest(
      16,
      `
     fb | sti
     f4 | hlt
     fa | cli
     f4 | hlt
`,
    );
    await withLoop(hv, waits, {}, async (loop) => {
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt', waiting: true });
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
    });
  });

  onEach('keeps the event loop alive while the guest spins, and ends it when its signal says so', (hv) =>
    withLoop(hv, spins, { sliceMs: 5 }, async (loop) => {
      const abort = new AbortController();
      let ticks = 0;
      const timer = setInterval(() => {
        if (++ticks === 3) abort.abort();
      }, 1);
      try {
        expect(await loop.run({ ...SAFE, signal: abort.signal })).toEqual({ reason: 'abort' });
      } finally {
        clearInterval(timer);
      }
      expect(ticks).toBeGreaterThanOrEqual(3);
      expect(loop.exits).toEqual({});
    }),
  );

  onEach('ends a guest at its time limit, whether it spins or exits without end', async (hv) => {
    for (const endless of [spins, prints]) {
      await withLoop(hv, endless, { sliceMs: 5 }, async (loop) => {
        expect(await loop.run({ timeoutMs: 30 })).toEqual({ reason: 'timeout' });
      });
    }
  });

  onEach('goes on where it was when it is run again', (hv) =>
    withLoop(hv, prints, {}, async (loop, { vcpu }) => {
      let bytes = 0;
      Serial.attach(loop.ports, () => {
        if (++bytes % 3 === 0) loop.stop(bytes);
      });
      expect(await loop.run(SAFE)).toEqual({ reason: 'stop', value: 3 });
      expect(await loop.run(SAFE)).toEqual({ reason: 'stop', value: 6 });
      expect(loop.exits).toEqual({ IO: 6 });
      expect(vcpu.getRegs().rax).toBe(0x61n);
    }),
  );

  onEach(
    'stops behind the instruction that a device stopped it in, with the first value it was given',
    (hv) =>
      withLoop(hv, stops, {}, async (loop, { vcpu }) => {
        loop.ports.attach(0x10, 4, {
          name: 'stop',
          read: () => {},
          write: (_offset, [low]) => loop.stop(low),
        });
        expect(await loop.run(SAFE)).toEqual({ reason: 'stop', value: 5 });
        expect(vcpu.getRegs().rip).toBe(0x1000n + 5n + 2n);
        expect(await loop.run(SAFE)).toEqual({ reason: 'stop', value: 6 });
        expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
      }),
  );

  onEach('reads all ones from ports and memory that nobody has, and counts them', (hv) =>
    withLoop(hv, asksNobody, {}, async (loop, { vcpu }) => {
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
      const { rax, rbx, rcx } = vcpu.getRegs();
      expect([rax, rbx, rcx]).toEqual([0xffff_ffffn, 0xffn, 0xffff_ffff_ffff_ffffn]);
      expect(loop.ports.unclaimed).toEqual({ reads: 2, writes: 1 });
      expect(loop.mmio.unclaimed).toEqual({ reads: 1, writes: 1 });
    }),
  );

  onEach('gives a device in memory each access of the guest, in order', (hv) =>
    withLoop(hv, readsModifies, {}, async (loop, { vcpu }) => {
      const log: string[] = [];
      let value = 41;
      loop.mmio.attach(0xc000_0000, 8, {
        name: 'cell',
        read(offset, data) {
          log.push(`read ${data.length} at ${offset}`);
          data.fill(0).set([value]);
        },
        write(offset, data) {
          log.push(`write ${[...data]} at ${offset}`);
          value = data[0]!;
        },
      });
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
      expect(log).toEqual(['read 8 at 0', 'write 42,0,0,0,0,0,0,0 at 0', 'read 8 at 0']);
      expect(vcpu.getRegs().rax).toBe(42n);
      expect(loop.exits).toEqual({ MMIO: 3, HLT: 1 });
    }),
  );

  onEach('serves every element of string I/O', (hv) =>
    withLoop(hv, movesString, {}, async (loop, { memory }) => {
      let text = '';
      let next = 1;
      Serial.attach(loop.ports, (byte) => {
        text += String.fromCharCode(byte);
      });
      loop.ports.attach(0x60, 2, {
        name: 'words',
        read(_offset, data) {
          data.set([next++, 0xee]);
        },
        write: () => {},
      });
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
      expect(text).toBe('abc');
      expect(Buffer.from(memory.bytes.subarray(0x8000, 0x800a)).toString('hex')).toBe('01ee02ee03ee04ee0000');
    }),
  );

  onEach('tells an exit that nobody serves, with its fields', (hv) =>
    withLoop(hv, crashes, {}, async (loop, { vcpu }) => {
      const end = await loop.run(SAFE);
      expect(end).toMatchObject({ reason: 'unhandled', exit: { reason: 'SHUTDOWN' } });
      expect(loop.exits).toEqual({ SHUTDOWN: 1 });
      // KVM on AMD resets the processor at a triple fault.
      if (!isReset(vcpu)) expect(describeRegisters(vcpu)).toMatch(/^rip 0x1000 in 0x8 \(base 0x0, 64-bit\)/);
    }),
  );

  onEach('asks its handlers before all else, and tells each exit once it was served', (hv) => {
    const told: string[] = [];
    const handlers = [
      { handle: () => false },
      { handle: (_vcpu: unknown, exit: number) => exit === Exit.HLT && told.push('handled') === 1 },
    ];
    const onExit: RunLoopOptions['onExit'] = (vcpu, exit) => told.push(`${exit} ${vcpu.exit.reason}`);
    return withLoop(hv, haltsTwice, { handlers, onExit }, async (loop) => {
      // The second HLT is not the handler's, and so it is the end.
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
      expect(told).toEqual(['handled', '5 HLT', 'handled', '5 HLT']);
      expect(loop.exits).toEqual({ HLT: 2 });
    });
  });

  onEach('passes on what a device throws, and can be run again', (hv) =>
    withLoop(hv, stops, {}, async (loop) => {
      let broken = true;
      loop.ports.attach(0x10, 4, {
        name: 'broken',
        read: () => {},
        write() {
          if (broken) throw new Error('the device is broken');
        },
      });
      await expect(loop.run(SAFE)).rejects.toThrow('the device is broken');
      broken = false;
      expect(await loop.run(SAFE)).toEqual({ reason: 'halt' });
    }),
  );

  onEach('refuses limits that are none', (hv) =>
    withLoop(hv, spins, {}, async (loop, { vcpu }) => {
      const code = 'ERR_KVM_INVALID_ARG';
      for (const timeoutMs of [0, -1, Number.NaN]) {
        await expect(loop.run({ timeoutMs })).rejects.toMatchObject({ code });
      }
      for (const sliceMs of [0, 0.5, Number.NaN, 2 ** 31]) {
        expect(() => new RunLoop(vcpu, { sliceMs })).toThrow(expect.objectContaining({ code }));
      }
    }),
  );
});

/** The last four letters of AuthenticAMD. */
const AMD_ECX = 0x444d_4163;
const encryptionOf = ({ vcpu }: Machine) => vcpu.getCpuid2().find((entry) => entry.function === 0x8000_001f);

describe('a machine', () => {
  const memoryOf = (memory: unknown) => ({ memory }) as MachineOptions;

  it.each([
    ['nothing', 0, /memory is 0; .* from 64K to 3G/],
    ['less than it needs', 4096, /from 64K to 3G/],
    ['more than there is room for', MAX_MACHINE_MEMORY + 4096, /from 64K to 3G/],
    ['parts of pages', MIN_MACHINE_MEMORY + 1, /a multiple of 4096 .*such as 0x11000/],
    ['less than nothing', -4096, /from 64K to 3G/],
    ['no number', Number.NaN, /it must be/],
    ['a word', '64M', /it must be/],
  ])('with a memory of %s is refused before anything is opened', (_what, memory, says) => {
    const hv = undefined as unknown as Hypervisor;
    const code = 'ERR_KVM_INVALID_ARG';
    expect(() => new Machine(hv, memoryOf(memory))).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(says) }),
    );
  });

  it('with more memory than the host has is refused', (context) => {
    const memory = Math.ceil(totalmem() / 4096) * 4096 + 4096;
    if (memory > MAX_MACHINE_MEMORY) return context.skip('this host has more memory than any machine');
    expect(() => new Machine(undefined as unknown as Hypervisor, memoryOf(memory))).toThrow(/this host has/);
  });

  onEach('leaves nothing open when the kernel refuses it', (hv) => {
    let vms = 0;
    const counting = new Proxy(hv, {
      get(target, name) {
        if (name !== 'createVm') return Reflect.get(target, name).bind(target);
        return (options: { type?: number }) => {
          const vm = target.createVm(options);
          vms++;
          const close = vm.close.bind(vm);
          return Object.assign(vm, {
            close() {
              vms--;
              close();
            },
            createVcpu: () => vm.createGuestMemfd(1),
          });
        };
      },
    });
    expect(() => new Machine(counting, { memory: MIN_MACHINE_MEMORY })).toThrow(/KVM_CREATE_GUEST_MEMFD/);
    expect(vms).toBe(0);
  });

  onEach('does not tell a guest of memory encryption, whatever KVM offers', (hv) => {
    const { code } = guest(64, ' b8 1f 00 00 80 0f a2 f4 | mov eax, 0x8000001f; cpuid; hlt\n');
    using machine = new Machine(hv, { memory: MIN_MACHINE_MEMORY });
    machine.load(flatImage(code, 'long'));
    expect(machine.vcpu.run(SAFE.timeoutMs)).toBe(Exit.HLT);
    const { rax, rbx } = machine.vcpu.getRegs();
    // SME, SEV, SEV-ES and SNP. Intel's processors have no such leaf, and answer by another.
    const [leaf] = machine.vcpu.getCpuid2().filter((entry) => entry.function === 0);
    if (leaf!.ecx === AMD_ECX) expect([rax & 0x1bn, rbx]).toEqual([0n, 0n]);
    expect(encryptionOf(machine)).toBeUndefined();
  });

  it('tells a guest of type SNP of it', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using machine = new Machine(hv, { memory: MIN_MACHINE_MEMORY, type: VmType.SNP });
    // SEV, SEV-ES, SNP.
    expect(encryptionOf(machine)!.eax & 0x1a).toBe(0x1a);
  });

  onEach('begins with the registers that it is given, and with memory mapped one to one', (hv) => {
    using machine = new Machine(hv, { memory: MIN_MACHINE_MEMORY });
    machine.load(flatImage(Uint8Array.of(0xf4), 'long'), { rdi: 7, rsi: 0xffff_ffff_ffff_ffffn });
    const { vcpu, memory, reserved } = machine;
    expect(reserved).toEqual({ start: memory.size - 0x7000 - 0x4000, end: memory.size });
    expect(vcpu.getRegs()).toMatchObject({
      rip: 0x1000n,
      rsp: BigInt(memory.size - 0x7000),
      rflags: 2n,
      rdi: 7n,
      rsi: 0xffff_ffff_ffff_ffffn,
    });
    expect(vcpu.run(5000)).toBe(Exit.HLT);
    for (const address of [0, 0x1234, 0xffff_ffff]) {
      expect(vcpu.translate(address)).toMatchObject({ valid: 1, physicalAddress: BigInt(address) });
    }
  });

  onEach('closes twice as well as once, and its parts with it', (hv) => {
    const machine = new Machine(hv, { memory: MIN_MACHINE_MEMORY });
    machine.close();
    machine.close();
    expect([machine.vm.closed, machine.vcpu.closed, machine.memory.closed]).toEqual([true, true, true]);
  });
});
