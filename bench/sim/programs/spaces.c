// Address spaces: CR3 changes between two, and each time some of 64 pages are touched that are elsewhere in
// each.
#include "machine.h"

enum { TURNS = 30000, PAGES = 64, TOUCHED = 16 };

u32 program(void) {
  word spaces[2], linear = 0x40000000;
  for (u32 i = 0; i < 2; i++) {
    spaces[i] = new_tables();
    for (u32 j = 0; j < PAGES; j++)
      map_page(spaces[i], linear + j * 4096, ARENA + (i * PAGES + (j * 29 & (PAGES - 1))) * 4096);
  }
  u32 sum = 1;
  for (u32 i = 0; i < TURNS; i++) {
    write_cr3(spaces[i & 1]);
    for (u32 j = 0; j < TOUCHED; j++) {
      volatile u32 *at = (u32 *)(linear + (i + j * 3) % PAGES * 4096 + j * 64);
      sum = mix(sum, *at);
      *at = sum;
    }
  }
  return sum;
}
