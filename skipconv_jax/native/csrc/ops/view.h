// One tensor of one stream, and the map of which of its cells changed this frame.
#pragma once
#include "kernels/conv.h"

namespace skc {
namespace SKC_ISA {

// Looks before it writes: a line both threads only read does not travel between their caches.
template <class T>
SKC_INLINE void mark(T* p) {
  if (!__atomic_load_n(p, __ATOMIC_RELAXED)) __atomic_store_n(p, 1, __ATOMIC_RELAXED);
}

constexpr int32_t kEverywhere = 2;

struct View {
  const Tensor* t;
  float *cur, *delta, *m;  // null when not stored; at the first pixel of the frame, border skipped
  float* old;              // without border
  int32_t* any;            // changed this frame; stale scratch of the previous tenant: no cell
                           // (0), some (1), kEverywhere; [2] and [3]: see restless()
  uint8_t *cells, *stale;
  long row;

  View(const Tensor& tensor, float* arena) : t(&tensor) {
    row = (long)t->Wp * t->Cs;
    const long origin = t->pt * row + (long)t->pl * t->Cs;
    cur = t->cur < 0 ? nullptr : arena + t->cur + origin;
    delta = t->delta < 0 ? nullptr : arena + t->delta + origin;
    m = t->m < 0 ? nullptr : arena + t->m + (long)t->pt * t->Wp + t->pl;
    old = t->old < 0 ? nullptr : arena + t->old;
    any = reinterpret_cast<int32_t*>(arena + t->cells);
    cells = reinterpret_cast<uint8_t*>(any + 4);
    stale = cells + t->ch * t->cw;
  }
  long at(int y, int x) const { return y * row + (long)x * t->Cs; }
  float* pixel(int y, int x) const { return cur + at(y, x); }
  float* old_pixel(int y, int x) const { return old + ((long)y * t->W + x) * t->Cs; }
  int size() const { return t->ch * t->cw; }
  bool changed() const { return any[0] != 0; }
  bool has_stale() const { return any[1] != 0; }

  // Whether NaN or infinity was written in the last frame. What it changes by is NaN until it is gone
  // (NaN - NaN, inf - inf), so it is written again each frame, as every reader of the dense network's
  // residual would see it.
  bool restless() const { return any[3] != 0; }

  // Records what pixel (y, x) changed by, the sum over channels of |change|.
  void touch(int y, int x, float change) {
    if (change == 0.f) return;
    mark(cells + (y / kCell) * t->cw + x / kCell);
    mark(any);
    if (!(change < __builtin_inff())) mark(any + 2);
  }

  // The same for n <= VW neighbours from (y, x) on.
  void touch_row(int y, int x, vf change, int n) {
    const unsigned wanted = (1u << n) - 1;
    unsigned changed = lane_bits(change != 0.f) & wanted;
    if (!changed) return;
    mark(any);
    if (~lane_bits(change < __builtin_inff()) & wanted) mark(any + 2);
    uint8_t* row_of_cells = cells + (y / kCell) * t->cw;
    while (changed) {
      const int cell = (x + __builtin_ctz(changed)) / kCell;
      mark(row_of_cells + cell);
      const int end = (cell + 1) * kCell - x;
      changed = end < n ? changed >> end << end : 0;
    }
  }

  static bool in_map(const uint8_t* map, const Tensor& t, int y0, int y1, int x0, int x1) {
    y0 = y0 < 0 ? 0 : y0 / kCell;
    x0 = x0 < 0 ? 0 : x0 / kCell;
    y1 = y1 >= t.H ? t.ch : (y1 + kCell - 1) / kCell;
    x1 = x1 >= t.W ? t.cw : (x1 + kCell - 1) / kCell;
    uint8_t found = 0;
    for (int y = y0; y < y1; y++)
      for (int x = x0; x < x1; x++) found |= map[y * t.cw + x];
    return found != 0;
  }
  // Whether anything changed in pixels [y0, y1) x [x0, x1), which may reach over the edge.
  bool changed_in(int y0, int y1, int x0, int x1) const {
    return any[0] && (any[0] == kEverywhere || in_map(cells, *t, y0, y1, x0, x1));
  }
  bool stale_in(const Rect& r) const {
    return any[1] && (any[1] == kEverywhere || in_map(stale, *t, r.y0, r.y1, r.x0, r.x1));
  }

  // Opens the tensor for this frame: what the last tenant of its scratch left is now stale, and
  // nothing has changed yet.
  void open(const Tensor* prev, float* arena) {
    any[1] = 0;
    any[3] = any[2];
    any[2] = 0;
    if (delta && prev) {
      View last(*prev, arena);
      if (last.changed()) {
        std::memcpy(stale, last.cells, size());
        any[1] = last.any[0];
      }
    }
    if (any[0]) {
      std::memset(cells, 0, size());
      any[0] = 0;
    }
  }

  // Closes the tensor: its readers need not look at cells if all of them changed.
  void settle() {
    if (any[0] && !std::memchr(cells, 0, size())) any[0] = kEverywhere;
  }

  // Zeroes stale scratch inside the rectangle, which nobody writes this frame.
  void clean(const Rect& r) {
    for (int cy = r.y0 / kCell; cy * kCell < r.y1; cy++)
      for (int cx = r.x0 / kCell; cx * kCell < r.x1; cx++) {
        if (!stale[cy * t->cw + cx]) continue;
        const int x0 = cx * kCell < r.x0 ? r.x0 : cx * kCell;
        const int x1 = (cx + 1) * kCell > r.x1 ? r.x1 : (cx + 1) * kCell;
        for (int y = cy * kCell; y < (cy + 1) * kCell; y++) {
          if (y < r.y0 || y >= r.y1) continue;
          std::memset(delta + at(y, x0), 0, sizeof(float) * (x1 - x0) * t->Cs);
          std::memset(m + (long)y * t->Wp + x0, 0, sizeof(float) * (x1 - x0));
        }
      }
  }
};

SKC_INLINE float abs_sum(const float* p, int n) {
  vf s = vf{};
  int c = 0;
  for (; c + VW <= n; c += VW) s += vabs(load(p + c));
  float total = hsum(s);
  for (; c < n; c++) total += std::fabs(p[c]);
  return total;
}

SKC_INLINE float abs_difference(const float* p, const float* q, int n) {
  vf s = vf{};
  int c = 0;
  for (; c + VW <= n; c += VW) s += vabs(load(p + c) - load(q + c));
  float total = hsum(s);
  for (; c < n; c++) total += std::fabs(p[c] - q[c]);
  return total;
}

// Sums over channels of |p - q| for n neighbouring pixels of c channels; `m` has a vector's room behind it.
static void change_of_row(const float* p, const float* q, int n, int c, float* m) {
  int x = 0;
  if (c == 3) {
    for (; x + VW <= n; x += VW, p += 3 * VW, q += 3 * VW) {
      vf change[3], parts[3];
      for (int k = 0; k < 3; k++) change[k] = vabs(load(p + k * VW) - load(q + k * VW));
      split3(change, parts);
      store(m + x, parts[0] + parts[1] + parts[2]);
    }
  } else if (c % VW == 0) {
    for (; x < n; x += VW) {
      vf sums[VW];
      for (int i = 0; i < VW; i++) {
        vf s = vf{};
        for (int k = 0; k < c && x + i < n; k += VW, p += VW, q += VW) s += vabs(load(p) - load(q));
        sums[i] = s;
      }
      store(m + x, row_sums(sums));
    }
  }
  for (; x < n; x++, p += c, q += c) m[x] = abs_difference(p, q, c);
}

// Writes f(c) to one pixel of `out`; lanes of what comes back add up to its change.
template <class F>
SKC_INLINE vf write_values(View& out, int y, int x, bool fresh, F f) {
  const int C = out.t->C, Cs = out.t->Cs;
  const long at = out.at(y, x);
  float* keep = out.old && !fresh ? out.old_pixel(y, x) : nullptr;
  vf sum = vf{};
  for (int c = 0; c < Cs; c += VW) {
    const vf now = keep_lanes(f(c), C - c), last = load(out.cur + at + c);
    const vf d = fresh ? now : now - last;
    store(out.cur + at + c, now);
    if (keep) store(keep + c, last);
    if (out.delta) store(out.delta + at + c, d);
    sum += vabs(d);
  }
  return sum;
}

// The same, and records the change.
template <class F>
SKC_INLINE void write_pixel(View& out, int y, int x, bool fresh, F f) {
  const float change = hsum(write_values(out, y, x, fresh, f));
  if (out.m) out.m[(long)y * out.t->Wp + x] = change;
  out.touch(y, x, change);
}

// Records what n <= VW neighbours from (y, x) on changed by, as `write_values` gave it.
SKC_INLINE void record_row(View& out, int y, int x, vf* sums, int n) {
  for (int i = n; i < VW; i++) sums[i] = vf{};
  const vf change = row_sums(sums);
  if (out.m) {
    float* m = out.m + (long)y * out.t->Wp + x;
    if (n == VW)
      store(m, change);
    else
      for (int i = 0; i < n; i++) m[i] = change[i];
  }
  out.touch_row(y, x, change, n);
}

// write_values(f(y, x)) of a rectangle, neighbours together.
template <class F>
SKC_INLINE void write_rect(View& out, const Rect& r, F f) {
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x += VW) {
      const int n = r.x1 - x < VW ? r.x1 - x : VW;
      vf sums[VW];
      for (int i = 0; i < n; i++) sums[i] = f(y, x + i);
      record_row(out, y, x, sums, n);
    }
}

// The change of pixels that stay what they are: NaN where a value is NaN or infinite, else 0.
static void repeat_rect(View& out, const Rect& r) {
  write_rect(out, r, [&](int y, int x) {
    return write_values(out, y, x, false, [&](int c) { return load(out.cur + out.at(y, x) + c); });
  });
}

}  // namespace SKC_ISA
}  // namespace skc
