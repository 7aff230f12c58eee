// ioctl(2), checked: the table says what each request takes, and nothing else is passed on.
#pragma once

#include "handle.h"

namespace vmexit {

// open(path) -> handle | -errno
Napi::Value Open(const Napi::CallbackInfo& info);
// ioctl(handle, request, argument?) -> result | -errno. The argument is a number or bigint where the kernel
// takes an integer, and a Uint8Array of the struct's exact size where it takes a pointer; what the kernel
// writes is in it.
Napi::Value Ioctl(const Napi::CallbackInfo& info);
// create(handle, request, argument) -> handle | -errno, for requests that return a file descriptor.
Napi::Value Create(const Napi::CallbackInfo& info);
// setMemoryRegion(vm, request, region, memory | null, offset, guestMemfd | null, bitmap | null) -> 0 |
// -errno. The addon fills in userspace_addr, guest_memfd and userfault_bitmap, for JS never sees a pointer.
Napi::Value SetMemoryRegion(const Napi::CallbackInfo& info);
// dirtyLog(vm, slot, bitmap) -> 0 | -errno: KVM_GET_DIRTY_LOG. What KVM writes is copied as far as the
// Uint8Array reaches.
Napi::Value DirtyLog(const Napi::CallbackInfo& info);
// requests() -> the table, for the test that holds it against the one in src/uapi.
Napi::Value Requests(const Napi::CallbackInfo& info);

}  // namespace vmexit
