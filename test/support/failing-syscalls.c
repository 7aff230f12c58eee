// Makes one of the addon's system calls fail (LD_PRELOAD): those of vmexit.node alone, not Node's. FAILING_SYSCALLS is a file of
// three words that this process and its JS share: which call of the addon's fails, counted from 0; the errno; and how many
// there were.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int32_t* words;

__attribute__((constructor)) static void Begin(void) {
  const char* path = getenv("FAILING_SYSCALLS");
  const int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) return;
  words = (volatile int32_t*)syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
}

// Whether the call that returns there is the addon's, and its turn; errno is set then.
static int Fails(void* returns) {
  Dl_info info;
  if (!words || !dladdr(returns, &info) || !info.dli_fname || !strstr(info.dli_fname, "/vmexit.node")) return 0;
  if (__atomic_fetch_add(&words[2], 1, __ATOMIC_SEQ_CST) != words[0]) return 0;
  errno = words[1];
  return 1;
}
#define FAILS() Fails(__builtin_return_address(0))
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void* argument = va_arg(list, void*);
  va_end(list);
  return FAILS() ? -1 : (int)syscall(SYS_ioctl, fd, request, argument);
}

int fcntl64(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  return FAILS() ? -1 : (int)syscall(SYS_fcntl, fd, command, argument);
}
int fcntl(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  return FAILS() ? -1 : (int)syscall(SYS_fcntl, fd, command, argument);
}

void* mmap(void* at, size_t size, int protection, int flags, int fd, off_t offset) {
  return FAILS() ? MAP_FAILED : (void*)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}
int madvise(void* at, size_t size, int advice) {
  return FAILS() ? -1 : (int)syscall(SYS_madvise, at, size, advice);
}
int memfd_create(const char* name, unsigned flags) {
  return FAILS() ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}
int ftruncate(int fd, off_t size) { return FAILS() ? -1 : (int)syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off64_t size) { return FAILS() ? -1 : (int)syscall(SYS_ftruncate, fd, size); }
int fallocate(int fd, int mode, off_t offset, off_t size) {
  return FAILS() ? -1 : (int)syscall(SYS_fallocate, fd, mode, offset, size);
}
off_t lseek(int fd, off_t offset, int whence) { return FAILS() ? -1 : syscall(SYS_lseek, fd, offset, whence); }
int eventfd(unsigned initial, int flags) { return FAILS() ? -1 : (int)syscall(SYS_eventfd2, initial, flags); }

// What the addon calls without a function of the C library's. A signal to a thread and a futex do not fail for want of anything.
long syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long a[6];
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  if ((number == SYS_timer_create || number == SYS_fstat) && FAILS()) return -1;
  long result;
  register long r10 __asm__("r10") = a[3];
  register long r8 __asm__("r8") = a[4];
  register long r9 __asm__("r9") = a[5];
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "0"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if ((unsigned long)result < -4095UL) return result;
  errno = (int)-result;
  return -1;
}
