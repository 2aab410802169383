// Runs programs written by test_sanitizers.py on heap blocks of exact size and compares what comes out.
#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

#include "runtime/pool.h"
#include "runtime/program.h"

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

template <class T>
static std::vector<T> take(FILE* file, size_t n) {
  std::vector<T> out(n);
  if (n && std::fread(out.data(), sizeof(T), n, file) != n) std::exit(3);
  out.shrink_to_fit();
  return out;
}

int main(int argc, char** argv) {
  FILE* file = argc > 1 ? std::fopen(argv[1], "rb") : nullptr;
  if (!file) return 3;
  const int cases = take<int32_t>(file, 1)[0];
  int wrong = 0;
  for (int k = 0; k < cases; k++) {
    const auto n = take<int32_t>(file, 8);  // streams, threads, frames, words, weights, gates, in, outputs
    const int B = n[0];
    const auto sizes = take<int32_t>(file, n[7]);
    const auto words = take<int32_t>(file, n[3]);
    const auto weights = take<float>(file, n[4]), gates = take<float>(file, n[5]);
    skc::Call call{};
    if (!skc::read_program(words.data(), (int64_t)words.size(), call)) return 4;
    call.weights = weights.data();
    call.gates = gates.data();
    call.B = B;
    const long state = call.head->state, blocks = call.head->masks;
    std::unique_ptr<float[]> arena(new float[B * state]());
    std::unique_ptr<float[]> masks(new float[B * blocks]);
    call.arena = arena.get();
    call.masks = masks.get();
    for (int t = 0; t < n[2]; t++) {
      const auto fresh = take<int32_t>(file, B);
      const auto frame = take<float>(file, (size_t)B * n[6]);
      for (int s = 0; s < B; s++)
        if (fresh[s]) arena[s * state] = 0.f;
      std::vector<std::unique_ptr<float[]>> made;
      std::vector<float*> out;
      for (int size : sizes) {
        made.emplace_back(new float[(size_t)B * size]);
        out.push_back(made.back().get());
      }
      const float* in[1] = {frame.data()};
      call.in = in;
      call.out = out.data();
      skc::Pool& pool = skc::Pool::shared();
      pool.begin(n[1]);
      skc::JOIN(run_, SKC_ISA)(call, pool);
      pool.end();
      for (size_t o = 0; o < sizes.size(); o++) {
        const auto want = take<float>(file, (size_t)B * sizes[o]);
        float worst = 0.f, largest = 1.f;
        for (size_t i = 0; i < want.size(); i++) {
          const float d = std::fabs(out[o][i] - want[i]);
          worst = d <= worst ? worst : d;
          largest = std::fmax(largest, std::fabs(want[i]));
        }
        if (!(worst <= 2e-5f * largest)) std::printf("case %d frame %d output %zu: off by %g\n", k, t, o, worst), wrong++;
      }
      const auto want = take<float>(file, (size_t)B * blocks);
      for (size_t i = 0; i < want.size(); i++)
        if (masks[i] != want[i]) std::printf("case %d frame %d: block %zu\n", k, t, i), wrong++;
    }
  }
  std::printf("%d cases, %d wrong\n", cases, wrong);
  return wrong != 0;
}
