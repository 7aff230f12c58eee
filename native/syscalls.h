// System calls made without the C library's wrapper: that is newer than the oldest glibc that the addon runs
// on (2.28; scripts/check-symbols.mjs), or there is none. The structs are those of the x86-64 kernel, which
// glibc and musl use as they are.
#pragma once

#include <sys/stat.h>
#include <uv.h>

namespace vmexit {

// A CLOCK_MONOTONIC timer that sends the signal to the calling thread. Gives 0, or an errno.
int CreateThreadTimer(int signal, int* timer);

// Lets the signal through to the calling thread.
void Unblock(int signal);

// fstat(2): 0, or -1 with errno set.
int Fstat(int fd, struct stat* stat);

// Starts a thread with every signal blocked, for those of the process are its own threads'. By libuv, since
// pthread_create() and pthread_sigmask() are newer than glibc 2.28 by their versions. 0 or an errno.
int StartThread(uv_thread_t* thread, uv_thread_cb main, void* argument);

// CLOCK_MONOTONIC, in nanoseconds.
int64_t Now();

}  // namespace vmexit
