/**
 * A machine of several processors with the kernel's interrupt controllers: the first runs by itself, and the guest starts the
 * others, as firmware does (SDM volume 3, 9.4, "Multiple-Processor Initialization").
 */
import { enterProtectedMode, type Hypervisor, placeIdt, type Vcpu, type Vm } from '../../src/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { Selector } from '../../src/vmm/modes.ts';

/** In guest memory, which is mapped one to one. */
export const Place = {
  /** What LGDT and LIDT take: a limit of two bytes and an address of four. */
  gdtr: 0x600,
  idtr: 0x608,
  idt: 0x2000,
  handlers: 0x2800,
  /** What all processors execute once they are in protected mode. */
  program: 0x3000,
  words: 0x5000,
  /** SIPI's vector is the number of this page. */
  trampoline: 0x7000,
  tables: 0x1_0000,
} as const;
const RAM_SIZE = 0x4_0000;

/** From real mode to 32-bit protected mode, at Place.program. */
const trampoline = guest(
  16,
  `
 fa                      | cli
 66 0f 01 16 00 06       | lgdtd [0x600]
 0f 20 c0                | mov eax, cr0
 0c 01                   | or al, 1
 0f 22 c0                | mov cr0, eax
 66 ea 00 30 00 00 08 00 | .byte 0x66, 0xea, 0x00, 0x30, 0x00, 0x00, 0x08, 0x00 # jmp 8:0x3000
`,
);

/**
 * What IRET does where it stays at its privilege (SDM volume 2, IRET): KVM's emulator, which executes privilege 0 on a PVM host, has
 * none in protected mode. Interrupts are off until the instruction behind STI is done.
 */
const returns = guest(
  32,
  `
 0f ba 74 24 08 09 | btr dword ptr [esp + 8], 9
 72 08             | jc on
 ff 74 24 08       | push dword ptr [esp + 8]
 9d                | popf
 ca 04 00          | retf 4
 ff 74 24 08       | on: push dword ptr [esp + 8]
 9d                | popf
 fb                | sti
 ca 04 00          | retf 4
`,
);

/** A routine of an interrupt's, by its vector, without the return at its end. */
export type Routines = { readonly [vector: number]: Guest };

export class Processors implements Disposable {
  readonly vm: Vm;
  readonly vcpus: readonly Vcpu[];
  readonly ram;

  /** @param program in 32 bits; the first processor begins there */
  constructor(hv: Hypervisor, count: number, program: Guest, routines: Routines = {}) {
    this.vm = hv.createVm();
    this.vm.createIrqchip();
    this.ram = this.vm.allocate(RAM_SIZE);
    this.vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: this.ram });
    const cpuid = hv.getSupportedCpuid();
    this.vcpus = Array.from({ length: count }, (_, id) => {
      const vcpu = this.vm.createVcpu(id);
      vcpu.setCpuid2(cpuid);
      return vcpu;
    });
    const [boot] = this.vcpus;
    enterProtectedMode(boot!, this.ram, { tables: Place.tables });
    boot!.setRegs({ rip: Place.program, rflags: 2 });
    this.ram.write(Place.program, program.code);
    this.ram.write(Place.trampoline, trampoline.code);
    const gates = Object.entries(routines).map(([vector, { code }], i) => {
      const offset = Place.handlers + i * 0x100;
      this.ram.write(offset, code);
      this.ram.write(offset + code.length, returns.code);
      return [vector, { offset, selector: Selector.CODE32 }] as const;
    });
    const idt = placeIdt({ memory: this.ram, address: Place.idt }, 32, Object.fromEntries(gates));
    this.#pointer(Place.idtr, idt);
    this.#pointer(Place.gdtr, boot!.getSregs().gdt);
  }

  #pointer(at: number, { base, limit }: { base: number | bigint; limit: number }): void {
    const view = new DataView(new ArrayBuffer(6));
    view.setUint16(0, limit, true);
    view.setUint32(2, Number(base), true);
    this.ram.write(at, new Uint8Array(view.buffer));
  }

  /** Words of the guest's, of four bytes, from an offset in Place.words on. */
  words(offset: number, count: number): number[] {
    const bytes = this.ram.read(Place.words + offset, 4 * count);
    return [...new Uint32Array(bytes.buffer, bytes.byteOffset, count)];
  }

  setWord(offset: number, value: number): void {
    this.ram.write(Place.words + offset, new Uint8Array(Uint32Array.of(value).buffer));
  }

  [Symbol.dispose](): void {
    for (const opened of [...this.vcpus, this.vm, this.ram]) opened.close();
  }
}
