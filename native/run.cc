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

#ifdef __SANITIZE_THREAD__
// The sanitizer's sigaction() keeps a signal that comes while its thread computes until that makes a system
// call: a kick just before KVM_RUN would set immediate_exit too late. This name of glibc's it does not know.
extern "C" int __sigaction(int, const struct sigaction*, struct sigaction*);
#define SET_HANDLER __sigaction
#else
#define SET_HANDLER sigaction
#endif

namespace vmexit {

namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kForever = INT64_MAX;
constinit const std::atomic<int> kNever{0};

// What this thread is running, for the signal handler.
thread_local RunState* volatile current = nullptr;

// api.rst, "immediate_exit": KVM reads the flag when it is about to enter the guest with signals pending
// seen, so a handler that sets it cannot lose a signal that arrives just before KVM_RUN.
__attribute__((no_sanitize_thread)) void OnSignal(int) {
  RunState* state = current;
  if (state) state->run->immediate_exit = 1;
}

// A timer that signals this thread alone; made when the thread first runs with a deadline.
class DeadlineTimer {
 public:
  ~DeadlineTimer() {
    if (made_) syscall(SYS_timer_delete, timer_);
  }
  // 0 or an errno. timer_create(2) fails with EAGAIN, which KVM_RUN has another meaning for, where the kernel
  // has no memory, or the user no place in the queue of signals (RLIMIT_SIGPENDING). Both may pass.
  int Make() {
    if (made_) return 0;
    const int error = CreateThreadTimer(KickSignal(), &timer_);
    made_ = error == 0;
    return error == EAGAIN ? ENOMEM : error;
  }
  void Start(int64_t until) {
    Set(itimerspec{.it_interval = {},
                   .it_value = {.tv_sec = until / 1'000'000'000, .tv_nsec = until % 1'000'000'000}});
  }
  void Stop() { Set(itimerspec{}); }

 private:
  void Set(const itimerspec& spec) { syscall(SYS_timer_settime, timer_, TIMER_ABSTIME, &spec, nullptr); }

  int timer_ = 0;
  bool made_ = false;
};

DeadlineTimer& ThreadTimer() {
  thread_local DeadlineTimer timer;
  return timer;
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
  auto* runner = DataOf<Runner>(env, info, &argc, &arg);
  double timeout_ms = INFINITY;
  if (!ToTimeout(env, argc, arg, &timeout_ms)) return nullptr;
  const int result = runner->state ? runner->Run(timeout_ms, env) : -EBADF;
  napi_value value = nullptr;
  napi_create_int32(env, result, &value);
  return value;
}

}  // namespace

// A standard signal: one of real time is not sent where the user's queue of signals is full (signal(7),
// RLIMIT_SIGPENDING), and a kick would be lost. SIGURG is ignored by default, and debuggers let it through.
// The first that has no handler yet, for another build of this addon may be in the same process.
int KickSignal() {
  static const int chosen = [] {
    struct sigaction action {};
    action.sa_handler = OnSignal;  // no SA_RESTART: KVM_RUN must come back
    int number = SIGURG;
    for (const int signal : {SIGURG, SIGSTKFLT, SIGPWR, SIGIO}) {
      struct sigaction old {};
      if (sigaction(signal, nullptr, &old) != 0 || old.sa_handler != SIG_DFL) continue;
      number = signal;
      break;
    }
    SET_HANDLER(number, &action, nullptr);
    return number;
  }();
  return chosen;
}

Runner::Runner(std::shared_ptr<RunState> state, const std::atomic<int>* end)
    : state(std::move(state)),
      tid_(static_cast<pid_t>(syscall(SYS_gettid))),
      current_(&current),
      look_(!end && tid_ != getpid()),
      end_(end ? end : &kNever) {
  Unblock(KickSignal());  // a thread may have been started with every signal blocked
}

// immediate_exit is the user's before and after; in between a kick or the deadline may set it.
int Runner::Once(int64_t until) {
  RunState* vcpu = state.get();
  kvm_run* run = vcpu->run;
  const uint8_t immediate_exit = run->immediate_exit;
  const bool timed = until != kForever;

  *current_ = vcpu;
  vcpu->Run(tid_, look_.worker);
  asked_ = vcpu->kicked.load() || vcpu->pauses.load() > 0 || vcpu->stopped.load() || end_->load();
  if (asked_) run->immediate_exit = 1;
  if (timed) ThreadTimer().Start(until);

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
  int error = look_.Begin();
  if (!error && timed) error = ThreadTimer().Make();
  if (error) return -error;
  const int64_t until = timed ? Now() + static_cast<int64_t>(timeout_ms * kMillisecond) : kForever;

  for (;;) {
    if (!vcpu->Enter()) return kVcpuRunning;
    // An access that is pending is completed first, and so is what the user's own immediate_exit asks for.
    if (vcpu->pauses.load() > 0 && vcpu->IsComplete() && !vcpu->run->immediate_exit) {
      vcpu->Leave(false);
      const int ended = Wait(until, env);
      if (ended) return ended;
    } else {
      const int result = Once(until);
      if (result != -EINTR) return result;  // a kick stays pending until it has interrupted a run
      if (const int end = end_->load()) return end;
      const bool own = vcpu->run->immediate_exit != 0;
      if (!own && vcpu->stopped.exchange(false)) return -ECANCELED;
      if (vcpu->pauses.load() == 0 || own) {
        if (vcpu->kicked.exchange(false) || own) return -EINTR;
        if (Now() >= until) return -ETIME;
        const bool looked = vcpu->look.exchange(false);
        if (looked && env && !CanCallJs(env)) return -EINTR;
        if (!state) return -EBADF;
        // Neither a look around nor a pause that was undone meanwhile is anybody's; any other signal is.
        if (!looked && !asked_) return -EINTR;
      }
    }
    if (timed && Now() >= until) return -ETIME;
  }
}

int Runner::Wait(int64_t until, napi_env env) {
  RunState* vcpu = state.get();
  for (;;) {
    const uint32_t bell = vcpu->bell.load();
    if (const int end = end_->load()) return end;
    if (vcpu->stopped.exchange(false)) return -ECANCELED;
    if (vcpu->pauses.load() == 0) return 0;
    if (env && !CanCallJs(env)) return -EINTR;
    if (!state) return -EBADF;
    const int64_t left = until == kForever ? kForever : until - Now();
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

Napi::Value MakeRunner(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* vcpu = Unwrap(env, info[0], kVcpu, "vcpu");
  if (!vcpu) return env.Undefined();
  if (!vcpu->runner) vcpu->runner = std::make_shared<Runner>(vcpu->run);
  return FunctionWith(env, "run", CallRunner, vcpu->runner);
}

}  // namespace vmexit
