// The register tile every convolution ends in: P pixels x (NV vectors of output channels).
#pragma once
#include "kernels/vec.h"

namespace skc {
namespace SKC_ISA {

// 16 accumulators of 32 registers on AVX-512, 12 of 16 elsewhere: enough to hide the latency of FMA
// while one broadcast and two weight vectors stay in registers.
constexpr int kPixels = VW == 16 ? 8 : 6;
constexpr int kVectors = 2;
constexpr int kSub = kVectors * VW;  // output channels of one tile

struct Taps {
  int kh, kw;
  long row, col;  // floats between two kernel rows, two kernel columns
  int ci;
};

// out[p][:] = sum over taps and ci of px[p][tap, ci] * w[tap, ci, :]; px are input pixels.
template <int P, int NV>
__attribute__((noinline)) void tile(const float* const* px, const Taps& t, const float* w, int pw,
                                    float* out, long stride) {
  vf acc[P][NV];
  for (int p = 0; p < P; p++)
    for (int v = 0; v < NV; v++) acc[p][v] = vf{};
  for (int ky = 0; ky < t.kh; ky++)
    for (int kx = 0; kx < t.kw; kx++) {
      const long off = ky * t.row + kx * t.col;
      const float* x[P];
      for (int p = 0; p < P; p++) x[p] = px[p] + off;
#pragma GCC unroll 4
      for (long c = 0; c < t.ci; c++) {
        vf wv[NV];
        for (int v = 0; v < NV; v++) wv[v] = load(w + v * VW);
        w += pw;
        for (int p = 0; p < P; p++) {
          vf b = splat(x[p][c]);
          for (int v = 0; v < NV; v++) acc[p][v] += wv[v] * b;
        }
      }
    }
  for (int p = 0; p < P; p++)
    for (int v = 0; v < NV; v++) store(out + p * stride + v * VW, acc[p][v]);
}

using TileFn = void (*)(const float* const*, const Taps&, const float*, int, float*, long);

template <int NV>
SKC_INLINE TileFn tile_fn(int p) {
  static const TileFn table[8] = {tile<1, NV>, tile<2, NV>, tile<3, NV>, tile<4, NV>,
                                  tile<5, NV>, tile<6, NV>,
#if SKC_VW == 16
                                  tile<7, NV>, tile<8, NV>};
#else
                                  nullptr,     nullptr};
#endif
  return table[p - 1];
}

// All `pw` (16 or 32) channels of one panel for `n` <= kPixels pixels.
SKC_INLINE void panel_tile(const float* const* px, int n, const Taps& t, const float* w, int pw,
                           float* out, long stride) {
  int c = 0;
  for (; c + kSub <= pw; c += kSub) tile_fn<kVectors>(n)(px, t, w + c, pw, out + c, stride);
  for (; c < pw; c += VW) tile_fn<1>(n)(px, t, w + c, pw, out + c, stride);
}

// The same for pixels at one distance and a single tap: the products of Winograd's transform.
template <int P, int NV>
__attribute__((noinline)) void tile_rows(const float* x, long pitch, long ci, const float* w, int pw,
                                         float* out, long stride) {
  vf acc[P][NV];
  for (int p = 0; p < P; p++)
    for (int v = 0; v < NV; v++) acc[p][v] = vf{};
#pragma GCC unroll 4
  for (long c = 0; c < ci; c++) {
    vf wv[NV];
    for (int v = 0; v < NV; v++) wv[v] = load(w + v * VW);
    w += pw;
    for (int p = 0; p < P; p++) {
      vf b = splat(x[p * pitch + c]);
      for (int v = 0; v < NV; v++) acc[p][v] += wv[v] * b;
    }
  }
  for (int p = 0; p < P; p++)
    for (int v = 0; v < NV; v++) store(out + p * stride + v * VW, acc[p][v]);
}

}  // namespace SKC_ISA
}  // namespace skc
