/** The lab's machine emulates the processor that runs the guest's kernel. */
export const inLab = process.env.VMEXIT_LAB === '1';

/**
 * Watchdogs, in milliseconds: of a case, of a program that a case starts, and of any one run of a guest, for one that is
 * stuck in KVM_RUN stops the whole process. They end what hangs, and judge no speed: a busy machine takes many times what
 * a quiet one does.
 */
export const TEST_MS = inLab ? 600_000 : 180_000;
export const PROGRAM_MS = inLab ? 500_000 : 150_000;
export const DEADLINE_MS = inLab ? 120_000 : 60_000;
