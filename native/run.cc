#include "run.h"

#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

#include "syscalls.h"

namespace vmexit {

namespace {

// The only static state: kick() must find a vCPU that another thread's environment owns.
std::mutex table_mutex;
std::map<uint32_t, RunState*> table;
uint32_t next_id = 1;

// What this thread is running, for the signal handler.
thread_local RunState* volatile current = nullptr;

// api.rst, "immediate_exit": KVM reads the flag when it is about to enter the guest with signals pending
// seen, so a handler that sets it cannot lose a signal that arrives just before KVM_RUN.
void OnSignal(int, siginfo_t* info, void*) {
  RunState* state = current;
  if (!state) return;
  if (info->si_code == SI_TIMER) state->expired = true;
  state->run->immediate_exit = 1;
}

// The signal of kicks and deadlines: the first that has no handler yet, for another build of this addon may
// be in the same process.
int Signal() {
  static const int chosen = [] {
    struct sigaction action {};
    action.sa_sigaction = OnSignal;
    action.sa_flags = SA_SIGINFO;  // no SA_RESTART: KVM_RUN must come back
    int number = SIGRTMIN + 5;
    for (struct sigaction old{}; number < SIGRTMAX; number++) {
      if (sigaction(number, nullptr, &old) == 0 && old.sa_handler == SIG_DFL) break;
    }
    sigaction(number, &action, nullptr);
    return number;
  }();
  return chosen;
}

// A timer that signals this thread alone; made when the thread first runs with a deadline.
struct DeadlineTimer {
  int timer = 0;
  int error = 0;

  DeadlineTimer() { error = CreateThreadTimer(Signal(), &timer); }
  ~DeadlineTimer() {
    if (!error) syscall(SYS_timer_delete, timer);
  }
  void Start(double milliseconds) {
    // Zero would disarm it, so a time above 0 is at least a nanosecond.
    const auto nanoseconds = std::max<int64_t>(static_cast<int64_t>(milliseconds * 1e6), 1);
    Set(itimerspec{
        .it_interval = {},
        .it_value = {.tv_sec = nanoseconds / 1'000'000'000, .tv_nsec = nanoseconds % 1'000'000'000}});
  }
  void Stop() { Set(itimerspec{}); }

 private:
  void Set(const itimerspec& spec) { syscall(SYS_timer_settime, timer, 0, &spec, nullptr); }
};

DeadlineTimer& ThreadTimer() {
  thread_local DeadlineTimer timer;
  return timer;
}

// Once per thread that runs a vCPU: a thread may have been started with every signal blocked.
void ListenForSignal() {
  thread_local bool listening = false;
  if (listening) return;
  Unblock(Signal());
  listening = true;
}

// One KVM_RUN. immediate_exit is the user's before and after; in between a kick or the deadline may set it.
int RunOnce(RunState* state, double timeout_ms) {
  kvm_run* run = state->run;
  const uint8_t immediate_exit = run->immediate_exit;
  const bool timed = std::isfinite(timeout_ms);
  if (timed && ThreadTimer().error) return -ThreadTimer().error;

  state->expired = false;
  *state->current = state;
  // Either this sees the kick, or the kick sees kRunning and sends the signal: both are sequentially
  // consistent.
  state->phase.exchange(RunState::kRunning);
  if (state->kicked.load()) run->immediate_exit = 1;
  if (timed) ThreadTimer().Start(timeout_ms);

  const int result = ioctl(state->fd, KVM_RUN, 0) == 0 ? static_cast<int>(run->exit_reason) : -errno;

  // Disarming takes a system call, and a thread-directed signal that is pending is delivered before it
  // returns: no signal of this deadline can reach a later run.
  if (timed) ThreadTimer().Stop();
  int running = RunState::kRunning;
  while (!state->phase.compare_exchange_weak(running, RunState::kIdle)) running = RunState::kRunning;
  // A kick's signal may still be on its way: this system call takes it, so that it interrupts no other.
  const bool kicked = state->kicked.load();
  if (kicked) syscall(SYS_gettid);
  *state->current = nullptr;
  run->immediate_exit = immediate_exit;

  if (result != -EINTR) return result;  // a kick stays pending until it has interrupted a run
  if (!kicked) return state->expired ? -ETIME : result;
  state->kicked.store(false);
  return result;
}

constexpr char kTimeouts[] = "above 0 and below 2^31 (milliseconds), or Infinity";

napi_value Run(napi_env env, napi_callback_info info) {
  size_t argc = 1;
  napi_value arg = nullptr;
  void* data = nullptr;
  napi_get_cb_info(env, info, &argc, &arg, nullptr, &data);
  auto* state = static_cast<std::shared_ptr<RunState>*>(data)->get();

  double timeout_ms = INFINITY;
  if (argc > 0 && napi_get_value_double(env, arg, &timeout_ms) != napi_ok) {
    napi_valuetype type = napi_undefined;
    napi_typeof(env, arg, &type);
    if (type != napi_undefined) {
      Invalid(env, std::string("timeoutMs must be a number of milliseconds, ") + kTimeouts);
      return nullptr;
    }
  }
  if (!(timeout_ms > 0) || (std::isfinite(timeout_ms) && timeout_ms > 2147483647.0)) {
    const Napi::Number number(env, arg);
    OutOfRange(env, "timeoutMs is " + std::string(number.ToString()) + "; it must be " + kTimeouts);
    return nullptr;
  }
  const int result = state->fd < 0 ? -EBADF : RunOnce(state, timeout_ms);
  napi_value value = nullptr;
  napi_create_int32(env, result, &value);
  return value;
}

}  // namespace

RunState::RunState(int fd, std::shared_ptr<Mapping> mapping, std::shared_ptr<Slots> slots)
    : id([] {
        std::lock_guard<std::mutex> lock(table_mutex);
        return next_id++;
      }()),
      fd(fd),
      mapping(std::move(mapping)),
      slots(std::move(slots)),
      run(reinterpret_cast<kvm_run*>(this->mapping->data)) {
  std::lock_guard<std::mutex> lock(table_mutex);
  table[id] = this;
}

void RunState::Close() {
  fd = -1;
  mapping.reset();
  slots.reset();
}

RunState::~RunState() {
  std::lock_guard<std::mutex> lock(table_mutex);
  table.erase(id);
}

// A function of its own for each vCPU: its data pointer costs nothing to find, where unwrapping a handle
// costs half of what the whole call does.
Napi::Value Runner(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* vcpu = Unwrap(env, info[0], kVcpu, "vcpu");
  if (!vcpu) return env.Undefined();
  ListenForSignal();
  vcpu->run->tid = static_cast<pid_t>(syscall(SYS_gettid));
  vcpu->run->current = &current;
  auto* state = new std::shared_ptr<RunState>(vcpu->run);
  napi_value function = nullptr;
  if (napi_create_function(env, "run", NAPI_AUTO_LENGTH, Run, state, &function) != napi_ok) {
    delete state;
    return env.Undefined();
  }
  napi_add_finalizer(
      env, function, state,
      [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<RunState>*>(data); }, nullptr,
      nullptr);
  return Napi::Value(env, function);
}

Napi::Value KickId(const Napi::CallbackInfo& info) {
  Handle* vcpu = Unwrap(info.Env(), info[0], kVcpu, "vcpu");
  if (!vcpu) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), vcpu->run->id);
}

// kick(id) -> whether such a vCPU exists. The run in progress, or else the next one, comes back with EINTR.
Napi::Value Kick(const Napi::CallbackInfo& info) {
  uint64_t id = 0;
  if (!ToU64(info.Env(), info[0], "id", &id)) return info.Env().Undefined();
  std::lock_guard<std::mutex> lock(table_mutex);
  const auto found = id <= UINT32_MAX ? table.find(static_cast<uint32_t>(id)) : table.end();
  // run() may outlive its vCPU, and its state with it.
  if (found == table.end() || found->second->fd < 0) return Napi::Boolean::New(info.Env(), false);
  RunState* state = found->second;
  state->kicked.store(true);
  // In kKicking the thread cannot leave run(), so the signal goes to nobody who is not inside it.
  int running = RunState::kRunning;
  if (state->phase.compare_exchange_strong(running, RunState::kKicking)) {
    syscall(SYS_tgkill, getpid(), state->tid, Signal());
    state->phase.store(RunState::kRunning);
  }
  return Napi::Boolean::New(info.Env(), true);
}

}  // namespace vmexit
