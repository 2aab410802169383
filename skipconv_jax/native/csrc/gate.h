// Gates: does one block of outputs fire? Evaluated only where the input of the block changed.
#pragma once
#include "view.h"

namespace skc {
namespace SKC_ISA {

// Largest sum of m over the support of an output in the rectangle; stops early above `enough`.
static float support_max(const Op& o, const float* m, long pitch, const Rect& r, float enough,
                         float* line) {
  const int span = (r.w() - 1) * o.sw + (o.kw - 1) * o.dw + 1;
  float best = 0.f, nan = 0.f;
  for (int y = 0; y < r.h(); y++) {
    const float* top = m + (long)y * o.sh * pitch;
    for (int x = 0; x < span; x++) line[x] = top[x];
    for (int ky = 1; ky < o.kh; ky++) {
      const float* p = top + (long)ky * o.dh * pitch;
      for (int x = 0; x < span; x++) line[x] += p[x];
    }
    for (int x = 0; x < r.w(); x++) {
      float s = 0.f;
      for (int kx = 0; kx < o.kw; kx++) s += line[x * o.sw + kx * o.dw];
      best = s > best ? s : best;
      nan += s - s;  // NaN and infinity must not get lost in the comparison
    }
    if (!(best <= enough)) return best;
  }
  return nan == 0.f ? best : nan;
}

// Largest logit of a one-channel convolution over the rectangle, without its bias.
static float linear_max(const Op& o, const Input& in, const Rect& r, const float* kernel, int cs) {
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
          for (; c + VW <= cs; c += VW) sum += load(q + c) * load(w + c);
          for (; c < cs; c++) rest += q[c] * w[c];
        }
      const float s = hsum(sum) + rest;
      if (!(s <= best) || s != s) best = s;
      if (best != best) return best;
    }
  return best;
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
  if (o.gate == kLinear) return gp[0] >= 0.f ? 1.f : 0.f;
  return 0.f > gp[0] ? 1.f : 0.f;
}

}  // namespace SKC_ISA
}  // namespace skc
