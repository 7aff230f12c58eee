// userfaultfd(2) over guest memory: missing pages of a memory, who waits for them, and how they come.
#pragma once

#include "handle.h"

namespace vmexit {

// What a handle of kind kUserfaultfd has beside its fd. `base` is where the memory lies in this process; a
// token carries it to another thread, and one that is wrong is an errno: the kernel copies into nothing that
// is not registered with this very userfaultfd.
struct Userfaults {
  uint64_t base = 0;
  std::shared_ptr<struct Watch> watch;

  // No callback comes after it. Before the fd is closed: the event loop polls that.
  void Unwatch();
};

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
// watchFaults(handle, callback | undefined) -> 0 | -errno: called from the event loop when there is something
// to read, and again until it has been read. Keeps the loop alive, as a server's socket does.
Napi::Value WatchFaults(const Napi::CallbackInfo& info);

}  // namespace vmexit
