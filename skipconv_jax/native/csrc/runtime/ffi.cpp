// The one custom call: checks its operands, picks the instruction set, runs the program.
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "runtime/pool.h"
#include "runtime/program.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

int best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

int isa_in_use() {
  static const int chosen = [] {
    const char* wanted = std::getenv("SKIPCONV_JAX_ISA");
    const int best = best_isa();
    if (!wanted || !*wanted) return best;
    const int level = !std::strcmp(wanted, "avx512") ? 2 : !std::strcmp(wanted, "avx2") ? 1 : 0;
    return level < best ? level : best;
  }();
  return chosen;
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

skc::RunFn run_fn() {
#if defined(__x86_64__)
  switch (isa_in_use()) {
    case 2: return skc::run_avx512;
    case 1: return skc::run_avx2;
  }
#endif
  return skc::run_portable;
}

thread_local std::vector<double> g_profile;
std::vector<double> g_last_profile;
bool g_profiling = false;

// State and weights are hundreds of megabytes read a few kilobytes at a time: with small pages the
// address translation shows. Asked for once per buffer, and `again` where it may be a new one at an
// old address; then the kernel takes its time, because collapsing pages by force is not free where it
// fails. A refusal costs nothing.
void want_huge_pages(const void* data, size_t bytes, bool again = false) {
#if defined(__linux__)
  static std::mutex lock;
  static const void* seen[16] = {};
  static int next = 0;
  constexpr size_t kPage = 2u << 20;
  if (bytes < 4 * kPage) return;
  bool known = false;
  {
    std::lock_guard<std::mutex> hold(lock);
    for (const void* p : seen) known |= p == data;
    if (known && !again) return;
    if (!known) seen[next++ % 16] = data;
  }
  const size_t begin = ((size_t)data + kPage - 1) / kPage * kPage;
  const size_t end = ((size_t)data + bytes) / kPage * kPage;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  if (!known) madvise(reinterpret_cast<void*>(begin), end - begin, kCollapse);
#else
  (void)data, (void)bytes;
#endif
}

void run(skc::Call& call) {
  skc::Pool& pool = skc::Pool::shared();
  if (g_profiling) {
    g_profile.assign(call.head->n_ops, 0.0);
    call.profile = g_profile.data();
  }
  // A second concurrent caller computes on its own thread rather than wait for the workers.
  std::unique_lock<std::mutex> hold(pool.lock(), std::try_to_lock);
  if (hold.owns_lock()) {
    pool.begin(call.threads);
    run_fn()(call, pool);
    pool.end();
    if (g_profiling) g_last_profile = g_profile;
  } else {
    skc::Pool alone;
    run_fn()(call, alone);
  }
}

ffi::Error execute(ffi::Buffer<ffi::S32> program, ffi::Buffer<ffi::F32> weights,
                   ffi::Buffer<ffi::F32> gates, ffi::Buffer<ffi::F32> arena, ffi::RemainingArgs frames,
                   ffi::ResultBuffer<ffi::F32> arena_out, ffi::ResultBuffer<ffi::F32> masks,
                   ffi::RemainingRets outputs, int64_t threads) {
  skc::Call call{};
  if (!skc::read_program(program.typed_data(), (int64_t)program.element_count(), call))
    return ffi::Error::InvalidArgument("skipconv_jax: not a program of this version");
  const skc::Header* head = call.head;
  const auto dims = arena.dimensions();
  if (dims.size() != 2 || dims[1] != head->state)
    return ffi::Error::InvalidArgument("skipconv_jax: state of another program");
  // Results are new buffers, or those of the last frame, which then follow the frames.
  const int kept = (int)frames.size() - head->n_in;
  if ((kept != 0 && kept != head->n_out) || (int)outputs.size() != head->n_out)
    return ffi::Error::InvalidArgument("skipconv_jax: wrong number of inputs or outputs");

  std::vector<const float*> in(head->n_in);
  std::vector<float*> out(head->n_out);
  for (int i = 0; i < head->n_in; i++) {
    auto buffer = frames.get<ffi::Buffer<ffi::F32>>(i);
    if (!buffer.has_value()) return buffer.error();
    in[i] = buffer->typed_data();
  }
  for (int i = 0; i < head->n_out; i++) {
    auto buffer = outputs.get<ffi::Buffer<ffi::F32>>(i);
    if (!buffer.has_value()) return buffer.error();
    out[i] = (*buffer)->typed_data();
    if (!kept) continue;
    auto last = frames.get<ffi::Buffer<ffi::F32>>(head->n_in + i);
    if (!last.has_value()) return last.error();
    want_huge_pages(out[i], sizeof(float) * last->element_count());
    if (last->typed_data() != out[i])
      std::memcpy(out[i], last->typed_data(), sizeof(float) * last->element_count());
  }
  float* state = arena_out->typed_data();
  want_huge_pages(weights.typed_data(), weights.element_count() * sizeof(float));
  bool fresh = false;
  for (int64_t s = 0; s < dims[0]; s++) fresh |= arena.typed_data()[s * dims[1]] == 0.f;
  if (state == arena.typed_data())
    want_huge_pages(state, sizeof(float) * dims[0] * dims[1], fresh);
  else
    std::memcpy(state, arena.typed_data(), sizeof(float) * dims[0] * dims[1]);

  call.weights = weights.typed_data();
  call.gates = gates.typed_data();
  call.arena = state;
  call.B = (int)dims[0];
  call.in = in.data();
  call.out = out.data();
  call.kept = kept != 0;
  call.masks = masks->typed_data();
  call.threads = threads > 0 ? (int)threads : default_threads();
  run(call);
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(SkipconvExecute, execute,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads"));

extern "C" {
int skipconv_isa() { return isa_in_use(); }
int skipconv_threads() { return default_threads(); }
// Turns timing per operation on or off; returns how many operations the last call timed.
int skipconv_profile(int on, double* out, int n) {
  g_profiling = on != 0;
  for (int i = 0; i < n && i < (int)g_last_profile.size(); i++) out[i] = g_last_profile[i];
  return (int)g_last_profile.size();
}
}
#pragma GCC visibility pop
