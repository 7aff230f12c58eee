/**
 * The simulator knows no time but its guest's instructions: the same guest with the same answers does the same, exit
 * for exit and byte for byte, however its code is executed and whoever looks on.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { demoGuest, Place } from '../../src/cli/demo-guest.ts';
import {
  DebugExit,
  defaultPolicy,
  flatImage,
  type GuestImage,
  guest,
  Machine,
  MemoryAttribute,
  MemoryFaultService,
  type Observer,
  openHypervisor,
  type Policy,
  type RunEnd,
  RunLoop,
  Serial,
  Trace,
  UnavailableError,
} from '../../src/index.ts';
import type { SimulatedHost } from '../../src/open.ts';
import { WebAssembly } from '../../src/sim/webassembly.ts';
import { onKvm } from '../support/host.ts';
import { scratchFolder } from './cli-vmexit.ts';

const scratch = scratchFolder();
const MEMORY = 8 * 2 ** 20;
const TIMEOUT_MS = 10_000;
const PAGE = 4096;

/** A bit of everything that could differ: hot loops, exceptions, time, code that changes, I/O of each kind. */
const busy = guest(
  64,
  `
0f 01 1d 02 01 00 00    | start:   lidt [rip + idtr - start + start]
48 8d 05 ea 00 00 00    |          lea rax, [rip + handler]
48 c7 c3 60 80 00 00    |          mov rbx, 0x8060                   # the gate of #UD
66 89 03                |          mov word ptr [rbx], ax
c7 43 02 08 00 00 8e    |          mov dword ptr [rbx + 2], 0x8e000008
48 c1 e8 10             |          shr rax, 16
66 89 43 06             |          mov word ptr [rbx + 6], ax
48 c7 43 08 00 00 00 00 |          mov qword ptr [rbx + 8], 0
45 31 e4                |          xor r12d, r12d
41 bd 00 90 00 00       |          mov r13d, 0x9000                  # where times are noted
b9 b8 0b 00 00          | again:   mov ecx, 3000
48 c7 c6 00 a0 00 00    |          mov rsi, 0xa000
48 01 c8                | hot:     add rax, rcx
48 35 5a 5a 00 00       |          xor rax, 0x5a5a
48 89 06                |          mov [rsi], rax
48 6b 16 4d             |          imul rdx, [rsi], 77
48 8d 44 90 01          |          lea rax, [rax + rdx * 4 + 1]
ff c9                   |          dec ecx
75 e7                   |          jnz hot
0f 31                   |          rdtsc
41 89 45 00             |          mov [r13], eax
49 83 c5 04             |          add r13, 4
b9 3c 00 00 00          |          mov ecx, 60
4c 8d 05 02 00 00 00    | faults:  lea r8, [rip + 1f]
0f 0b                   |          ud2
4c 8d 05 04 00 00 00    | 1:       lea r8, [rip + 2f]
c5 f4 58 c2             |          vaddps ymm0, ymm1, ymm2           # which this processor lacks
ff c9                   | 2:       dec ecx
75 e8                   |          jnz faults
bf f9 bf 00 00          |          mov edi, 0xbff9                   # over the page of the copy below, which has been executed
b9 03 50 00 00          |          mov ecx, 0x5003
b0 90                   |          mov al, 0x90
f3 aa                   |          rep stosb
48 8d 35 68 00 00 00    |          lea rsi, [rip + copied]
bf 00 d0 00 00          |          mov edi, 0xd000
b9 08 00 00 00          |          mov ecx, 8
f3 a4                   |          rep movsb
b8 00 d0 00 00          |          mov eax, 0xd000
ff d0                   |          call rax
fe 05 01 00 00 00       |          inc byte ptr [rip + patched + 1]  # the next instruction but one
b3 05                   | patched: mov bl, 5
49 01 dc                |          add r12, rbx
bf 00 00 00 c0          |          mov edi, 0xc0000000
01 1f                   |          add dword ptr [rdi], ebx
8b 87 fe 0f 00 00       |          mov eax, [rdi + 0xffe]
be 00 10 00 00          |          mov esi, 0x1000
66 ba f8 03             |          mov dx, 0x3f8
b9 14 00 00 00          |          mov ecx, 20
f3 6e                   |          rep outsb
bf 00 e0 00 00          |          mov edi, 0xe000
b9 2c 01 00 00          |          mov ecx, 300
f3 6c                   |          rep insb
0f 31                   |          rdtsc
41 89 45 00             |          mov [r13], eax
49 83 c5 04             |          add r13, 4
41 81 fd 28 90 00 00    |          cmp r13d, 0x9000 + 40
0f 82 41 ff ff ff       |          jb again
f4                      |          hlt
49 ff c4                | handler: inc r12
4c 89 04 24             |          mov [rsp], r8
48 cf                   |          iretq
4f 8d 64 64 01          | copied:  lea r12, [r12 + r12 * 2 + 1]
c3                      |          ret
90                      |          nop
90                      |          nop
ff 0f                   | idtr:    .word 0xfff
00 80 00 00 00 00 00 00 |          .quad 0x8000
`,
);

/** Real mode: segments, REP, flags on the stack, INT through the vectors. */
const real = guest(
  16,
  `
b8 3d 10          |          mov ax, offset handler - start + 0x1000
a3 00 02          |          mov word ptr [0x80 * 4], ax
c7 06 02 02 00 00 |          mov word ptr [0x80 * 4 + 2], 0
                  | start = . - 12
b9 f4 01          |          mov cx, 500
51                | again:   push cx
cd 80             |          int 0x80
bf 00 30          |          mov di, 0x3000
b9 2c 01          |          mov cx, 300
f3 ab             |          rep stosw
be 00 30          |          mov si, 0x3000
bf 01 31          |          mov di, 0x3101
b9 c8 00          |          mov cx, 200
f3 a4             |          rep movsb
be 01 30          |          mov si, 0x3001
bf 00 30          |          mov di, 0x3000
b9 00 03          |          mov cx, 0x300
f3 a6             |          repe cmpsb
9c                |          pushf
5a                |          pop dx
01 d0             |          add ax, dx
c1 c0 03          |          rol ax, 3
e6 80             |          out 0x80, al
59                |          pop cx
e2 d3             |          loop again
f4                |          hlt
01 c8             | handler: add ax, cx
cf                |          iret
`,
);

interface Ran {
  readonly end: RunEnd;
  /** The trace, byte for byte, and what the guest sent. */
  readonly trace: string;
  readonly serial: string;
  /** All else that can be known of the machine. */
  readonly state: unknown;
}

interface How extends SimulatedHost {
  readonly sliceMs?: number;
  readonly observer?: Observer;
}

const digest = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
let runs = 0;

async function run(image: GuestImage, { sliceMs, observer, ...simulated }: How = {}): Promise<Ran> {
  const privateMemory = image === demoGuest;
  using hv = openHypervisor({ backend: 'sim', simulated });
  expect(hv.backend).toBe('sim');
  using machine = new Machine(hv, { memory: MEMORY, privateMemory });
  machine.load(image, image.mode === 'long' ? { rdi: MEMORY, rsi: privateMemory ? 1 : 0 } : {});
  const { vcpu, vm, memory } = machine;
  if (observer) vcpu.observe(observer);
  const path = `${scratch.path}/${runs++}.jsonl`;
  const trace = new Trace(path);
  // Where the demo's guest has its memory faults: a slot without private memory, and none at all.
  using orphans = vm.allocate(16 * PAGE);
  if (privateMemory) {
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: Place.ORPHANS, memory: orphans });
    for (const address of [Place.ORPHANS, Place.NOWHERE])
      vm.setMemoryAttributes({ address, size: 4 * PAGE, attributes: MemoryAttribute.PRIVATE });
  }
  using nowhere = privateMemory ? vm.createGuestMemfd(16 * PAGE) : undefined;
  const policy: Policy = (request) => {
    if (request.cause !== 'unbacked') return defaultPolicy(request);
    if (request.slot) return 'allow';
    vm.setUserMemoryRegion2({ slot: 2, guestPhysAddr: Place.NOWHERE, guestMemfd: nowhere });
    return 'retry';
  };
  const faults = new MemoryFaultService(vm, { policy, trace: (event) => trace.memory(event) });
  const loop = new RunLoop(vcpu, {
    handlers: [faults],
    onExit: () => trace.exit(vcpu),
    ...(sliceMs === undefined ? {} : { sliceMs }),
  });
  let serial = '';
  Serial.attach(loop.ports, (byte) => {
    serial += String.fromCharCode(byte);
  });
  DebugExit.attach(loop.ports, (value) => loop.stop(value));
  let end: RunEnd;
  try {
    end = await loop.run({ timeoutMs: TIMEOUT_MS });
  } finally {
    trace.close();
  }
  const state = {
    completed: vcpu.completed,
    regs: vcpu.getRegs(),
    sregs: vcpu.getSregs(),
    xsave: digest(vcpu.getXsave()),
    debug: vcpu.getDebugRegs(),
    events: vcpu.getVcpuEvents(),
    memory: digest(memory.bytes),
    exits: loop.exits,
    faults: faults.counters,
    private: [...vm.memoryMap.attributesWithin(0, MEMORY)].filter(
      ({ value }) => value === MemoryAttribute.PRIVATE,
    ),
  };
  return { end, trace: readFileSync(path, 'utf8'), serial, state };
}

const guests: readonly (readonly [string, GuestImage, RunEnd['reason'], exits: number, others: number])[] = [
  ['that does a bit of everything', flatImage(busy.code, 'long'), 'halt', 100, 5 * 60 * 2],
  ['in real mode', flatImage(real.code, 'real'), 'halt', 500, 0],
  ['with private memory', demoGuest, 'halt', 50, 5],
];

describe.each(guests)('a guest %s', (_, image, ends, exits, others) => {
  let first: Ran;
  beforeAll(async () => {
    first = await run(image);
  });

  it('ends as it should, with some exits', () => {
    const { end, trace } = first;
    expect(end.reason).toBe(ends);
    expect(trace.split('\n').length).toBeGreaterThan(exits);
  });

  it.each([
    ['once more', {}],
    ['as closures', { tier: 'closures' }],
    ['as templates', { tier: 'templates' }],
    ['as WebAssembly from the first time on', { tier: 'wasm' }],
    ['in slices of other lengths', { sliceMs: 1 }],
    [
      'with an observer of each instruction',
      { observer: { instruction() {}, secondStage() {}, lacking() {} } },
    ],
  ] satisfies [string, How][])('has the same trace, state and count of instructions %s', async (_, how) => {
    expect(await run(image, how)).toEqual(first);
  });

  it.each([
    ['only small modules', 280],
    ['no module', 0],
  ])('has the same where an engine compiles %s at once, as on a page', async (_, most) => {
    const { Module } = WebAssembly;
    const sizes = { compiled: 0, refused: 0 };
    class Limited {
      constructor(bytes: Uint8Array) {
        if (bytes.length > most) {
          sizes.refused++;
          throw new RangeError('WebAssembly.Compile is disallowed on the main thread');
        }
        sizes.compiled++;
        // biome-ignore lint/correctness/noConstructorReturn: it stands for another class.
        return new Module(bytes);
      }
    }
    Object.assign(WebAssembly, { Module: Limited });
    try {
      expect(await run(image)).toEqual(first);
    } finally {
      Object.assign(WebAssembly, { Module });
    }
    expect(sizes.refused).toBeGreaterThan(0);
    expect(sizes.compiled > 0).toBe(most > 0);
  });

  it('tells an observer of each instruction that it completes', async () => {
    const told = { instructions: 0 };
    const { state } = await run(image, {
      observer: { instruction: () => void told.instructions++ },
    });
    // The others raised an exception, or were tried again after a memory fault.
    const { completed } = state as { completed: bigint };
    expect(told.instructions - Number(completed)).toBe(others);
  });
});

/** Bytes that follow from a seed (xorshift32). */
function noise(seed: number, length: number): Uint8Array {
  let x = seed * 2654435761 || 1;
  return Uint8Array.from({ length }, () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x & 0xff;
  });
}

describe('guests of noise', () => {
  it.each(['long', 'real'] as const)('do the same in %s mode in each tier, whatever it is', async (mode) => {
    let compared = 0;
    for (let seed = 1; seed <= 150; seed++) {
      const code = noise(seed, 256);
      const first = short(code, mode, 'closures');
      for (const tier of ['templates', 'wasm', 'both'] as const) {
        // One that a deadline ended was somewhere.
        const other = first && short(code, mode, tier);
        if (other === undefined) continue;
        compared++;
        expect(other, `seed ${seed} as ${tier}`).toEqual(first);
      }
    }
    expect(compared).toBeGreaterThan(100);
  });
});

const DEADLINE_MS = 50;

/** Its first exits, and where it was at each. */
function short(
  code: Uint8Array,
  mode: 'long' | 'real',
  tier: 'closures' | 'templates' | 'wasm' | 'both',
): unknown {
  using hv = openHypervisor({ backend: 'sim', simulated: { tier } });
  using machine = new Machine(hv, { memory: 2 ** 17 });
  machine.load(flatImage(code, mode), { rdi: 0x8000, rsi: 0x8000, rcx: 0x300 });
  const { vcpu } = machine;
  // No handlers: its first exception is its end.
  vcpu.changeSregs({ idt: { base: 0n, limit: 0 } });
  const exits: unknown[] = [];
  for (let i = 0; i < 20; i++) {
    const exit = vcpu.run(DEADLINE_MS);
    if (vcpu.exit.reason === 'DEADLINE') return undefined;
    exits.push([vcpu.exit, vcpu.completed, vcpu.getRegs(), vcpu.getSregs()]);
    if (exit !== 2 && exit !== 6) break;
  }
  return { exits, memory: digest(machine.memory.bytes), xsave: digest(vcpu.getXsave()) };
}

describe('an observer', () => {
  const halts = flatImage(Uint8Array.of(0x90, 0xf4), 'long');

  it('is told of instructions with their bytes, also of those that cross a page', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using machine = new Machine(hv, { memory: MEMORY });
    machine.load(halts);
    const { vcpu, memory } = machine;
    memory.write(2 * PAGE - 1, Uint8Array.of(0x90));
    memory.write(2 * PAGE - 1, Uint8Array.of(0x66, 0x90, 0xf4));
    vcpu.setRegs({ ...vcpu.getRegs(), rip: 2 * PAGE - 1 });
    const told: unknown[] = [];
    vcpu.observe({ instruction: (rip, bytes, bits) => told.push([rip, [...bytes], bits]) });
    vcpu.run(TIMEOUT_MS);
    expect(told).toEqual([
      [0x1fffn, [0x66, 0x90], 64],
      [0x2001n, [0xf4], 64],
    ]);
  });

  it('is told of each second-stage fault: the access, what it wants, and what was mapped or why nothing', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using machine = new Machine(hv, { memory: MEMORY, privateMemory: true });
    // mov [0x8000], al; mov al, [0x9000]; mov al, [0xc0000000] in edi; hlt
    const code = [0x88, 0x04, 0x25, 0, 0x80, 0, 0, 0x8a, 0x04, 0x25, 0, 0x90, 0, 0, 0x8a, 0x07, 0xf4];
    machine.load(flatImage(Uint8Array.from(code), 'long'), { rdi: 0xc000_0000 });
    const { vcpu, vm, guestMemfd } = machine;
    vm.setMemoryAttributes({ address: 0x8000, size: PAGE, attributes: MemoryAttribute.PRIVATE });
    const told: unknown[] = [];
    vcpu.observe({
      secondStage: (event) => void (event.gpa < 0x10_0000 || event.slot !== 0 ? told.push(event) : 0),
    });
    vcpu.run(TIMEOUT_MS);
    const slot0 = { slot: 0, why: undefined };
    expect(told).toEqual([
      { gpa: 0x1000, access: 'fetch', wants: 'shared', mapped: 'memory', ...slot0 },
      { gpa: 0x8000, access: 'write', wants: 'private', mapped: 'guest_memfd', ...slot0 },
      { gpa: 0x9000, access: 'read', wants: 'shared', mapped: 'memory', ...slot0 },
    ]);
    expect(vcpu.exit.reason).toBe('MMIO');
    // Zapped, and the file gone: the next access finds nothing to map.
    told.length = 0;
    vcpu.complete(() => {});
    guestMemfd!.close();
    vm.setMemoryAttributes({ address: 0x8000, size: PAGE, attributes: 0 });
    vm.setMemoryAttributes({ address: 0x8000, size: PAGE, attributes: MemoryAttribute.PRIVATE });
    vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000 });
    vcpu.run(TIMEOUT_MS);
    expect(vcpu.exit.reason).toBe('MEMORY_FAULT');
    expect(told).toContainEqual({
      gpa: 0x8000,
      access: 'write',
      wants: 'private',
      slot: 0,
      mapped: undefined,
      why: 'the slot has no guest_memfd',
    });
  });

  it('is told of an instruction that the processor lacks, by name', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using machine = new Machine(hv, { memory: MEMORY });
    machine.load(flatImage(Uint8Array.of(0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2), 'long'));
    const { vcpu } = machine;
    const told: string[] = [];
    vcpu.observe({ lacking: (what) => told.push(what) });
    vcpu.run(TIMEOUT_MS);
    expect(vcpu.exit.reason).toBe('SHUTDOWN');
    expect(told).toEqual(['EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er']);
  });

  it('that throws ends run() with its error, and the guest goes on from there', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using machine = new Machine(hv, { memory: MEMORY });
    machine.load(halts);
    const { vcpu } = machine;
    vcpu.observe({
      instruction(rip) {
        if (rip === 0x1001n) throw new Error('seen enough');
      },
    });
    expect(() => vcpu.run(TIMEOUT_MS)).toThrow('seen enough');
    expect([vcpu.getRegs().rip, vcpu.completed]).toEqual([0x1001n, 1n]);
    vcpu.observe();
    vcpu.run(TIMEOUT_MS);
    expect([vcpu.exit.reason, vcpu.completed]).toEqual(['HLT', 2n]);
  });

  it('that runs or closes its vCPU does no harm', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using machine = new Machine(hv, { memory: MEMORY });
    machine.load(halts);
    const { vcpu } = machine;
    const errors: unknown[] = [];
    vcpu.observe({
      instruction() {
        try {
          vcpu.run(TIMEOUT_MS);
        } catch (error) {
          errors.push((error as { code: string }).code);
        }
        vcpu.close();
      },
    });
    vcpu.run(TIMEOUT_MS);
    expect(errors).toEqual(['EBUSY', 'ERR_KVM_CLOSED']);
    expect(vcpu.closed).toBe(true);
  });

  it('must be an object', () => {
    using hv = openHypervisor({ backend: 'sim' });
    using vm = hv.createVm();
    using vcpu = vm.createVcpu(0);
    expect(() => vcpu.observe(1 as unknown as Observer)).toThrow(/observer is 1; it must be an object/);
  });
});

onKvm('KVM has no observers, and counts nothing: an error that says why', (hv) => {
  using vm = hv.createVm();
  using vcpu = vm.createVcpu(0);
  expect(vcpu.completed).toBeUndefined();
  expect(() => vcpu.observe({})).toThrow(UnavailableError);
  expect(() => vcpu.observe({})).toThrow(/only the simulator/);
});
