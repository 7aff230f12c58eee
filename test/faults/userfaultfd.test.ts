/** userfaultfd over guest memory, with a thread that serves. The programs are in userfaultfd.mjs. */
import { describe, expect } from 'vitest';
import { on } from '../support/host.ts';
import { scenario } from './child.ts';

const run = (name: string) => scenario('userfaultfd.mjs', name);

/** Cases that need the privilege for faults of the kernel's own; the lab has it. */
const it = on('kvm', 'userfaultfd');

describe('a missing page of guest memory', () => {
  it('comes from another thread while the guest that reads it waits in KVM_RUN', async () => {
    expect(await run('reads')).toEqual({ exit: 'IO', value: 4, pages: [[0x3000, 0]] });
  });

  it('comes when the guest fetches instructions from it', async () => {
    expect(await run('fetches')).toEqual([0x1000, 0]);
  });

  it("comes for KVM's own access: to what OUTS puts out", async () => {
    expect(await run('outputs')).toEqual({ exit: 'IO', value: 6, pages: [[0x5000, 0]] });
  });

  it('comes when KVM completes an INS into it, and keeps its other bytes', async () => {
    expect(await run('inputs')).toEqual({ exits: ['IO', 'HLT'], bytes: [7, 0x77, 7], pages: [[0x6000, 0]] });
  });

  it('comes for what an instruction that KVM emulates stores into a device', async () => {
    expect(await run('stores')).toEqual({ exit: 'MMIO', byte: 8, pages: [[0x7000, 0]] });
  });

  it('comes for a system call of the VMM: read(2) into it', async () => {
    expect(await run('systemCall')).toEqual({ read: 3, bytes: [2, 97, 98, 99, 2], pages: [[0x1000, 0]] });
  });

  it('is missing again once it was given back by discard()', async () => {
    expect(await run('discarded')).toEqual({ value: 1, pages: [[0, 0]] });
  });
});

describe('a run() that waits for a page', () => {
  it("is ended by a kick where it is the guest's own access, which is made again later", async () => {
    expect(await run('kickGuest')).toEqual({ exits: ['INTERRUPTED', 'IO'], waited: false, value: 4 });
  });

  it('is ended by its deadline likewise', async () => {
    expect(await run('deadlineGuest')).toEqual({ exits: ['DEADLINE', 'IO'], waited: false, value: 4 });
  });

  it("is ended by neither where it is KVM's own access: the page must come, and the kick stays for the next run", async () => {
    expect(await run('kickEmulated')).toEqual({ exits: ['IO', 'INTERRUPTED'], waited: true, value: 6 });
  });

  it('goes on with zeroes when the last userfaultfd is closed', async () => {
    expect(await run('closeWakes')).toEqual({ exit: 'IO', value: 0 });
  });
});

describe('copy()', () => {
  const EEXIST = -17;

  it('brings 64 pages at once, up to the first that is there, and leaves that and what follows', async () => {
    expect(await run('batches')).toEqual({
      results: [0, 0, EEXIST, 0, EEXIST, 0],
      bytes: [1, 64, 255, 255, 71, 0, 0],
      waiting: [],
    });
  });

  it('takes its bytes from a SharedArrayBuffer too', async () => {
    expect(await run('sharedSource')).toEqual([0, 0x33]);
  });

  it('gives ENOENT once the memory is unmapped, which the userfaultfd of the thread that has it prevents', async () => {
    expect(await run('memoryGone')).toEqual([0, -2]);
  });
});

describe('a userfaultfd', () => {
  it('refuses wrong arguments and tokens, and a token that lies gets an errno from the kernel', async () => {
    const { codes, wild, closed } = await run('refusals');
    const invalid = [
      'itself',
      'odd',
      'short',
      'none',
      'beyond',
      'list',
      'words',
      'watch',
      'backend',
      'base',
      'size',
    ];
    expect(codes).toEqual({
      ...Object.fromEntries(invalid.map((name) => [name, 'ERR_KVM_INVALID_ARG'])),
      again: 'EBUSY',
      noFile: 'EBADF',
      otherFile: 'ESTALE',
      otherInode: 'ESTALE',
    });
    expect(wild).toEqual([-2, -2, -2, 0]);
    expect(closed).toEqual(Array(6).fill('ERR_KVM_CLOSED'));
  });

  it('names the privilege that is missing', async () => {
    const { anybody, message } = await run('unprivileged');
    if (anybody) expect(message).toBe('ok');
    else expect(message).toMatch(/EPERM: .*vm\.unprivileged_userfaultfd.*CAP_SYS_PTRACE.*\/dev\/userfaultfd/);
  });
});

describe('watch()', () => {
  it('calls the last callback that it was given, and lets the process end when it is taken back', async () => {
    expect(await run('watches')).toEqual(['third', 0, 0]);
  });

  it('makes what its callback throws an uncaught exception, and never calls it after a close in it', async () => {
    expect(await run('throwsInCallback')).toEqual({ message: 'mine', calls: 1 });
  });

  it('ends with its thread, however that ends', async () => {
    expect((await run('leftOver')).more).toBeLessThanOrEqual(0);
  });
});
