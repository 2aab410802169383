#include "runtime/pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "runtime/platform.h"

namespace skc {
namespace {

constexpr uint64_t kOpen = 1u << 15;
constexpr uint64_t kInside = kOpen - 1;
constexpr int kSpinsAtJoin = 200;
constexpr int kSpinsAfterCall = 20000;  // some tens of microseconds

std::atomic<Pool*> g_pool{nullptr};
std::mutex g_pool_lock;

// The child of a fork has no workers: it starts a pool of its own. The old one is leaked on purpose,
// its threads and locks are in an unknown state.
void after_fork() {
  new (&g_pool_lock) std::mutex;
  g_pool.store(nullptr);
}

}  // namespace

Pool& Pool::shared() {
  Pool* pool = g_pool.load(std::memory_order_acquire);
  if (pool) return *pool;
  std::lock_guard<std::mutex> hold(g_pool_lock);
  static const int once = pthread_atfork(nullptr, nullptr, after_fork);
  (void)once;
  if (!g_pool.load()) g_pool.store(new Pool);
  return *g_pool.load();
}

void Pool::begin(int threads) {
  threads_ = std::max(1, std::min(threads, kMaxThreads));
  while ((int)workers_.size() < threads_ - 1) {
    int tid = (int)workers_.size() + 1;
    workers_.emplace_back([this, tid] { loop(tid); });
    workers_.back().detach();
  }
  if (threads_ == 1) return;
  active_.store(threads_, std::memory_order_seq_cst);
  if (parked_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> hold(park_);
    wake_.notify_all();
  }
}

void Pool::end() { active_.store(0, std::memory_order_seq_cst); }

void Pool::work(int tid) {
  for (int k = 0; k < parts_; k++) {
    Range& range = ranges_[(tid + k) % parts_];
    while (range.next.load(std::memory_order_relaxed) < range.end) {
      int i = range.next.fetch_add(1, std::memory_order_relaxed);
      if (i >= range.end) break;
      fn_(ctx_, tid, i);
    }
  }
}

void Pool::run(Fn fn, void* ctx, int n, bool parallel, const int* bounds) {
  if (threads_ == 1 || !parallel || n < 2) {
    for (int i = 0; i < n; i++) fn(ctx, 0, i);
    return;
  }
  fn_ = fn;
  ctx_ = ctx;
  parts_ = threads_;
  for (int k = 0; k < parts_; k++) {
    const int first = bounds ? bounds[k] : (int)((int64_t)n * k / parts_);
    ranges_[k].end = bounds ? bounds[k + 1] : (int)((int64_t)n * (k + 1) / parts_);
    ranges_[k].next.store(first, std::memory_order_relaxed);
  }
  uint64_t epoch = (gate_.load(std::memory_order_relaxed) >> 16) + 1;
  gate_.store(epoch << 16 | kOpen, std::memory_order_release);
  work(0);
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  // Mostly a matter of nanoseconds: a pause would last longer.
  for (int spins = 0; gate_.load(std::memory_order_acquire) & kInside; spins++)
    if (spins > kSpinsAtJoin) pause_cpu();
}

void Pool::loop(int tid) {
  uint64_t seen = 0;
  int idle = 0;
  for (;;) {
    int active = active_.load(std::memory_order_acquire);
    uint64_t gate = gate_.load(std::memory_order_acquire);
    if (tid < active && (gate & kOpen) && (gate >> 16) != seen) {
      // Entering is a compare-and-swap on the epoch: a job that closed meanwhile is not entered.
      if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
        seen = gate >> 16;
        work(tid);
        gate_.fetch_sub(1, std::memory_order_acq_rel);
      }
      idle = 0;
      continue;
    }
    if (tid < active) {
      pause_cpu();
      idle = 0;
      continue;
    }
    if (++idle < kSpinsAfterCall) {
      pause_cpu();
      continue;
    }
    std::unique_lock<std::mutex> hold(park_);
    parked_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(hold, [&] { return active_.load(std::memory_order_seq_cst) > tid; });
    parked_.fetch_sub(1, std::memory_order_seq_cst);
    idle = 0;
  }
}

}  // namespace skc
