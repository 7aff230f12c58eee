/** api.rst, KVM_CREATE_GUEST_MEMFD; virt/kvm/guest_memfd.c; the kernel's guest_memfd_test. */
import { execFileSync } from 'node:child_process';
import {
  fstatSync,
  ftruncateSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  writeSync,
} from 'node:fs';
import { expect } from 'vitest';
import { Cap, type GuestMemfd, type Hypervisor, type Vm } from '../../src/index.ts';
import { PAGE } from '../support/area.ts';
import { typesOf } from '../support/conditions.ts';
import { errnoOf } from '../support/run.ts';
import { conformance } from '../support/suite.ts';
import { Tap } from '../support/tap.ts';

const SIZE = 4 * PAGE;
const KEEP_SIZE = 0x01;
const PUNCH_HOLE = 0x02;
const O_CLOEXEC = 0o2000000;

function onNewVm(hv: Hypervisor, use: (vm: Vm) => void): void {
  using vm = hv.createVm();
  use(vm);
}

function withMemfd(hv: Hypervisor, use: (secret: GuestMemfd, vm: Vm) => void): void {
  using vm = hv.createVm();
  using secret = vm.createGuestMemfd(SIZE);
  use(secret, vm);
}

/** This process's file descriptors of guest_memfds, oldest first: the kernel's own backend has them. */
const memfds = () =>
  readdirSync('/proc/self/fd')
    .map(Number)
    .filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).includes('[kvm-gmem]');
      } catch {
        return false; // the descriptor by which readdir reads
      }
    })
    .sort((a, b) => a - b);

/** fallocate(2) of a file of four pages: mode, offset, size, answer. */
const allocations: readonly (readonly [string, number, number, number, string])[] = [
  ['all of the file can be allocated', KEEP_SIZE, 0, SIZE, 'ok'],
  ['the last page can be allocated', KEEP_SIZE, SIZE - PAGE, PAGE, 'ok'],
  ['allocating at the end of the file gives EINVAL', KEEP_SIZE, SIZE, PAGE, 'EINVAL'],
  ['allocating beyond the end of the file gives EINVAL', KEEP_SIZE, SIZE + PAGE, PAGE, 'EINVAL'],
  ['allocating across the end of the file gives EINVAL', KEEP_SIZE, SIZE - PAGE, 2 * PAGE, 'EINVAL'],
  ['punching at the end of the file succeeds', KEEP_SIZE | PUNCH_HOLE, SIZE, PAGE, 'ok'],
  ['punching beyond the end of the file succeeds', KEEP_SIZE | PUNCH_HOLE, SIZE + PAGE, PAGE, 'ok'],
  ['fallocate without KEEP_SIZE gives EOPNOTSUPP', 0, 0, PAGE, 'EOPNOTSUPP'],
  ['punching without KEEP_SIZE gives EOPNOTSUPP', PUNCH_HOLE, 0, PAGE, 'EOPNOTSUPP'],
  ['collapsing a range gives EOPNOTSUPP', 0x08, 0, PAGE, 'EOPNOTSUPP'],
  ['zeroing a range gives EOPNOTSUPP', 0x10 | KEEP_SIZE, 0, PAGE, 'EOPNOTSUPP'],
  ['inserting a range gives EOPNOTSUPP', 0x20, 0, PAGE, 'EOPNOTSUPP'],
];

/** guest_memfd_test, test_invalid_punch_hole: offset and size. */
const unaligned = [
  [0, 1],
  [0, PAGE - 1],
  [0, PAGE + 1],
  [1, 1],
  [1, PAGE - 1],
  [1, PAGE],
  [1, PAGE + 1],
  [PAGE, 1],
  [PAGE, PAGE - 1],
  [PAGE, PAGE + 1],
] as const;

conformance('guest_memfd', ({ needs }) => {
  const it = needs('guest-memfd');
  const itFiles = needs('guest-memfd', 'files');

  for (const [sentence, mode, offset, size, errno] of allocations) {
    it(sentence, (hv) => {
      withMemfd(hv, (secret) => expect(errnoOf(() => secret.fallocate(mode, offset, size))).toBe(errno));
    });
  }

  it('a hole can be allocated again', (hv) => {
    withMemfd(hv, (secret) => {
      secret.allocate();
      secret.punchHole(PAGE, PAGE);
      secret.allocate(PAGE, PAGE);
    });
  });

  it('allocating and punching take whole pages: other offsets and sizes give EINVAL', (hv) => {
    withMemfd(hv, (secret) => {
      for (const [offset, size] of unaligned) {
        const range = `offset ${offset}, size ${size}`;
        expect
          .soft(
            errnoOf(() => secret.punchHole(offset, size)),
            `punch ${range}`,
          )
          .toBe('EINVAL');
        expect
          .soft(
            errnoOf(() => secret.allocate(offset, size)),
            `allocate ${range}`,
          )
          .toBe('EINVAL');
      }
    });
  });

  it('a size of 0, or one that is not whole pages, gives EINVAL', (hv) => {
    onNewVm(hv, (vm) => {
      const accepted = Array.from({ length: PAGE }, (_, size) => size).filter(
        (size) => errnoOf(() => vm.createGuestMemfd(size).close()) !== 'EINVAL',
      );
      expect(accepted).toEqual([]);
    });
  });

  it('a size of 2^63 or more gives EINVAL', (hv) => {
    using tap = new Tap(hv.backend);
    using _vm = tap.hv.createVm();
    for (const size of [1n << 63n, -4096n]) {
      expect(tap.createGuestMemfd({ size: BigInt.asUintN(64, size) }), `size ${size}`).toBe('EINVAL');
    }
  });

  it('a flag is taken exactly if KVM_CAP_GUEST_MEMFD_FLAGS of the VM has it, by every VM type; else EINVAL', (hv) => {
    using tap = new Tap(hv.backend);
    for (const type of typesOf(hv)) {
      using vm = tap.hv.createVm({ type });
      const known = BigInt(vm.checkExtension(Cap.GUEST_MEMFD_FLAGS));
      for (let bit = 0n; bit < 64n; bit++) {
        const flags = 1n << bit;
        const answer = tap.createGuestMemfd({ size: PAGE, flags });
        expect.soft(answer, `VM type ${type}, bit ${bit}`).toBe((flags & known) !== 0n ? 'ok' : 'EINVAL');
      }
    }
  });

  itFiles('two files are two: each has its own inode and size', (hv) => {
    onNewVm(hv, (vm) => {
      const before = memfds();
      using _first = vm.createGuestMemfd(PAGE);
      using _second = vm.createGuestMemfd(2 * PAGE);
      const stats = memfds()
        .filter((fd) => !before.includes(fd))
        .map((fd) => fstatSync(fd));
      expect(stats.map(({ size, blksize }) => [size, blksize])).toEqual([
        [PAGE, PAGE],
        [2 * PAGE, PAGE],
      ]);
      expect(stats[0]!.ino).not.toBe(stats[1]!.ino);
    });
  });

  itFiles('the file cannot be read, written or resized', (hv) => {
    withMemfd(hv, () => {
      const fd = memfds().at(-1)!;
      const bytes = new Uint8Array(PAGE);
      const code = expect.objectContaining({ code: 'EINVAL' });
      expect(() => readSync(fd, bytes)).toThrow(code);
      expect(() => writeSync(fd, bytes)).toThrow(code);
      expect(() => readSync(fd, bytes, 0, PAGE, 0)).toThrow();
      expect(() => writeSync(fd, bytes, 0, PAGE, 0)).toThrow();
      expect(() => ftruncateSync(fd, 2 * PAGE)).toThrow(code);
    });
  });

  // The kernel makes it without close-on-exec (guest_memfd.c, get_unused_fd_flags(0)); a child would pin the VM.
  itFiles('a child process does not inherit the file', (hv) => {
    withMemfd(hv, () => {
      const flags = /flags:\s*([0-7]+)/.exec(
        readFileSync(`/proc/self/fdinfo/${memfds().at(-1)}`, 'utf8'),
      )![1]!;
      expect(Number.parseInt(flags, 8) & O_CLOEXEC).not.toBe(0);
      expect(execFileSync('ls', ['-l', '/proc/self/fd'], { encoding: 'utf8' })).not.toContain('kvm-gmem');
    });
  });

  // The file pins the VM, not the other way round (guest_memfd.c, kvm_gmem_bind).
  it('the file can be allocated and punched after its VM was closed', (hv) => {
    const vm = hv.createVm();
    using secret = vm.createGuestMemfd(SIZE);
    vm.close();
    secret.allocate();
    secret.punchHole(0, SIZE);
  });
});
