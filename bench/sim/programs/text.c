// Functions on text, a byte at a time as a plain libc has them, and by words: length, comparison, search,
// numbers.
#include "machine.h"

enum { LINES = 4096, TIMES = 40 };

static char lines[LINES][96];

static NOINLINE u32 length(const char *at) {
  const char *start = at;
  while (*at) at++;
  return at - start;
}
static NOINLINE int compare(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return (u8)*a - (u8)*b;
}
static NOINLINE const char *find(const char *at, char wanted) {
  while (*at && *at != wanted) at++;
  return *at ? at : 0;
}
static NOINLINE int equal(const u8 *a, const u8 *b, u32 size) {
  for (; size >= 4; size -= 4, a += 4, b += 4)
    if (*(const u32 *)a != *(const u32 *)b) return 0;
  while (size--)
    if (*a++ != *b++) return 0;
  return 1;
}
static NOINLINE u32 number(const char *at) {
  u32 value = 0;
  while (*at >= '0' && *at <= '9') value = value * 10 + *at++ - '0';
  return value;
}
static NOINLINE void upper(char *at) {
  for (; *at; at++)
    if (*at >= 'a' && *at <= 'z') *at -= 32;
}

u32 program(void) {
  u32 seed = 11, sum = 0;
  for (u32 i = 0; i < LINES; i++) {
    u32 size = 20 + next(&seed) % 70;
    for (u32 j = 0; j < size; j++) lines[i][j] = "etaoin shrdlu0123456789"[next(&seed) % 23];
    if (i % 3 == 0)
      for (u32 j = 0; j < 60; j++) lines[i][j] = lines[i / 2][j];
  }
  for (u32 time = 0; time < TIMES; time++) {
    for (u32 i = 1; i < LINES; i++) {
      const char *line = lines[i], *other = lines[i / 2];
      const char *space = find(line, time % 2 ? ' ' : '5');
      sum = mix(sum, length(line) + (compare(line, other) < 0));
      sum = mix(sum, (space ? number(space + 1) : 0) + equal((const u8 *)line, (const u8 *)other, 64));
    }
    upper(lines[time]);
  }
  return sum;
}
