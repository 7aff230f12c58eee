#pragma once

#include <napi.h>

namespace vmexit {

// pread(2) of what KVM_GET_STATS_FD gave: how many bytes of a Uint8Array were filled, or a negated errno.
Napi::Value ReadStats(const Napi::CallbackInfo& info);

}  // namespace vmexit
