// Fork-join over one list of items. Workers spin while a call is active and for a moment after it, then
// park on a condition variable; a worker that has not woken up yet is never waited for.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace skc {

constexpr int kMaxThreads = 64;

class Pool {
 public:
  using Fn = void (*)(void* ctx, int tid, int item);

  // Takes `threads` workers (the caller counts as one) for the length of a call.
  void begin(int threads);
  void end();
  int threads() const { return threads_; }

  // Runs fn(ctx, tid, i) for i in [0, n). Each thread is dealt a range, so that neighbours in the
  // list share a cache, and steals at the end; `bounds` (threads + 1 entries) sets the ranges. Small
  // lists (parallel == false) stay on the caller.
  void run(Fn fn, void* ctx, int n, bool parallel, const int* bounds = nullptr);

  static Pool& shared();  // one per process, new after a fork
  std::mutex& lock() { return lock_; }

 private:
  struct alignas(64) Range {
    std::atomic<int> next{0};
    int end = 0;
  };
  void work(int tid);
  void loop(int tid);

  std::mutex lock_;
  int threads_ = 1;
  std::vector<std::thread> workers_;
  Fn fn_ = nullptr;
  void* ctx_ = nullptr;
  int parts_ = 1;
  Range ranges_[kMaxThreads];
  // epoch << 16 | open << 15 | number of workers inside.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<int> active_{0};  // threads of the running call, 0 between calls
  std::atomic<int> parked_{0};
  std::mutex park_;
  std::condition_variable wake_;
};

}  // namespace skc
