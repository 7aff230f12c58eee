// Guest memory: memfds, mappings, and the system calls on them.
#pragma once

#include "handle.h"

namespace vmexit {

// allocate(bytes) -> handle | -errno: guest RAM on a sealed memfd, untouched until used.
Napi::Value Allocate(const Napi::CallbackInfo& info);
// reserve(bytes) -> handle | -errno: an address range with nothing behind it, for a slot without backing.
Napi::Value Reserve(const Napi::CallbackInfo& info);
// openMemory(fd, inode) -> handle | -errno: guest RAM that another thread of this process allocated.
Napi::Value OpenMemory(const Napi::CallbackInfo& info);
// mapGuestMemfd(gmem) -> handle | -errno: the host's view of a guest_memfd made with MMAP and INIT_SHARED.
Napi::Value MapGuestMemfd(const Napi::CallbackInfo& info);
// mapDirtyRing(vcpu) -> handle | -errno: the ring of dirty pages that KVM_CAP_DIRTY_LOG_RING has given the
// vCPU.
Napi::Value MapDirtyRing(const Napi::CallbackInfo& info);
// inode(handle) -> number: tells a reused fd number from the file that it once was.
Napi::Value Inode(const Napi::CallbackInfo& info);
// write(memory, offset, bytes), read(memory, offset, into): copies, for what is not worth a view of it all.
Napi::Value Write(const Napi::CallbackInfo& info);
Napi::Value Read(const Napi::CallbackInfo& info);
// fallocate(handle, mode, offset, bytes) -> 0 | -errno
Napi::Value Fallocate(const Napi::CallbackInfo& info);
// seek(memory, offset, SEEK_DATA | SEEK_HOLE) -> offset | -errno
Napi::Value Seek(const Napi::CallbackInfo& info);
// madvise(memory, advice, offset, bytes) -> 0 | -errno
Napi::Value Madvise(const Napi::CallbackInfo& info);

// mmap as a Mapping; an empty pointer with errno set when it fails.
std::shared_ptr<Mapping> Map(size_t size, int protection, int flags, int fd, off_t offset = 0);

}  // namespace vmexit
