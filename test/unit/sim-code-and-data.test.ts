import { afterEach, describe, expect, it, vi } from 'vitest';
import { Exit, enterRealMode, type GuestMemory, guest, openHypervisor, type Vcpu } from '../../src/index.ts';
import { Decoder } from '../../src/sim/cpu/translate/decode.ts';
import { runTo } from '../support/run.ts';

const CODE = 0x1000;
const OTHER_PAGE = 0x2100;
const SAME_PAGE = 0x1100;
const tiers = ['closures', 'wasm', 'both'] as const;
type Tier = (typeof tiers)[number];

interface Machine {
  readonly vcpu: Vcpu;
  readonly ram: GuestMemory;
  readonly another: () => Vcpu;
}

/** A guest in real mode, at its first instruction. */
function withGuest(tier: Tier, code: Uint8Array, use: (machine: Machine) => void, at = CODE): void {
  using hv = openHypervisor({ backend: 'sim', simulated: { tier } });
  using vm = hv.createVm();
  using ram = vm.allocate(0x10_0000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  ram.write(at, code);
  const made: Vcpu[] = [];
  const another = () => {
    const vcpu = vm.createVcpu(made.length);
    made.push(vcpu);
    enterRealMode(vcpu);
    vcpu.setRegs({ rip: at, rsp: 0x8000, rflags: 2 });
    return vcpu;
  };
  try {
    use({ vcpu: another(), ram, another });
  } finally {
    for (const vcpu of made) vcpu.close();
  }
}

afterEach(() => vi.restoreAllMocks());

/** Each changes a byte, or some, at DI 2,000 times: what it does there, and what must be there in the end. */
const TIMES = 2_000;
const writers = {
  'INC m8': [
    guest(
      16,
      `
 b9 d0 07 |     mov cx, 2000
 fe 05    | up: inc byte ptr [di]
 49       |     dec cx
 75 fb    |     jne up
 f4       |     hlt
`,
    ),
    TIMES & 0xff,
  ],
  'REP STOSB': [
    guest(
      16,
      `
 ba d0 07 |     mov dx, 2000
 57       | up: push di
 88 d0    |     mov al, dl
 b9 08 00 |     mov cx, 8
 f3 aa    |     rep stosb
 5f       |     pop di
 4a       |     dec dx
 75 f4    |     jne up
 f4       |     hlt
`,
    ),
    1,
  ],
  'PUSH and INT 3': [
    guest(
      16,
      `
 b9 d0 07                |     mov cx, 2000
 89 fc                   |     mov sp, di
 c7 06 0c 00 20 10       |     mov word ptr [0x0c], 0x1020   # the vector of INT 3, to the iret
 c7 06 0e 00 00 00       |     mov word ptr [0x0e], 0
 cc                      | up: int3
 51                      |     push cx
 59                      |     pop cx
 49                      |     dec cx
 75 fa                   |     jne up
 fe 05                   |     inc byte ptr [di]
 f4 90 90 90 90 90 90 cf |     hlt; nop; nop; nop; nop; nop; nop; iret
`,
    ),
    1,
  ],
  'FISTP, MOVSW and XCHG': [
    guest(
      16,
      `
 b9 d0 07 |     mov cx, 2000
 9b db e3 |     finit
 89 fe    | up: mov si, di
 d9 e8    |     fld1
 df 1d    |     fistp word ptr [di]
 87 45 02 |     xchg ax, word ptr [di + 2]
 a5       |     movsw
 89 f7    |     mov di, si
 83 ef 02 |     sub di, 2
 49       |     dec cx
 75 ee    |     jne up
 f4       |     hlt
`,
    ),
    1,
  ],
} as const;

describe('a guest that writes into the page that its code is in, on the simulator', () => {
  describe.each(Object.entries(writers))('%s', (_, [{ code }, result]) => {
    it.each(tiers)('is translated as often as if it wrote elsewhere (%s)', (tier) => {
      const decode = vi.spyOn(Decoder.prototype, 'decode');
      // The first learns the forms of these instructions, which the others find.
      const decoded = [OTHER_PAGE, OTHER_PAGE, SAME_PAGE].map((rdi) => {
        decode.mockClear();
        withGuest(tier, code, ({ vcpu, ram }) => {
          vcpu.setRegs({ ...vcpu.getRegs(), rdi });
          runTo(vcpu, Exit.HLT);
          expect(ram.bytes[rdi]).toBe(result);
        });
        return decode.mock.calls.length;
      });
      expect(decoded[1]).toBeGreaterThan(0);
      expect(decoded[2]).toBe(decoded[1]);
    });
  });

  it.each(tiers)('is not translated anew when its VMM has written beside the code (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 8a 05 | up: mov al, [di]
 e6 80 |     out 0x80, al
 eb fa |     jmp up
 00    |     .byte 0           # the VMM's: between code and code
 f4    |     hlt
`,
    );
    const decode = vi.spyOn(Decoder.prototype, 'decode');
    withGuest(tier, code, ({ vcpu, ram }) => {
      // The last instruction is code too.
      vcpu.setRegs({ ...vcpu.getRegs(), rip: CODE + 7 });
      runTo(vcpu, Exit.HLT);
      vcpu.setRegs({ ...vcpu.getRegs(), rip: CODE, rdi: CODE + 6 });
      for (let i = 0; i < 100; i++) {
        if (i === 50) decode.mockClear();
        if (i % 2 === 0) ram.write(CODE + 6, Uint8Array.of(i));
        else ram.bytes[CODE + 6] = i;
        runTo(vcpu, Exit.IO);
        expect(vcpu.io.value).toBe(i);
      }
    });
    expect(decode).not.toHaveBeenCalled();
  });
});

describe('code that is changed, on the simulator', () => {
  /** Runs to HLT and gives AL. */
  const al = ({ vcpu }: Machine): number => {
    runTo(vcpu, Exit.HLT);
    return Number(vcpu.getRegs().rax & 0xffn);
  };

  it.each(tiers)('by the instruction before it, in the same block (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 c6 06 06 10 2a | mov byte ptr [0x1006], 0x2a
 b0 00          | mov al, 0
 f4             | hlt
`,
    );
    withGuest(tier, code, (machine) => expect(al(machine)).toBe(0x2a));
  });

  it.each(tiers)('by each turn of a loop of its own (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 b9 64 00    |     mov cx, 100
 31 db       |     xor bx, bx
 b0 00       | up: mov al, 0
 00 c3       |     add bl, al
 fe 06 06 10 |     inc byte ptr [0x1006]
 49          |     dec cx
 75 f5       |     jne up
 88 d8       |     mov al, bl
 f4          |     hlt
`,
    );
    withGuest(tier, code, (machine) => expect(al(machine)).toBe(((99 * 100) / 2) & 0xff));
  });

  it.each(tiers)('though its page was written to before there was code here (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 fe 06 81 10    | inc byte ptr [0x1081]
 bd 80 10       | mov bp, 0x1080
 ff d5          | call bp
 c6 06 81 10 2a | mov byte ptr [0x1081], 0x2a
 ff d5          | call bp
 f4             | hlt
`,
    );
    withGuest(tier, code, (machine) => {
      machine.ram.write(0x1080, Uint8Array.of(0xb0, 0, 0xc3)); // mov al, 0; ret
      expect(al(machine)).toBe(0x2a);
    });
  });

  it.each(tiers)('by the last byte of a wide write that begins before it (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 66 c7 06 0d 10 00 00 00 2a |    mov dword ptr [0x100d], 0x2a000000
 b3 01                      |    mov bl, 1
 eb 04                      |    jmp on
 00 00 b0                   |    .byte 0, 0, 0xb0
 00                         |    .byte 0
 b0 00                      | on: mov al, 0
 f4                         |    hlt
`,
    );
    // 0x100d..0x1010: the write's last byte is the one before the MOV; moved on by one it is the MOV's first.
    withGuest(tier, code, (machine) => expect(al(machine)).toBe(0));
    const hit = code.slice();
    hit[3] = 0x0f;
    hit.set([0, 0xb0, 0x2a].slice(0, 3), 6);
    withGuest(tier, hit, (machine) => expect(al(machine)).toBe(0x2a));
  });

  it.each(tiers)('by REP STOSB that fills all of the way to it, over itself and beyond (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 b0 f4    |     mov al, 0xf4
 bf 10 10 |     mov di, 0x1010
 b9 20 00 |     mov cx, 0x20
 eb 04    |     jmp on
 90 90    |     nop; nop
 90 90    |     nop; nop
 90 90    | on: nop; nop
 90 90    |     nop; nop
 f3 aa    |     rep stosb
 b0 01    |     mov al, 1
`,
    );
    // At 0x1012 is the REP STOSB: the third byte that it writes is its own first, and what is there then is HLT.
    withGuest(tier, code, (machine) => {
      expect(al(machine)).toBe(0xf4);
      expect(Number(machine.vcpu.getRegs().rip)).toBe(0x1013);
      expect(Number(machine.vcpu.getRegs().rcx)).toBe(0x20 - 3);
    });
  });

  it.each(tiers)('by REP MOVSB of a page over the page before (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 b9 02 00 |     mov cx, 2
 bd 00 20 |     mov bp, 0x2000
 ff d5    | up: call bp
 51       |     push cx
 be 00 30 |     mov si, 0x3000
 89 ef    |     mov di, bp
 b9 00 10 |     mov cx, 0x1000
 f3 a4    |     rep movsb
 59       |     pop cx
 49       |     dec cx
 75 ef    |     jne up
 ff d5    |     call bp
 f4       |     hlt
`,
    );
    withGuest(tier, code, (machine) => {
      machine.ram.write(0x2000, Uint8Array.of(0xb0, 1, 0xc3)); // mov al, 1; ret
      machine.ram.write(0x3000, Uint8Array.of(0xb0, 2, 0xc3));
      expect(al(machine)).toBe(2);
      expect([...machine.ram.bytes.subarray(0x2000, 0x3000)]).toEqual([
        ...machine.ram.bytes.subarray(0x3000, 0x4000),
      ]);
    });
  });

  it.each(tiers)('in the second page of an instruction that lies in two (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 bd fe 1f       | mov bp, 0x1ffe
 ff d5          | call bp
 c6 06 00 20 2a | mov byte ptr [0x2000], 0x2a
 ff d5          | call bp
 f4             | hlt
`,
    );
    withGuest(tier, code, (machine) => {
      machine.ram.write(0x1ffe, Uint8Array.of(0x66, 0xb8, 0, 0, 0, 0, 0xc3)); // mov eax, 0; ret
      expect(al(machine)).toBe(0x2a);
    });
  });

  it.each(tiers)('by a write that begins in the page before (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 bd 01 20                   | mov bp, 0x2001
 ff d5                      | call bp
 66 c7 06 ff 1f 00 00 b0 2a | mov dword ptr [0x1fff], 0x2ab00000
 ff d5                      | call bp
 f4                         | hlt
`,
    );
    withGuest(tier, code, (machine) => {
      machine.ram.write(0x2001, Uint8Array.of(0xb0, 1, 0xc3));
      expect(al(machine)).toBe(0x2a);
    });
  });

  it.each(tiers)('by its VMM, through the mapping and by write() (%s)', (tier) => {
    withGuest(tier, Uint8Array.of(0xb0, 1, 0xf4, 0xeb, 0xfb), (machine) => {
      expect(al(machine)).toBe(1);
      machine.ram.bytes[CODE + 1] = 2;
      expect(al(machine)).toBe(2);
      machine.ram.write(CODE + 1, Uint8Array.of(3));
      expect(al(machine)).toBe(3);
    });
  });

  it.each(tiers)('by another vCPU (%s)', (tier) => {
    const { code } = guest(
      16,
      `
 b0 01          |     mov al, 1
 f4             | up: hlt
 eb fb          |     jmp up - 2
 c6 06 01 10 2a |     mov byte ptr [0x1001], 0x2a
 f4             |     hlt
`,
    );
    withGuest(tier, code, (machine) => {
      expect(al(machine)).toBe(1);
      const other = machine.another();
      other.setRegs({ ...other.getRegs(), rip: CODE + 5 });
      runTo(other, Exit.HLT);
      expect(al(machine)).toBe(0x2a);
    });
  });
});

it('an operand that must be aligned and is not faults, though no page is known yet', () => {
  // movaps [1], xmm0: what an empty entry of the translation buffer says is no page with that address.
  const { code } = guest(
    16,
    `
 0f 20 e0          | mov eax, cr4
 66 0d 00 02 00 00 | or eax, 0x200
 0f 22 e0          | mov cr4, eax
 0f 29 06 01 00    | movaps [1], xmm0
 f4                | hlt
`,
  );
  withGuest('wasm', code, ({ vcpu, ram }) => {
    ram.write(4 * 13, Uint8Array.of(0x00, 0x30, 0, 0));
    ram.write(0x3000, Uint8Array.of(0xf4));
    runTo(vcpu, Exit.HLT);
    expect(Number(vcpu.getRegs().rip)).toBe(0x3001);
  });
});
