// A worker thread that is in KVM_RUN is to come back when its environment ends: nobody else can tell it, for
// Worker.terminate() and process.exit() end JS alone, and wait.
#pragma once

#include <napi.h>

#include <cstdint>

namespace vmexit {

// Nanoseconds.
constexpr int64_t kLookEvery = 100'000'000;

// False once the environment ends.
bool CanCallJs(napi_env env);

// As long as one is there, each run of a worker's that takes long looks around: RunState::look.
class LookAround {
 public:
  explicit LookAround(bool worker);
  ~LookAround();
  LookAround(const LookAround&) = delete;
  LookAround& operator=(const LookAround&) = delete;

  // Before a run: 0, or an errno where there is no thread to look.
  int Begin() { return !worker || begun_ ? 0 : Start(); }

  const bool worker;

 private:
  int Start();

  bool begun_ = false;
};

}  // namespace vmexit
