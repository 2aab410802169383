// Convolution of one rectangle of output positions into a dense temporary [pixel][stride].
#pragma once
#include "tile.h"

namespace skc {
namespace SKC_ISA {

struct Rect {
  int y0, y1, x0, x1;
  int h() const { return y1 - y0; }
  int w() const { return x1 - x0; }
};

// Where a convolution reads: a padded buffer, seen from the first tap of output (0, 0).
struct Input {
  const float* base;
  long row, col;  // floats between rows and columns of pixels
  const float* at(const Op& o, int y, int x) const {
    return base + (long)y * o.sh * row + (long)x * o.sw * col;
  }
};

SKC_INLINE Input input_of(const Op& o, const Tensor& t, const float* buffer) {
  long row = (long)t.Wp * t.Cs;
  return {buffer + (t.pt - o.pt) * row + (long)(t.pl - o.pl) * t.Cs, row, t.Cs};
}

SKC_INLINE int panel_width(int channels, int panel) {
  int left = channels - panel * kPanel;
  return left > 16 ? kPanel : 16;
}

// Panels [p0, p1) of a convolution with dense channels; `co` is the padded number of outputs.
static void conv_direct(const Op& o, const Input& in, const Rect& r, const float* w, int ci, int co,
                        int p0, int p1, float* out, long stride) {
  const Taps t{o.kh, o.kw, o.dh * in.row, o.dw * in.col, ci};
  const int n = r.h() * r.w();
  const long k = (long)o.kh * o.kw * ci;
  for (int p = p0; p < p1; p++) {
    const int pw = panel_width(co, p);
    const float* wp = w + (long)p * kPanel * k;
    int y = r.y0, x = r.x0;
    for (int q = 0; q < n; q += kPixels) {
      const float* px[kPixels];
      const int m = n - q < kPixels ? n - q : kPixels;
      for (int i = 0; i < m; i++) {
        px[i] = in.at(o, y, x);
        if (++x == r.x1) x = r.x0, y++;
      }
      panel_tile(px, m, t, wp, pw, out + q * stride + (long)(p - p0) * kPanel, stride);
    }
  }
}

// Grouped convolution: every group has panels of its own, its padding columns are overwritten by the
// next group, so `out` needs kPanel floats of slack behind the last pixel's channels.
static void conv_grouped(const Op& o, const Input& in, const Rect& r, const float* w, int ci, int co,
                         float* out, long stride) {
  const int g = o.groups, cig = ci / g, cog = co / g, cop = (cog + 15) / 16 * 16;
  const long group = (long)o.kh * o.kw * cig * cop;
  const Taps t{o.kh, o.kw, o.dh * in.row, o.dw * in.col, cig};
  const long k = (long)o.kh * o.kw * cig;
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x++, out += stride)
      for (int i = 0; i < g; i++) {
        const float* px[1] = {in.at(o, y, x) + i * cig};
        for (int p = 0; p * kPanel < cop; p++)
          panel_tile(px, 1, t, w + i * group + (long)p * kPanel * k, panel_width(cop, p),
                     out + i * cog + p * kPanel, stride);
      }
}

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
