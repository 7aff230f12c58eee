// A file descriptor in the event loop: who is called when there is something to read.
#pragma once

#include "handle.h"

namespace vmexit {

// watch(handle, callback | undefined) -> 0 | -errno, of a userfaultfd or an eventfd: called from the event
// loop while there is something to read, until it was read. Keeps the loop alive, as a server's socket does.
Napi::Value WatchHandle(const Napi::CallbackInfo& info);

// No callback comes after it. Before the fd is closed: the event loop polls that.
void Unwatch(Handle* handle);

}  // namespace vmexit
