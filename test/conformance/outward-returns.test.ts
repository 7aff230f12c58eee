/** What IRET and far RET to an outer privilege level leave of data segments (SDM volume 2, RET; svm.c, svm_get_segment). */
import { expect } from 'vitest';
import {
  descriptor,
  Exit,
  enterProtectedMode,
  FLAT_ADDRESS,
  flatImage,
  Machine,
  placeGdt,
} from '../../src/index.ts';
import { type Guest, guest } from '../../src/vmm/guest.ts';
import { runTo } from '../support/run.ts';
import { conformance } from '../support/suite.ts';

const MIB = 2 ** 20;
const TABLES = 0x8_0000;
const GDT = 0x500;
const STACK = 0x9000;
const BASE = 0x1_2000n;
const IOPL3 = 0x3000n;

/** To the OUT behind it. */
const iret = guest(
  32,
  `
 6a 23          | push 0x23
 68 00 90 00 00 | push 0x9000
 68 02 30 00 00 | push 0x3002
 6a 1b          | push 0x1b
 68 14 10 00 00 | push 0x1014
 cf             | iretd
 e6 f1          | out 0xf1, al
`,
);
const ret = guest(
  32,
  `
 6a 23          | push 0x23
 68 00 90 00 00 | push 0x9000
 6a 1b          | push 0x1b
 68 0f 10 00 00 | push 0x100f
 cb             | retf
 e6 f1          | out 0xf1, al
`,
);

conformance('a return to an outer privilege level', ({ needs }) => {
  // KVM's emulator has no such returns.
  const it = needs('hardware-virtualization');
  const returns: readonly (readonly [string, Guest])[] = [
    ['IRET', iret],
    ['RETF', ret],
  ];
  for (const [name, { code }] of returns) {
    it(`by ${name} takes an inner data segment's selector away, and not its base`, (hv) => {
      using machine = new Machine(hv, { memory: MIB });
      const { memory, vcpu } = machine;
      machine.load(flatImage(code, 'real'));
      enterProtectedMode(vcpu, memory, { tables: TABLES });
      const { table, segments } = placeGdt(
        { memory, address: GDT },
        {
          code: descriptor.code({ bits: 32 }),
          data: descriptor.data(),
          userCode: descriptor.code({ bits: 32, dpl: 3 }),
          userData: descriptor.data({ dpl: 3 }),
        },
      );
      const { data, userData } = segments;
      vcpu.changeSregs({ gdt: table, fs: { ...data, base: BASE }, gs: { ...userData, base: BASE } });
      vcpu.setRegs({ rip: FLAT_ADDRESS, rsp: STACK, rflags: IOPL3 | 2n });
      runTo(vcpu, Exit.IO);
      const { cs, fs, gs } = vcpu.getSregs();
      expect(cs.selector).toBe(segments.userCode.selector);
      expect(fs).toMatchObject({ selector: 0, unusable: 1, base: BASE });
      expect(gs).toMatchObject({ selector: userData.selector, unusable: 0, base: BASE });
    });
  }
});
