// How a vCPU's thread and the event loop take turns: an order to run, and what the run gave.
#pragma once

#include <stdint.h>

#include <atomic>
#include <memory>

namespace vmexit {

// An event loop's, of all vCPUs that it has started.
struct LoopBell {
  std::atomic<uint32_t> rung{0};
  std::atomic<bool> sleeps{false};    // the loop's thread waits for it
  std::atomic<uint32_t> unserved{0};  // results of which the loop was told by its own means
};

// To tell an event loop takes several system calls and a turn of it. So where runs are short it lingers for
// the next result. It sleeps meanwhile: to look again and again keeps the processor from the vCPU's thread
// where others want it too.
class Handover {
 public:
  Handover();

  // The event loop's side. `awaits`: it calls Withdraw() before it turns to anything else.
  void Order(bool awaits);
  // Lingers for the result, for no longer than this, where the last run was shorter. Gives whether it is
  // there, and takes it. Not where another vCPU has to be served.
  bool Await(int64_t nanoseconds);
  // Of an order that was awaited: from now on the loop is told. Gives whether the caller has to do it.
  bool Withdraw();
  // Whether the result is there: then it is taken.
  bool Take();
  // Waits for the thread's end, for no longer than this. Gives whether it has come.
  bool AwaitEnd(int64_t nanoseconds);

  // The vCPU's thread's.
  void WaitForOrder();
  // The result is there, of a run of so many nanoseconds. Gives whether the event loop has to be told.
  bool Tell(int64_t ran);
  // The last thing that it does with this.
  void End();

 private:
  // There is none; none, but the event loop is going to look; there is one; the loop is told of it.
  enum : int { kNone, kAwaited, kThere, kTold };

  const std::shared_ptr<LoopBell> loop_;
  std::atomic<uint32_t> orders_{0};
  std::atomic<bool> sleeps_{false};  // the vCPU's thread, until the next order
  std::atomic<int> result_{kNone};
  std::atomic<uint32_t> ended_{0};
  std::atomic<int64_t> ran_{INT64_MAX};  // nanoseconds of the last run
  uint32_t seen_ = 0;                    // the vCPU's thread's
};

}  // namespace vmexit
