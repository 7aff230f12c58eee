// What g++'s static libstdc++ asks of glibc, for a libstdc++.so.6 on musl.
#include <stdint.h>
#include <sys/random.h>

char __libc_single_threaded = 0;

int __cxa_thread_atexit_impl(void (*call)(void*), void* object, void* library) {
  (void)call, (void)object, (void)library;
  return 0;
}

int _dl_find_object(void* address, void* result) {
  (void)address, (void)result;
  return -1;
}

uint32_t arc4random(void) {
  uint32_t number = 0;
  getrandom(&number, sizeof number, 0);
  return number;
}

char* gettext(const char* text) { return (char*)text; }
