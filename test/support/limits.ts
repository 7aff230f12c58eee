/** The lab's machine emulates the processor that runs the guest's kernel. */
export const inLab = process.env.VMEXIT_LAB === '1';

/** How many times as long the watchdogs wait: builds with a sanitizer are slow (test/faults/sanitizers.mjs). */
export const PATIENCE = Number(process.env.VMEXIT_PATIENCE ?? 1);

/**
 * Watchdogs, in milliseconds: of a case, of a program that a case starts, and of any one run of a guest, for one that is
 * stuck in KVM_RUN stops the whole process. They end what hangs, and judge no speed: a busy machine takes many times what
 * a quiet one does.
 */
export const TEST_MS = PATIENCE * (inLab ? 600_000 : 180_000);
export const PROGRAM_MS = PATIENCE * (inLab ? 500_000 : 150_000);
export const DEADLINE_MS = PATIENCE * (inLab ? 120_000 : 60_000);
