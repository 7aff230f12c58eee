// A million writes to a device's memory: where a PC has its I/O APIC, the register that selects another one.
#include "machine.h"

enum { TURNS = 1000000 };

u32 program(void) {
  volatile u32 *device = (u32 *)0xfec00000ul;
  u32 sum = 1;
  for (u32 i = 0; i < TURNS; i++) {
    *device = i & 15;
    sum = mix(sum, i);
  }
  return sum;
}
