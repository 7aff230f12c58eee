#include "handle.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>

#include "run.h"

namespace vmexit {

namespace {

constexpr napi_type_tag kHandleTag = {0x6b1f0f3a9c5d4e27, 0x8d2c7b5a41e6f903};

}  // namespace

Mapping::~Mapping() { munmap(data, size); }

Handle::~Handle() { CloseFd(); }

void Handle::CloseFd() {
  if (run) run->Close();  // run() may outlive the handle
  if (fd >= 0) close(fd);
  fd = -1;
}

Napi::Value Wrap(Napi::Env env, std::unique_ptr<Handle> handle) {
  auto external = Napi::External<Handle>::New(env, handle.release(), [](Napi::Env, Handle* h) { delete h; });
  external.TypeTag(&kHandleTag);
  return external;
}

Handle* Unwrap(Napi::Env env, Napi::Value value, uint32_t kinds, const char* what) {
  if (!value.IsExternal() || !value.As<Napi::External<Handle>>().CheckTypeTag(&kHandleTag)) {
    Invalid(env, std::string(what) + " must be a handle that this addon made");
    return nullptr;
  }
  Handle* handle = value.As<Napi::External<Handle>>().Data();
  if (handle->closed) {
    auto error = Napi::Error::New(env, std::string(what) + " is closed");
    error.Set("code", "ERR_KVM_CLOSED");
    error.ThrowAsJavaScriptException();
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
  auto error = Napi::TypeError::New(env, message);
  error.Set("code", "ERR_KVM_INVALID_ARG");
  error.ThrowAsJavaScriptException();
}

Napi::Value Buffer(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* handle = Unwrap(env, info[0], kMemory | kVcpu, "memory");
  if (!handle) return env.Undefined();
  if (!handle->mapping) {
    Invalid(env, "memory has no host view");
    return env.Undefined();
  }
  if (!handle->buffer.IsEmpty()) return handle->buffer.Value();
  // V8 counts an external buffer's length as garbage-collectable memory and would collect in a hurry for it;
  // nothing here is on its heap, so the count is taken back.
  handle->owner = std::make_shared<BufferOwner>(BufferOwner{handle->mapping, handle->mapping->size});
  auto* reference = new std::shared_ptr<BufferOwner>(handle->owner);
  auto buffer = Napi::ArrayBuffer::New(
      env, handle->mapping->data, handle->mapping->size,
      [](Napi::Env env, void*, std::shared_ptr<BufferOwner>* owner) {
        Napi::MemoryManagement::AdjustExternalMemory(env, static_cast<int64_t>((*owner)->size));
        delete owner;
      },
      reference);
  if (buffer.IsEmpty()) {  // Electron forbids external buffers: napi_no_external_buffers_allowed is pending
    delete reference;
    return env.Undefined();
  }
  handle->buffer = Napi::Reference<Napi::ArrayBuffer>::New(buffer, 1);
  return buffer;
}

// Idempotent. Views are detached before anything is unmapped, so that JS sees length 0 and never a wild
// pointer.
Napi::Value Close(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsExternal() || !info[0].As<Napi::External<Handle>>().CheckTypeTag(&kHandleTag)) {
    Invalid(env, "close() takes a handle that this addon made");
    return env.Undefined();
  }
  Handle* handle = info[0].As<Napi::External<Handle>>().Data();
  if (handle->closed) return env.Undefined();
  handle->closed = true;
  if (!handle->buffer.IsEmpty()) {
    Napi::ArrayBuffer buffer = handle->buffer.Value();
    if (!buffer.IsDetached()) buffer.Detach();
    handle->buffer.Reset();
    // No view can reach the memory now. The finalizer comes at leisure, and a mapped kvm_run pins the whole
    // VM.
    handle->owner->mapping.reset();
    handle->owner.reset();
  }
  handle->CloseFd();
  handle->run.reset();
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
