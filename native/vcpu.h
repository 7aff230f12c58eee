// A vCPU as all threads of the process share it: who has it, and what is asked of it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "abi.h"
#include "handle.h"

namespace vmexit {

// What a call gives while another thread runs the vCPU: the kernel would let it wait for vcpu->mutex until
// that run ends. Below all errnos (MAX_ERRNO).
enum { kVcpuRunning = -4096 };

// Lives as long as a handle of it is open in any thread, or a run or a kick in progress needs it.
struct RunState : std::enable_shared_from_this<RunState> {
  // Nobody has it; a thread is about to run it, or has just done so; a thread runs it; a kick is under way,
  // so that thread cannot come back; an ioctl of some thread's has it.
  enum Phase : int { kIdle, kEntering, kRunning, kKicking, kIoctl };

  static std::shared_ptr<RunState> Create(int fd, uint64_t vm_type, std::shared_ptr<Mapping> mapping,
                                          std::shared_ptr<Slots> slots);
  // By its number; nullptr when it is closed.
  static std::shared_ptr<RunState> Find(uint64_t id);
  // All that are open.
  static std::vector<std::shared_ptr<RunState>> All();
  ~RunState();

  // For an ioctl: false while another thread runs it.
  bool Take();
  void Give();
  // For a run: false while another thread runs it. Then Run() and Return(), and Leave() in any case.
  bool Enter();
  void Run(pid_t tid, bool of_worker);
  // From now on nobody signals this thread. One signal may still be on its way.
  void Return();
  // Anybody may have it; `waiting`: the last exit waits for userspace's answer.
  void Leave(bool waiting);

  void Kick();
  // 0 when it stands still, 1 when it does not yet. Waits for a short while where a thread is in KVM_RUN.
  int Pause();
  // As well; 1 when `fd` is signalled once it stands still, or a negated errno. Does not wait.
  int Pause(int fd);
  int Resume();
  void Stop();
  // Whether the last exit waits for no answer of userspace's.
  bool IsComplete() const { return !waiting_.load(); }
  // Signals the thread that is in KVM_RUN, if one is.
  void Interrupt();
  // Wakes who waits in WaitForBell().
  void Ring();
  // Until Ring(), but no longer than this. Look at what is waited for after `bell` was read.
  void WaitForBell(uint32_t bell, int64_t nanoseconds);

  const int fd;
  const uint64_t vm_type;
  const std::shared_ptr<Mapping> mapping;
  const std::shared_ptr<Slots> slots;
  kvm_run* const run;
  const uint32_t id;  // what kick() and others take

  std::atomic<int> phase{kIdle};
  // A run was begun for a thread of its own, which has not entered it yet: it is its vCPU all the same.
  std::atomic<bool> coming{false};
  std::atomic<bool> kicked{false};
  std::atomic<bool> stopped{false};
  std::atomic<uint32_t> pauses{0};
  std::atomic<uint32_t> bell{0};
  // A signal was sent to the thread that runs it, and may still be on its way.
  std::atomic<bool> signalled{false};
  std::atomic<uint32_t> runs{0};
  std::atomic<bool> looks{false};  // the run in progress is a worker's
  std::atomic<bool> look{false};   // and is to look whether its environment ends

 private:
  RunState(int fd, uint64_t vm_type, std::shared_ptr<Mapping> mapping, std::shared_ptr<Slots> slots);
  bool StandsStill() const;
  void Acknowledge();
  void SignalAwaited();

  std::atomic<bool> waiting_{false};  // the last exit waits for an answer
  pid_t tid_ = 0;                     // another thread reads it only in kKicking
  std::mutex mutex_;
  std::vector<int> awaited_;            // eventfds that an acknowledgement signals
  std::atomic<uint32_t> left_{0};       // how often it was left while it was paused
  std::atomic<uint32_t> lingering_{0};  // threads in Pause()
};

// kickId(vcpu) -> number
Napi::Value KickId(const Napi::CallbackInfo& info);
// kick(id), stop(id) -> whether there is such a vCPU
Napi::Value Kick(const Napi::CallbackInfo& info);
Napi::Value Stop(const Napi::CallbackInfo& info);
// pause(id, eventfd | undefined) -> 0 | 1 | -errno; resume(id) -> 0 | -errno
Napi::Value Pause(const Napi::CallbackInfo& info);
Napi::Value Resume(const Napi::CallbackInfo& info);

}  // namespace vmexit
