// VMs and vCPUs that several threads of the process have open.
#pragma once

#include "handle.h"

namespace vmexit {

// shareVm(vm) -> number, and from that in another thread a handle | -errno. A vCPU's number is its kickId.
Napi::Value ShareVm(const Napi::CallbackInfo& info);
Napi::Value OpenVm(const Napi::CallbackInfo& info);
Napi::Value OpenVcpu(const Napi::CallbackInfo& info);

}  // namespace vmexit
