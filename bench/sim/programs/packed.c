// Four floats, two doubles and vectors of integers at a time: SSE and SSE2.
#include "machine.h"

enum { COUNT = 4096, TIMES = 180 };

typedef float floats __attribute__((vector_size(16)));
typedef double doubles __attribute__((vector_size(16)));
typedef int ints __attribute__((vector_size(16)));
typedef short shorts __attribute__((vector_size(16)));

static floats a[COUNT], b[COUNT];
static doubles c[COUNT];
static ints d[COUNT];

u32 program(void) {
  u32 seed = 51, sum = 0;
  for (u32 i = 0; i < COUNT; i++)
    for (u32 j = 0; j < 4; j++) {
      a[i][j] = (int)(next(&seed) % 1000) * 0.25f + 1;
      b[i][j] = (int)(next(&seed) % 1000) * 0.125f + 2;
      c[i][j / 2] = a[i][j];
      d[i][j] = next(&seed);
    }
  for (u32 time = 0; time < TIMES; time++) {
    for (u32 i = 0; i < COUNT; i++) {
      floats x = a[i] * b[i] + a[i], y, z;
      __asm__("sqrtps %1, %0" : "=x"(y) : "x"(x));
      x = x / (y + b[i]);
      __asm__("maxps %1, %0" : "=x"(z) : "x"(b[i]), "0"(x));
      a[i] = __builtin_shuffle(x, (ints){1, 2, 3, 0}) + z - y * 0.5f;
      c[i] = c[i] * 0.999 + (doubles){0.5, 0.25};
    }
    for (u32 i = 0; i < COUNT; i++) {
      ints v = d[i] + (d[(i + 1) % COUNT] ^ d[i] << 3);
      v = __builtin_shuffle(v, (ints){2, 0, 3, 1}) & ~(v > d[i]);
      shorts s = (shorts)v * (shorts)d[i] - (shorts)v;
      d[i] = (ints)s ^ v;
    }
  }
  for (u32 i = 0; i < COUNT; i += 7) {
    ints x = (ints)a[i], y = (ints)c[i];
    for (u32 j = 0; j < 4; j++) sum = mix(sum, x[j] ^ y[j] ^ d[i][j]);
  }
  return sum;
}
