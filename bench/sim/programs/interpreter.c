// An interpreter of bytecode: a switch in a loop, which is an indirect jump for each operation. What it runs
// counts primes with a sieve, then the steps of Collatz's sequences.
#include "machine.h"

enum { TIMES = 28, SIEVE = 8192, STARTS = 600 };
enum { PUSH, LOAD, STORE, FETCH, PUT, ADD, MUL, SHIFT, LESS, JUMP, UNLESS, DOUBLE, ODD, HALT };
enum { NUMBER, MULTIPLE, STEPS, PRIMES };  // variables
enum { OUTER, INNER, NOT_PRIME, COLLATZ, START, STEP, EVEN, REACHED, END };

static u32 variables[16], array[SIEVE], stack[64];
static u8 code[256];
static u32 size, labels[16];

static void op(u8 value) { code[size++] = value; }
static void op8(u8 value, u8 operand) { op(value), op(operand); }
static void op16(u8 value, u32 operand) { op(value), op(operand), op(operand >> 8); }
static void label(int name) { labels[name] = size; }
static void add_to(u8 variable, u32 value) {
  op8(LOAD, variable), op16(PUSH, value), op(ADD), op8(STORE, variable);
}
static void unless_below(u8 variable, u32 limit, int target) {
  op8(LOAD, variable), op16(PUSH, limit), op(LESS), op16(UNLESS, labels[target]);
}

static void assemble(void) {
  size = 0;
  op16(PUSH, 2), op8(STORE, NUMBER);
  label(OUTER), unless_below(NUMBER, SIEVE, COLLATZ);
  op8(LOAD, NUMBER), op(FETCH), op16(PUSH, 1), op(LESS), op16(UNLESS, labels[NOT_PRIME]);
  add_to(PRIMES, 1);
  op8(LOAD, NUMBER), op(DOUBLE), op8(STORE, MULTIPLE);
  label(INNER), unless_below(MULTIPLE, SIEVE, NOT_PRIME);
  op8(LOAD, MULTIPLE), op16(PUSH, 1), op(PUT);
  op8(LOAD, MULTIPLE), op8(LOAD, NUMBER), op(ADD), op8(STORE, MULTIPLE), op16(JUMP, labels[INNER]);
  label(NOT_PRIME), add_to(NUMBER, 1), op16(JUMP, labels[OUTER]);

  label(COLLATZ), op16(PUSH, 1), op8(STORE, NUMBER);
  label(START), unless_below(NUMBER, STARTS, END);
  op8(LOAD, NUMBER), op8(STORE, MULTIPLE);
  label(STEP), op16(PUSH, 1), op8(LOAD, MULTIPLE), op(LESS), op16(UNLESS, labels[REACHED]);
  add_to(STEPS, 1);
  op8(LOAD, MULTIPLE), op(ODD), op16(UNLESS, labels[EVEN]);
  op8(LOAD, MULTIPLE), op16(PUSH, 3), op(MUL), op16(PUSH, 1), op(ADD), op8(STORE, MULTIPLE);
  op16(JUMP, labels[STEP]);
  label(EVEN), op8(LOAD, MULTIPLE), op(SHIFT), op8(STORE, MULTIPLE), op16(JUMP, labels[STEP]);
  label(REACHED), add_to(NUMBER, 1), op16(JUMP, labels[START]);
  label(END), op8(LOAD, PRIMES), op16(PUSH, 16), op(MUL), op8(LOAD, STEPS), op(ADD), op(HALT);
}

static NOINLINE u32 run(const u8 *at) {
  u32 *top = stack;
  for (;;) {
    switch (*at++) {
      case PUSH:
        *++top = at[0] | at[1] << 8;
        at += 2;
        break;
      case LOAD:
        *++top = variables[*at++];
        break;
      case STORE:
        variables[*at++] = *top--;
        break;
      case FETCH:
        *top = array[*top];
        break;
      case PUT:
        array[top[-1]] = *top;
        top -= 2;
        break;
      case ADD:
        top--;
        *top += top[1];
        break;
      case MUL:
        top--;
        *top *= top[1];
        break;
      case SHIFT:
        *top >>= 1;
        break;
      case LESS:
        top--;
        *top = top[0] < top[1];
        break;
      case JUMP:
        at = code + (at[0] | at[1] << 8);
        break;
      case UNLESS:
        at = *top-- ? at + 2 : code + (at[0] | at[1] << 8);
        break;
      case DOUBLE:
        *top *= 2;
        break;
      case ODD:
        *top &= 1;
        break;
      default:
        return *top;
    }
  }
}

u32 program(void) {
  u32 sum = 0;
  assemble();
  assemble();  // what jumps forward knows its labels now
  for (u32 time = 0; time < TIMES; time++) {
    for (u32 i = 0; i < SIEVE; i++) array[i] = 0;
    for (u32 i = 0; i < 16; i++) variables[i] = 0;
    sum = mix(sum, run(code));
  }
  return sum;
}
