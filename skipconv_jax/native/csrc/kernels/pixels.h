// What one output position of everything but a convolution is made of; plain pointers, no tensors.
#pragma once
#include "kernels/activations.h"

namespace skc {
namespace SKC_ISA {

constexpr int kMaxTaps = 16;  // of one axis of a resampling

SKC_INLINE vf binary(int mode, vf a, vf b) {
  switch (mode) {
    case kBinaryAdd: return a + b;
    case kBinarySub: return a - b;
    case kBinaryRsub: return b - a;
    case kBinaryDiv: return a / b;
    case kBinaryRdiv: return b / a;
    case kBinaryMax: return nan_max(a, b);
    case kBinaryMin: return nan_min(a, b);
    default: return a * b;
  }
}

// A window of h x w pixels, `row` and `col` floats apart: its largest value or its sum.
SKC_INLINE vf pool_window(const float* p, long row, long col, int h, int w, bool largest) {
  vf v = largest ? splat(-__builtin_inff()) : vf{};
  for (int y = 0; y < h; y++, p += row)
    for (int x = 0; x < w; x++) {
      const vf q = load(p + x * col);
      v = largest ? nan_max(v, q) : v + q;
    }
  return v;
}

// One pixel of separable resampling: sum over taps i, j of wy[i] wx[j] rows[i][ix[j]].
SKC_INLINE vf resample(const float* const* rows, const float* wy, int ny, const int32_t* ix,
                       const float* wx, int nx, long col) {
  vf v = vf{};
  for (int i = 0; i < ny; i++) {
    vf line = vf{};
    for (int j = 0; j < nx; j++) line += load(rows[i] + ix[j] * col) * wx[j];
    v += line * wy[i];
  }
  return v;
}

// Channels of one pixel gathered from others: runs of {source (-1: zeros), first channel, length}.
SKC_INLINE void gather_runs(const float* const* from, const int32_t* runs, int n, float* to) {
  for (int i = 0; i < n; i++, runs += 3) {
    const int length = runs[2];
    if (runs[0] < 0)
      std::memset(to, 0, sizeof(float) * length);
    else if (length == 1)
      *to = from[runs[0]][runs[1]];
    else
      std::memcpy(to, from[runs[0]] + runs[1], sizeof(float) * length);
    to += length;
  }
}

// exp(x - max) / sum over the C channels of one pixel; `to` holds whole vectors.
SKC_INLINE void softmax_pixel(const float* p, int C, float* to) {
  vf top = splat(-__builtin_inff());
  for (int c = 0; c < C; c += VW) {
    const vf v = load(p + c);
    top = nan_max(top, c + VW <= C ? v : (lane_numbers() < C - c ? v : top));
  }
  float largest = top[0];
  for (int i = 1; i < VW; i++) largest = largest >= top[i] || largest != largest ? largest : top[i];
  vf sum = vf{};
  for (int c = 0; c < C; c += VW) {
    const vf e = keep_lanes(vexp(load(p + c) - largest), C - c);
    store(to + c, e);
    sum += e;
  }
  const float scale = 1.0f / hsum(sum);
  for (int c = 0; c < C; c += VW) store(to + c, load(to + c) * scale);
}

// One value of the C channels of a pixel.
SKC_INLINE float reduce_pixel(const float* p, int C, int mode) {
  const bool sums = mode == kReduceSum || mode == kReduceMean;
  vf v = sums ? vf{} : splat(mode == kReduceMax ? -__builtin_inff() : __builtin_inff());
  for (int c = 0; c < C; c += VW) {
    const vf x = load(p + c);
    const vf in = c + VW <= C ? x : (lane_numbers() < C - c ? x : (sums ? vf{} : v));
    v = sums ? v + in : mode == kReduceMax ? nan_max(v, in) : nan_min(v, in);
  }
  if (sums) return mode == kReduceMean ? hsum(v) / (float)C : hsum(v);
  float best = v[0];
  for (int i = 1; i < VW; i++) {
    const bool keep = best != best || (mode == kReduceMax ? best >= v[i] : best <= v[i]);
    best = keep ? best : v[i];
  }
  return best;
}

}  // namespace SKC_ISA
}  // namespace skc
