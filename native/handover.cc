#include "handover.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "syscalls.h"

namespace vmexit {

namespace {

std::shared_ptr<LoopBell> BellOfThisThread() {
  thread_local const auto bell = std::make_shared<LoopBell>();
  return bell;
}

void Sleep(std::atomic<uint32_t>* word, uint32_t seen, const timespec* time) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, seen, time, nullptr, 0);
}

void Wake(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

}  // namespace

Handover::Handover() : loop_(BellOfThisThread()) {}

// Who sleeps says so before it looks once more, and who wakes looks for that after it has written: all of it
// is sequentially consistent.

void Handover::Order(bool awaits) {
  if (awaits) result_.store(kAwaited);
  orders_.fetch_add(1);
  if (sleeps_.load()) Wake(&orders_);
}

void Handover::WaitForOrder() {
  sleeps_.store(true);
  while (orders_.load() == seen_) Sleep(&orders_, seen_, nullptr);
  sleeps_.store(false);
  seen_++;
}

bool Handover::Tell(int64_t ran) {
  ran_.store(ran, std::memory_order_relaxed);
  int awaited = kAwaited;
  const bool is_awaited = result_.compare_exchange_strong(awaited, kThere);
  if (!is_awaited) {
    loop_->unserved.fetch_add(1);
    result_.store(kTold);
  }
  // If it does not linger for this one, it may for another.
  loop_->rung.fetch_add(1);
  if (loop_->sleeps.load()) Wake(&loop_->rung);
  return !is_awaited;
}

bool Handover::Await(int64_t nanoseconds) {
  if (nanoseconds <= 0 || loop_->unserved.load() > 0) return false;
  if (ran_.load(std::memory_order_relaxed) < nanoseconds) {
    const timespec time{.tv_sec = 0, .tv_nsec = nanoseconds};
    const uint32_t rung = loop_->rung.load();
    loop_->sleeps.store(true);
    if (result_.load() == kAwaited && loop_->unserved.load() == 0) Sleep(&loop_->rung, rung, &time);
    loop_->sleeps.store(false);
  }
  return Take();
}

bool Handover::Withdraw() {
  int awaited = kAwaited;
  if (result_.compare_exchange_strong(awaited, kNone) || awaited != kThere) return false;
  loop_->unserved.fetch_add(1);
  result_.store(kTold);
  return true;
}

bool Handover::Take() {
  const int result = result_.load();
  if (result != kThere && result != kTold) return false;
  result_.store(kNone);
  if (result == kTold) loop_->unserved.fetch_sub(1);
  return true;
}

void Handover::End() {
  ended_.store(1);
  Wake(&ended_);
}

bool Handover::AwaitEnd(int64_t nanoseconds) {
  const int64_t until = Now() + nanoseconds;
  for (int64_t left = nanoseconds; ended_.load() == 0 && left > 0; left = until - Now()) {
    const timespec time{.tv_sec = 0, .tv_nsec = left};
    Sleep(&ended_, 0, &time);
  }
  return ended_.load() != 0;
}

}  // namespace vmexit
