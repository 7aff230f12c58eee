// REP MOVS, STOS, SCAS, CMPS and LODS over buffers of a few bytes to a megabyte.
#include "machine.h"

enum { SIZE = 1 << 20, TIMES = 6, SMALL = 20000 };

static void movs(void *to, const void *from, word count) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}
static void movs32(void *to, const void *from, word count) {
  __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}
static void stos(void *to, u32 value, word count) {
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
}
static void stos32(void *to, u32 value, word count) {
  __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory");
}
static word scas(const void *at, u32 value, word count) {
  __asm__ volatile("repne scasb" : "+D"(at), "+c"(count) : "a"(value) : "memory", "cc");
  return count;
}
static word cmps(const void *a, const void *b, word count) {
  __asm__ volatile("repe cmpsb" : "+D"(a), "+S"(b), "+c"(count) : : "memory", "cc");
  return count;
}

u32 program(void) {
  u8 *a = (u8 *)ARENA, *b = a + 2 * SIZE;
  u32 sum = 0;
  for (u32 time = 0; time < TIMES; time++) {
    stos(a, time + 1, SIZE);
    stos32(b, time * 0x01010101, SIZE / 4);
    a[SIZE / 16 - 1 - time] = 0;
    movs(b + 3, a, SIZE);
    movs32(a + SIZE, b, SIZE / 4);
    sum = mix(sum, scas(a, 0, SIZE));
    sum = mix(sum, cmps(a + 5, b + 8, SIZE / 16));
    sum = mix(sum, a[SIZE + 4] + b[SIZE]);
  }
  for (u32 i = 0; i < SMALL; i++) {
    u32 size = i % 61 + 1;
    stos(a + i, i, size);
    movs(b + i * 2, a + i, size);
    movs32(b + i, a + i / 2, size / 4);
    sum = mix(sum, scas(b + i, 0x55, size) + cmps(a + i, b + i, size));
  }
  return sum;
}
