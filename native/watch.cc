#include "watch.h"

#include <errno.h>
#include <uv.h>

namespace vmexit {

// libuv frees nothing before the close callback, so it holds a reference of its own; so does the hook, by
// which Node waits for that callback when the environment ends.
struct Watch {
  uv_poll_t poll{};
  napi_env env = nullptr;
  napi_ref callback = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;

  void Stop() {
    if (!callback) return;
    napi_delete_reference(env, callback);
    callback = nullptr;
    uv_close(reinterpret_cast<uv_handle_t*>(&poll), [](uv_handle_t* handle) {
      auto* self = static_cast<std::shared_ptr<Watch>*>(handle->data);
      napi_remove_async_cleanup_hook((*self)->hook);
      delete self;
    });
  }
};

namespace {

void OnReadable(uv_poll_t* poll, int, int) {
  // The callback may end the watch, and with it the handle.
  const std::shared_ptr<Watch> watch = *static_cast<std::shared_ptr<Watch>*>(poll->data);
  napi_env env = watch->env;
  Napi::HandleScope scope(env);
  napi_value callback = nullptr, global = nullptr, error = nullptr;
  if (napi_get_reference_value(env, watch->callback, &callback) != napi_ok || !callback ||
      napi_get_global(env, &global) != napi_ok) {
    return;
  }
  const napi_status status = napi_make_callback(env, nullptr, global, callback, 0, nullptr, nullptr);
  if (status == napi_pending_exception && napi_get_and_clear_last_exception(env, &error) == napi_ok) {
    napi_fatal_exception(env, error);
  }
}

// 0 or a negated errno.
int StartWatch(Napi::Env env, int fd, Napi::Value callback, std::shared_ptr<Watch>* out) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return -EINVAL;
  auto watch = std::make_shared<Watch>();
  if (const int error = uv_poll_init(loop, &watch->poll, fd)) return error;  // libuv's errors are Linux's
  watch->env = env;
  watch->poll.data = new std::shared_ptr<Watch>(watch);
  napi_create_reference(env, callback, 1, &watch->callback);
  napi_add_async_cleanup_hook(
      env,
      // When the watch is being stopped already, its close callback tells that the hook is done.
      [](napi_async_cleanup_hook_handle, void* self) { static_cast<Watch*>(self)->Stop(); }, watch.get(),
      &watch->hook);
  const int error = uv_poll_start(&watch->poll, UV_READABLE, OnReadable);
  if (error) {
    watch->Stop();
  } else {
    *out = std::move(watch);
  }
  return error;
}

}  // namespace

void Unwatch(Handle* handle) {
  if (handle->watch) handle->watch->Stop();
  handle->watch.reset();
}

Napi::Value WatchHandle(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kUserfaultfd | kEventFd, "handle");
  if (!handle) return env.Undefined();
  if (!info[1].IsFunction() && !info[1].IsUndefined()) {
    Invalid(env, "callback must be a function or undefined");
    return env.Undefined();
  }
  Unwatch(handle);
  const bool watch = info[1].IsFunction();
  return Errno(env, watch ? -StartWatch(env, handle->fd, info[1], &handle->watch) : 0);
}

}  // namespace vmexit
