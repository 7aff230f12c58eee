// Around a program: descriptors, marks for whoever measures, page tables. The marks are bytes at port 0xe9:
// `S` at the program's start, `E`, its result in hexadecimal and a newline at its end, `!` where something
// else has happened.
#include "machine.h"

enum { MARKS = 0xe9, END = 0xf4, TABLES = 96, PRESENT = 1, WRITABLE = 2, USER = 4, LARGE = 0x80 };

extern u8 stubs[], gdt[];
void start(void);
void unexpected(word vector, word first, word second);

static void hex(word value) {
  for (int shift = 28; shift >= 0; shift -= 4) out8(MARKS, "0123456789abcdef"[value >> shift & 15]);
}

static void end(int code) {
  out8(MARKS, '\n');
  out32(END, code);
  for (;;) __asm__ volatile("cli; hlt");
}

void unexpected(word vector, word first, word second) {
  out8(MARKS, '!');
  hex(vector);
  out8(MARKS, ' ');
  hex(first);
  out8(MARKS, ' ');
  hex(second);
  end(1);
}

// A gate has two words in 32 bits, four in 64 (SDM volume 3, 6.11 and 6.14.1).
static u32 idt[256][sizeof(word) / 2];

void set_gate(int vector, void (*handler)(void)) {
  word at = (word)handler;
  idt[vector][0] = KERNEL_CODE << 16 | (at & 0xffff);
  idt[vector][1] = (at & 0xffff0000) | 0xee00;
}

// Of the TSS only the stack of privilege 0 is used: at 4 in both, with its segment behind it in 32 bits.
static struct {
  u32 link, stack, next, rest[23];
} tss;
static u8 interrupt_stack[16384] __attribute__((aligned(16)));

static void load(void) {
  struct {
    u16 limit;
    word base;
  } __attribute__((packed)) pointer = {sizeof idt - 1, (word)idt};
  for (int i = 0; i < 32; i++) set_gate(i, (void (*)(void))(stubs + i * 16));
  __asm__ volatile("lidt %0" : : "m"(pointer));
  tss.stack = (u32)(word)(interrupt_stack + sizeof interrupt_stack);
  tss.next = sizeof(word) == 4 ? KERNEL_DATA : 0;
  tss.rest[22] = sizeof tss << 16;
  u32 *descriptor = (u32 *)(gdt + TSS), at = (u32)(word)&tss;
  descriptor[0] = at << 16 | (sizeof tss - 1);
  descriptor[1] = (at & 0xff000000) | 0x8900 | (at >> 16 & 0xff);
  __asm__ volatile("ltr %w0" : : "r"(TSS));
}

// Page tables, of entries of one word: two levels in 32 bits, four in 64.
static word tables[TABLES][4096 / sizeof(word)] __attribute__((aligned(4096)));
static int used;

enum { LEVELS = sizeof(word) == 4 ? 2 : 4, BITS = sizeof(word) == 4 ? 10 : 9 };

static word *entry(word table, int level, word linear) {
  return (word *)(table & ~0xffful) + (linear >> (12 + BITS * level) & ((1ul << BITS) - 1));
}

static word copy(word of) {
  word *to = tables[used++];
  if (used > TABLES) unexpected(0xffff, used, 0);
  for (u32 i = 0; i < 4096 / sizeof(word); i++) to[i] = ((word *)of)[i];
  return (word)to;
}

word new_tables(void) { return copy((word)root); }

static int own(word table) { return table >= (word)tables && table < (word)tables + sizeof tables; }

// The entry of 4 KiB: what the way to it shares with other tables is copied, and a large page becomes small
// ones.
static word *leaf(word table, word linear) {
  for (int level = LEVELS - 1; level > 0; level--) {
    word *at = entry(table, level, linear), flags = PRESENT | WRITABLE | USER;
    if (*at & LARGE) {
      word *small = tables[used++], first = *at & ~0xffful;
      if (used > TABLES) unexpected(0xffff, used, 0);
      for (word i = 0; i < 4096 / sizeof(word); i++) small[i] = (first + i * 4096) | flags;
      *at = (word)small | flags;
    } else if (!own(*at & ~0xffful) && table != (word)root) {
      *at = copy(*at & ~0xffful) | flags;
    }
    table = *at & ~0xffful;
  }
  return entry(table, 0, linear);
}

void map_page(word table, word linear, word physical) {
  *leaf(table, linear) = physical | PRESENT | WRITABLE | USER;
}
void unmap_page(word table, word linear) { *leaf(table, linear) = 0; }

// To privilege 3 by IRET, with a stack of its own, and back by a gate that goes on behind enter_user().
static u8 user_stack[16384] __attribute__((aligned(16)));
word kernel_stack, user_stack_top;
enum { LEAVE = 0x81 };
void left(void);

#ifdef __x86_64__
__asm__(
    ".globl enter_user_asm, left\n"
    "enter_user_asm: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, kernel_stack\n"
    "mov $0x1b, %eax; mov %eax, %ds; mov %eax, %es\n"
    "push $0x1b; push user_stack_top; push $2; push $0x23; push %rdi; iretq\n"
    "left: mov kernel_stack, %rsp\n"
    "mov $0x10, %eax; mov %eax, %ds; mov %eax, %es\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret");
#else
__asm__(
    ".globl enter_user_asm, left\n"
    "enter_user_asm: mov 4(%esp), %ecx; push %ebx; push %ebp; push %esi; push %edi\n"
    "mov %esp, kernel_stack\n"
    "mov $0x23, %eax; mov %eax, %ds; mov %eax, %es\n"
    "push $0x23; push user_stack_top; push $2; push $0x1b; push %ecx; iret\n"
    "left: mov kernel_stack, %esp\n"
    "mov $0x10, %eax; mov %eax, %ds; mov %eax, %es\n"
    "pop %edi; pop %esi; pop %ebp; pop %ebx; ret");
#endif
void enter_user_asm(void (*code)(void));

void enter_user(void (*code)(void)) {
  // As behind a call: what stands at the top is the address to return to.
  user_stack_top = (word)(user_stack + sizeof user_stack) - sizeof(word);
  set_gate(LEAVE, left);
  enter_user_asm(code);
}
void leave_user(void) {
  __asm__ volatile("int $0x81");
  __builtin_unreachable();
}

// What GCC calls where it finds a loop that does the same (GCC, "Standards").
void *memset(void *to, int value, word size);
void *memcpy(void *to, const void *from, word size);
void *memset(void *to, int value, word size) {
  for (u8 *at = to; size; size--) *at++ = value;
  return to;
}
void *memcpy(void *to, const void *from, word size) {
  u8 *at = to;
  for (const u8 *source = from; size; size--) *at++ = *source++;
  return to;
}

void start(void) {
  load();
  out8(MARKS, 'S');
  u32 result = program();
  out8(MARKS, 'E');
  hex(result);
  end(0);
}
