// Frames that enter a program: compared with the last one, only what differs counts as changed.
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {
namespace {

// Sums over channels of |delta| for the n pixels of one row, without padding channels.
template <int C>
SKC_INLINE void row_change(const float* delta, int n, float* m) {
  for (int x = 0; x < n; x++) {
    float sum = 0.f;
    for (int c = 0; c < C; c++) sum += std::fabs(delta[x * C + c]);
    m[x] = sum;
  }
}

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

// One row of a frame that is stored as it comes: values, change, sums; `line` holds 2 rows.
void input_row(View& out, const float* row, int y, const Rect& r, bool fresh, float* line) {
  const Tensor& t = *out.t;
  const int n = r.w() * t.C;
  float* cur = out.cur + out.at(y, r.x0);
  float* delta = out.delta ? out.delta + out.at(y, r.x0) : line;
  if (!fresh && !differs(row, cur, n)) {
    if (out.delta) std::memset(delta, 0, sizeof(float) * n);
    if (out.m) std::memset(out.m + (long)y * t.Wp + r.x0, 0, sizeof(float) * r.w());
    return;
  }
  if (out.old && !fresh) std::memcpy(out.old_pixel(y, r.x0), cur, sizeof(float) * n);
  for (int i = 0; i < n; i++) {
    delta[i] = row[i] - (fresh ? 0.f : cur[i]);
    cur[i] = row[i];
  }
  float* m = out.m ? out.m + (long)y * t.Wp + r.x0 : line + n;
  switch (t.C) {
    case 1: row_change<1>(delta, r.w(), m); break;
    case 3: row_change<3>(delta, r.w(), m); break;
    case 4: row_change<4>(delta, r.w(), m); break;
    default:
      for (int x = 0; x < r.w(); x++) m[x] = abs_sum(delta + (long)x * t.C, t.C);
  }
  for (int x = 0; x < r.w(); x += kCell) {
    float sum = 0.f;
    for (int i = x; i < x + kCell && i < r.w(); i++) sum += m[i];
    out.touch(y, r.x0 + x, sum);
  }
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
      for (int x = 0; x < t.W; x++) to[3 * x] = a[x], to[3 * x + 1] = b[x], to[3 * x + 2] = c[x];
      continue;
    }
    for (int c = 0; c < t.C; c++)
      for (int x = 0; x < t.W; x++) to[(long)x * t.C + c] = from[c * plane + x];
  }
  return {local, pitch};
}

void input_rect(Run& run, const Rows& rows, View& out, const Item& item, float* line) {
  const Tensor& t = *out.t;
  const bool fresh = run.fresh(item.s);
  const Rect& r = item.r;
  for (int y = r.y0; y < r.y1; y++) {
    const float* row = rows.row(y - r.y0);
    if (t.C == t.Cs) {
      input_row(out, row, y, r, fresh, line);
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
  const size_t line = (size_t)item.r.w() * (t.C + 1) + 64;
  float* local = run.memory[tid].get(line + (size_t)item.r.h() * item.r.w() * t.C);
  const Rows rows = rows_of(run, o, t, item, local + line);
  if (run.fresh(item.s) || input_differs(rows, out, item)) return input_rect(run, rows, out, item, local);
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
