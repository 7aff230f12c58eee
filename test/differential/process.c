/*
 * Executes instructions of a program on the host's own processor: an oracle at privilege 3 that needs no KVM.
 * It reads cases and writes what became of each, in the order and in the form of process.ts.
 *
 * A case is entered by sigreturn from a signal's frame and left by the signal of what ends it, an exception
 * of its own or that of the filler behind it. So the kernel puts the whole state in and takes it out, XSAVE's
 * area included, and the frame tells the exception's vector, error code and address, which ptrace does not.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum {
  CODE = 0x20000,
  CODE_SIZE = 0x2000,
  DATA = 0x30000,
  WINDOW = 0x3000,
  READ_ONLY = 0x2000,
  FILLER = 0xee,
  LONGEST = 16,
  FPU = 832,
  /* Linux's own (asm/sigcontext.h): what of an XSAVE area is in the frame, behind FXSAVE's reserved bytes. */
  SW_RESERVED = 464,
  MAGIC1 = 0x46505853,
  XSTATE_BV = 512,
  STACK = 0x10000,
};
#define ALIAS 0x400000000000ull
#define FS_BASE 0x10010ull
#define GS_BASE 0x3fffffffe000ull

struct input {
  uint64_t registers[18];
  uint8_t code[LONGEST];
  uint64_t length;
  uint8_t fpu[FPU];
  uint8_t memory[WINDOW];
};
struct output {
  uint64_t registers[18];
  uint64_t vector, error, address;
  uint8_t fpu[FPU];
  uint8_t memory[WINDOW];
};

/* In the order of case.ts. */
static const int order[18] = {
    REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RSP, REG_RBP, REG_R8,
    REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP, REG_EFL,
};

static struct input given;
static struct output result;
/* The same memory, always writable. */
static uint8_t *memory;
static int running;

/* FS is the case's while a handler runs, so it calls nothing of the C library's. */
static long call(long number, long a, long b, long c) {
  long value;
  __asm__ volatile("syscall" : "=a"(value) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return value;
}
static void copy(void *to, const void *from, size_t size) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}
static void fill(void *to, int value, size_t size) {
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
}

static int transfer(int number, void *at, size_t size) {
  for (size_t done = 0; done < size;) {
    long count = call(number, number == SYS_write, (long)at + (long)done, (long)(size - done));
    if (count <= 0) return 0;
    done += (size_t)count;
  }
  return 1;
}

static void finish(const ucontext_t *context) {
  const greg_t *registers = context->uc_mcontext.gregs;
  for (int i = 0; i < 18; i++) result.registers[i] = (uint64_t)registers[order[i]];
  result.vector = (uint64_t)registers[REG_TRAPNO];
  result.error = (uint64_t)registers[REG_ERR];
  result.address = (uint64_t)registers[REG_CR2];
  copy(result.fpu, context->uc_mcontext.fpregs, FPU);
  copy(result.memory, memory + DATA - CODE, WINDOW);
  if (!transfer(SYS_write, &result, sizeof result)) call(SYS_exit_group, 1, 0, 0);
}

static void enter(ucontext_t *context) {
  if (!transfer(SYS_read, &given, sizeof given)) call(SYS_exit_group, 0, 0, 0);
  greg_t *registers = context->uc_mcontext.gregs;
  for (int i = 0; i < 18; i++) registers[order[i]] = (greg_t)given.registers[i];
  uint8_t *area = (uint8_t *)context->uc_mcontext.fpregs;
  uint64_t features;
  if (*(uint32_t *)(area + SW_RESERVED) != MAGIC1) call(SYS_exit_group, 3, 0, 0);
  copy(&features, given.fpu + XSTATE_BV, sizeof features);
  copy(area, given.fpu,
       SW_RESERVED - 48); /* FXSAVE's image: behind it there are reserved bytes, and Linux's */
  copy(area + XSTATE_BV, &features, sizeof features);
  copy(area + XSTATE_BV + 64, given.fpu + XSTATE_BV + 64, FPU - XSTATE_BV - 64);
  fill(memory, FILLER, CODE_SIZE);
  copy(memory + given.registers[16] - CODE, given.code, given.length);
  copy(memory + DATA - CODE, given.memory, WINDOW);
  /* Of RFLAGS sigreturn leaves as they are the bits that the last case may have set by POPF. */
  __asm__ volatile("pushq $2\n\tpopfq" : : : "cc", "memory");
  call(SYS_arch_prctl, ARCH_SET_FS, FS_BASE, 0);
  call(SYS_arch_prctl, ARCH_SET_GS, GS_BASE, 0);
}

static void caught(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info;
  if (running) finish(context);
  running = 1;
  enter(context);
}

static int map(int file, uint64_t base) {
  const int flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
  const off_t data = DATA - CODE;
  return mmap((void *)(base + CODE), CODE_SIZE, PROT_READ | PROT_EXEC, flags, file, 0) != MAP_FAILED &&
         mmap((void *)(base + DATA), READ_ONLY, PROT_READ | PROT_WRITE, flags, file, data) != MAP_FAILED &&
         mmap((void *)(base + DATA + READ_ONLY), WINDOW - READ_ONLY, PROT_READ, flags, file,
              data + READ_ONLY) != MAP_FAILED;
}

int main(void) {
  const size_t size = DATA - CODE + WINDOW;
  int file = memfd_create("cases", 0);
  if (file < 0 || ftruncate(file, (off_t)size) != 0) return 2;
  memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
  if (memory == MAP_FAILED || !map(file, 0) || !map(file, ALIAS)) return 2;
  static uint8_t stack[STACK];
  const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
  if (sigaltstack(&alternate, NULL) != 0) return 2;
  struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigfillset(&action.sa_mask);
  sigdelset(&action.sa_mask, SIGALRM);
  const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    if (sigaction(signals[i], &action, NULL) != 0) return 2;
  alarm(60); /* for what does not come back */
  __asm__ volatile("int3");
  return 2;
}
