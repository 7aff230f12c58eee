/**
 * A guest whose result depends on all of a processor's state, and its VMM: what it computes must not tell where, or how
 * often, it was saved and restored. Its exception is no INT3: KVM_GET_VCPU_EVENTS leaves out those that an instruction
 * raises on purpose, which is to be executed again; on a PVM host rip is behind it by then, and the exception lost.
 */
import { Exit, type GuestMemory, type Hypervisor, type Vcpu, type Vm } from '../../src/index.ts';
import { IoDirection } from '../../src/uapi/index.ts';
import { guest } from '../../src/vmm/guest.ts';
import { enterLongMode, Selector } from '../../src/vmm/modes.ts';
import { inLab } from './limits.ts';
import { expectOutcome, setWord } from './run.ts';

/** Where things are in guest memory, which is mapped one to one. */
const At = {
  gdt: 0x500,
  tss: 0x600,
  kernelStack: 0x3_f000,
  stacks: 0x3_c000,
  stack: 0x3_e000,
  code: 0x1000,
  handlers: 0x2000,
  idt: 0x3000,
  tables: 0x9000,
  result: 0x3_0000,
} as const;
export const MEMORY = 0x4_0000;
const VECTOR = 0x40;
const END = 0xf4;

const code = guest(
  64,
  `
 db e3                         | begin:  fninit
 d9 eb                         |         fldpi                               # two values stay on the x87 stack
 d9 ee                         |         fldz
 b8 00 00 00 40                |         mov eax, 0x40000000                 # single-precision 2, to begin with
 66 0f 6e e8                   |         movd xmm5, eax
 48 b8 2d 7f 95 4c 2d f4 51 58 | again:  mov rax, 0x5851f42d4c957f2d         # integers
 4c 0f af e0                   |         imul r12, rax
 49 01 ec                      |         add r12, rbp
 49 c1 c4 07                   |         rol r12, 7
 49 0f ba e4 03                |         bt r12, 3                           # flags that live across instructions
 49 83 d5 55                   |         adc r13, 0x55
 9c                            |         pushfq
 58                            |         pop rax
 25 d5 08 00 00                |         and eax, 0x8d5
 49 01 c5                      |         add r13, rax
 bf 00 00 02 00                |         mov edi, 0x20000                    # strings
 b9 c8 00 00 00                |         mov ecx, 200
 44 89 e0                      |         mov eax, r12d
 f3 aa                         |         rep stosb
 be 00 00 02 00                |         mov esi, 0x20000
 bf 00 20 02 00                |         mov edi, 0x22000
 b9 1e 00 00 00                |         mov ecx, 30
 f3 48 a5                      |         rep movsq
 fd                            |         std
 48 8d 7f f8                   |         lea rdi, [rdi - 8]
 b9 0a 00 00 00                |         mov ecx, 10
 f3 48 ab                      |         rep stosq
 fc                            |         cld
 4c 03 2c 25 e8 20 02 00       |         add r13, [0x22000 + 0xe8]
 66 49 0f 6e c4                |         movq xmm0, r12                      # SSE
 66 0f 6c c0                   |         punpcklqdq xmm0, xmm0
 66 0f d4 c8                   |         paddq xmm1, xmm0
 66 44 0f ef f9                |         pxor xmm15, xmm1
 f2 0f 2a dd                   |         cvtsi2sd xmm3, ebp
 f2 0f 51 db                   |         sqrtsd xmm3, xmm3
 f2 0f 58 e3                   |         addsd xmm4, xmm3
 f3 0f 59 ed                   |         mulss xmm5, xmm5
 48 89 2c 25 00 30 02 00       |         mov [0x23000], rbp                  # x87
 df 2c 25 00 30 02 00          |         fild qword ptr [0x23000]
 d9 fa                         |         fsqrt
 de c1                         |         faddp st(1), st
 d9 c1                         |         fld st(1)
 d8 c9                         |         fmul st, st(1)
 dd 1c 25 00 30 02 00          |         fstp qword ptr [0x23000]
 4c 03 2c 25 00 30 02 00       |         add r13, [0x23000]
 44 85 d5                      |         test ebp, r10d                      # not in each round, if the test wants it so
 75 17                         |         jnz next
 0f 0b                         |         ud2                                 # an exception
 4d 39 f7                      | wait:   cmp r15, r14                        # until the VMM's interrupt has come, too
 72 fb                         |         jb wait
 f7 c5 07 00 00 00             |         test ebp, 7
 75 08                         |         jnz next
 b8 00 00 00 d0                |         mov eax, 0xd0000000                 # memory-mapped I/O, read, modified and written
 48 ff 00                      |         inc qword ptr [rax]
 48 ff cd                      | next:   dec rbp
 0f 85 34 ff ff ff             |         jnz again
 bb 00 00 03 00                |         mov ebx, 0x30000
 0f ae 03                      |         fxsave [rbx]
 4c 89 a3 00 02 00 00          |         mov [rbx + 0x200], r12
 4c 89 ab 08 02 00 00          |         mov [rbx + 0x208], r13
 4c 89 b3 10 02 00 00          |         mov [rbx + 0x210], r14
 4c 89 bb 18 02 00 00          |         mov [rbx + 0x218], r15
 e6 f4                         |         out 0xf4, al
`,
);
/** Of #UD, and of the VMM's interrupt, at privilege 0. */
const handlers = [
  guest(
    64,
    `
 50                   | push rax
 51                   | push rcx
 52                   | push rdx
 44 0f 20 c0          | mov rax, cr8                # the task priority
 ff c0                | inc eax
 83 e0 03             | and eax, 3
 44 0f 22 c0          | mov cr8, rax
 49 01 c5             | add r13, rax
 b9 02 01 00 c0       | mov ecx, 0xc0000102         # an MSR
 0f 32                | rdmsr
 44 01 e8             | add eax, r13d
 0f 30                | wrmsr
 89 04 25 20 02 03 00 | mov [0x30220], eax
 48 83 44 24 18 02    | add qword ptr [rsp + 24], 2 # behind the ud2
 fb                   | sti                         # a shadow of one instruction
 90                   | nop
 fa                   | cli
 44 88 e0             | mov al, r12b                # a port, and an interrupt that the VMM sends for it when this handler is done
 e6 50                | out 0x50, al
 e4 51                | in al, 0x51
 0f b6 c0             | movzx eax, al
 49 01 c4             | add r12, rax
 49 ff c6             | inc r14
 5a                   | pop rdx
 59                   | pop rcx
 58                   | pop rax
 48 cf                | iretq
`,
  ),
  guest(
    64,
    `
 49 ff c7 | inc r15
 48 cf    | iretq
`,
  ),
] as const;
const HANDLER_SIZE = 128;
const INVALID_OPCODE = 6;

/** A gate for interrupts, open to privilege 3 (SDM volume 3, 7.14.1). */
function setGate(memory: GuestMemory, vector: number, handler: number): void {
  const at = At.idt + vector * 16;
  const low = BigInt(handler & 0xffff) | (BigInt(Selector.CODE64) << 16n) | (0xeen << 40n);
  setWord(memory.bytes, at, low | (BigInt(handler >>> 16) << 48n));
  setWord(memory.bytes, at + 8, 0n);
}

/** Interrupts are on, and ports are there for privilege 3, where any KVM uses the processor itself. */
const FLAGS = 0x3202n;
const User = { DATA: 0x1b, CODE: 0x23 } as const;
const TSS = { selector: 0x28, limit: 0x67, rsp0: 4 } as const;

function enterUser(vcpu: Vcpu, memory: GuestMemory): void {
  const descriptors = [
    0n,
    0x00af_9b00_0000_ffffn,
    0x00cf_9300_0000_ffffn,
    0x00cf_f300_0000_ffffn,
    0x00af_fb00_0000_ffffn,
  ];
  for (const [i, descriptor] of descriptors.entries()) setWord(memory.bytes, At.gdt + 8 * i, descriptor);
  setWord(memory.bytes, At.tss + TSS.rsp0, BigInt(At.kernelStack));
  const data = { selector: User.DATA, dpl: 3 };
  vcpu.changeSregs({
    cs: { selector: User.CODE, dpl: 3 },
    ss: data,
    ds: data,
    es: data,
    tr: {
      base: BigInt(At.tss),
      limit: TSS.limit,
      selector: TSS.selector,
      type: 11,
      present: 1,
      s: 0,
      unusable: 0,
    },
    gdt: { base: BigInt(At.gdt), limit: 0x3f },
    idt: { base: BigInt(At.idt), limit: 0xfff },
  });
}

/** What the VMM has to remember of its own: it travels with the guest. */
export interface Vmm {
  /** An interrupt waits until the guest can take it. */
  interrupt: boolean;
  /** What the port was told, and what the register at MMIO holds. */
  port: number;
  register: bigint;
}

export interface Traveller {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly memory: GuestMemory;
}

/**
 * The guest at its beginning.
 * @param mask the bits of the round's number that are clear in a round with exits: 0 for each round
 */
export function boot(
  hv: Hypervisor,
  rounds: number,
  mask = 0,
  cpuid = hv.getSupportedCpuid(),
): Traveller & Disposable {
  const vm = hv.createVm();
  const memory = vm.allocate(MEMORY);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory });
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(cpuid);
  memory.write(At.code, code.code);
  for (const [i, { code }] of handlers.entries()) memory.write(At.handlers + i * HANDLER_SIZE, code);
  setGate(memory, INVALID_OPCODE, At.handlers);
  setGate(memory, VECTOR, At.handlers + HANDLER_SIZE);
  enterLongMode(vcpu, memory, { tables: At.tables });
  enterUser(vcpu, memory);
  vcpu.setRegs({
    rip: BigInt(At.code),
    rsp: BigInt(At.stack),
    rflags: FLAGS,
    rbp: BigInt(rounds),
    r12: 1n,
    r10: BigInt(mask),
  });
  const close = () => {
    vcpu.close();
    vm.close();
    memory.close();
  };
  return { vm, vcpu, memory, [Symbol.dispose]: close };
}

export const newVmm = (): Vmm => ({ interrupt: false, port: 0, register: 7n });

/** The guest is done: by then its result is in memory. */
export const hasEnded = (vcpu: Vcpu): boolean => vcpu.outcome === Exit.IO && vcpu.io.port === END;

/** Answers an exit of the guest's. */
export function serve(vcpu: Vcpu, vmm: Vmm, exit: number): void {
  if (exit === Exit.IO && !hasEnded(vcpu)) {
    if (vcpu.io.direction === IoDirection.IN) vcpu.io.value = vmm.port ^ 0x5a;
    else {
      vmm.port = vcpu.io.value;
      vmm.interrupt = true;
    }
  } else if (exit === Exit.MMIO) {
    if (vcpu.mmio.isWrite) vmm.register = vcpu.mmio.value;
    else vcpu.mmio.value = vmm.register;
  } else if (!hasEnded(vcpu)) expectOutcome(vcpu, Exit.IRQ_WINDOW_OPEN, Exit.SET_TPR);
}

/** Injects the interrupt that waits, if the guest can take it now. */
export function inject(vcpu: Vcpu, vmm: Vmm): boolean {
  const can = vmm.interrupt && vcpu.raw.readyForInterruptInjection;
  if (!can) return false;
  vcpu.interrupt(VECTOR);
  vmm.interrupt = false;
  return true;
}

/** One KVM_RUN, with the interrupt that waits. */
export function step(vcpu: Vcpu, vmm: Vmm, timeoutMs: number): number {
  inject(vcpu, vmm);
  vcpu.raw.requestInterruptWindow = vmm.interrupt;
  return vcpu.run(timeoutMs);
}

/**
 * What the guest has computed: registers of every kind, and its memory but for the stacks, where an interrupt leaves
 * at which instruction it came.
 */
export const result = (memory: GuestMemory): string =>
  Buffer.from(memory.bytes.subarray(0, At.stacks)).toString('hex');

/**
 * Of a result what is the same on every processor: not which bits of MXCSR it has, nor its accessed and dirty bits, nor the
 * x87's pointers, which AMD's processors save while an exception is pending, and Intel's always. The
 * lab's emulated one does not say in C1 that x87 has rounded up (SDM volume 1, 8.1.3.3).
 */
export function computed(result: string): string {
  const bytes = Buffer.from(result, 'hex').subarray(COMPUTED);
  const saved = At.result - COMPUTED;
  bytes.fill(0, saved + Fxsave.OPCODE, saved + Fxsave.MXCSR);
  bytes.fill(0, saved + Fxsave.MXCSR_MASK, saved + Fxsave.MXCSR_MASK + 4);
  if (inLab) bytes[saved + Fxsave.STATUS + 1]! &= ~2;
  return bytes.toString('hex');
}
/** Behind code and page tables. */
const COMPUTED = 0x2_0000;
/** Where FXSAVE has it (SDM volume 1, table 10-2). */
const Fxsave = { STATUS: 2, OPCODE: 6, MXCSR: 24, MXCSR_MASK: 28 } as const;
