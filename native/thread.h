// A vCPU's own thread: KVM_RUN while the event loop lives on.
#pragma once

#include <uv.h>

#include <atomic>

#include "handover.h"
#include "run.h"

namespace vmexit {

// Begun by its first run, and there until its handle is closed or its environment ends: KVM is slow when a
// vCPU moves from thread to thread.
class VcpuThread : public std::enable_shared_from_this<VcpuThread> {
 public:
  // Calls `done` from the event loop with what each run gives. The caller keeps `done` alive between runs.
  VcpuThread(Napi::Env env, std::shared_ptr<RunState> state, napi_value done);
  ~VcpuThread();
  // Begins a run, with `ends` only to complete the access in hand: 0; kVcpuRunning while one is in progress;
  // or a negated errno.
  int Go(double timeout_ms, bool ends);
  // The run in progress, if one is, completes its access and gives -ECANCELED.
  void End();
  // Ends the run in progress, which gives -EBADF, and the thread: where KVM_RUN does not come back at once,
  // from the event loop.
  void Close();

 private:
  // What a first run needs, as far as it is not there yet: 0 or an errno.
  int Begin();
  int MakeAsync();
  void Loop();
  void Interrupt(int end);
  void Serve();
  void Tell(int result);
  void Finish();

  const napi_env env_;
  std::shared_ptr<RunState> state_;  // nullptr once its thread has ended
  napi_ref done_ = nullptr;          // strong while a run is in progress
  bool has_async_ = false;
  bool running_ = false;
  bool serving_ = false;
  bool closed_ = false;
  uv_thread_t thread_{};
  bool has_thread_ = false;
  uv_async_t async_{};
  napi_async_cleanup_hook_handle hook_ = nullptr;

  // Both threads'.
  Handover handover_;
  std::atomic<int> end_{0};  // what an interrupted run gives
  double timeout_ms_ = 0;
  int result_ = 0;
};

// starter(vcpu, done) -> { start: (timeoutMs) => 0 | -errno, end: () => undefined }
Napi::Value MakeStarter(const Napi::CallbackInfo& info);

}  // namespace vmexit
