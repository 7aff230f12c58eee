/*
 * Executes x87 instructions on the host's own processor: reads records from its input and writes what became
 * of each, in the form of floats-silicon.ts. Two numbers are loaded, y above x; the instruction is the code
 * of an operation in the table below.
 */
#include <stdint.h>
#include <stdio.h>

struct input {
  uint8_t x[10];
  uint16_t fcw;
  uint8_t operation;
  uint8_t reserved[3];
  uint8_t y[10];
  uint8_t reserved2[6];
};
struct output {
  uint8_t result[10];
  uint16_t fsw;
  uint8_t reserved[4];
};

#define BEGIN "fninit\n\tfldcw %[fcw]\n\t"
#define OPERANDS \
  [result] "=m"(out->result), [fsw] "=m"(out->fsw) : [x] "m"(in->x), [y] "m"(in->y), [fcw] "m"(in->fcw)
/* The result is on the stack, or the instruction stores it. Instructions on registers are bytes, for
 * assemblers differ on names. */
#define REGISTERS(code)                                                                                 \
  __asm__ volatile(BEGIN "fldt %[x]\n\tfldt %[y]\n\t.byte " code "\n\tfnstsw %[fsw]\n\tfstpt %[result]" \
                   : OPERANDS)
#define LOAD(name) __asm__ volatile(BEGIN name " %[x]\n\tfnstsw %[fsw]\n\tfstpt %[result]" : OPERANDS)
#define STORE(name) __asm__ volatile(BEGIN "fldt %[x]\n\t" name " %[result]\n\tfnstsw %[fsw]" : OPERANDS)
#define MEMORY(name) \
  __asm__ volatile(BEGIN "fldt %[x]\n\t" name " %[y]\n\tfnstsw %[fsw]\n\tfstpt %[result]" : OPERANDS)

static void execute(const struct input *in, struct output *out) {
  switch (in->operation) {
    case 0: /* x + y */
      REGISTERS("0xde, 0xc1");
      break;
    case 1: /* x - y */
      REGISTERS("0xde, 0xe9");
      break;
    case 2: /* y - x */
      REGISTERS("0xde, 0xe1");
      break;
    case 3: /* x * y */
      REGISTERS("0xde, 0xc9");
      break;
    case 4: /* x / y */
      REGISTERS("0xde, 0xf9");
      break;
    case 5: /* y / x */
      REGISTERS("0xde, 0xf1");
      break;
    case 6: /* the root of y */
      REGISTERS("0xd9, 0xfa");
      break;
    case 7: /* FCOM */
      REGISTERS("0xd8, 0xd1");
      break;
    case 8: /* FTST */
      REGISTERS("0xd9, 0xe4");
      break;
    case 9:
      LOAD("flds");
      break;
    case 10:
      LOAD("fldl");
      break;
    case 11:
      LOAD("fildll");
      break;
    case 12:
      STORE("fstps");
      break;
    case 13:
      STORE("fstpl");
      break;
    case 14:
      STORE("fistps");
      break;
    case 15:
      STORE("fistpl");
      break;
    case 16:
      STORE("fistpll");
      break;
    case 17:
      STORE("fisttps");
      break;
    case 18:
      STORE("fisttpl");
      break;
    case 19:
      STORE("fisttpll");
      break;
    case 20:
      MEMORY("fadds");
      break;
    case 21:
      MEMORY("fdivl");
      break;
    case 22: /* y by the power of 2 that x is */
      REGISTERS("0xd9, 0xfd");
      break;
    case 23:
      REGISTERS("0xd9, 0xfc"); /* FRNDINT */
      break;
    case 24:
      REGISTERS("0xd9, 0xe5"); /* FXAM */
      break;
    default:
      MEMORY("fimull");
      break;
  }
}

int main(void) {
  static struct input in[4096];
  static struct output out[4096];
  size_t count;
  while ((count = fread(in, sizeof in[0], 4096, stdin)) > 0) {
    for (size_t i = 0; i < count; i++) execute(&in[i], &out[i]);
    if (fwrite(out, sizeof out[0], count, stdout) != count) return 1;
  }
  return 0;
}
