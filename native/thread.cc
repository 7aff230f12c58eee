#include "thread.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cmath>

#include "syscalls.h"

namespace vmexit {

namespace {

// How long the event loop is kept for exits that come quickly, in nanoseconds.
constexpr int64_t kTurn = 500'000;
// How long who closes a vCPU waits for its thread, in nanoseconds. No signal ends a KVM_RUN that waits for a
// page of a userfaultfd before 6.2, and who is to fill it may be of the same event loop.
constexpr int64_t kClosing = 50'000'000;

napi_value CallStart(napi_env env, napi_callback_info info) {
  size_t argc = 2;
  napi_value args[2] = {};
  auto* thread = DataOf<VcpuThread>(env, info, &argc, args);
  double timeout_ms = INFINITY;
  bool ends = false;
  if (!ToTimeout(env, argc, args[0], &timeout_ms)) return nullptr;
  if (argc > 1) napi_get_value_bool(env, args[1], &ends);
  napi_value value = nullptr;
  napi_create_int32(env, thread->Go(timeout_ms, ends), &value);
  return value;
}

napi_value CallEnd(napi_env env, napi_callback_info info) {
  DataOf<VcpuThread>(env, info, nullptr, nullptr)->End();
  return nullptr;
}

}  // namespace

VcpuThread::VcpuThread(Napi::Env env, std::shared_ptr<RunState> state, napi_value done)
    : env_(env), state_(std::move(state)) {
  napi_create_reference(env, done, 0, &done_);
}

VcpuThread::~VcpuThread() {
  if (done_) napi_delete_reference(env_, done_);
}

int VcpuThread::Go(double timeout_ms, bool ends) {
  if (closed_) return -EBADF;
  if (running_) return kVcpuRunning;
  const int error = Begin();
  if (error) return -error;
  end_.store(ends ? -ECANCELED : 0);
  timeout_ms_ = timeout_ms;
  running_ = true;
  uint32_t count = 0;
  napi_reference_ref(env_, done_, &count);
  uv_ref(reinterpret_cast<uv_handle_t*>(&async_));
  state_->coming.store(true);
  handover_.Order(serving_);
  return 0;
}

int VcpuThread::Begin() {
  if (!has_async_) {
    const int error = MakeAsync();
    if (error) return error;
  }
  if (has_thread_) return 0;
  const int error = StartThread(
      &thread_, [](void* self) { static_cast<VcpuThread*>(self)->Loop(); }, this);
  has_thread_ = error == 0;
  return error;
}

int VcpuThread::MakeAsync() {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env_, &loop) != napi_ok) return EINVAL;
  const int failed = uv_async_init(loop, &async_, [](uv_async_t* async) {
    // What is called may close the vCPU.
    const auto self = *static_cast<std::shared_ptr<VcpuThread>*>(async->data);
    self->Serve();
  });
  if (failed) return -failed;  // libuv's errors are Linux's
  uv_unref(reinterpret_cast<uv_handle_t*>(&async_));
  async_.data = new std::shared_ptr<VcpuThread>(shared_from_this());
  has_async_ = true;
  napi_add_async_cleanup_hook(
      env_, [](napi_async_cleanup_hook_handle, void* self) { static_cast<VcpuThread*>(self)->Close(); }, this,
      &hook_);
  return 0;
}

void VcpuThread::Loop() {
  Runner runner(state_, &end_);
  for (;;) {
    handover_.WaitForOrder();
    if (end_.load() == -EBADF) break;
    const int64_t begun = Now();
    result_ = runner.Run(timeout_ms_);
    state_->coming.store(false);  // where it was not entered
    if (handover_.Tell(Now() - begun)) uv_async_send(&async_);
  }
  handover_.End();
  uv_async_send(&async_);
}

// A run that is begun by who is told of the last one may be over before the event loop has turned. Not that
// of a vCPU that is paused: the event loop has its acknowledgement.
void VcpuThread::Serve() {
  if (closed_ && handover_.AwaitEnd(0)) Finish();
  if (closed_ || !running_ || !handover_.Take()) return;
  const int64_t until = Now() + kTurn;
  serving_ = true;
  do Tell(result_);
  while (running_ && !closed_ && state_->pauses.load() == 0 && handover_.Await(until - Now()));
  serving_ = false;
  if (running_ && !closed_ && handover_.Withdraw()) uv_async_send(&async_);
}

void VcpuThread::Tell(int result) {
  running_ = false;
  uv_unref(reinterpret_cast<uv_handle_t*>(&async_));
  Napi::HandleScope scope(env_);
  napi_value done = nullptr, global = nullptr, value = nullptr, error = nullptr;
  uint32_t count = 0;
  napi_get_reference_value(env_, done_, &done);
  napi_reference_unref(env_, done_, &count);
  if (!done || napi_get_global(env_, &global) != napi_ok ||
      napi_create_int32(env_, result, &value) != napi_ok) {
    return;
  }
  const napi_status status = napi_make_callback(env_, nullptr, global, done, 1, &value, nullptr);
  if (status == napi_pending_exception && napi_get_and_clear_last_exception(env_, &error) == napi_ok) {
    napi_fatal_exception(env_, error);
  }
}

void VcpuThread::Interrupt(int end) {
  end_.store(end);
  state_->Interrupt();
  state_->Ring();
}

void VcpuThread::End() {
  if (running_ && !closed_) Interrupt(-ECANCELED);
}

void VcpuThread::Close() {
  if (closed_) return;
  closed_ = true;
  if (has_thread_) {
    Interrupt(-EBADF);
    handover_.Order(false);
    if (!handover_.AwaitEnd(kClosing)) {
      uv_ref(reinterpret_cast<uv_handle_t*>(&async_));
      return;
    }
  }
  Finish();
}

void VcpuThread::Finish() {
  if (has_thread_) {
    uv_thread_join(&thread_);
    has_thread_ = false;
    handover_.Take();  // nobody will be told of it
  }
  state_.reset();
  if (!has_async_) return;
  // libuv frees nothing before this callback, and Node waits for it when the environment ends.
  uv_close(reinterpret_cast<uv_handle_t*>(&async_), [](uv_handle_t* handle) {
    auto* held = static_cast<std::shared_ptr<VcpuThread>*>(handle->data);
    const auto self = *held;
    delete held;
    if (self->hook_) napi_remove_async_cleanup_hook(self->hook_);
    if (self->running_) self->Tell(-EBADF);
  });
}

// `done` is a property of the function, so it lives as long; a run in progress holds it, and by it whatever
// it needs.
Napi::Value MakeStarter(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* vcpu = Unwrap(env, info[0], kVcpu, "vcpu");
  if (!vcpu) return env.Undefined();
  if (!info[1].IsFunction()) {
    Invalid(env, "done must be a function");
    return env.Undefined();
  }
  if (vcpu->thread) {
    Invalid(env, "vcpu has a starter already");
    return env.Undefined();
  }
  vcpu->thread = std::make_shared<VcpuThread>(env, vcpu->run, info[1]);
  const auto start = FunctionWith(env, "start", CallStart, vcpu->thread);
  const auto end = FunctionWith(env, "end", CallEnd, vcpu->thread);
  if (start.IsUndefined() || end.IsUndefined()) return env.Undefined();
  napi_set_named_property(env, start, "done", info[1]);
  const auto result = Napi::Object::New(env);
  napi_set_named_property(env, result, "start", start);
  napi_set_named_property(env, result, "end", end);
  return result;
}

}  // namespace vmexit
