#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "abi.h"
#include "syscalls.h"

namespace vmexit {

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMaxBytes = uint64_t{4} << 30;  // what one ArrayBuffer can view on Node 20
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// The advice that loses at most contents. MADV_HWPOISON, for one, would make the next touch from JS a SIGBUS.
constexpr int kAdvice[] = {MADV_NORMAL,   MADV_RANDOM, MADV_SEQUENTIAL,        MADV_WILLNEED,
                           MADV_DONTNEED, MADV_REMOVE, MADV_HUGEPAGE,          MADV_NOHUGEPAGE,
                           MADV_DONTDUMP, MADV_DODUMP, 22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */};

bool Bytes(Napi::Env env, Napi::Value value, uint64_t* bytes) {
  if (!ToU64(env, value, "size", bytes)) return false;
  if (*bytes > 0 && *bytes <= kMaxBytes && *bytes % kPage == 0) return true;
  Invalid(env, "size must be a multiple of 4096 above 0 and at most 4 GiB");
  return false;
}

Napi::Value WrapMemory(Napi::Env env, int fd, uint64_t size, std::shared_ptr<Mapping> mapping) {
  auto handle = std::make_unique<Handle>();
  handle->kind = kMemory;
  handle->fd = fd;
  handle->size = size;
  handle->mapping = std::move(mapping);
  return Wrap(env, std::move(handle));
}

Napi::Value MapShared(Napi::Env env, int fd, uint64_t size) {
  auto mapping = Map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd);
  if (mapping) return WrapMemory(env, fd, size, std::move(mapping));
  const int error = errno;
  close(fd);
  return Errno(env, error);
}

// What write() and read() copy: equally many bytes of guest memory and of a Uint8Array.
struct Copy {
  uint8_t* memory = nullptr;
  uint8_t* bytes = nullptr;
  size_t size = 0;
};

// Empty, with a JS exception pending, when an argument is wrong.
Copy ToCopy(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kMemory, "memory");
  uint64_t offset = 0;
  if (!handle || !ToU64(env, info[1], "offset", &offset)) return {};
  if (!info[2].IsTypedArray() || info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    Invalid(env, "bytes must be a Uint8Array");
    return {};
  }
  auto bytes = info[2].As<Napi::Uint8Array>();
  if (offset > handle->mapping->size || bytes.ByteLength() > handle->mapping->size - offset) {
    Invalid(env, "the bytes reach beyond the memory");
    return {};
  }
  return {handle->mapping->data + offset, bytes.Data(), bytes.ByteLength()};
}

}  // namespace

std::shared_ptr<Mapping> Map(size_t size, int protection, int flags, int fd, off_t offset) {
  void* data = mmap(nullptr, size, protection, flags, fd, offset);
  return data == MAP_FAILED ? nullptr : std::make_shared<Mapping>(data, size);
}

Napi::Value Allocate(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t size = 0;
  if (!Bytes(env, info[0], &size)) return env.Undefined();
  const int fd = memfd_create("vmexit-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Errno(env, errno);
  // A file that can shrink under its mapping turns a touch from JS into a SIGBUS.
  if (ftruncate(fd, static_cast<off_t>(size)) || fcntl(fd, F_ADD_SEALS, kSeals)) {
    const int error = errno;
    close(fd);
    return Errno(env, error);
  }
  return MapShared(env, fd, size);
}

Napi::Value Reserve(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t size = 0;
  if (!ToU64(env, info[0], "size", &size)) return env.Undefined();
  auto mapping = Map(size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
  if (!mapping) return Errno(env, errno);
  auto handle = std::make_unique<Handle>();
  handle->kind = kReservation;
  handle->size = size;
  handle->mapping = std::move(mapping);
  return Wrap(env, std::move(handle));
}

Napi::Value OpenMemory(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t number = 0, inode = 0;
  if (!ToU64(env, info[0], "fd", &number) || !ToU64(env, info[1], "inode", &inode)) return env.Undefined();
  if (number > INT32_MAX) return Errno(env, EBADF);
  const int fd = fcntl(static_cast<int>(number), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return Errno(env, errno);
  // The number may have been closed and reused since it was shared: the inode and the seals tell.
  struct stat stat {};
  const bool same = Fstat(fd, &stat) == 0 && stat.st_ino == inode && fcntl(fd, F_GET_SEALS) == kSeals &&
                    stat.st_size > 0 && static_cast<uint64_t>(stat.st_size) <= kMaxBytes;
  if (same) return MapShared(env, fd, static_cast<uint64_t>(stat.st_size));
  close(fd);
  return Errno(env, ESTALE);
}

Napi::Value MapGuestMemfd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* gmem = Unwrap(env, info[0], kGmem, "guestMemfd");
  if (!gmem) return env.Undefined();
  // Without INIT_SHARED the kernel maps it all the same, and the first touch is a SIGBUS.
  constexpr uint64_t kNeeded = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
  if ((gmem->flags & kNeeded) != kNeeded) return Errno(env, ENODEV);
  if (gmem->size > kMaxBytes) return Errno(env, EFBIG);
  auto mapping = Map(gmem->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, gmem->fd);
  if (!mapping) return Errno(env, errno);
  return WrapMemory(env, -1, gmem->size, std::move(mapping));
}

// The vCPU's file has any size for mmap(2), and a touch beyond the ring is a SIGBUS: the size is the one that
// the capability was enabled with.
Napi::Value MapDirtyRing(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* vcpu = Unwrap(env, info[0], kVcpu, "vcpu");
  if (!vcpu) return env.Undefined();
  uint64_t size = 0;
  {
    const std::lock_guard<std::mutex> lock(vcpu->slots->mutex);
    size = vcpu->slots->ring;
  }
  if (size == 0) return Errno(env, ENXIO);
  auto mapping = Map(size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * kPage);
  if (!mapping) return Errno(env, errno);
  auto handle = std::make_unique<Handle>();
  handle->kind = kRing;
  handle->size = size;
  handle->mapping = std::move(mapping);
  return Wrap(env, std::move(handle));
}

Napi::Value Inode(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kMemory | kGmem, "memory");
  if (!handle) return env.Undefined();
  struct stat stat {};
  if (Fstat(handle->fd, &stat)) return Errno(env, errno);
  return Napi::Number::New(env, static_cast<double>(stat.st_ino));
}

// The array may be a view of the same memory: the two may overlap.
Napi::Value Write(const Napi::CallbackInfo& info) {
  const Copy copy = ToCopy(info);
  if (copy.size > 0) memmove(copy.memory, copy.bytes, copy.size);
  return info.Env().Undefined();
}

Napi::Value Read(const Napi::CallbackInfo& info) {
  const Copy copy = ToCopy(info);
  if (copy.size > 0) memmove(copy.bytes, copy.memory, copy.size);
  return info.Env().Undefined();
}

Napi::Value Fallocate(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kMemory | kGmem, "memory");
  uint64_t mode = 0, offset = 0, size = 0;
  if (!handle || !ToU64(env, info[1], "mode", &mode) || !ToU64(env, info[2], "offset", &offset) ||
      !ToU64(env, info[3], "size", &size)) {
    return env.Undefined();
  }
  // Values that the kernel's int and loff_t cannot hold would be folded into others: refuse them as it would.
  if (mode > INT32_MAX || offset > INT64_MAX || size > INT64_MAX) return Errno(env, EINVAL);
  const int result =
      fallocate(handle->fd, static_cast<int>(mode), static_cast<off_t>(offset), static_cast<off_t>(size));
  return Errno(env, result ? errno : 0);
}

// lseek(2) for holes: the position of the file itself means nothing to anybody here.
Napi::Value Seek(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kMemory, "memory");
  uint64_t offset = 0, whence = 0;
  if (!handle || !ToU64(env, info[1], "offset", &offset) || !ToU64(env, info[2], "whence", &whence)) {
    return env.Undefined();
  }
  if (offset > INT64_MAX || (whence != SEEK_DATA && whence != SEEK_HOLE)) return Errno(env, EINVAL);
  const off_t found = lseek(handle->fd, static_cast<off_t>(offset), static_cast<int>(whence));
  if (found < 0) return Errno(env, errno);
  return Napi::Number::New(env, static_cast<double>(found));
}

Napi::Value Madvise(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kMemory, "memory");
  uint64_t advice = 0, offset = 0, size = 0;
  if (!handle || !ToU64(env, info[1], "advice", &advice) || !ToU64(env, info[2], "offset", &offset) ||
      !ToU64(env, info[3], "size", &size)) {
    return env.Undefined();
  }
  if (std::find(std::begin(kAdvice), std::end(kAdvice), static_cast<int64_t>(advice)) == std::end(kAdvice)) {
    OutOfRange(env, "advice is " + std::to_string(advice) + "; it must be one that loses at most contents");
    return env.Undefined();
  }
  if (offset > handle->mapping->size || size > handle->mapping->size - offset) return Errno(env, EINVAL);
  const int result = madvise(handle->mapping->data + offset, size, static_cast<int>(advice));
  return Errno(env, result ? errno : 0);
}

}  // namespace vmexit
