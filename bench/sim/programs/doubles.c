// Doubles, one at a time by SSE2: bodies that attract each other, an integral, and conversions.
#include "machine.h"

enum { BODIES = 5, STEPS = 60000, PARTS = 1000000 };

static inline double root_of(double x) {
  double y;
  __asm__("sqrtsd %1, %0" : "=x"(y) : "x"(x));
  return y;
}

static struct {
  double at[3], speed[3], mass;
} bodies[BODIES];

static void step(double dt) {
  for (int i = 0; i < BODIES; i++)
    for (int j = i + 1; j < BODIES; j++) {
      double d[3], square = 0.01;
      for (int k = 0; k < 3; k++) {
        d[k] = bodies[i].at[k] - bodies[j].at[k];
        square += d[k] * d[k];
      }
      double pull = dt / (square * root_of(square));
      for (int k = 0; k < 3; k++) {
        bodies[i].speed[k] -= d[k] * bodies[j].mass * pull;
        bodies[j].speed[k] += d[k] * bodies[i].mass * pull;
      }
    }
  for (int i = 0; i < BODIES; i++)
    for (int k = 0; k < 3; k++) bodies[i].at[k] += dt * bodies[i].speed[k];
}

u32 program(void) {
  u32 seed = 41, sum = 0;
  for (int i = 0; i < BODIES; i++) {
    for (int k = 0; k < 3; k++) {
      bodies[i].at[k] = (int)(next(&seed) % 2000) * 0.01 - 10;
      bodies[i].speed[k] = (int)(next(&seed) % 200) * 0.001 - 0.1;
    }
    bodies[i].mass = 1 + i * 0.5;
  }
  for (int i = 0; i < STEPS; i++) step(0.001);
  double area = 0;
  for (int i = 0; i < PARTS; i++) {
    double x = (i + 0.5) / PARTS;
    area += 4 / (1 + x * x);
    if (area > x * 1e9) area -= 1;
  }
  for (int i = 0; i < BODIES; i++)
    for (int k = 0; k < 3; k++) {
      union {
        double d;
        u32 u[2];
      } bits = {bodies[i].at[k]};
      sum = mix(mix(sum, bits.u[0]), bits.u[1]);
    }
  return mix(sum, (u32)(int)(area / PARTS * 1e9));
}
