// userfaultfd(2) over guest memory: missing pages of a memory, who waits for them, and how they come.
#pragma once

#include "handle.h"

namespace vmexit {

// userfaultfd(memory) -> handle | -errno: MISSING faults over all of the memory, of KVM and of the kernel
// too.
Napi::Value Userfaultfd(const Napi::CallbackInfo& info);
// shareUserfaultfd(handle) -> {fd, inode, base, size} | -errno, and from that in another thread a handle |
// -errno.
Napi::Value ShareUserfaultfd(const Napi::CallbackInfo& info);
Napi::Value OpenUserfaultfd(const Napi::CallbackInfo& info);
// fillPages(handle, offset, bytes), zeroPages(handle, offset, size), wakePages(handle, offset, size) -> 0 |
// -errno
Napi::Value FillPages(const Napi::CallbackInfo& info);
Napi::Value ZeroPages(const Napi::CallbackInfo& info);
Napi::Value WakePages(const Napi::CallbackInfo& info);
// readFaults(handle) -> offsets in the memory | -errno; never blocks.
Napi::Value ReadFaults(const Napi::CallbackInfo& info);

}  // namespace vmexit
