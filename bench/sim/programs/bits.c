// Single bits: BT, BTS, BSF, BSR, BSWAP, SHLD, rotates, RCL, SETcc, CMOVcc, MOVSX, XCHG, and CRC-32 by a
// table.
#include "machine.h"

enum { TURNS = 6000000 };

static u32 table[256], map[2048];

u32 program(void) {
  for (u32 i = 0; i < 256; i++) {
    u32 c = i;
    for (int j = 0; j < 8; j++) c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
    table[i] = c;
  }
  u32 seed = 31, crc = ~0u, sum = 0;
  for (u32 i = 0; i < TURNS; i++) {
    u32 x = next(&seed), y = 0, z = i | 1, first, last;
    __asm__ volatile("btsl %2, %0; adcl $0, %1" : "+m"(map[0]), "+r"(y) : "Ir"(x & 65535) : "cc", "memory");
    __asm__("bsfl %1, %0" : "=r"(first) : "r"(z << (x & 15)) : "cc");
    __asm__("bsrl %1, %0" : "=r"(last) : "r"(z) : "cc");
    __asm__("shldl $7, %1, %0" : "+r"(y) : "r"(x) : "cc");
    __asm__("stc; rcll $3, %0; rorl %%cl, %0" : "+r"(z) : "c"(x) : "cc");
    for (int j = 0; j < 4; j++) crc = crc >> 8 ^ table[(crc ^ x >> 8 * j) & 255];
    sum += __builtin_bswap32(x ^ z) + (x > z ? y : first) + (u32)(int)(signed char)x + (u32)(short)(x >> 9);
    sum += (last > first) + ((int)x < (int)sum);
  }
  return sum ^ crc;
}
