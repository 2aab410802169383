// Gates: does one block of outputs fire? Evaluated only where the input of the block changed.
#pragma once
#include "kernels/conv.h"

namespace skc {
namespace SKC_ISA {

// Largest sum of m over the support of an output in the rectangle. A vector of neighbouring places at
// once, of which every o.sw-th is an output. Reads up to VW floats beyond a row, which every buffer of
// m has behind it.
static float support_max(const Op& o, const float* m, long pitch, const Rect& r) {
  const vi lane = lane_numbers();
  const int span = (r.w() - 1) * o.sw + 1;
  vf best = vf{}, nan = vf{};
  for (int y = 0; y < r.h(); y++) {
    const float* row = m + (long)y * o.sh * pitch;
    for (int x = 0; x < span; x += VW) {
      vf s = vf{};
      for (int ky = 0; ky < o.kh; ky++) {
        const float* p = row + (long)ky * o.dh * pitch + x;
        for (int kx = 0; kx < o.kw; kx++) s += load(p + kx * o.dw);
      }
      vi on = lane < (span - x);
      if (o.sw == 2) on &= (lane & 1) == 0;
      if (o.sw > 2)
        for (int i = 0; i < VW; i++) on[i] &= (x + i) % o.sw == 0 ? -1 : 0;
      s = (vf)((vi)s & on);
      best = s > best ? s : best;
      nan += s - s;  // NaN and infinity must not get lost in the comparison
    }
  }
  const float bad = hsum(nan);
  return bad != 0.f ? bad : hmax(best);
}

// A gate that is a one-channel convolution, of the residual or of its magnitude.
static bool is_linear(const Op& o) { return o.gate == kLinear || o.gate == kMagnitude; }

// Largest logit of a one-channel convolution over the rectangle, without its bias.
template <bool kAbsolute>
static float linear_max_of(const Op& o, const Input& in, const Rect& r, const float* kernel,
                           int cs) {
  float best = -3.4e38f;
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x++) {
      const float* p = in.at(o, y, x);
      vf sum = vf{};
      float rest = 0.f;
      const float* w = kernel;
      for (int ky = 0; ky < o.kh; ky++)
        for (int kx = 0; kx < o.kw; kx++, w += cs) {
          const float* q = p + ky * o.dh * in.row + kx * o.dw * in.col;
          int c = 0;
          for (; c + VW <= cs; c += VW)
            sum += (kAbsolute ? vabs(load(q + c)) : load(q + c)) * load(w + c);
          for (; c < cs; c++) rest += (kAbsolute ? std::fabs(q[c]) : q[c]) * w[c];
        }
      const float s = hsum(sum) + rest;
      if (!(s <= best) || s != s) best = s;
      if (best != best) return best;
    }
  return best;
}

static float linear_max(const Op& o, const Input& in, const Rect& r, const float* kernel, int cs) {
  return o.gate == kMagnitude ? linear_max_of<true>(o, in, r, kernel, cs)
                              : linear_max_of<false>(o, in, r, kernel, cs);
}

// Gate parameters: norm {threshold, factor, count}: fires where factor * sum / count > threshold;
// linear {bias, ..., kernel at 16}.
struct Params {
  const float* p;
  float score(float sum) const { return p[1] * (sum / p[2]); }
  // NaN fires, so that a broken frame shows instead of being skipped.
  bool exceeds(float sum) const { return !(score(sum) <= p[0]); }
  float enough() const { return p[1] > 0.f ? p[0] * p[2] / p[1] * 1.001f : 3.4e38f; }
};

// The mask of a block none of whose inputs changed.
static float idle_mask(const Op& o, const float* gp) {
  if (o.gate == kAlways) return 1.f;
  if (is_linear(o)) return gp[0] >= 0.f ? 1.f : 0.f;
  return 0.f > gp[0] ? 1.f : 0.f;
}

}  // namespace SKC_ISA
}  // namespace skc
