// Convolution of one rectangle of output positions into a dense temporary [pixel][stride].
#pragma once
#include "kernels/tile.h"

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
  // Taps of one kernel row that lie one behind the other are one tap with more channels.
  const bool joined = o.dw == 1 && in.col == ci;
  const Taps t{o.kh, joined ? 1 : o.kw, o.dh * in.row, o.dw * in.col, joined ? o.kw * ci : ci};
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

}  // namespace SKC_ISA
}  // namespace skc
