#include "stats.h"

#include <errno.h>
#include <unistd.h>

#include "handle.h"

namespace vmexit {

Napi::Value ReadStats(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* stats = Unwrap(env, info[0], kStats, "statistics");
  uint64_t offset = 0;
  if (!stats || !ToU64(env, info[1], "offset", &offset)) return env.Undefined();
  if (offset > INT64_MAX) {
    OutOfRange(env, "offset must be below 2^63");
    return env.Undefined();
  }
  if (!info[2].IsTypedArray() || info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array ||
      !info[2].As<Napi::Uint8Array>().ArrayBuffer().IsArrayBuffer()) {
    Invalid(env, "bytes must be a Uint8Array, and not shared");
    return env.Undefined();
  }
  auto bytes = info[2].As<Napi::Uint8Array>();
  const ssize_t done = pread(stats->fd, bytes.Data(), bytes.ByteLength(), static_cast<off_t>(offset));
  return done < 0 ? Errno(env, errno) : Napi::Number::New(env, static_cast<double>(done));
}

}  // namespace vmexit
