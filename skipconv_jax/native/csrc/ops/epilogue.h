// What follows a convolution on one rectangle: state update, residual, activation, change.
#pragma once
#include "kernels/activations.h"
#include "ops/view.h"

namespace skc {
namespace SKC_ISA {

struct Epilogue {
  const Op* o;
  Activation act;
  View* out;
  const View* res;    // added before the activation (its change, under Previous), or null
  const float* bias;  // folded bias, padded, or null
  float* z;           // state at output (0, 0), or null
  bool fresh;
};

// Channels [c0, c1) of the rectangle; `tmp` is the convolution (its first column is c0), or null
// where only the residual input changed. Previous: z += tmp, with the bias entering on the first
// frame alone (Eq. 3). Otherwise z = tmp + bias.
template <bool TMP, bool RES, bool CUR, bool CLAMP, bool STEADY>
static void epilogue_rows(const Epilogue& e, const Rect& r, const float* tmp, long stride, int c0,
                          int c1, bool whole) {
  const Op& o = *e.o;
  View& out = *e.out;
  const int C = out.t->C;
  const Activation& act = e.act;
  const bool previous = STEADY || o.policy == kPrevious, fresh = !STEADY && e.fresh;
  const vf lo = splat(act.a0), hi = splat(act.a1);
  auto apply = [&](vf v, int c) { return CLAMP ? vmin(vmax(v, lo), hi) : activate(v, act, c); };
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x++) {
      const long at = out.at(y, x);
      float* z = STEADY || e.z ? e.z + (long)y * o.zpitch + (long)x * out.t->Cs : nullptr;
      const float* res = RES ? (previous ? e.res->delta : e.res->cur) + e.res->at(y, x) : nullptr;
      vf sum = vf{};
      for (int c = c0; c < c1; c += VW) {
        const vf b = !STEADY && e.bias ? load(e.bias + c) : vf{};
        vf zold = vf{}, znew, now, old = vf{};
        if (previous) {
          // The state holds conv + bias + residual: the residual enters by its change, too.
          zold = fresh ? b : load(z + c);
          znew = TMP ? zold + load(tmp + c - c0) : zold;
          if (RES) znew += load(res + c);
          now = apply(znew, c);
          if (!fresh) old = CUR && !CLAMP ? load(out.cur + at + c) : apply(zold, c);
          store(z + c, znew);
        } else {
          znew = TMP ? b + load(tmp + c - c0) : load(z + c);
          if (TMP && z) store(z + c, znew);
          now = apply(RES ? znew + load(res + c) : znew, c);
          if (!fresh) old = load(out.cur + at + c);
        }
        if (c + VW > C) now = keep_lanes(now, C - c), old = keep_lanes(old, C - c);
        if (CUR) store(out.cur + at + c, now);
        const vf d = now - old;
        if (STEADY || out.delta) store(out.delta + at + c, d);
        sum += vabs(d);
      }
      if (TMP) tmp += stride;
      const float change = hsum(sum);
      if (out.m && whole) out.m[(long)y * out.t->Wp + x] = change;
      out.touch(y, x, change);
    }
}

struct Yes { static constexpr bool value = true; };
struct No { static constexpr bool value = false; };

static void epilogue(const Epilogue& e, const Rect& r, const float* tmp, long stride, int c0, int c1,
                     bool whole) {
  const bool res = e.res, cur = e.out->cur, clamp = e.act.clamps();
  const bool steady = e.o->policy == kPrevious && !e.fresh && e.z && e.out->delta;
  auto rows = [&](auto t, auto k, auto s) {
    constexpr bool T = decltype(t)::value, K = decltype(k)::value, S = decltype(s)::value;
    if (res && cur) return epilogue_rows<T, true, true, K, S>(e, r, tmp, stride, c0, c1, whole);
    if (res) return epilogue_rows<T, true, false, K, S>(e, r, tmp, stride, c0, c1, whole);
    if (cur) return epilogue_rows<T, false, true, K, S>(e, r, tmp, stride, c0, c1, whole);
    return epilogue_rows<T, false, false, K, S>(e, r, tmp, stride, c0, c1, whole);
  };
  auto pick = [&](auto t, auto k) { return steady ? rows(t, k, Yes{}) : rows(t, k, No{}); };
  if (tmp) return clamp ? pick(Yes{}, Yes{}) : pick(Yes{}, No{});
  return clamp ? pick(No{}, Yes{}) : pick(No{}, No{});
}

// m of a rectangle whose channels were written by several threads.
static void sum_change(View& out, const Rect& r) {
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x++)
      out.m[(long)y * out.t->Wp + x] = abs_sum(out.delta + out.at(y, x), out.t->Cs);
}

}  // namespace SKC_ISA
}  // namespace skc
