// A 1x1 convolution's input times one value per channel (squeeze-and-excitation). The product is never
// stored: what it changed by is made where a block asks for it, and a block that only the values per
// channel touched is mostly settled by a bound.
#pragma once
#include "kernels/gate.h"
#include "ops/view.h"

namespace skc {
namespace SKC_ISA {

SKC_INLINE bool is_scaled(const Op& o) { return o.nsrc == 2; }

// x s on the rectangle, or what it changed by, (s - s') x + s' (x - x'), as [pixel][Cs].
static void scale_rect(const View& x, const View& s, const Rect& r, bool change, float* to) {
  const int cs = x.t->Cs;
  for (int y = r.y0; y < r.y1; y++)
    for (int i = r.x0; i < r.x1; i++, to += cs) {
      const float *p = x.cur + x.at(y, i), *d = change ? x.delta + x.at(y, i) : nullptr;
      for (int c = 0; c < cs; c += VW) {
        const vf now = load(s.cur + c);
        if (!change) {
          store(to + c, load(p + c) * now);
          continue;
        }
        const vf ds = load(s.delta + c);
        store(to + c, ds * load(p + c) + (now - ds) * load(d + c));
      }
    }
}

// Largest sum over channels of |change of x s| at a position of the rectangle; stops above `enough`.
// Leaves the largest |x| of every channel in `top`, or infinity if it stopped.
static float scaled_max(const View& x, const View& s, const Rect& r, float enough, float* top) {
  const int cs = x.t->Cs;
  float best = 0.f;
  for (int c = 0; c < cs; c += VW) store(top + c, vf{});
  for (int y = r.y0; y < r.y1; y++)
    for (int i = r.x0; i < r.x1; i++) {
      const float *p = x.cur + x.at(y, i), *d = x.delta + x.at(y, i);
      vf sum = vf{};
      for (int c = 0; c < cs; c += VW) {
        const vf v = load(p + c), ds = load(s.delta + c);
        sum += vabs(ds * v + (load(s.cur + c) - ds) * load(d + c));
        const vf size = vabs(v), seen = load(top + c);
        store(top + c, size > seen ? size : seen);
      }
      const float total = hsum(sum);
      if (!(total <= best)) best = total;
      if (!(best <= enough)) {
        top[0] = __builtin_inff();
        return best;
      }
    }
  return best;
}

// Bound of scaled_max where x did not change, from the largest |x| of every channel.
static float scaled_bound(const View& s, const float* top) {
  vf sum = vf{};
  for (int c = 0; c < s.t->Cs; c += VW) sum += vabs(load(s.delta + c)) * load(top + c);
  return hsum(sum) * 1.0001f;  // rounding of either sum must not let a block through
}

}  // namespace SKC_ISA
}  // namespace skc
