// Reads and writes at random places of 32 MiB, mapped by pages of 4 KiB: a miss of the TLB in most.
#include "machine.h"

enum { SIZE = 32 << 20, TURNS = 250000 };

u32 program(void) {
  word tables = new_tables();
  for (word at = ARENA; at < ARENA + SIZE; at += 4096) map_page(tables, at, at);
  write_cr3(tables);
  u32 *words = (u32 *)ARENA, seed = 3, sum = 1;
  for (u32 i = 0; i < TURNS; i++) {
    u32 at = next(&seed) % (SIZE / 4);
    sum = mix(sum, words[at]);
    words[(at ^ 0x155555) % (SIZE / 4)] = sum;
  }
  return sum;
}
