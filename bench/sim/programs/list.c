// Pointers: lists that are walked and turned around, and a binary tree that grows and is searched.
#include "machine.h"

enum { NODES = 1 << 16, TIMES = 24, KEYS = 1 << 15, SEARCHES = 8 };

struct node {
  struct node *left, *right;
  u32 key, count;
};

static struct node *const nodes = (struct node *)ARENA;

static NOINLINE struct node *turn(struct node *at) {
  struct node *before = 0;
  while (at) {
    struct node *after = at->left;
    at->left = before;
    before = at;
    at = after;
  }
  return before;
}

static NOINLINE void insert(struct node **at, struct node *fresh) {
  while (*at) {
    if ((*at)->key == fresh->key) return (void)(*at)->count++;
    at = (*at)->key > fresh->key ? &(*at)->left : &(*at)->right;
  }
  *at = fresh;
}

u32 program(void) {
  u32 seed = 5, sum = 0;
  struct node *head = 0;
  for (u32 i = 0; i < NODES; i++) {  // every node once, not in the order of their addresses
    struct node *at = &nodes[i * 40503 % NODES];
    at->key = next(&seed);
    at->left = head;
    head = at;
  }
  for (u32 time = 0; time < TIMES; time++) {
    head = turn(head);
    for (struct node *at = head; at; at = at->left) sum = mix(sum, at->key);
  }
  struct node *root = 0, *pool = nodes + NODES;
  for (u32 i = 0; i < KEYS; i++) {
    pool[i].key = next(&seed) >> 8;
    insert(&root, &pool[i]);
  }
  for (u32 i = 0; i < SEARCHES * KEYS; i++) {
    struct node *at = root;
    u32 key = i % 2 ? pool[i * 7 % KEYS].key : next(&seed) >> 8;
    while (at && at->key != key) at = at->key > key ? at->left : at->right;
    sum = mix(sum, at ? at->count + 1 : 0);
  }
  return sum;
}
