// Stands in for KVM in one process (LD_PRELOAD), to show what the addon hands to it: each KVM_MEMORY_ENCRYPT_OP is
// written to FAKE_KVM_LOG, with what its pointers lead to, and is answered in place. FAKE_KVM_PLAN says what those are:
// the bytes of the struct behind `data`, then offset and length of each pointer in it. FAKE_KVM_STATUS is the firmware's
// answer, with EIO when it is not 0.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kPages = 3 * 4096 };

static void Hex(FILE* log, const char* what, const uint8_t* bytes, size_t size) {
  fprintf(log, "%s ", what);
  for (size_t i = 0; i < size; i++) fprintf(log, "%02x", bytes[i]);
  fprintf(log, "\n");
}

static int Encrypt(uint8_t* command) {
  FILE* log = fopen(getenv("FAKE_KVM_LOG"), "a");
  Hex(log, "command", command, 24);
  uint8_t* data = NULL;
  memcpy(&data, command + 8, sizeof(data));
  char* at = getenv("FAKE_KVM_PLAN");
  const size_t size = strtoul(at, &at, 10);
  if (size) Hex(log, "data", data, size);
  while (*at == ',') {
    const size_t offset = strtoul(at + 1, &at, 10);
    const size_t length = strtoul(at + 1, &at, 10);
    uint8_t* target = NULL;
    memcpy(&target, data + offset, sizeof(target));
    char name[32];
    snprintf(name, sizeof(name), "at%zu", offset);
    Hex(log, name, target, length);
    for (size_t i = 0; i < length; i++) target[i] = ~target[i];
  }
  if (size) data[size - 1] = 0xaa;
  fclose(log);
  const uint32_t status = strtoul(getenv("FAKE_KVM_STATUS"), NULL, 10);
  memcpy(command + 16, &status, sizeof(status));
  errno = EIO;
  return status ? -1 : 0;
}

int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void* argument = va_arg(list, void*);
  va_end(list);
  if (((request >> 8) & 0xff) != 0xae) {
    int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    return real(fd, request, argument);
  }
  switch (request & 0xff) {
    case 0x00:  // KVM_GET_API_VERSION
      return 12;
    case 0x01:    // KVM_CREATE_VM
    case 0x41: {  // KVM_CREATE_VCPU
      const int made = memfd_create("fake-kvm", MFD_CLOEXEC);
      return ftruncate(made, kPages) ? -1 : made;
    }
    case 0x04:  // KVM_GET_VCPU_MMAP_SIZE
      return kPages;
    case 0xba:
      return Encrypt(argument);
    default:
      return 0;
  }
}
