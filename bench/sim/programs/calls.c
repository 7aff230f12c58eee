// Calls by pointers: objects of many kinds whose methods are called in no order, as in C++.
#include "machine.h"

enum { OBJECTS = 1024, TURNS = 8000000, KINDS = 16 };

struct object;
typedef u32 method(struct object *, u32);
struct object {
  method *const *methods;
  u32 state;
};

#define KIND(n)                                                                                    \
  static NOINLINE u32 first##n(struct object *o, u32 x) { return o->state += x ^ n * 0x11111; }    \
  static NOINLINE u32 second##n(struct object *o, u32 x) { return (o->state ^= x << n % 13) + n; } \
  static method *const methods##n[] = {first##n, second##n}

KIND(0);
KIND(1);
KIND(2);
KIND(3);
KIND(4);
KIND(5);
KIND(6);
KIND(7);
KIND(8);
KIND(9);
KIND(10);
KIND(11);
KIND(12);
KIND(13);
KIND(14);
KIND(15);

static method *const *const kinds[KINDS] = {
    methods0, methods1, methods2,  methods3,  methods4,  methods5,  methods6,  methods7,
    methods8, methods9, methods10, methods11, methods12, methods13, methods14, methods15,
};

u32 program(void) {
  static struct object objects[OBJECTS];
  u32 seed = 17, sum = 0;
  for (u32 i = 0; i < OBJECTS; i++) objects[i].methods = kinds[next(&seed) % KINDS];
  for (u32 i = 0; i < TURNS; i++) {
    struct object *o = &objects[i * 37 % OBJECTS];
    sum += o->methods[i >> 10 & 1](o, sum ^ i);
  }
  return sum;
}
