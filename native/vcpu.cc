#include "vcpu.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <map>

#include "run.h"
#include "syscalls.h"

namespace vmexit {

namespace {

// How long who asks for a pause waits for it, in nanoseconds; the event loop feels no more.
constexpr int64_t kLinger = 500'000;

// All vCPUs that are open: a thread finds that of another by its number. Never destroyed, for threads may be
// at work when the process ends.
struct Table {
  std::mutex mutex;
  std::map<uint32_t, std::weak_ptr<RunState>> states;
  uint32_t last_id = 0;
};
Table& TheTable() {
  static Table* const table = new Table;
  return *table;
}
uint32_t NextId() {
  const std::lock_guard<std::mutex> lock(TheTable().mutex);
  return ++TheTable().last_id;
}

}  // namespace

RunState::RunState(int fd, uint64_t vm_type, std::shared_ptr<Mapping> mapping, std::shared_ptr<Slots> slots)
    : fd(fd),
      vm_type(vm_type),
      mapping(std::move(mapping)),
      slots(std::move(slots)),
      run(reinterpret_cast<kvm_run*>(this->mapping->data)),
      id(NextId()) {}

std::shared_ptr<RunState> RunState::Create(int fd, uint64_t vm_type, std::shared_ptr<Mapping> mapping,
                                           std::shared_ptr<Slots> slots) {
  std::shared_ptr<RunState> state(new RunState(fd, vm_type, std::move(mapping), std::move(slots)));
  const std::lock_guard<std::mutex> lock(TheTable().mutex);
  TheTable().states[state->id] = state;
  return state;
}

std::shared_ptr<RunState> RunState::Find(uint64_t id) {
  if (id > UINT32_MAX) return nullptr;
  const std::lock_guard<std::mutex> lock(TheTable().mutex);
  const auto found = TheTable().states.find(static_cast<uint32_t>(id));
  return found == TheTable().states.end() ? nullptr : found->second.lock();
}

std::vector<std::shared_ptr<RunState>> RunState::All() {
  std::vector<std::shared_ptr<RunState>> all;
  const std::lock_guard<std::mutex> lock(TheTable().mutex);
  for (const auto& [id, weak] : TheTable().states) {
    auto state = weak.lock();
    // The last reference must not go while the table is locked: all of them leave with the vector.
    if (state) all.push_back(std::move(state));
  }
  return all;
}

RunState::~RunState() {
  close(fd);
  SignalAwaited();
  const std::lock_guard<std::mutex> lock(TheTable().mutex);
  TheTable().states.erase(id);
}

// --- who has it

bool RunState::Take() {
  if (coming.load() && pauses.load() == 0) return false;
  for (int found = kIdle; !phase.compare_exchange_strong(found, kIoctl); found = kIdle) {
    if (found == kRunning || found == kKicking) return false;
    sched_yield();  // about to enter, or to leave it again; or another thread's ioctl, which ends
  }
  return true;
}

void RunState::Give() { phase.store(kIdle); }

bool RunState::Enter() {
  for (int found = kIdle; !phase.compare_exchange_strong(found, kEntering); found = kIdle) {
    if (found != kIoctl) return false;
    sched_yield();
  }
  coming.store(false);
  return true;
}

// Either this thread sees afterwards what is asked of it, or who asks sees kRunning and sends the signal: all
// of it is sequentially consistent.
void RunState::Run(pid_t tid, bool of_worker) {
  tid_ = tid;
  looks.store(of_worker, std::memory_order_relaxed);
  runs.fetch_add(1, std::memory_order_relaxed);
  phase.exchange(kRunning);
}

void RunState::Return() {
  for (int running = kRunning; !phase.compare_exchange_strong(running, kEntering); running = kRunning) {
    sched_yield();
  }
}

void RunState::Leave(bool waiting) {
  waiting_.store(waiting);
  phase.store(kIdle);
  if (pauses.load() > 0) Acknowledge();
}

// --- what is asked of it

void RunState::Interrupt() {
  // In kKicking the thread cannot leave run(), so the signal goes to nobody who is not inside it.
  int running = kRunning;
  if (!phase.compare_exchange_strong(running, kKicking)) return;
  signalled.store(true);
  syscall(SYS_tgkill, getpid(), tid_, KickSignal());
  phase.store(kRunning);
}

void RunState::Kick() {
  kicked.store(true);
  Interrupt();
}

void RunState::Stop() {
  stopped.store(true);
  Interrupt();
  Ring();
}

bool RunState::StandsStill() const {
  const int now = phase.load();
  return (now == kIdle || now == kIoctl) && !waiting_.load();
}

// To have the event loop told takes several times what it takes the vCPU to come out of the guest.
int RunState::Pause() {
  pauses.fetch_add(1);
  if (StandsStill()) return 0;
  Interrupt();
  const int64_t until = Now() + kLinger;
  lingering_.fetch_add(1);
  bool stands = false;
  for (int64_t left = kLinger; left > 0; left = until - Now()) {
    const uint32_t seen = left_.load();
    stands = StandsStill();
    if (stands || phase.load() == kIdle) break;  // userspace has to answer its exit
    const timespec time{.tv_sec = 0, .tv_nsec = left};
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&left_), FUTEX_WAIT_PRIVATE, seen, &time, nullptr, 0);
  }
  lingering_.fetch_sub(1);
  return stands || StandsStill() ? 0 : 1;
}

int RunState::Pause(int eventfd) {
  // First: what has failed has changed nothing.
  const int awaited = fcntl(eventfd, F_DUPFD_CLOEXEC, 0);
  if (awaited < 0) return -errno;
  pauses.fetch_add(1);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (StandsStill()) {
      close(awaited);
      return 0;
    }
    awaited_.push_back(awaited);
  }
  Interrupt();
  return 1;
}

void RunState::Acknowledge() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (pauses.load() > 0 && StandsStill()) SignalAwaited();
  left_.fetch_add(1);
  if (lingering_.load() == 0) return;
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&left_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void RunState::SignalAwaited() {
  for (const int awaited : awaited_) {
    const uint64_t one = 1;
    // It fails only when the counter is full: then it is signalled already.
    [[maybe_unused]] const ssize_t written = write(awaited, &one, sizeof one);
    close(awaited);
  }
  awaited_.clear();
}

int RunState::Resume() {
  uint32_t count = pauses.load();
  do {
    if (count == 0) return -EINVAL;
  } while (!pauses.compare_exchange_weak(count, count - 1));
  if (count == 1) {
    // Nobody shall wait for what was undone.
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pauses.load() == 0) SignalAwaited();
  }
  Ring();
  return 0;
}

void RunState::Ring() {
  bell.fetch_add(1);
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&bell), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void RunState::WaitForBell(uint32_t seen, int64_t nanoseconds) {
  const timespec time{.tv_sec = nanoseconds / 1'000'000'000, .tv_nsec = nanoseconds % 1'000'000'000};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&bell), FUTEX_WAIT_PRIVATE, seen, &time, nullptr, 0);
}

// --- by number, from any thread

Napi::Value KickId(const Napi::CallbackInfo& info) {
  Handle* vcpu = Unwrap(info.Env(), info[0], kVcpu, "vcpu");
  if (!vcpu) return info.Env().Undefined();
  return Napi::Number::New(info.Env(), vcpu->run->id);
}

Napi::Value Kick(const Napi::CallbackInfo& info) {
  uint64_t id = 0;
  if (!ToU64(info.Env(), info[0], "id", &id)) return info.Env().Undefined();
  const auto state = RunState::Find(id);
  if (state) state->Kick();
  return Napi::Boolean::New(info.Env(), state != nullptr);
}

Napi::Value Stop(const Napi::CallbackInfo& info) {
  uint64_t id = 0;
  if (!ToU64(info.Env(), info[0], "id", &id)) return info.Env().Undefined();
  const auto state = RunState::Find(id);
  if (state) state->Stop();
  return Napi::Boolean::New(info.Env(), state != nullptr);
}

Napi::Value Pause(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t id = 0;
  if (!ToU64(env, info[0], "id", &id)) return env.Undefined();
  Handle* eventfd = info[1].IsUndefined() ? nullptr : Unwrap(env, info[1], kEventFd, "acknowledged");
  if (env.IsExceptionPending()) return env.Undefined();
  const auto state = RunState::Find(id);
  if (!state) return Napi::Number::New(env, -ESRCH);
  return Napi::Number::New(env, eventfd ? state->Pause(eventfd->fd) : state->Pause());
}

Napi::Value Resume(const Napi::CallbackInfo& info) {
  uint64_t id = 0;
  if (!ToU64(info.Env(), info[0], "id", &id)) return info.Env().Undefined();
  const auto state = RunState::Find(id);
  return Napi::Number::New(info.Env(), state ? state->Resume() : -ESRCH);
}

}  // namespace vmexit
