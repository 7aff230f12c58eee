// eventfd(2): a counter that KVM, the guest and threads add to, and that somebody reads or waits for.
#pragma once

#include "handle.h"

namespace vmexit {

// eventfd(initial, semaphore) -> handle | -errno
Napi::Value Eventfd(const Napi::CallbackInfo& info);
// shareEventfd(handle) -> number, and from that in another thread a handle | -errno.
Napi::Value ShareEventfd(const Napi::CallbackInfo& info);
Napi::Value OpenEventfd(const Napi::CallbackInfo& info);
// signalEventfd(handle, count) -> 0 | -errno, -EAGAIN where the counter would overflow; never blocks.
Napi::Value SignalEventfd(const Napi::CallbackInfo& info);
// drainEventfd(handle) -> count | -errno, -EAGAIN where it is 0; never blocks.
Napi::Value DrainEventfd(const Napi::CallbackInfo& info);

// Nobody opens it by its number any more. Before the fd is closed.
void UnshareEventfd(uint64_t number);

}  // namespace vmexit
