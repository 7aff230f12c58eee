// What the C sides of the benchmarks share. They define _GNU_SOURCE.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../native/abi.h"

static void need(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

struct memory {
  int fd;
  uint8_t* data;
};

static struct memory allocate(size_t size) {
  struct memory m = {memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING), 0};
  need(m.fd >= 0 && ftruncate(m.fd, size) == 0, "memfd");
  need(fcntl(m.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "seals");
  m.data = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m.fd, 0);
  need(m.data != MAP_FAILED, "mmap");
  return m;
}
