// What the benchmarks' programs know of their machine, in 64 and in 32 bits. A program is `u32
// program(void)`, whose result is the same in both and on every machine; its constants give it about half a
// second on QEMU's TCG.
#ifndef MACHINE_H
#define MACHINE_H
#include "layout.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;

u32 program(void);

// Memory that nothing else uses, zero at first: for what is too large for .bss, which loaders copy.
#define ARENA 0x01000000ul
#define ARENA_SIZE 0x05000000ul

#define NOINLINE __attribute__((noinline, noclone))

static inline void out8(u16 port, u8 value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline void out32(u16 port, u32 value) {
  __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline void invlpg(word address) { __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory"); }
static inline word read_cr3(void) {
  word value;
  __asm__ volatile("mov %%cr3, %0" : "=r"(value));
  return value;
}
static inline void write_cr3(word value) { __asm__ volatile("mov %0, %%cr3" : : "r"(value) : "memory"); }
static inline void write_msr(u32 msr, word value) {
  __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)((u64)value >> 32)) : "memory");
}

// Numbers that are the same everywhere (Marsaglia's xorshift).
static inline u32 next(u32 *seed) {
  *seed ^= *seed << 13;
  *seed ^= *seed >> 17;
  *seed ^= *seed << 5;
  return *seed;
}
static inline u32 mix(u32 sum, u32 value) { return (sum << 5 | sum >> 27) ^ (value * 0x9e3779b1u); }

// runtime.c: a gate of the IDT, which privilege 3 may call too; a page of 4 KiB in page tables that begin as
// those of the machine; and code at privilege 3, which comes back by leave_user().
void set_gate(int vector, void (*handler)(void));
word new_tables(void);
void map_page(word tables, word linear, word physical);
void unmap_page(word tables, word linear);
extern u8 root[];
void enter_user(void (*code)(void));
__attribute__((noreturn)) void leave_user(void);

#endif
