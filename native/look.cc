#include "look.h"

#include <errno.h>
#include <time.h>

#include <map>
#include <mutex>

#include "syscalls.h"
#include "vcpu.h"

namespace vmexit {

namespace {

std::mutex mutex;
int workers = 0;
bool looking = false;
uv_thread_t looker;
bool looked = false;  // there was one

// Signals the runs that have been going on since it last came by. They enter the guest again at once.
void Look(void*) {
  for (std::map<uint32_t, uint32_t> last;;) {
    const timespec time{.tv_sec = 0, .tv_nsec = kLookEvery};
    nanosleep(&time, nullptr);
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (workers == 0) {
        looking = false;
        return;
      }
    }
    std::map<uint32_t, uint32_t> now;
    for (const auto& state : RunState::All()) {
      const uint32_t runs = now[state->id] = state->runs.load();
      const auto before = last.find(state->id);
      if (before == last.end() || before->second != runs) continue;
      if (state->phase.load() != RunState::kRunning || !state->looks.load()) continue;
      state->look.store(true);
      state->Interrupt();
    }
    last = std::move(now);
  }
}

bool StartLooking() {
  // The one before has ended, or is about to.
  if (looked) uv_thread_join(&looker);
  looking = looked = StartThread(&looker, Look, nullptr) == 0;
  return looking;
}

}  // namespace

bool CanCallJs(napi_env env) {
  napi_value global = nullptr;
  bool has = false;
  return napi_get_global(env, &global) == napi_ok &&
         napi_has_named_property(env, global, "", &has) == napi_ok;
}

LookAround::LookAround(bool worker) : worker(worker) {
  if (!worker) return;
  const std::lock_guard<std::mutex> lock(mutex);
  workers++;
}

int LookAround::Start() {
  const std::lock_guard<std::mutex> lock(mutex);
  begun_ = looking || StartLooking();
  return begun_ ? 0 : ENOMEM;  // not EAGAIN, which KVM_RUN has another meaning for
}

LookAround::~LookAround() {
  if (!worker) return;
  const std::lock_guard<std::mutex> lock(mutex);
  workers--;
}

}  // namespace vmexit
