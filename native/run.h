// KVM_RUN: with a deadline, and with a kick from any thread.
#pragma once

#include <sys/types.h>

#include <atomic>

#include "abi.h"
#include "handle.h"

namespace vmexit {

// One per vCPU; lives as long as its handle, its run() function or a kick in progress needs it.
struct RunState {
  enum Phase : int { kIdle, kRunning, kKicking };

  RunState(int fd, std::shared_ptr<Mapping> mapping, std::shared_ptr<Slots> slots);
  ~RunState();
  // On the thread that runs it: the number of the fd may be given to another file, and what is mapped pins
  // the VM and its memory.
  void Close();

  const uint32_t id;    // what kick() takes
  std::atomic<int> fd;  // -1 once the vCPU is closed, which a kick from another thread must see
  std::shared_ptr<Mapping> mapping;
  std::shared_ptr<Slots> slots;
  kvm_run* const run;  // valid while fd is
  std::atomic<int> phase{kIdle};
  std::atomic<bool> kicked{false};
  // Of its environment's thread, the only one that runs it. Looked up when run() is made: a thread_local of a
  // library that was loaded later is a call each time.
  pid_t tid = 0;                          // another thread reads it only in kKicking
  RunState* volatile* current = nullptr;  // where the signal handler looks
  volatile bool expired = false;          // written by the signal handler on the running thread
};

// runner(vcpu) -> (timeoutMs) => exit reason, or -errno (-ETIME when the time is over).
Napi::Value Runner(const Napi::CallbackInfo& info);
Napi::Value KickId(const Napi::CallbackInfo& info);
Napi::Value Kick(const Napi::CallbackInfo& info);

}  // namespace vmexit
