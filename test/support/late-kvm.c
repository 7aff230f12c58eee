// Holds a thread where it races (LD_PRELOAD): between the addon's last look at what is asked of a vCPU and KVM_RUN, and
// between KVM_RUN's end and the addon's next look. At each it tells `b` or `a` by the FIFO LATE_KVM/at, and goes on by a byte
// of LATE_KVM/go: `E` is EAGAIN, and `I` EINTR, without KVM_RUN.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { kKvmRun = 0xae80 };

// Read and write: opening waits for nobody then.
static int Open(const char* name) {
  char path[4096];
  snprintf(path, sizeof(path), "%s/%s", getenv("LATE_KVM"), name);
  return open(path, O_RDWR | O_CLOEXEC);
}

// The signal of a kick interrupts these system calls, as it would KVM_RUN.
static char Hold(char where) {
  static int at = -1, go = -1;
  if (at < 0) {
    at = Open("at");
    go = Open("go");
  }
  while (write(at, &where, 1) != 1 && errno == EINTR) {
  }
  char how = 0;
  while (read(go, &how, 1) != 1 && errno == EINTR) {
  }
  return how;
}

int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void* argument = va_arg(list, void*);
  va_end(list);
  int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
  if (request != kKvmRun) return real(fd, request, argument);
  const char how = Hold('b');
  int result = -1, error = how == 'E' ? EAGAIN : EINTR;
  if (how == 'g') {
    result = real(fd, request, argument);
    error = errno;
  }
  Hold('a');
  errno = error;
  return result;
}
