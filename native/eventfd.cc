#include "eventfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <mutex>

namespace vmexit {

namespace {

// What threads share, by a number that is given once. A file descriptor would not do as one: eventfds have
// one inode for all of them, so nothing tells one that was closed from the next with its descriptor.
std::mutex shared_mutex;
std::map<uint64_t, int> shared;
uint64_t last_number = 0;

Napi::Value WrapEventfd(Napi::Env env, int fd) {
  if (fd < 0) return Errno(env, errno);
  auto handle = std::make_unique<Handle>();
  handle->kind = kEventFd;
  handle->fd = fd;
  return Wrap(env, std::move(handle));
}

}  // namespace

void UnshareEventfd(uint64_t number) {
  const std::lock_guard<std::mutex> lock(shared_mutex);
  shared.erase(number);
}

Napi::Value Eventfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t initial = 0;
  if (!ToU64(env, info[0], "initial", &initial)) return env.Undefined();
  if (initial > UINT32_MAX) {
    OutOfRange(env, "initial must be below 2^32");
    return env.Undefined();
  }
  if (!info[1].IsBoolean()) {
    Invalid(env, "semaphore must be a boolean");
    return env.Undefined();
  }
  const int flags = EFD_CLOEXEC | EFD_NONBLOCK | (info[1].As<Napi::Boolean>() ? EFD_SEMAPHORE : 0);
  return WrapEventfd(env, eventfd(static_cast<unsigned>(initial), flags));
}

Napi::Value ShareEventfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kEventFd, "eventfd");
  if (!handle) return env.Undefined();
  const std::lock_guard<std::mutex> lock(shared_mutex);
  if (handle->shared == 0) {
    handle->shared = ++last_number;
    shared[handle->shared] = handle->fd;
  }
  return Napi::Number::New(env, static_cast<double>(handle->shared));
}

Napi::Value OpenEventfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t number = 0;
  if (!ToU64(env, info[0], "number", &number)) return env.Undefined();
  int fd = -1;
  {
    // Its thread closes it only after it has taken it from here.
    const std::lock_guard<std::mutex> lock(shared_mutex);
    const auto found = shared.find(number);
    if (found == shared.end()) return Errno(env, ESTALE);
    fd = fcntl(found->second, F_DUPFD_CLOEXEC, 0);
  }
  return WrapEventfd(env, fd);
}

Napi::Value SignalEventfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kEventFd, "eventfd");
  uint64_t count = 0;
  if (!handle || !ToU64(env, info[1], "count", &count)) return env.Undefined();
  return Errno(env, write(handle->fd, &count, sizeof count) < 0 ? errno : 0);
}

Napi::Value DrainEventfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kEventFd, "eventfd");
  if (!handle) return env.Undefined();
  uint64_t count = 0;
  if (read(handle->fd, &count, sizeof count) < 0) return Errno(env, errno);
  return Napi::Number::New(env, static_cast<double>(count));
}

}  // namespace vmexit
