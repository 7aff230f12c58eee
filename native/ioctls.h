// ioctl(2), checked: the table says what each request takes, and nothing else is passed on.
#pragma once

#include "handle.h"

namespace vmexit {

// open(path) -> handle | -errno
Napi::Value Open(const Napi::CallbackInfo& info);
// ioctl(handle, request, argument?, references?) -> result | -errno. The argument is a number or bigint where
// the kernel takes an integer, and a Uint8Array of the struct's exact size where it takes a pointer; what the
// kernel writes is in it.
Napi::Value Ioctl(const Napi::CallbackInfo& info);
// References are what the addon fills in for the pointers and file descriptors of the struct, in the order of
// the row: null, a handle, { memory, offset }, or a Uint8Array, of which the kernel sees a copy.
// create(handle, request, argument, references?) -> handle | -errno, for requests that make a file
// descriptor.
Napi::Value Create(const Napi::CallbackInfo& info);
// prepare(handle, request) -> { buffer, issue() } | -errno: the ioctl with its argument in place, for structs
// that refer to nothing. It gives EBADF once the handle is closed.
Napi::Value Prepare(const Napi::CallbackInfo& info);

}  // namespace vmexit
