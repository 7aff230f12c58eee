// Memory from one end to the other, and a product of matrices: integers, no vectors.
#include "machine.h"

enum { COUNT = 1 << 20, TIMES = 2, SIDE = 128, PRODUCTS = 2 };

static u32 left[SIDE][SIDE], right[SIDE][SIDE], product[SIDE][SIDE];

u32 program(void) {
  u32 *a = (u32 *)ARENA, *b = a + COUNT, *c = b + COUNT, seed = 9, sum = 0;
  for (u32 i = 0; i < COUNT; i++) a[i] = i, b[i] = i * 3;
  for (u32 time = 0; time < TIMES; time++) {
    for (u32 i = 0; i < COUNT; i++) c[i] = a[i] + b[i] * 5;
    for (u32 i = COUNT; i-- > 0;) a[i] = c[i] ^ time;
    sum = mix(sum, a[time * 1000]);
  }
  for (u32 i = 0; i < SIDE; i++)
    for (u32 j = 0; j < SIDE; j++) left[i][j] = next(&seed), right[i][j] = next(&seed);
  for (u32 time = 0; time < PRODUCTS; time++) {
    for (u32 i = 0; i < SIDE; i++)
      for (u32 j = 0; j < SIDE; j++) {
        u32 dot = 0;
        for (u32 k = 0; k < SIDE; k++) dot += left[i][k] * right[k][j];
        product[i][j] = dot;
      }
    for (u32 i = 0; i < SIDE; i++) left[i][time] = product[time][i];
  }
  for (u32 i = 0; i < SIDE; i++) sum = mix(sum, product[i][i]);
  return sum;
}
