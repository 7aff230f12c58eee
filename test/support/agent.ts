/**
 * A guest that does what the test tells it: the test puts a command in its registers, and it answers with an OUT. So
 * a test is a conversation instead of machine code of its own.
 */
import { Exit, type GuestMemory, type Hypervisor, type Regs, type Vcpu, type Vm } from '../../src/index.ts';
import { GuestDebug, type Input } from '../../src/uapi/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { enterLongMode } from '../../src/vmm/modes.ts';
import { DEADLINE_MS } from './limits.ts';
import { expectOutcome } from './run.ts';

const PORT = 0xf0;

const code = guest(
  64,
  `
 e6 f0    | next:  out 0xf0, al             # rax: the answer
 80 fb 01 |        cmp bl, 1
 74 1c    |        je read
 80 fb 02 |        cmp bl, 2
 74 1c    |        je write
 80 fb 03 |        cmp bl, 3
 74 1c    |        je fill
 80 fb 04 |        cmp bl, 4
 74 1d    |        je check
 80 fb 05 |        cmp bl, 5
 74 2c    |        je enter
 80 fb 06 |        cmp bl, 6
 74 2c    |        je hyper
 f4       |        hlt
 eb dd    |        jmp next
 48 8b 07 | read:  mov rax, [rdi]
 eb d8    |        jmp next
 48 89 37 | write: mov [rdi], rsi
 eb d3    |        jmp next
 89 f0    | fill:  mov eax, esi             # rcx bytes of sil at rdi
 f3 aa    |        rep stosb
 eb cd    |        jmp next
 89 f0    | check: mov eax, esi             # rax: how many of the rcx bytes at rdi were sil before one was not
 48 89 ca |        mov rdx, rcx
 f3 ae    |        repe scasb
 74 03    |        je all
 48 ff c1 |        inc rcx
 48 29 ca | all:   sub rdx, rcx
 48 89 d0 |        mov rax, rdx
 eb b9    |        jmp next
 41 ff d7 | enter: call r15                 # a test's own code
 eb b4    |        jmp next
 4c 89 c0 | hyper: mov rax, r8              # a hypercall: number, then four arguments
 4c 89 cb |        mov rbx, r9
 4c 89 d1 |        mov rcx, r10
 4c 89 da |        mov rdx, r11
 4c 89 e6 |        mov rsi, r12
 0f 01 d9 |        vmmcall
 eb a0    |        jmp next
`,
);

/** Called by the agent: rcx words of rsi at rdi. An emulated processor takes as long for a byte as for a word. */
const fillWords = guest(
  64,
  `
 48 89 f0 | mov rax, rsi
 f3 48 ab | rep stosq
 c3       | ret
`,
);
/** Called by the agent: rax: how many of the rcx words at rdi were rsi before one was not. */
const checkWords = guest(
  64,
  `
 48 89 f0 |      mov rax, rsi
 48 89 ca |      mov rdx, rcx
 f3 48 af |      repe scasq
 74 03    |      je all
 48 ff c1 |      inc rcx
 48 29 ca | all: sub rdx, rcx
 48 89 d0 |      mov rax, rdx
 c3       |      ret
`,
);

/** What bl says; everything else is hlt. */
const Command = { hlt: 0, read: 1, write: 2, fill: 3, check: 4, call: 5, hypercall: 6 } as const;

/** Where things lie in the agent's RAM, which begins at guest-physical 0 and is mapped one to one. */
export const Layout = {
  code: 0x1000,
  snippet: 0x2000,
  stack: 0x8000,
  fillWords: 0x9000,
  checkWords: 0x9100,
  tables: 0x1_0000,
  free: 0x4_0000,
} as const;
const RAM_SIZE = 0x10_0000;
/** The length of `out imm8, al`: where a command begins. */
const AFTER_OUT = 2;
const RESERVED_FLAG = 0x2n;
const IOPL3 = 0x3000n;

/** For setGuestDebug(): a breakpoint in the first debug register (SDM volume 3, 18.2.4: DR7's G0, on execution). */
export const breakAt = (address: number) => ({
  control: GuestDebug.ENABLE | GuestDebug.USE_HW_BP,
  arch: { debugreg: [BigInt(address), 0n, 0n, 0n, 0n, 0n, 0n, 0x402n] },
});

export interface AgentOptions {
  /** VmType. */
  readonly type?: number;
  /** How much is mapped one to one, in bytes; a multiple of 2 MiB. */
  readonly identity?: number;
  /** 3: the agent runs as a guest's user program would, but for IN and OUT. */
  readonly privilege?: 0 | 3;
  /** Of its vCPU; 0 without it. */
  readonly id?: number;
  /** What must be done to the VM before it has a vCPU. */
  readonly prepare?: (vm: Vm) => void;
}

const words = (code: number) => (address: number, size: number, byte: number) => ({
  r15: code,
  rdi: address,
  rcx: size / 8,
  rsi: BigInt(byte) * 0x0101_0101_0101_0101n,
});

export class Agent implements Disposable {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  /** The agent's own RAM, slot 0: shared in every VM. From Layout.free on it is the test's. */
  readonly ram: GuestMemory;
  readonly #hv: Hypervisor;
  readonly #options: AgentOptions;

  private constructor(hv: Hypervisor, vm: Vm, ram: GuestMemory, id: number, options: AgentOptions) {
    this.#hv = hv;
    this.vm = vm;
    this.ram = ram;
    this.#options = options;
    this.vcpu = vm.createVcpu(id);
    this.vcpu.setCpuid2(hv.getSupportedCpuid());
    const { identity = 8 * 2 ** 30, privilege = 0 } = options;
    enterLongMode(this.vcpu, ram, { tables: Layout.tables, identity });
    // Without an IDT an exception that no test expects is a shutdown, and not a walk through what lies at 0.
    this.vcpu.setSregs({ ...this.vcpu.getSregs(), idt: { base: 0n, limit: 0 } });
    if (privilege !== 0) this.#lower(privilege);
  }

  /** A VM of which slot 0 is the agent's RAM and vCPU 0 is the agent. */
  static boot(hv: Hypervisor, options: AgentOptions = {}): Agent {
    const vm = hv.createVm({ type: options.type ?? 0 });
    options.prepare?.(vm);
    const ram = vm.allocate(RAM_SIZE);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
    ram.bytes.set(code.code, Layout.code);
    ram.bytes.set(fillWords.code, Layout.fillWords);
    ram.bytes.set(checkWords.code, Layout.checkWords);
    return new Agent(hv, vm, ram, options.id ?? 0, options);
  }

  /** Another vCPU of the same VM that runs the same code; closed by its own caller. */
  sibling(id: number): Agent {
    return new Agent(this.#hv, this.vm, this.ram, id, this.#options);
  }

  #lower(privilege: number): void {
    const sregs = this.vcpu.getSregs();
    const lower = <S extends { dpl: number; selector: number }>(segment: S): S => ({
      ...segment,
      dpl: privilege,
      selector: segment.selector | privilege,
    });
    const { cs, ds, es, fs, gs, ss } = sregs;
    this.vcpu.setSregs({
      ...sregs,
      cs: lower(cs),
      ds: lower(ds),
      es: lower(es),
      fs: lower(fs),
      gs: lower(gs),
      ss: lower(ss),
    });
  }

  /** Puts a command into the registers without running it. What the last one left pending must be complete. */
  prepare(command: keyof typeof Command, regs: Input<Regs> = {}): void {
    this.vcpu.setRegs({
      rip: Layout.code + AFTER_OUT,
      rsp: Layout.stack - 0x1000 * this.vcpu.id,
      rflags: RESERVED_FLAG | (this.#options.privilege === 3 ? IOPL3 : 0n),
      rbx: Command[command],
      ...regs,
    });
  }

  /** Tells the agent to do something, and gives what comes first: the answer, an Exit.IO, or another outcome. */
  begin(command: keyof typeof Command, regs: Input<Regs> = {}): number {
    this.vcpu.complete((exit) => {
      throw new Error(`completing the agent's last command gave exit ${exit}`);
    });
    this.prepare(command, regs);
    return this.vcpu.run(DEADLINE_MS);
  }

  /** Whether the last run ended with the agent's answer. */
  get answered(): boolean {
    return this.vcpu.outcome === Exit.IO && this.vcpu.io.port === PORT;
  }

  /** The agent's answer; the case fails if the last run ended otherwise. */
  get answer(): bigint {
    expectOutcome(this.vcpu, Exit.IO);
    if (!this.answered) throw new Error(`the agent used port 0x${this.vcpu.io.port.toString(16)}`);
    return this.vcpu.getRegs().rax;
  }

  /** Runs on after an exit that the test has dealt with, to the answer. */
  resume(): bigint {
    this.vcpu.run(DEADLINE_MS);
    return this.answer;
  }

  /** The eight bytes at a guest-physical address. */
  read(address: number): bigint {
    this.begin('read', { rdi: address });
    return this.answer;
  }

  /** Writes eight bytes. */
  write(address: number, value: number | bigint): void {
    this.begin('write', { rdi: address, rsi: value });
    this.answer;
  }

  /** @param size in bytes, a multiple of 8 */
  fill(address: number, size: number, byte: number): void {
    this.begin('call', Agent.filling(address, size, byte));
    this.answer;
  }
  /** The same as a command `call`, for who deals with what comes in between. */
  static readonly filling = words(Layout.fillWords);

  /** Whether every byte of the range has the value. @param size in bytes, a multiple of 8 */
  holds(address: number, size: number, byte: number): boolean {
    this.begin('call', Agent.checking(address, size, byte));
    return this.answer === BigInt(size / 8);
  }
  /** The same as a command `call`, which answers with a number of words. */
  static readonly checking = words(Layout.checkWords);

  /** Starts a hypercall: Exit.HYPERCALL, or the answer when KVM has dealt with it. */
  beginHypercall(nr: number, ...[a0 = 0, a1 = 0, a2 = 0, a3 = 0]: (number | bigint)[]): number {
    return this.begin('hypercall', { r8: nr, r9: a0, r10: a1, r11: a2, r12: a3 });
  }

  /** What a hypercall that needs no VMM returns in rax, as a signed number. */
  hypercall(nr: number, ...args: (number | bigint)[]): bigint {
    this.beginHypercall(nr, ...args);
    return BigInt.asIntN(64, this.answer);
  }

  /**
   * Starts a test's own code, which returns with `ret`; rax is its answer.
   * @param at where to put it: in the agent's RAM
   */
  beginCode(snippet: Guest, regs: Input<Regs> = {}, at: number = Layout.snippet): number {
    this.ram.bytes.set(snippet.code, at);
    return this.begin('call', { r15: at, ...regs });
  }

  /** The vCPU and the VM. */
  [Symbol.dispose](): void {
    this.vcpu.close();
    this.vm.close();
    this.ram.close();
  }
}
