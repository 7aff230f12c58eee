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
  pid_t tid = 0;                  // written before phase becomes kRunning, read only in kKicking
  volatile bool expired = false;  // written by the signal handler on the running thread
};

// runner(vcpu) -> (timeoutMs) => exit reason, or -errno (-ETIME when the time is over).
Napi::Value Runner(const Napi::CallbackInfo& info);
Napi::Value KickId(const Napi::CallbackInfo& info);
Napi::Value Kick(const Napi::CallbackInfo& info);

}  // namespace vmexit
