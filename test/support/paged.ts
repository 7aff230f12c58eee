/** A guest whose memory comes page by page: it adds up one number of each page, in an order of its own. */
import { randomBytes } from 'node:crypto';
import { enterLongMode, type Hypervisor, type Vcpu } from '../../src/index.ts';
import { guest } from '../../src/vmm/guest.ts';

export const PAGE = 4096;
const MIB = 2 ** 20;
/** Where the paged memory is, guest-physical and linear. */
export const AREA = 0x4000_0000;
const CODE = 0x1000;
const STACK = 0x8000;
const TABLES = 0x1_0000;

/** rdi: memory; rcx: how many pages to read; r9: pages - 1, of a power of two. The sum goes to port 0xf4, in rax. */
const summing = guest(
  64,
  `
 48 31 c0    |        xor rax, rax
 4d 31 c0    |        xor r8, r8
 4c 89 c3    | again: mov rbx, r8
 48 c1 e3 0c |        shl rbx, 12
 48 03 04 1f |        add rax, [rdi + rbx]
 49 83 c0 25 |        add r8, 37
 4d 21 c8    |        and r8, r9
 48 ff c9    |        dec rcx
 75 e9       |        jnz again
 e7 f4       |        out 0xf4, eax
 f4          |        hlt
`,
);

/** Contents for so many pages, each begun by a number of its own. */
export function contents(pages: number): Uint8Array {
  const bytes = new Uint8Array(pages * PAGE);
  for (let at = 0; at < bytes.length; at += 2 ** 16)
    bytes.set(randomBytes(Math.min(2 ** 16, bytes.length - at)), at);
  return bytes;
}

/** What the guest says of the pages that it has read. */
export function sumOf(bytes: Uint8Array, reads = bytes.length / PAGE): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const pages = bytes.length / PAGE;
  let sum = 0n;
  for (let i = 0, page = 0; i < reads; i++, page = (page + 37) % pages)
    sum += view.getBigUint64(page * PAGE, true);
  return BigInt.asUintN(64, sum);
}

/** A machine with the program in memory of its own, and paged memory beside it. */
export function pagedGuest(hv: Hypervisor, pages: number, reads = pages) {
  const vm = hv.createVm();
  const ram = vm.allocate(MIB);
  const memory = vm.allocate(pages * PAGE);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memory: ram });
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: AREA, memory });
  ram.write(CODE, summing.code);
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(hv.getSupportedCpuid());
  enterLongMode(vcpu, ram, { tables: TABLES, identity: 2 * 2 ** 30 });
  vcpu.setRegs({ rip: CODE, rsp: STACK, rflags: 2, rdi: AREA, rcx: reads, r9: pages - 1 });
  const close = () => {
    for (const object of [vcpu, vm, memory, ram]) object.close();
  };
  return { vm, vcpu, memory, close };
}

export const answer = (vcpu: Vcpu): bigint => vcpu.getRegs().rax;
