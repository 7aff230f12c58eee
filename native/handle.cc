#include "handle.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "eventfd.h"
#include "run.h"
#include "thread.h"
#include "watch.h"

namespace vmexit {

namespace {

// Its own address: another build of this addon in the same process may lay a Handle out differently.
const napi_type_tag kHandleTag = {0x6b1f0f3a9c5d4e27, reinterpret_cast<uintptr_t>(&kHandleTag)};

bool IsHandle(Napi::Value value) {
  return value.IsExternal() && value.As<Napi::External<Handle>>().CheckTypeTag(&kHandleTag);
}

// What an ArrayBuffer holds of its memory. Since Node 22 its bytes may be another ArrayBuffer's by now (by
// transfer()), in another thread even, which Node forgets when an environment ends. Their addresses stay
// mapped for good then: JS cannot be called any more, which is how to tell.
void ReleaseView(Napi::Env env, void*, std::shared_ptr<Mapping>* view) {
  bool has = false;
  if (*view && napi_has_named_property(env, env.Global(), "", &has) != napi_ok) {
    new std::shared_ptr<Addresses>((*view)->addresses);
  }
  delete view;
}

}  // namespace

Addresses::~Addresses() { munmap(data, size); }

Mapping::~Mapping() {
  if (addresses.use_count() == 1) return;
  mmap(data, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

Handle::Handle() = default;

Handle::~Handle() { CloseFd(); }

void Handle::CloseFd() {
  if (thread) thread->Close();
  if (runner) runner->state.reset();  // run() may outlive its vCPU
  Unwatch(this);
  if (shared) UnshareEventfd(shared);
  if (fd >= 0 && !vm && !run) close(fd);  // those are closed with their last handle
  fd = -1;
  if (live) *live = -1;
  thread.reset();
  runner.reset();
  run.reset();
  vm.reset();
}

Napi::Value Wrap(Napi::Env env, std::unique_ptr<Handle> handle) {
  auto external = Napi::External<Handle>::New(env, handle.release(), [](Napi::Env, Handle* h) { delete h; });
  external.TypeTag(&kHandleTag);
  return external;
}

Handle* Unwrap(Napi::Env env, Napi::Value value, uint32_t kinds, const char* what) {
  if (!IsHandle(value)) {
    Invalid(env, std::string(what) + " must be a handle that this addon made");
    return nullptr;
  }
  Handle* handle = value.As<Napi::External<Handle>>().Data();
  if (handle->closed) {
    napi_throw_error(env, "ERR_KVM_CLOSED", (std::string(what) + " is closed").c_str());
    return nullptr;
  }
  if (!(handle->kind & kinds)) {
    Invalid(env, std::string(what) + " is a handle of the wrong kind");
    return nullptr;
  }
  return handle;
}

bool ToU64(Napi::Env env, Napi::Value value, const char* what, uint64_t* out) {
  if (value.IsNumber()) {
    const double number = value.As<Napi::Number>().DoubleValue();
    if (number >= 0 && number <= 9007199254740991.0 && std::trunc(number) == number) {
      *out = static_cast<uint64_t>(number);
      return true;
    }
  } else if (value.IsBigInt()) {
    bool lossless = false;
    *out = value.As<Napi::BigInt>().Uint64Value(&lossless);
    if (lossless) return true;
  }
  Invalid(env, std::string(what) + " must be a whole number from 0 (up to 2^53-1, or a bigint up to 2^64-1)");
  return false;
}

void Invalid(Napi::Env env, const std::string& message) {
  napi_throw_type_error(env, "ERR_KVM_INVALID_ARG", message.c_str());
}

void OutOfRange(Napi::Env env, const std::string& message) {
  napi_throw_range_error(env, "ERR_KVM_INVALID_ARG", message.c_str());
}

Napi::ArrayBuffer ViewOf(Napi::Env env, const std::shared_ptr<Mapping>& mapping,
                         std::shared_ptr<Mapping>** view) {
  *view = new std::shared_ptr<Mapping>(mapping);
  auto buffer = Napi::ArrayBuffer::New(env, mapping->data, mapping->size, ReleaseView, *view);
  if (buffer.IsEmpty()) {  // Electron forbids external buffers: napi_no_external_buffers_allowed is pending
    delete *view;
    return buffer;
  }
  buffer.AddFinalizer([](Napi::Env, std::shared_ptr<Addresses>* addresses) { delete addresses; },
                      new std::shared_ptr<Addresses>(mapping->addresses));
  return buffer;
}

Napi::Value Buffer(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kMemory | kVcpu | kRing, "memory");
  if (!handle) return env.Undefined();
  if (!handle->mapping) {
    Invalid(env, "memory has no host view");
    return env.Undefined();
  }
  if (!handle->buffer.IsEmpty()) return handle->buffer.Value();
  std::shared_ptr<Mapping>* view = nullptr;
  auto buffer = ViewOf(env, handle->mapping, &view);
  if (buffer.IsEmpty()) return env.Undefined();
  handle->buffer = Napi::Reference<Napi::ArrayBuffer>::New(buffer, 1);
  handle->view = view;
  return buffer;
}

// Idempotent. Views are detached before anything is unmapped, so that JS sees length 0 and never a wild
// pointer.
Napi::Value Close(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!IsHandle(info[0])) {
    Invalid(env, "close() takes a handle that this addon made");
    return env.Undefined();
  }
  Handle* handle = info[0].As<Napi::External<Handle>>().Data();
  if (handle->closed) return env.Undefined();
  handle->closed = true;
  if (!handle->buffer.IsEmpty()) {
    Napi::ArrayBuffer buffer = handle->buffer.Value();
    if (!buffer.IsDetached()) {  // by ArrayBuffer.prototype.transfer(): the bytes are another buffer's then
      buffer.Detach();
      handle->view->reset();
    }
    handle->buffer.Reset();
  }
  handle->CloseFd();
  handle->mapping.reset();
  handle->slots.reset();
  return env.Undefined();
}

// The file descriptor's number, for sharing memory between threads and for tests (close-on-exec).
Napi::Value Fd(const Napi::CallbackInfo& info) {
  Handle* handle = Unwrap(info.Env(), info[0], ~0u, "handle");
  if (!handle) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), handle->fd);
}

}  // namespace vmexit
