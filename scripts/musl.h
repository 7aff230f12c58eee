// Included first where Debian's g++ compiles against musl's headers (scripts/prebuild.mjs): what the headers
// of a libstdc++ that was configured for glibc name, and musl has not. Nothing that the addon uses calls any
// of it, and scripts/check-symbols.mjs would find what does.
#pragma once

#define __GLIBC_PREREQ(major, minor) 0
#define _GLIBCXX_GTHREAD_USE_WEAK 0
#define __locale_t locale_t

#include <pthread.h>
#include <time.h>

enum {
  _ISupper = 1 << 0,
  _ISlower = 1 << 1,
  _ISalpha = 1 << 2,
  _ISdigit = 1 << 3,
  _ISxdigit = 1 << 4,
  _ISspace = 1 << 5,
  _ISprint = 1 << 6,
  _ISgraph = 1 << 7,
  _ISblank = 1 << 8,
  _IScntrl = 1 << 9,
  _ISpunct = 1 << 10,
  _ISalnum = 1 << 11,
};

extern "C" {
int pthread_cond_clockwait(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*);
int pthread_mutex_clocklock(pthread_mutex_t*, clockid_t, const timespec*);
}
