// Calls and returns: three functions that call themselves.
#include "machine.h"

enum { FIBONACCI = 32, DISKS = 18, TIMES = 2 };

static NOINLINE u32 fibonacci(u32 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static u32 moves[3];
static NOINLINE void hanoi(u32 disks, u32 from, u32 to) {
  if (disks == 0) return;
  hanoi(disks - 1, from, 3 - from - to);
  moves[to] += disks;
  hanoi(disks - 1, 3 - from - to, to);
}

static NOINLINE u32 ackermann(u32 m, u32 n) {
  if (m == 0) return n + 1;
  return n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
}

u32 program(void) {
  u32 sum = 0;
  for (u32 i = 0; i < TIMES; i++) {
    sum = mix(sum, fibonacci(FIBONACCI));
    hanoi(DISKS, i & 1, 2);
    sum = mix(sum, moves[0] + moves[1] * 3 + moves[2] * 5);
    sum = mix(sum, ackermann(2, 1000 + i));
  }
  return sum;
}
