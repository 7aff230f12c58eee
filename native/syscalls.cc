#include "syscalls.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// libstdc++ asks this variable of glibc 2.32 whether a reference count needs atomic operations. This one is
// in its place: a process that runs Node always has several threads.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

namespace vmexit {

namespace {

// struct sigevent of <asm-generic/siginfo.h>: <signal.h> of each C library names the thread's field
// differently.
struct KernelSigevent {
  uint64_t value = 0;
  int32_t signal = 0;
  int32_t notify = SIGEV_THREAD_ID;
  int32_t thread = 0;
  int32_t pad[11] = {};
};
static_assert(sizeof(KernelSigevent) == 64);

}  // namespace

int CreateThreadTimer(int signal, int* timer) {
  KernelSigevent event;
  event.signal = signal;
  event.thread = static_cast<int32_t>(syscall(SYS_gettid));
  return syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, timer) ? errno : 0;
}

void Unblock(int signal) {
  const uint64_t set = uint64_t{1} << (signal - 1);
  syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &set, nullptr, sizeof(set));
}

int StartThread(uv_thread_t* thread, uv_thread_cb main, void* argument) {
  const uint64_t all = ~uint64_t{0};
  uint64_t before = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof(all));
  const int error = -uv_thread_create(thread, main, argument);  // libuv's errors are Linux's
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, nullptr, sizeof(before));
  return error;
}

int Fstat(int fd, struct stat* stat) { return static_cast<int>(syscall(SYS_fstat, fd, stat)); }

int64_t Now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

}  // namespace vmexit
