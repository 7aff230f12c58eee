// Products and quotients of 64 bits, signed and unsigned: MUL, IMUL, DIV, IDIV, ADC and SBB.
#include "machine.h"

enum { TURNS = 16000000 };

static inline u64 over(u64 a, u32 b) {
#ifdef __x86_64__
  return a / b;
#else
  u32 high = a >> 32, low = a, rest = high % b, quotient;
  __asm__("divl %4" : "=a"(quotient), "+d"(rest) : "0"(low), "1"(rest), "r"(b) : "cc");
  return (u64)(high / b) << 32 | quotient;
#endif
}

u32 program(void) {
  u32 seed = 21;
  u64 sum = 1, product = 0x123456789abcdefull;
  for (u32 i = 0; i < TURNS; i++) {
    u32 by = next(&seed) | 1;
    product = product * 6364136223846793005ull + by;
    sum += over(product, by);
    sum -= (u32)((int)(product >> 33) / (int)(by >> 12 | 1)) + (u32)((int)by % 1000);
    sum ^= (u64)by * (u32)sum;
  }
  return (u32)sum ^ (u32)(sum >> 32);
}
