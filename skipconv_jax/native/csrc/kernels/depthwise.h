// Depthwise convolution of one rectangle: every channel by itself, neighbours share what they load.
#pragma once
#include "kernels/conv.h"

namespace skc {
namespace SKC_ISA {

// N neighbouring outputs of a depthwise convolution. What the N supports share is loaded once.
template <int KW, int S, int N>
SKC_INLINE void depthwise_run(const Op& o, const Input& in, const float* from, const float* w, int cs,
                              float* to, long stride) {
  for (int c = 0; c < cs; c += VW) {
    vf a[N];
    for (int i = 0; i < N; i++) a[i] = vf{};
    for (int ky = 0; ky < o.kh; ky++) {
      const float *p = from + ky * o.dh * in.row + c, *wk = w + (long)ky * KW * cs + c;
      vf wv[KW];
      for (int kx = 0; kx < KW; kx++) wv[kx] = load(wk + kx * cs);
#pragma GCC unroll 32
      for (int j = 0; j < (N - 1) * S + KW; j++) {
        const vf v = load(p + j * in.col);
#pragma GCC unroll 8
        for (int kx = 0; kx < KW; kx++)
          if (j >= kx && (j - kx) % S == 0 && (j - kx) / S < N) a[(j - kx) / S] += v * wv[kx];
      }
    }
    for (int i = 0; i < N; i++) store(to + i * stride + c, a[i]);
  }
}

// One output of any geometry.
SKC_INLINE void depthwise_one(const Op& o, const Input& in, const float* from, const float* w, int cs,
                              float* to) {
  for (int c = 0; c < cs; c += VW) {
    vf a = vf{};
    for (int ky = 0; ky < o.kh; ky++)
      for (int kx = 0; kx < o.kw; kx++)
        a += load(from + ky * o.dh * in.row + kx * o.dw * in.col + c) *
             load(w + ((long)ky * o.kw + kx) * cs + c);
    store(to + c, a);
  }
}

template <int KW, int S>
static void depthwise_row(const Op& o, const Input& in, const float* from, int n, const float* w,
                          int cs, float* to, long stride) {
  int x = 0;
  for (; x + 8 <= n; x += 8)
    depthwise_run<KW, S, 8>(o, in, from + (long)x * S * in.col, w, cs, to + x * stride, stride);
  for (; x + 4 <= n; x += 4)
    depthwise_run<KW, S, 4>(o, in, from + (long)x * S * in.col, w, cs, to + x * stride, stride);
  for (; x < n; x++) depthwise_one(o, in, from + (long)x * S * in.col, w, cs, to + x * stride);
}

static void conv_depthwise(const Op& o, const Input& in, const Rect& r, const float* w, int cs,
                           float* out, long stride) {
  const int n = r.w(), key = o.dw == 1 ? o.kw * 10 + o.sw : 0;
  for (int y = r.y0; y < r.y1; y++, out += n * stride) {
    const float* from = in.at(o, y, r.x0);
    switch (key) {
      case 31: depthwise_row<3, 1>(o, in, from, n, w, cs, out, stride); break;
      case 32: depthwise_row<3, 2>(o, in, from, n, w, cs, out, stride); break;
      case 51: depthwise_row<5, 1>(o, in, from, n, w, cs, out, stride); break;
      case 52: depthwise_row<5, 2>(o, in, from, n, w, cs, out, stride); break;
      default:
        for (int x = 0; x < n; x++)
          depthwise_one(o, in, in.at(o, y, r.x0 + x), w, cs, out + x * stride);
    }
  }
}

}  // namespace SKC_ISA
}  // namespace skc
