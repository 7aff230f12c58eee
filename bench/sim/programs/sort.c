// Sorting: quicksort, heapsort, and a merge sort that compares by a function that it is given.
#include "machine.h"

enum { COUNT = 1 << 16, TIMES = 4 };

static u32 *const numbers = (u32 *)ARENA;
static u32 *const spare = (u32 *)ARENA + COUNT;

static void quick(u32 *a, int low, int high) {
  while (low < high) {
    u32 pivot = a[(low + high) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (a[i] < pivot) i++;
      while (a[j] > pivot) j--;
      if (i > j) break;
      u32 t = a[i];
      a[i++] = a[j];
      a[j--] = t;
    }
    quick(a, low, j);
    low = i;
  }
}

static void sink(u32 *a, u32 at, u32 count) {
  for (u32 child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && a[child + 1] > a[child]) child++;
    if (a[at] >= a[child]) return;
    u32 t = a[at];
    a[at] = a[child];
    a[child] = t;
  }
}
static void heap(u32 *a, u32 count) {
  for (u32 i = count / 2; i-- > 0;) sink(a, i, count);
  while (--count > 0) {
    u32 t = a[0];
    a[0] = a[count];
    a[count] = t;
    sink(a, 0, count);
  }
}

static NOINLINE int by_value(const u32 *a, const u32 *b) { return *a < *b ? -1 : *a > *b; }
static NOINLINE int by_low_half(const u32 *a, const u32 *b) { return (int)(u16)*a - (int)(u16)*b; }
static NOINLINE void merge(u32 *a, u32 count, int (*compare)(const u32 *, const u32 *)) {
  if (count < 2) return;
  u32 half = count / 2, i = 0, j = half;
  merge(a, half, compare);
  merge(a + half, count - half, compare);
  for (u32 k = 0; k < count; k++)
    spare[k] = j >= count || (i < half && compare(&a[i], &a[j]) <= 0) ? a[i++] : a[j++];
  for (u32 k = 0; k < count; k++) a[k] = spare[k];
}

u32 program(void) {
  u32 seed = 1, sum = 0;
  for (u32 time = 0; time < TIMES; time++) {
    for (u32 i = 0; i < COUNT; i++) numbers[i] = next(&seed);
    if (time % 4 == 0) quick(numbers, 0, COUNT - 1);
    if (time % 4 == 1) heap(numbers, COUNT);
    if (time % 4 == 2) merge(numbers, COUNT, by_value);
    if (time % 4 == 3) merge(numbers, COUNT, by_low_half);
    for (u32 i = 0; i < COUNT; i += 97) sum = mix(sum, numbers[i]);
  }
  return sum;
}
