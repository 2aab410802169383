#include "runtime/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/int8_api.h"
#include "runtime/pool.h"

namespace skc {
namespace {

int best_isa() {
#if defined(__aarch64__)
  return kNeon;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
  return kPortable;
}

// GCC 12 has no name for it in __builtin_cpu_supports.
bool has_avx_vnni() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
#else
  return false;
#endif
}

}  // namespace

int isa_in_use() {
  static const int chosen = [] {
    const char* wanted = std::getenv("SKIPCONV_JAX_ISA");
    const int best = best_isa();
    if (!wanted || !*wanted || best == kNeon) return best;
    const int level = !std::strncmp(wanted, "avx512", 6) ? kAvx512
                      : !std::strncmp(wanted, "avx", 3)  ? kAvx2
                                                         : kPortable;
    return level < best ? level : best;
  }();
  return chosen;
}

// Of the instruction set in use, with VNNI where this processor has it and SKIPCONV_JAX_ISA does not
// name the set without it.
const QKernels& int8_kernels() {
#if defined(__aarch64__)
  return q_kernels_neon();
#elif defined(__x86_64__)
  static const QKernels& chosen = []() -> const QKernels& {
    const char* wanted = std::getenv("SKIPCONV_JAX_ISA");
    const bool plain = wanted && *wanted && !std::strstr(wanted, "vnni");
    __builtin_cpu_init();
    if (isa_in_use() == kAvx512)
      return !plain && __builtin_cpu_supports("avx512vnni") ? q_kernels_avx512_vnni() : q_kernels_avx512();
    if (isa_in_use() == kAvx2) return !plain && has_avx_vnni() ? q_kernels_avx_vnni() : q_kernels_avx2();
    return q_kernels_portable();
  }();
  return chosen;
#else
  return q_kernels_portable();
#endif
}

int default_threads() {
  static const int chosen = [] {
    const char* wanted = std::getenv("SKIPCONV_JAX_NUM_THREADS");
    const int n = wanted ? std::atoi(wanted) : 0;
    if (n > 0) return n;
    const int cores = (int)std::thread::hardware_concurrency();
    return cores < 1 ? 1 : cores > 8 ? 8 : cores;
  }();
  return chosen;
}

namespace {

RunFn run_fn() {
#if defined(__aarch64__)
  return run_neon;
#else
#if defined(__x86_64__)
  switch (isa_in_use()) {
    case kAvx512: return run_avx512;
    case kAvx2: return run_avx2;
  }
#endif
  return run_portable;
#endif
}

thread_local std::vector<double> g_profile;
std::mutex g_log_lock;
std::vector<double> g_log;  // of all calls since it was last read
std::atomic<bool> g_profiling{false};

}  // namespace

void run(Call& call) {
  Pool& pool = Pool::shared();
  call.q = &int8_kernels();
  if (g_profiling) {
    g_profile.assign(2 * call.head->n_ops, 0.0);
    call.profile = g_profile.data();
  }
  // A second concurrent caller computes on its own thread rather than wait for the workers.
  std::unique_lock<std::mutex> hold(pool.lock(), std::try_to_lock);
  if (hold.owns_lock()) {
    pool.begin(call.threads);
    run_fn()(call, pool);
    pool.end();
  } else {
    Pool alone;
    run_fn()(call, alone);
  }
  if (call.profile) {
    std::lock_guard<std::mutex> log(g_log_lock);
    g_log.insert(g_log.end(), g_profile.begin(), g_profile.end());
  }
}

}  // namespace skc

#pragma GCC visibility push(default)
extern "C" {
int skipconv_isa() { return skc::isa_in_use(); }
const char* skipconv_int8_isa() { return skc::int8_kernels().name; }
int skipconv_threads() { return skc::default_threads(); }
// Turns timing per operation on or off; returns how many numbers calls left since they were last
// taken, and takes them, {seconds, positions computed} per operation, if `out` has room for all.
int skipconv_profile(int on, double* out, int n) {
  skc::g_profiling = on != 0;
  std::lock_guard<std::mutex> log(skc::g_log_lock);
  const int have = (int)skc::g_log.size();
  if (!on) skc::g_log.clear();
  if (out && n >= have) {
    std::copy(skc::g_log.begin(), skc::g_log.end(), out);
    skc::g_log.clear();
  }
  return have;
}
}
#pragma GCC visibility pop
