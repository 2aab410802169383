// Frames that enter a program: compared with the last one, only what differs counts as changed.
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {
namespace {

// Whether n values changed. NaN and infinity always do: what they change by is NaN.
SKC_INLINE bool differs(const float* now, const float* last, int n) {
  vi bad{};
  int i = 0;
  for (; i + VW <= n; i += VW) bad |= ~((load(now + i) - load(last + i)) == 0.f);
  bool found = false;
  for (int k = 0; k < VW; k++) found |= bad[k] != 0;
  for (; i < n; i++) found |= !(now[i] - last[i] == 0.f);
  return found;
}

// Pixels [x, x + n) of one row of a frame that is stored as it comes: values, change, sums.
void input_pixels(View& out, const float* row, int y, int x, int n, bool fresh) {
  const int C = out.t->C;
  float* cur = out.pixel(y, x);
  float* keep = out.old && !fresh ? out.old_pixel(y, x) : nullptr;
  float* delta = out.delta ? out.delta + out.at(y, x) : nullptr;
  for (int i = 0; i < n; i++) {
    float change = 0.f;
    for (int c = i * C; c < (i + 1) * C; c++) {
      const float d = row[c] - (fresh ? 0.f : cur[c]);
      if (keep) keep[c] = cur[c];
      if (delta) delta[c] = d;
      cur[c] = row[c];
      change += std::fabs(d);
    }
    if (out.m) out.m[(long)y * out.t->Wp + x + i] = change;
    out.touch(y, x + i, change);
  }
}

// The same of three channels, a vector of pixels at a time.
void input_pixels3(View& out, const float* row, int y, int x, bool fresh) {
  float* cur = out.pixel(y, x);
  vf change[3], parts[3], now[3], last[3];
  for (int k = 0; k < 3; k++) {
    now[k] = load(row + k * VW);
    last[k] = fresh ? vf{} : load(cur + k * VW);
    change[k] = now[k] - last[k];
    if (out.delta) store(out.delta + out.at(y, x) + k * VW, change[k]);
  }
  const vi changed = (change[0] != 0.f) | (change[1] != 0.f) | (change[2] != 0.f);
  vf sum = vf{};
  if (any_lane(changed)) {
    float* keep = out.old && !fresh ? out.old_pixel(y, x) : nullptr;
    for (int k = 0; k < 3; k++) {
      if (keep) store(keep + k * VW, last[k]);
      store(cur + k * VW, now[k]);
      change[k] = vabs(change[k]);
    }
    split3(change, parts);
    sum = parts[0] + parts[1] + parts[2];
    out.touch_row(y, x, sum, VW);
  }
  if (out.m) store(out.m + (long)y * out.t->Wp + x, sum);
}

void input_row(View& out, const float* row, int y, const Rect& r, bool fresh) {
  int x = r.x0;
  if (out.t->C == 3)
    for (; x + VW <= r.x1; x += VW, row += 3 * VW) input_pixels3(out, row, y, x, fresh);
  input_pixels(out, row, y, x, r.x1 - x, fresh);
}

// Rows of a frame as they are stored, channels last.
struct Rows {
  const float* first;
  long pitch;
  const float* row(int y) const { return first + y * pitch; }
};

const float* frame_of(const Run& run, const Op& o, const Tensor& t, int s) {
  return run.call.in[o.io] + (long)s * t.H * t.W * t.C;
}

// Channels first (`mode` 1): the item's rows are written out channels last.
Rows rows_of(const Run& run, const Op& o, const Tensor& t, const Item& item, float* local) {
  const float* frame = frame_of(run, o, t, item.s);
  const long pitch = (long)t.W * t.C, plane = (long)t.H * t.W;
  if (o.mode == 0) return {frame + item.r.y0 * pitch, pitch};
  for (int y = item.r.y0; y < item.r.y1; y++) {
    const float* from = frame + (long)y * t.W;
    float* to = local + (y - item.r.y0) * pitch;
    if (t.C == 3) {
      const float *a = from, *b = from + plane, *c = b + plane;
      int x = 0;
      for (; x + VW <= t.W; x += VW) {
        const vf planes[3] = {load(a + x), load(b + x), load(c + x)};
        vf pixels[3];
        join3(planes, pixels);
        for (int k = 0; k < 3; k++) store(to + 3 * x + k * VW, pixels[k]);
      }
      for (; x < t.W; x++) to[3 * x] = a[x], to[3 * x + 1] = b[x], to[3 * x + 2] = c[x];
      continue;
    }
    for (int c = 0; c < t.C; c++)
      for (int x = 0; x < t.W; x++) to[(long)x * t.C + c] = from[c * plane + x];
  }
  return {local, pitch};
}

void input_rect(Run& run, const Rows& rows, View& out, const Item& item) {
  const Tensor& t = *out.t;
  const bool fresh = run.fresh(item.s);
  const Rect& r = item.r;
  for (int y = r.y0; y < r.y1; y++) {
    const float* row = rows.row(y - r.y0);
    if (t.C == t.Cs) {
      input_row(out, row, y, r, fresh);
      continue;
    }
    for (int x = r.x0; x < r.x1; x++, row += t.C) {
      float *cur = out.cur + out.at(y, x), *delta = out.delta ? out.delta + out.at(y, x) : nullptr;
      if (out.old && !fresh)
        std::memcpy(out.old_pixel(y, x), cur, sizeof(float) * t.Cs);
      float change = 0.f;
      for (int c = 0; c < t.C; c++) {
        const float d = row[c] - (fresh ? 0.f : cur[c]);
        cur[c] = row[c];
        if (delta) delta[c] = d;
        change += std::fabs(d);
      }
      // The scratch may have been a wider map's.
      if (delta) std::memset(delta + t.C, 0, sizeof(float) * (t.Cs - t.C));
      if (out.m) out.m[(long)y * t.Wp + x] = change;
      out.touch(y, x, change);
    }
  }
}

bool input_differs(const Rows& rows, const View& out, const Item& item) {
  const Tensor& t = *out.t;
  const Rect& r = item.r;
  for (int y = r.y0; y < r.y1; y++) {
    const float* row = rows.row(y - r.y0);
    if (t.C == t.Cs) {
      if (differs(row, out.cur + out.at(y, r.x0), t.C * r.w())) return true;
      continue;
    }
    for (int x = r.x0; x < r.x1; x++, row += t.C)
      if (differs(row, out.cur + out.at(y, x), t.C)) return true;
  }
  return false;
}

void input_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  View out = run.view(o.out, item.s);
  const Tensor& t = *out.t;
  float* local = run.memory[tid].get((size_t)item.r.h() * item.r.w() * t.C + VW);
  const Rows rows = rows_of(run, o, t, item, local);
  if (run.fresh(item.s) || input_differs(rows, out, item)) return input_rect(run, rows, out, item);
  if (out.stale_in(item.r)) out.clean(item.r);
}

}  // namespace

void run_input(Run& run, const Op& o) {
  const Tensor& t = run.call.tensors[o.out];
  for (int s = 0; s < run.call.B; s++) {
    View out = run.view(o.out, s);
    run.open(out, s);
    for (int y = 0; y < t.H; y += kRegion)
      run.items.push_back({{y, y + kRegion < t.H ? y + kRegion : t.H, 0, t.W}, s, 0, 0, kFire});
  }
  run.dispatch(input_item, (int)run.items.size(), run.items.size() * (double)t.W * t.C * 1e-3);
}

}  // namespace SKC_ISA
}  // namespace skc
