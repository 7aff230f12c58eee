// What locks and counters are made of: LOCK XADD, CMPXCHG, CMPXCHG8B, XCHG, ADD, BTS, and MFENCE.
#include "machine.h"

enum { TURNS = 5000000 };

static u32 counters[64], lock;
static u64 wide;

u32 program(void) {
  u32 sum = 0;
  for (u32 i = 0; i < TURNS; i++) {
    u32 *counter = &counters[i % 64];
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) sum++;
    sum += __atomic_fetch_add(counter, i, __ATOMIC_SEQ_CST);
    u32 seen = *counter;
    __atomic_compare_exchange_n(counter, &seen, seen ^ sum, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    __asm__ volatile("lock btsl %1, %0" : "+m"(counters[(i + 1) % 64]) : "r"(i & 31) : "cc");
    __asm__ volatile("lock addl $3, %0" : "+m"(counters[(i + 2) % 64]) : : "cc");
    u32 low = (u32)wide, high = (u32)(wide >> 32);
    __asm__ volatile("lock cmpxchg8b %0" : "+m"(wide), "+a"(low), "+d"(high) : "b"(sum), "c"(i) : "cc");
    __sync_synchronize();
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
  }
  return sum ^ (u32)wide ^ (u32)(wide >> 32);
}
