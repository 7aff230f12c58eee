// INVLPG: one page after another is mapped to another place and used, as a kernel's short mappings are.
#include "machine.h"

enum { TURNS = 150000, WINDOW = 32, PLACES = 4096 };

u32 program(void) {
  word linear = 0x40000000;
  u32 sum = 0;
  word tables = new_tables();
  for (u32 i = 0; i < WINDOW; i++) map_page(tables, linear + i * 4096, ARENA);
  write_cr3(tables);
  for (u32 i = 0; i < TURNS; i++) {
    word page = linear + i % WINDOW * 4096;
    map_page(tables, page, ARENA + i * 2654435761u % PLACES * 4096);
    invlpg(page);
    volatile u32 *at = (u32 *)(page + i % 1024 * 4);
    sum = mix(sum, *at + i);
    *at = sum;
  }
  return sum;
}
