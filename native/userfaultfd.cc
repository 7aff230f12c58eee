#include "userfaultfd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "syscalls.h"

#ifndef USERFAULTFD_IOC_NEW  // /dev/userfaultfd, since 6.1
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace vmexit {

namespace {

constexpr uint64_t kPage = 4096;
constexpr size_t kMessages = 64;
constexpr int kRetries = 1000;
constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

// Without UFFD_USER_MODE_ONLY: most faults on guest memory are KVM's, that is the kernel's. That needs
// vm.unprivileged_userfaultfd or CAP_SYS_PTRACE, or, since 6.1, no more than the right to open the device.
int Create() {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, kFlags));
  if (fd >= 0 || errno != EPERM) return fd;
  const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  const int made = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, kFlags);
  if (device >= 0) close(device);
  if (made < 0) errno = EPERM;  // of the two refusals, the one that tells what to do
  return made;
}

bool Register(int fd, const Mapping& mapping) {
  uffdio_api api{.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM, .ioctls = 0};
  uffdio_register range{};
  range.range = {.start = reinterpret_cast<uintptr_t>(mapping.data), .len = mapping.size};
  range.mode = UFFDIO_REGISTER_MODE_MISSING;
  return ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &range) == 0;
}

Napi::Value WrapUserfaultfd(Napi::Env env, int fd, uint64_t base, uint64_t size,
                            std::shared_ptr<Mapping> mapping) {
  auto handle = std::make_unique<Handle>();
  handle->kind = kUserfaultfd;
  handle->fd = fd;
  handle->size = size;
  handle->mapping = std::move(mapping);
  handle->base = base;
  return Wrap(env, std::move(handle));
}

// Whole pages inside the memory. Empty, with a JS exception pending, when an argument is wrong.
Handle* ToRange(const Napi::CallbackInfo& info, uint64_t* offset, uint64_t size) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kUserfaultfd, "userfaultfd");
  if (!handle || !ToU64(env, info[1], "offset", offset)) return nullptr;
  const bool inside = *offset <= handle->size && size <= handle->size - *offset;
  if (inside && size > 0 && *offset % kPage == 0 && size % kPage == 0) return handle;
  Invalid(
      env,
      "offset and size must be multiples of 4096, of a range that is not empty and lies inside the memory");
  return nullptr;
}

// Issues `fill` until all of the range is done. The kernel gives EAGAIN when it has done a part of it, and
// also while other threads change the address space.
template <typename Argument>
int Fill(int fd, unsigned long request, Argument argument, __s64 Argument::*done,
         void (*advance)(Argument*, uint64_t), uint64_t size) {
  for (int tries = 0; size > 0;) {
    argument.*done = 0;
    if (ioctl(fd, request, &argument) == 0) return 0;
    if (errno != EAGAIN) return -errno;
    const int64_t part = argument.*done;
    if (part > 0) {
      size -= std::min(size, static_cast<uint64_t>(part));
      advance(&argument, static_cast<uint64_t>(part));
    } else if (++tries == kRetries) {
      return -EAGAIN;
    }
  }
  return 0;
}

}  // namespace

Napi::Value Userfaultfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* memory = Unwrap(env, info[0], kMemory, "memory");
  if (!memory) return env.Undefined();
  const int fd = Create();
  if (fd < 0) return Errno(env, errno);
  const auto& mapping = memory->mapping;
  if (Register(fd, *mapping)) {
    return WrapUserfaultfd(env, fd, reinterpret_cast<uintptr_t>(mapping->data), mapping->size, mapping);
  }
  const int error = errno;
  close(fd);
  return Errno(env, error);
}

Napi::Value ShareUserfaultfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kUserfaultfd, "userfaultfd");
  if (!handle) return env.Undefined();
  struct stat stat {};
  if (Fstat(handle->fd, &stat)) return Errno(env, errno);
  auto token = Napi::Object::New(env);
  token.Set("fd", Napi::Number::New(env, handle->fd));
  token.Set("inode", Napi::Number::New(env, static_cast<double>(stat.st_ino)));
  token.Set("base", Napi::BigInt::New(env, handle->base));
  token.Set("size", Napi::Number::New(env, static_cast<double>(handle->size)));
  return token;
}

Napi::Value OpenUserfaultfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t number = 0, inode = 0, base = 0, size = 0;
  if (!ToU64(env, info[0], "fd", &number) || !ToU64(env, info[1], "inode", &inode) ||
      !ToU64(env, info[2], "base", &base) || !ToU64(env, info[3], "size", &size)) {
    return env.Undefined();
  }
  if (number > INT32_MAX) return Errno(env, EBADF);
  const int fd = fcntl(static_cast<int>(number), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return Errno(env, errno);
  // The number may be another file's by now. Since 5.12 each userfaultfd has an inode of its own.
  char target[64] = {};
  struct stat stat {};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const bool same = readlink(link.c_str(), target, sizeof target - 1) > 0 &&
                    strcmp(target, "anon_inode:[userfaultfd]") == 0 && Fstat(fd, &stat) == 0 &&
                    stat.st_ino == inode;
  if (same) return WrapUserfaultfd(env, fd, base, size, nullptr);
  close(fd);
  return Errno(env, ESTALE);
}

Napi::Value FillPages(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[2].IsTypedArray() || info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    Invalid(env, "bytes must be a Uint8Array");
    return env.Undefined();
  }
  auto bytes = info[2].As<Napi::Uint8Array>();
  const uint64_t size = bytes.ByteLength();
  uint64_t offset = 0;
  Handle* handle = ToRange(info, &offset, size);
  if (!handle) return env.Undefined();
  const auto source = reinterpret_cast<uintptr_t>(bytes.Data());
  const uint64_t base = handle->base;
  if (source + size > base && source < base + handle->size) {
    Invalid(env, "bytes must not lie in the memory itself: its missing pages would wait for themselves");
    return env.Undefined();
  }
  uffdio_copy copy{};
  copy.dst = base + offset;
  copy.src = source;
  copy.len = size;
  const auto advance = [](uffdio_copy* copy, uint64_t done) {
    copy->dst += done;
    copy->src += done;
    copy->len -= done;
  };
  return Napi::Number::New(
      env, Fill<uffdio_copy>(handle->fd, UFFDIO_COPY, copy, &uffdio_copy::copy, advance, size));
}

Napi::Value ZeroPages(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t offset = 0, size = 0;
  if (!ToU64(env, info[2], "size", &size)) return env.Undefined();
  Handle* handle = ToRange(info, &offset, size);
  if (!handle) return env.Undefined();
  uffdio_zeropage zero{};
  zero.range = {.start = handle->base + offset, .len = size};
  const auto advance = [](uffdio_zeropage* zero, uint64_t done) {
    zero->range.start += done;
    zero->range.len -= done;
  };
  return Napi::Number::New(env, Fill<uffdio_zeropage>(handle->fd, UFFDIO_ZEROPAGE, zero,
                                                      &uffdio_zeropage::zeropage, advance, size));
}

Napi::Value WakePages(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t offset = 0, size = 0;
  if (!ToU64(env, info[2], "size", &size)) return env.Undefined();
  Handle* handle = ToRange(info, &offset, size);
  if (!handle) return env.Undefined();
  uffdio_range range{.start = handle->base + offset, .len = size};
  return Errno(env, ioctl(handle->fd, UFFDIO_WAKE, &range) ? errno : 0);
}

Napi::Value ReadFaults(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kUserfaultfd, "userfaultfd");
  if (!handle) return env.Undefined();
  uffd_msg messages[kMessages];
  const ssize_t length = read(handle->fd, messages, sizeof messages);
  if (length < 0 && errno != EAGAIN) return Errno(env, errno);
  const size_t count = length < 0 ? 0 : static_cast<size_t>(length) / sizeof(uffd_msg);
  auto offsets = Napi::Array::New(env);
  uint32_t next = 0;
  for (size_t i = 0; i < count; i++) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
    const uint64_t offset = messages[i].arg.pagefault.address - handle->base;
    // A token with a wrong base would give addresses outside: they are nobody's here.
    if (offset < handle->size)
      offsets[next++] = Napi::Number::New(env, static_cast<double>(offset & ~(kPage - 1)));
  }
  return offsets;
}

}  // namespace vmexit
