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

// Channels [c0, c1) of the rectangle under Previous; `tmp` is the convolution (its first column is c0),
// or null where only the residual input changed. z += tmp, with the bias entering on the first frame
// alone (Eq. 3).
template <bool TMP, bool RES, bool CUR, bool CLAMP, bool STEADY>
static void epilogue_rows(const Epilogue& e, const Rect& r, const float* tmp, long stride, int c0,
                          int c1, bool whole) {
  const Op& o = *e.o;
  View& out = *e.out;
  const int C = out.t->C;
  const Activation& act = e.act;
  const bool fresh = !STEADY && e.fresh;
  const vf lo = splat(act.a0), hi = splat(act.a1);
  auto apply = [&](vf v, int c) { return CLAMP ? vmin(vmax(v, lo), hi) : activate(v, act, c); };
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x++) {
      const long at = out.at(y, x);
      float* z = e.z + (long)y * o.zpitch + (long)x * out.t->Cs;
      const float* res = RES ? e.res->delta + e.res->at(y, x) : nullptr;
      float* keep = out.old && !fresh ? out.old_pixel(y, x) : nullptr;
      vf sum = vf{};
      for (int c = c0; c < c1; c += VW) {
        const vf b = !STEADY && e.bias ? load(e.bias + c) : vf{};
        // The state holds conv + bias + residual: the residual enters by its change, too.
        const vf zold = fresh ? b : load(z + c);
        vf znew = TMP ? zold + load(tmp + c - c0) : zold, old = vf{};
        if (RES) znew += load(res + c);
        vf now = apply(znew, c);
        if (!fresh) old = CUR && !CLAMP ? load(out.cur + at + c) : apply(zold, c);
        store(z + c, znew);
        if (c + VW > C) now = keep_lanes(now, C - c), old = keep_lanes(old, C - c);
        if (CUR) store(out.cur + at + c, now);
        if (keep) store(keep + c, old);
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

enum class Kind { kClamp, kSwish, kOther };

// Records which neighbours changed, but not by how much: these are some of their channels.
static void touch_sums(View& out, int y, int x, vf* sums, int n) {
  for (int i = n; i < VW; i++) sums[i] = vf{};
  out.touch_row(y, x, row_sums(sums), n);
}

// The same where blocks are recomputed (all policies but Previous): z = tmp + bias, and what was there
// before is read back. Neighbours in a row share the sums that tell what changed.
template <Kind A, bool TMP, bool RES>
static void recompute_rows(const Epilogue& e, const Rect& r, const float* tmp, long stride, int c0,
                           int c1, bool whole) {
  View& out = *e.out;
  const Activation& act = e.act;
  const int C = out.t->C, cs = out.t->Cs;
  const vf lo = splat(act.a0), hi = splat(act.a1);
  auto apply = [&](vf v, int c) {
    if (A == Kind::kClamp) return vmin(vmax(v, lo), hi);
    return A == Kind::kSwish ? vswish(v) : activate(v, act, c);
  };
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x += VW) {
      const int n = r.x1 - x < VW ? r.x1 - x : VW;
      vf sums[VW];
      float* cur = out.pixel(y, x);
      float* keep = out.old && !e.fresh ? out.old_pixel(y, x) : nullptr;
      float* z = e.z ? e.z + (long)y * e.o->zpitch + (long)x * cs : nullptr;
      const float* res = RES ? e.res->pixel(y, x) : nullptr;
      // The common case first, without looking at what does not differ between pixels.
      if (TMP && keep && !z && !out.delta && e.bias) {
        for (int i = 0; i < n; i++, cur += cs, keep += cs, tmp += stride) {
          vf sum = vf{};
          for (int c = c0; c < c1; c += VW) {
            vf v = load(tmp + c - c0) + load(e.bias + c);
            if (RES) v += load(res + c);
            const vf now = keep_lanes(apply(v, c), C - c), old = load(cur + c);
            store(cur + c, now);
            store(keep + c, old);
            sum += vabs(now - old);
          }
          sums[i] = sum;
          if (RES) res += cs;
        }
      } else {
        for (int i = 0; i < n; i++, cur += cs) {
          vf sum = vf{};
          for (int c = c0; c < c1; c += VW) {
            vf v;
            if (TMP) {
              v = load(tmp + c - c0);
              if (e.bias) v += load(e.bias + c);
              if (z) store(z + c, v);
            } else {
              v = load(z + c);
            }
            if (RES) v += load(res + c);
            vf now = keep_lanes(apply(v, c), C - c), old = load(cur + c);
            if (e.fresh) old = vf{};
            store(cur + c, now);
            if (keep) store(keep + c, old);
            sum += vabs(now - old);
            if (out.delta) store(out.delta + out.at(y, x + i) + c, now - old);
          }
          sums[i] = sum;
          if (TMP) tmp += stride;
          if (keep) keep += cs;
          if (z) z += cs;
          if (RES) res += cs;
        }
      }
      if (whole)
        record_row(out, y, x, sums, n);
      else
        touch_sums(out, y, x, sums, n);
    }
}

template <bool TMP, bool RES>
static void recompute(const Epilogue& e, const Rect& r, const float* tmp, long stride, int c0, int c1,
                      bool whole) {
  if (e.act.clamps()) return recompute_rows<Kind::kClamp, TMP, RES>(e, r, tmp, stride, c0, c1, whole);
  if (e.act.act == kSwish)
    return recompute_rows<Kind::kSwish, TMP, RES>(e, r, tmp, stride, c0, c1, whole);
  return recompute_rows<Kind::kOther, TMP, RES>(e, r, tmp, stride, c0, c1, whole);
}

struct Yes { static constexpr bool value = true; };
struct No { static constexpr bool value = false; };

static void epilogue(const Epilogue& e, const Rect& r, const float* tmp, long stride, int c0, int c1,
                     bool whole) {
  const bool res = e.res, cur = e.out->cur, clamp = e.act.clamps();
  if (e.o->policy != kPrevious) {
    if (tmp && res) return recompute<true, true>(e, r, tmp, stride, c0, c1, whole);
    if (tmp) return recompute<true, false>(e, r, tmp, stride, c0, c1, whole);
    return recompute<false, true>(e, r, tmp, stride, c0, c1, whole);
  }
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
    for (int x = r.x0; x < r.x1; x++) {
      float& m = out.m[(long)y * out.t->Wp + x];
      m = out.delta ? abs_sum(out.delta + out.at(y, x), out.t->Cs)
                    : abs_difference(out.pixel(y, x), out.old_pixel(y, x), out.t->Cs);
    }
}

}  // namespace SKC_ISA
}  // namespace skc
