// KVM_RUN: with a deadline, with a kick from any thread, and with a pause.
#pragma once

#include "look.h"
#include "vcpu.h"

namespace vmexit {

// One thread's way to run a vCPU. What is a thread's own is looked up when this is made: a thread_local of a
// library that was loaded later is a call each time.
struct Runner {
  // On the thread that is going to run it: one of JS's, or the vCPU's own. That one's run gives what is in
  // `end`, if it is no 0, once it was interrupted.
  explicit Runner(std::shared_ptr<RunState> state, const std::atomic<int>* end = nullptr);
  // KVM_RUN until it gives something that is userspace's: the exit reason, or a negated errno: -ETIME when
  // the time is over, -ECANCELED for stop(), -EBADF when it is closed. `env`: where JS waits for it.
  int Run(double timeout_ms, napi_env env = nullptr);

  std::shared_ptr<RunState> state;  // nullptr once its handle is closed

 private:
  int Once(int64_t until);
  // Until it is resumed: 0, or what the run gives instead.
  int Wait(int64_t until, napi_env env);

  const pid_t tid_;
  RunState* volatile* const current_;  // where the signal handler looks
  LookAround look_;
  const std::atomic<int>* const end_;
  bool asked_ = false;  // the last KVM_RUN was interrupted on somebody's behalf
};

// The signal of kicks and deadlines.
int KickSignal();

// Reads what run() takes; false with a JS exception pending.
bool ToTimeout(napi_env env, size_t argc, napi_value arg, double* milliseconds);

// runner(vcpu) -> (timeoutMs) => what Runner::Run() gives.
Napi::Value MakeRunner(const Napi::CallbackInfo& info);

}  // namespace vmexit
