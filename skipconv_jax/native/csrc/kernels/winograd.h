// Winograd F(2x2, 3x3): 16 products where a direct 3x3 convolution of 2x2 outputs takes 36.
// Zero input gives exactly zero output, so unchanged regions stay bitwise unchanged.
#pragma once
#include "kernels/conv.h"

namespace skc {
namespace SKC_ISA {

// V = B^T d B for every 2x2 output tile of the rectangle: v[point][tile][ci].
static void winograd_input(const Op& o, const Input& in, const Rect& r, int cs, float* v) {
  const int th = (r.h() + 1) / 2, tw = (r.w() + 1) / 2;
  const long plane = (long)th * tw * cs;
  for (int ty = 0; ty < th; ty++)
    for (int tx = 0; tx < tw; tx++) {
      const float* d = in.at(o, r.y0 + 2 * ty, r.x0 + 2 * tx);
      float* to = v + ((long)ty * tw + tx) * cs;
      for (int c = 0; c < cs; c += VW) {
        vf b[4][4];
        for (int j = 0; j < 4; j++) {
          const float* p = d + j * in.col + c;
          const vf d0 = load(p), d1 = load(p + in.row), d2 = load(p + 2 * in.row),
                   d3 = load(p + 3 * in.row);
          b[0][j] = d0 - d2;
          b[1][j] = d1 + d2;
          b[2][j] = d2 - d1;
          b[3][j] = d1 - d3;
        }
        for (int i = 0; i < 4; i++) {
          float* q = to + 4 * i * plane + c;
          store(q, b[i][0] - b[i][2]);
          store(q + plane, b[i][1] + b[i][2]);
          store(q + 2 * plane, b[i][2] - b[i][1]);
          store(q + 3 * plane, b[i][1] - b[i][3]);
        }
      }
    }
}

// out = A^T m A, m[point][tile][kPanel]; positions beyond the rectangle are dropped.
static void winograd_output(const Rect& r, const float* m, int pw, float* out, long stride) {
  const int th = (r.h() + 1) / 2, tw = (r.w() + 1) / 2;
  const long plane = (long)th * tw * kPanel;
  for (int ty = 0; ty < th; ty++)
    for (int tx = 0; tx < tw; tx++) {
      const float* p = m + ((long)ty * tw + tx) * kPanel;
      float* to = out + ((long)2 * ty * r.w() + 2 * tx) * stride;
      const bool right = 2 * tx + 1 < r.w(), below = 2 * ty + 1 < r.h();
      for (int c = 0; c < pw; c += VW) {
        vf s[2][4];
        for (int j = 0; j < 4; j++) {
          const vf m0 = load(p + j * plane + c), m1 = load(p + (4 + j) * plane + c),
                   m2 = load(p + (8 + j) * plane + c), m3 = load(p + (12 + j) * plane + c);
          s[0][j] = m0 + m1 + m2;
          s[1][j] = m1 - m2 - m3;
        }
        store(to + c, s[0][0] + s[0][1] + s[0][2]);
        if (right) store(to + stride + c, s[0][1] - s[0][2] - s[0][3]);
        if (!below) continue;
        float* low = to + r.w() * stride + c;
        store(low, s[1][0] + s[1][1] + s[1][2]);
        if (right) store(low + stride, s[1][1] - s[1][2] - s[1][3]);
      }
    }
}

// Weights are [panel][point][ci][panel width]; `scratch` holds winograd_scratch() floats.
static void conv_winograd(const Op& o, const Input& in, const Rect& r, const float* w, int ci, int cs,
                          int co, int p0, int p1, float* out, long stride, float* scratch) {
  const int tiles = ((r.h() + 1) / 2) * ((r.w() + 1) / 2);
  float* v = scratch;
  float* m = scratch + 16L * tiles * cs;
  winograd_input(o, in, r, cs, v);
  const Taps t{1, 1, 0, 0, ci};
  for (int p = p0; p < p1; p++) {
    const int pw = panel_width(co, p);
    const float* wp = w + (long)p * kPanel * 16 * ci;
    for (int point = 0; point < 16; point++, wp += (long)ci * pw)
      for (int q = 0; q < tiles; q += kPixels) {
        if (tiles - q >= kPixels && pw % kSub == 0) {
          for (int c = 0; c < pw; c += kSub)
            tile_rows<kPixels, kVectors>(v + ((long)point * tiles + q) * cs, cs, ci, wp + c, pw,
                                         m + ((long)point * tiles + q) * kPanel + c, kPanel);
          continue;
        }
        const float* px[kPixels];
        const int n = tiles - q < kPixels ? tiles - q : kPixels;
        for (int i = 0; i < n; i++) px[i] = v + ((long)point * tiles + q + i) * cs;
        panel_tile(px, n, t, wp, pw, m + ((long)point * tiles + q) * kPanel, kPanel);
      }
    winograd_output(r, m, pw, out + (long)(p - p0) * kPanel, stride);
  }
}

inline long winograd_scratch(int h, int w, int cs) {
  return 16L * ((h + 1) / 2) * ((w + 1) / 2) * (cs + kPanel);
}

}  // namespace SKC_ISA
}  // namespace skc
