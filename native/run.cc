#include "run.h"

#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "syscalls.h"

namespace vmexit {

namespace {

constexpr int64_t kMillisecond = 1'000'000;
constinit const std::atomic<bool> kNever{false};

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

// A timer that signals this thread alone; made when the thread first runs with a deadline.
struct DeadlineTimer {
  int timer = 0;
  int error = 0;

  DeadlineTimer() { error = CreateThreadTimer(KickSignal(), &timer); }
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

int64_t Now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

// Whether the exit's answer goes into the instruction that it interrupted: arch/x86/kvm, what sets
// vcpu->arch.complete_userspace_io.
bool Waits(int exit_reason) {
  switch (exit_reason) {
    case KVM_EXIT_IO:
    case KVM_EXIT_MMIO:
    case KVM_EXIT_HYPERCALL:
    case KVM_EXIT_HYPERV:
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
    case KVM_EXIT_AP_RESET_HOLD:
    case KVM_EXIT_XEN:
    case KVM_EXIT_TDX:
    case KVM_EXIT_SNP_REQ_CERTS:
      return true;
    default:
      return false;
  }
}

constexpr char kTimeouts[] = "above 0 and below 2^31 (milliseconds), or Infinity";

napi_value CallRunner(napi_env env, napi_callback_info info) {
  size_t argc = 1;
  napi_value arg = nullptr;
  void* data = nullptr;
  napi_get_cb_info(env, info, &argc, &arg, nullptr, &data);
  auto* runner = static_cast<std::shared_ptr<Runner>*>(data)->get();
  double timeout_ms = INFINITY;
  if (!ToTimeout(env, argc, arg, &timeout_ms)) return nullptr;
  const int result = runner->state ? runner->Run(timeout_ms, env) : -EBADF;
  napi_value value = nullptr;
  napi_create_int32(env, result, &value);
  return value;
}

}  // namespace

// The first that has no handler yet, for another build of this addon may be in the same process.
int KickSignal() {
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

Runner::Runner(std::shared_ptr<RunState> state, const std::atomic<bool>* quits)
    : state(std::move(state)),
      tid_(static_cast<pid_t>(syscall(SYS_gettid))),
      current_(&current),
      look_(!quits && tid_ != getpid()),
      quits_(quits ? quits : &kNever) {
  Unblock(KickSignal());  // a thread may have been started with every signal blocked
}

// immediate_exit is the user's before and after; in between a kick or the deadline may set it.
int Runner::Once(double timeout_ms) {
  RunState* vcpu = state.get();
  kvm_run* run = vcpu->run;
  const uint8_t immediate_exit = run->immediate_exit;
  const bool timed = std::isfinite(timeout_ms);

  vcpu->expired = false;
  *current_ = vcpu;
  vcpu->Run(tid_);
  asked_ = vcpu->kicked.load() || vcpu->pauses.load() > 0 || vcpu->stopped.load() || quits_->load();
  if (asked_) run->immediate_exit = 1;
  if (timed) ThreadTimer().Start(timeout_ms);

  const int result = ioctl(vcpu->fd, KVM_RUN, 0) == 0 ? static_cast<int>(run->exit_reason) : -errno;

  // Disarming takes a system call, and a thread-directed signal that is pending is delivered before it
  // returns: no signal of this deadline can reach a later run.
  if (timed) ThreadTimer().Stop();
  // What fails otherwise has failed before it looked at what was pending.
  const bool completed = result >= 0 || result == -EINTR || result == -EFAULT || result == -EHWPOISON;
  const bool waits = completed ? result >= 0 && Waits(result) : !vcpu->IsComplete();
  vcpu->Return();
  // A kick's signal may still be on its way: this system call takes it, so that it interrupts no other.
  if (vcpu->signalled.exchange(false)) {
    asked_ = true;
    syscall(SYS_gettid);
  }
  *current_ = nullptr;
  // Before anybody is told that it stands still, who may set the flag for himself.
  run->immediate_exit = immediate_exit;
  vcpu->Leave(waits);
  return result;
}

int Runner::Run(double timeout_ms, napi_env env) {
  // CanCallJs() may run JS, which may close the vCPU.
  const std::shared_ptr<RunState> held = state;
  RunState* vcpu = held.get();
  const bool timed = std::isfinite(timeout_ms);
  if (timed && ThreadTimer().error) return -ThreadTimer().error;
  const int64_t until = timed ? Now() + static_cast<int64_t>(timeout_ms * kMillisecond) : INT64_MAX;

  for (double left = timeout_ms;;) {
    if (!vcpu->Enter()) return kVcpuRunning;
    // An access that is pending is completed first, and so is what the user's own immediate_exit asks for.
    if (vcpu->pauses.load() > 0 && vcpu->IsComplete() && !vcpu->run->immediate_exit) {
      vcpu->Leave(false);
      const int ended = Wait(until, env);
      if (ended) return ended;
    } else {
      const int result = Once(left);
      if (result != -EINTR) return result;  // a kick stays pending until it has interrupted a run
      if (quits_->load()) return -EBADF;
      const bool own = vcpu->run->immediate_exit != 0;
      if (!own && vcpu->stopped.exchange(false)) return -ECANCELED;
      if (vcpu->pauses.load() == 0 || own) {
        if (vcpu->kicked.exchange(false) || own) return -EINTR;
        if (vcpu->expired) return -ETIME;
        const bool looked = vcpu->look.exchange(false);
        if (looked && env && !CanCallJs(env)) return -EINTR;
        if (!state) return -EBADF;
        // Neither a look around nor a pause that was undone meanwhile is anybody's; any other signal is.
        if (!looked && !asked_) return -EINTR;
      }
    }
    if (timed) {
      left = static_cast<double>(until - Now()) / kMillisecond;
      if (left <= 0) return -ETIME;
    }
  }
}

int Runner::Wait(int64_t until, napi_env env) {
  RunState* vcpu = state.get();
  for (;;) {
    const uint32_t bell = vcpu->bell.load();
    if (quits_->load()) return -EBADF;
    if (vcpu->stopped.exchange(false)) return -ECANCELED;
    if (vcpu->pauses.load() == 0) return 0;
    if (env && !CanCallJs(env)) return -EINTR;
    if (!state) return -EBADF;
    const int64_t left = until == INT64_MAX ? INT64_MAX : until - Now();
    if (left <= 0) return -ETIME;
    vcpu->WaitForBell(bell, std::min(left, kLookEvery));
  }
}

bool ToTimeout(napi_env env, size_t argc, napi_value arg, double* milliseconds) {
  if (argc > 0 && napi_get_value_double(env, arg, milliseconds) != napi_ok) {
    napi_valuetype type = napi_undefined;
    napi_typeof(env, arg, &type);
    if (type != napi_undefined) {
      Invalid(env, std::string("timeoutMs must be a number of milliseconds, ") + kTimeouts);
      return false;
    }
    *milliseconds = INFINITY;
  }
  if (!(*milliseconds > 0) || (std::isfinite(*milliseconds) && *milliseconds > 2147483647.0)) {
    const Napi::Number number(env, arg);
    OutOfRange(env, "timeoutMs is " + std::string(number.ToString()) + "; it must be " + kTimeouts);
    return false;
  }
  return true;
}

// A function of its own for each vCPU: its data pointer costs nothing to find, where unwrapping a handle
// costs half of what the whole call does.
Napi::Value MakeRunner(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* vcpu = Unwrap(env, info[0], kVcpu, "vcpu");
  if (!vcpu) return env.Undefined();
  if (!vcpu->runner) vcpu->runner = std::make_shared<Runner>(vcpu->run);
  auto* runner = new std::shared_ptr<Runner>(vcpu->runner);
  napi_value function = nullptr;
  if (napi_create_function(env, "run", NAPI_AUTO_LENGTH, CallRunner, runner, &function) != napi_ok) {
    delete runner;
    return env.Undefined();
  }
  napi_add_finalizer(
      env, function, runner,
      [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<Runner>*>(data); }, nullptr,
      nullptr);
  return Napi::Value(env, function);
}

}  // namespace vmexit
