// Everything that is not a convolution: computed on 8 x 8 regions whose sources changed.
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {
namespace {

constexpr int kRegion = 8;

SKC_INLINE float* pixel(const View& v, int y, int x) { return v.cur + v.at(y, x); }

void add_rect(Run& run, const Op& o, View& out, const Item& item) {
  const Rect& r = item.r;
  const bool fresh = run.fresh(item.s);
  const int n = o.nsrc;
  View src[kMaxSources] = {out, out, out, out, out, out, out, out};
  for (int i = 0; i < n; i++) src[i] = run.view(o.src[i], item.s);
  float k[kMaxSources];
  for (int i = 0; i < n; i++) k[i] = o.w < 0 ? 1.f : run.call.weights[o.w + i];
  for (int y = r.y0; y < r.y1; y++) {
    const float* p[kMaxSources];
    int phase[kMaxSources];
    for (int i = 0; i < n; i++) {
      p[i] = pixel(src[i], y / o.fh[i], r.x0 / o.fw[i]);
      phase[i] = r.x0 % o.fw[i];
    }
    for (int x = r.x0; x < r.x1; x++) {
      write_pixel(out, y, x, fresh, [&](int c) {
        vf v = load(p[0] + c);
        if (o.w >= 0) v *= k[0];
        for (int i = 1; i < n; i++) v += o.w < 0 ? load(p[i] + c) : load(p[i] + c) * k[i];
        return activate(v, o.act);
      });
      for (int i = 0; i < n; i++)
        if (++phase[i] == o.fw[i]) phase[i] = 0, p[i] += src[i].t->Cs;
    }
  }
}

void pool_rect(Run& run, const Op& o, View& out, const Item& item) {
  const View in = run.view(o.src[0], item.s);
  const bool fresh = run.fresh(item.s);
  for (int y = item.r.y0; y < item.r.y1; y++)
    for (int x = item.r.x0; x < item.r.x1; x++) {
      const int ya = y * o.sh - o.pt, xa = x * o.sw - o.pl;
      const int y0 = ya < 0 ? 0 : ya, x0 = xa < 0 ? 0 : xa;
      const int y1 = ya + o.kh < in.t->H ? ya + o.kh : in.t->H;
      const int x1 = xa + o.kw < in.t->W ? xa + o.kw : in.t->W;
      const float count = o.mode == kMeanValid ? (float)((y1 - y0) * (x1 - x0)) : (float)(o.kh * o.kw);
      write_pixel(out, y, x, fresh, [&](int c) {
        vf v = o.mode == kMax ? splat(-__builtin_inff()) : vf{};
        for (int yy = y0; yy < y1; yy++)
          for (int xx = x0; xx < x1; xx++) {
            const vf p = load(pixel(in, yy, xx) + c);
            v = o.mode == kMax ? (p < v ? v : p) : v + p;
          }
        return activate(o.mode == kMax || o.mode == kSumAll ? v : v / count, o.act);
      });
    }
}

void affine_rect(Run& run, const Op& o, View& out, const Item& item) {
  const View in = run.view(o.src[0], item.s);
  const float* scale = o.w < 0 ? nullptr : run.call.weights + o.w;
  const float* shift = o.bias < 0 ? nullptr : run.call.weights + o.bias;
  for (int y = item.r.y0; y < item.r.y1; y++)
    for (int x = item.r.x0; x < item.r.x1; x++) {
      const float* p = pixel(in, y, x);
      write_pixel(out, y, x, run.fresh(item.s), [&](int c) {
        vf v = load(p + c);
        if (scale) v *= load(scale + c);
        if (shift) v += load(shift + c);
        return activate(v, o.act);
      });
    }
}

SKC_INLINE vf binary(int mode, vf a, vf b) {
  switch (mode) {
    case kPlus: return a + b;
    case kMinus: return a - b;
    case kMinusFrom: return b - a;
    case kOver: return a / b;
    case kInto: return b / a;
    case kLarger: return a < b || b != b ? b : a;
    case kSmaller: return a > b || b != b ? b : a;
    default: return a * b;
  }
}

void binary_rect(Run& run, const Op& o, View& out, const Item& item) {
  const View a = run.view(o.src[0], item.s), b = run.view(o.src[1], item.s);
  const bool broadcast = b.t->H == 1 && b.t->W == 1;
  for (int y = item.r.y0; y < item.r.y1; y++)
    for (int x = item.r.x0; x < item.r.x1; x++) {
      const float *p = pixel(a, y, x), *q = broadcast ? b.cur : pixel(b, y, x);
      write_pixel(out, y, x, run.fresh(item.s),
                  [&](int c) { return activate(binary(o.mode, load(p + c), load(q + c)), o.act); });
    }
}

void concat_rect(Run& run, const Op& o, View& out, const Item& item, float* line) {
  View src[kMaxSources] = {out, out, out, out, out, out, out, out};
  for (int i = 0; i < o.nsrc; i++) src[i] = run.view(o.src[i], item.s);
  for (int y = item.r.y0; y < item.r.y1; y++)
    for (int x = item.r.x0; x < item.r.x1; x++) {
      float* to = line;
      for (int i = 0; i < o.nsrc; to += src[i].t->C, i++)
        std::memcpy(to, pixel(src[i], y / o.fh[i], x / o.fw[i]), src[i].t->C * sizeof(float));
      std::memset(to, 0, 16 * sizeof(float));
      write_pixel(out, y, x, run.fresh(item.s),
                  [&](int c) { return activate(load(line + c), o.act); });
    }
}

// Sums over channels of |delta| for the n pixels of one row, without padding channels.
template <int C>
SKC_INLINE void row_change(const float* delta, int n, float* m) {
  for (int x = 0; x < n; x++) {
    float sum = 0.f;
    for (int c = 0; c < C; c++) sum += std::fabs(delta[x * C + c]);
    m[x] = sum;
  }
}

// One row of a frame that is stored as it comes: values, change, sums; `line` holds 2 rows.
void input_row(View& out, const float* row, int y, const Rect& r, bool fresh, float* line) {
  const Tensor& t = *out.t;
  const int n = r.w() * t.C;
  float* cur = out.cur + out.at(y, r.x0);
  float* delta = out.delta ? out.delta + out.at(y, r.x0) : line;
  if (!fresh && !std::memcmp(row, cur, sizeof(float) * n)) {
    if (out.delta) std::memset(delta, 0, sizeof(float) * n);
    if (out.m) std::memset(out.m + (long)y * t.Wp + r.x0, 0, sizeof(float) * r.w());
    return;
  }
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
    if (!(sum == 0.f)) out.touch(y, r.x0 + x);
  }
}

// Compares the frame with the last one; only what differs counts as changed.
void input_rect(Run& run, const Op& o, View& out, const Item& item, float* line) {
  const Tensor& t = *out.t;
  const bool fresh = run.fresh(item.s);
  const float* frame = run.call.in[o.io] + (long)item.s * t.H * t.W * t.C;
  const Rect& r = item.r;
  for (int y = r.y0; y < r.y1; y++) {
    const float* row = frame + ((long)y * t.W + r.x0) * t.C;
    if (t.C == t.Cs) {
      input_row(out, row, y, r, fresh, line);
      continue;
    }
    for (int x = r.x0; x < r.x1; x++, row += t.C) {
      float *cur = out.cur + out.at(y, x), *delta = out.delta ? out.delta + out.at(y, x) : nullptr;
      float change = 0.f;
      for (int c = 0; c < t.C; c++) {
        const float d = row[c] - (fresh ? 0.f : cur[c]);
        cur[c] = row[c];
        if (delta) delta[c] = d;
        change += std::fabs(d);
      }
      if (out.m) out.m[(long)y * t.Wp + x] = change;
      if (!(change == 0.f)) out.touch(y, x);
    }
  }
}

bool input_differs(const Run& run, const Op& o, const View& out, const Item& item) {
  const Tensor& t = *out.t;
  const float* frame = run.call.in[o.io] + (long)item.s * t.H * t.W * t.C;
  for (int y = item.r.y0; y < item.r.y1; y++) {
    const float* row = frame + ((long)y * t.W + item.r.x0) * t.C;
    if (t.C == t.Cs) {
      if (std::memcmp(row, out.cur + out.at(y, item.r.x0), sizeof(float) * t.C * item.r.w()))
        return true;
      continue;
    }
    for (int x = item.r.x0; x < item.r.x1; x++, row += t.C)
      if (std::memcmp(row, out.cur + out.at(y, x), sizeof(float) * t.C)) return true;
  }
  return false;
}

void region_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  View out = run.view(o.out, item.s);
  if (o.kind == kInput) {
    float* line = run.memory[tid].get((size_t)item.r.w() * (out.t->C + 1) + 64);
    if (run.fresh(item.s) || input_differs(run, o, out, item))
      return input_rect(run, o, out, item, line);
    if (out.stale_in(item.r)) out.clean(item.r);
    return;
  }
  if (item.action == kClean) return out.clean(item.r);
  switch (o.kind) {
    case kAdd: return add_rect(run, o, out, item);
    case kPool: return pool_rect(run, o, out, item);
    case kAffine: return affine_rect(run, o, out, item);
    case kBinary: return binary_rect(run, o, out, item);
    case kConcat: return concat_rect(run, o, out, item, run.memory[tid].get(out.t->Cs + 64));
    default: return;
  }
}

bool source_changed(const Op& o, const View& src, int i, const Rect& r) {
  if (o.kind == kPool) {
    const int y = r.y0 * o.sh - o.pt, x = r.x0 * o.sw - o.pl;
    return src.changed_in(y, y + (r.h() - 1) * o.sh + o.kh, x, x + (r.w() - 1) * o.sw + o.kw);
  }
  if (o.kind == kBinary && src.t->H == 1 && src.t->W == 1) return src.changed();
  const int fh = o.fh[i], fw = o.fw[i];
  return src.changed_in(r.y0 / fh, (r.y1 - 1) / fh + 1, r.x0 / fw, (r.x1 - 1) / fw + 1);
}

void list_regions(Run& run, const Op& o, int s) {
  const Tensor& t = run.call.tensors[o.out];
  View out = run.view(o.out, s);
  run.open(out, s);
  const bool fresh = run.fresh(s), input = o.kind == kInput;
  bool changed = fresh || input || out.has_stale();
  for (int i = 0; i < o.nsrc; i++) changed |= run.view(o.src[i], s).changed();
  if (!changed) return;
  const int wide = input ? t.W : kRegion;
  for (int y = 0; y < t.H; y += kRegion)
    for (int x = 0; x < t.W; x += wide) {
      const Rect r{y, y + kRegion < t.H ? y + kRegion : t.H, x, x + wide < t.W ? x + wide : t.W};
      bool touch = fresh || input;
      for (int i = 0; i < o.nsrc && !touch; i++)
        touch = source_changed(o, run.view(o.src[i], s), i, r);
      if (touch || out.stale_in(r)) run.items.push_back({r, s, 0, 0, touch ? kFire : kClean});
    }
}

// Mean over all positions, from sums kept per region so that only changed regions are read again.
void partial_item(void* ctx, int, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  const View in = run.view(o.src[0], item.s);
  float* sums = run.arena(item.s) + o.z + (long)item.p0 * in.t->Cs;
  for (int c = 0; c < in.t->Cs; c += VW) {
    vf sum = vf{};
    for (int y = item.r.y0; y < item.r.y1; y++)
      for (int x = item.r.x0; x < item.r.x1; x++) sum += load(pixel(in, y, x) + c);
    store(sums + c, sum);
  }
}

void run_mean(Run& run, const Op& o) {
  const Tensor& t = run.call.tensors[o.src[0]];
  const int across = (t.W + kRegion - 1) / kRegion, regions = (t.H + kRegion - 1) / kRegion * across;
  for (int s = 0; s < run.call.B; s++) {
    const View in = run.view(o.src[0], s);
    for (int k = 0; k < regions && (run.fresh(s) || in.changed()); k++) {
      const int y = k / across * kRegion, x = k % across * kRegion;
      const Rect r{y, y + kRegion < t.H ? y + kRegion : t.H, x, x + kRegion < t.W ? x + kRegion : t.W};
      if (run.fresh(s) || in.changed_in(r.y0, r.y1, r.x0, r.x1))
        run.items.push_back({r, s, k, 0, kFire});
    }
  }
  run.dispatch(partial_item, (int)run.items.size(), run.items.size() * t.Cs * 2e-3);
  for (int s = 0; s < run.call.B; s++) {
    View out = run.view(o.out, s);
    const bool changed = run.fresh(s) || run.view(o.src[0], s).changed();
    run.open(out, s);
    if (!changed && out.has_stale()) out.clean({0, 1, 0, 1});
    if (!changed) continue;
    const float *sums = run.arena(s) + o.z, count = o.mode ? 1.f : (float)t.H * t.W;
    write_pixel(out, 0, 0, run.fresh(s), [&](int c) {
      vf v = vf{};
      for (int k = 0; k < regions; k++) v += load(sums + (long)k * t.Cs + c);
      return activate(v / count, o.act);
    });
  }
}

// A rectangle of a map to its place in an external buffer, without padding channels.
void copy_item(void* ctx, int, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  const View v = run.view(o.src[0], item.s);
  const Tensor& t = *v.t;
  const Rect& r = item.r;
  float* map = run.call.out[o.io] + (long)item.s * o.count + o.mode;
  for (int y = r.y0; y < r.y1; y++) {
    float* to = map + ((long)y * t.W + r.x0) * t.C;
    const float *from = pixel(v, y, r.x0), *end = to + (long)r.w() * t.C;
    if (t.C == t.Cs) {
      std::memcpy(to, from, sizeof(float) * r.w() * t.C);
      continue;
    }
    // Whole vectors; what spills over is overwritten by the next pixel.
    for (; end - to >= t.Cs; to += t.C, from += t.Cs)
      for (int c = 0; c < t.C; c += VW) store(to + c, load(from + c));
    for (; to < end; to += t.C, from += t.Cs) std::memcpy(to, from, sizeof(float) * t.C);
  }
}

void copy_out(Run& run, const Op& o) {
  const Tensor& t = run.call.tensors[o.src[0]];
  double floats = 0;
  for (int s = 0; s < run.call.B; s++) {
    const View in = run.view(o.src[0], s);
    const bool whole = !run.call.kept || run.fresh(s);
    const int wide = whole ? t.W : kRegion;
    for (int y = 0; y < t.H; y += kRegion)
      for (int x = 0; x < t.W; x += wide) {
        const Rect r{y, y + kRegion < t.H ? y + kRegion : t.H, x, x + wide < t.W ? x + wide : t.W};
        if (!whole && !in.changed_in(r.y0, r.y1, r.x0, r.x1)) continue;
        run.items.push_back({r, s, 0, 0, kFire});
        floats += (double)r.h() * r.w() * t.C;
      }
  }
  run.dispatch(copy_item, (int)run.items.size(), floats * 1e-4);
}

}  // namespace

void run_simple(Run& run, const Op& o) {
  run.op = &o;
  run.items.clear();
  if (o.kind == kOutput) return copy_out(run, o);
  if (o.kind == kMean) return run_mean(run, o);
  for (int s = 0; s < run.call.B; s++) list_regions(run, o, s);
  const Tensor& t = run.call.tensors[o.out];
  const double cost = run.items.size() * (o.kind == kInput ? t.W * t.C : 8. * t.Cs) * 1e-3;
  run.dispatch(region_item, (int)run.items.size(), cost);
}

}  // namespace SKC_ISA
}  // namespace skc
