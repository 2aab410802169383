// Operations on bytes whose every output position is made of a few positions of their sources.
#include "ops/q_view.h"

namespace skc {
namespace SKC_ISA {
namespace {

constexpr int kColumns = 32;

struct Piece {
  Run& run;
  const Op& o;
  const Tensor& out;
  const Rect& r;
  int s;
  bool fresh;
  float* line;     // one row of numbers, [w][Cs]
  uint8_t* bytes;  // and of what is stored
  int width() const { return r.w() * out.Cs; }
  ByteView source(int i) const { return byte_view(run, o.src[i], s); }
  void store(int y) const {
    store_positions(run, o, s, y, r.x0, r.w(), bytes, out.Cs, 0, out.Cs, fresh);
  }
  // Rounds `line`, looks it up, stores it.
  void finish(int y) const {
    const int n = width(), less = 0x4B400000 - o.shift;
    const float lo = o.a0, hi = o.a1;
    for (int i = 0; i < n; i++) {
      const float v = line[i] > lo ? line[i] : lo;
      line[i] = v < hi ? v : hi;
    }
    const Made made = made_by(o, out);
    if (made == Made::kFloat) {
      store_positions(run, o, s, y, r.x0, r.w(), line, out.Cs, 0, out.Cs, fresh);
      return;
    }
    const auto whole = [&](int i) {
      const float v = line[i] + 12582912.f;
      int32_t bits;
      std::memcpy(&bits, &v, 4);
      return bits - less;
    };
    uint16_t* wide = reinterpret_cast<uint16_t*>(bytes);
    if (made == Made::kIndex)
      for (int i = 0; i < n; i++) wide[i] = (uint16_t)whole(i);
    else
      for (int i = 0; i < n; i++) bytes[i] = (uint8_t)whole(i);
    store(y);
  }
};

void sum_rows(const Piece& g) {
  const float* tables = g.run.call.weights + g.o.w;
  const int n = g.width();
  for (int y = g.r.y0; y < g.r.y1; y++) {
    const uint8_t *a = g.source(0).pixel(y, g.r.x0), *b = g.source(1).pixel(y, g.r.x0);
    for (int i = 0; i < n; i++) g.line[i] = tables[a[i]] + tables[256 + b[i]];
    for (int k = 2; k < g.o.nsrc; k++) {
      const uint8_t* c = g.source(k).pixel(y, g.r.x0);
      for (int i = 0; i < n; i++) g.line[i] += tables[256 * k + c[i]];
    }
    g.finish(y);
  }
}

void mul_rows(const Piece& g) {
  const ByteView a = g.source(0), b = g.source(1);
  const int za = g.o.zeros[0], zb = g.o.zeros[1], cs = g.out.Cs;
  const float m = g.run.call.weights[g.o.mult];
  const bool one = b.map.t->H == 1 && b.map.t->W == 1;
  for (int y = g.r.y0; y < g.r.y1; y++) {
    const uint8_t *p = a.pixel(y, g.r.x0), *q = one ? b.cur : b.pixel(y, g.r.x0);
    for (int x = 0; x < g.r.w(); x++, p += cs, q += one ? 0 : cs)
      for (int c = 0; c < cs; c++) g.line[x * cs + c] = (float)((p[c] - za) * (q[c] - zb)) * m;
    g.finish(y);
  }
}

// The window inside the map; outside q is the zero point, which adds nothing, or the least, which never
// is the largest.
Rect inside(const Op& o, const Tensor& in, int y, int x) {
  const int ya = y * o.sh - o.pt, xa = x * o.sw - o.pl;
  return {ya < 0 ? 0 : ya, ya + o.kh < in.H ? ya + o.kh : in.H, xa < 0 ? 0 : xa, xa + o.kw < in.W ? xa + o.kw : in.W};
}

void mean_rows(const Piece& g) {
  const ByteView in = g.source(0);
  const int cs = g.out.Cs, z = g.o.zeros[0];
  const float* m = g.run.call.weights + g.o.mult;
  std::vector<int32_t> sums(cs);
  for (int y = g.r.y0; y < g.r.y1; y++) {
    for (int x = g.r.x0; x < g.r.x1; x++) {
      const Rect f = inside(g.o, *in.map.t, y, x);
      const int count = f.h() > 0 && f.w() > 0 ? f.h() * f.w() : 0;
      for (int c = 0; c < cs; c++) sums[c] = -count * z;
      for (int yy = f.y0; yy < f.y1; yy++)
        for (int xx = f.x0; xx < f.x1; xx++) {
          const uint8_t* p = in.pixel(yy, xx);
          for (int c = 0; c < cs; c++) sums[c] += p[c];
        }
      const float by = m[g.o.mode ? (long)y * g.out.W + x : 0];
      float* to = g.line + (long)(x - g.r.x0) * cs;
      for (int c = 0; c < cs; c++) to[c] = (float)sums[c] * by;
    }
    g.finish(y);
  }
}

// The larger of n bytes each.
void raise(uint8_t* to, const uint8_t* from, int n) {
  for (int i = 0; i < n; i++) to[i] = from[i] > to[i] ? from[i] : to[i];
}

// First over rows, for all the columns a row of outputs sees, then over columns.
void max_rows(const Piece& g) {
  const ByteView in = g.source(0);
  const Tensor& t = *in.map.t;
  const int cs = g.out.Cs;
  const int xa = inside(g.o, t, 0, g.r.x0).x0, xb = inside(g.o, t, 0, g.r.x1 - 1).x1;
  uint8_t* high = reinterpret_cast<uint8_t*>(g.line);
  for (int y = g.r.y0; y < g.r.y1; y++) {
    const Rect rows = inside(g.o, t, y, g.r.x0);
    if (xb > xa) std::memset(high, 0, (size_t)(xb - xa) * cs);
    for (int yy = rows.y0; yy < rows.y1; yy++) raise(high, in.pixel(yy, xa), (xb - xa) * cs);
    for (int x = g.r.x0; x < g.r.x1; x++) {
      const Rect f = inside(g.o, t, y, x);
      uint8_t* to = g.bytes + (long)(x - g.r.x0) * cs;
      std::memset(to, 0, cs);
      for (int xx = f.x0; xx < f.x1; xx++) raise(to, high + (long)(xx - xa) * cs, cs);
    }
    g.store(y);
  }
}

void table_rows(const Piece& g) {
  const ByteView in = g.source(0);
  for (int y = g.r.y0; y < g.r.y1; y++) {
    std::memcpy(g.bytes, in.pixel(y, g.r.x0), g.width());
    g.store(y);
  }
}

// Runs {source, first channel, length}, then per source the row of each output row and the column of
// each output column, -1 beyond the edge, where `shift` is read.
struct Gather {
  const int32_t* runs;
  const int32_t* places;
  int H, W;
  Gather(const Run& run, const Op& o)
      : runs(run.call.table + o.table),
        places(runs + 3 * o.count),
        H(run.call.tensors[o.out].H),
        W(run.call.tensors[o.out].W) {}
  const int32_t* rows(int i) const { return places + (long)i * (H + W); }
  const int32_t* columns(int i) const { return rows(i) + H; }
};

void gather_rows(const Piece& g) {
  const Gather from(g.run, g.o);
  const int cs = g.out.Cs;
  for (int y = g.r.y0; y < g.r.y1; y++) {
    std::memset(g.bytes, 0, g.width());
    int at = 0;
    for (int k = 0; k < g.o.count; k++) {
      const int32_t* run = from.runs + 3 * k;
      const ByteView in = g.source(run[0]);
      const int row = from.rows(run[0])[y], n = run[2];
      const int32_t* columns = from.columns(run[0]);
      uint8_t* to = g.bytes + at;
      for (int x = g.r.x0; x < g.r.x1; x++, to += cs) {
        if (row < 0 || columns[x] < 0)
          std::memset(to, g.o.shift, n);
        else if (n == 16)
          std::memcpy(to, in.pixel(row, columns[x]) + run[1], 16);
        else
          std::memcpy(to, in.pixel(row, columns[x]) + run[1], n);
      }
      at += n;
    }
    g.store(y);
  }
}

void quantize_rows(const Piece& g) {
  const View in = g.run.view(g.o.src[0], g.s);
  const float scale = g.run.call.weights[g.o.mult];
  for (int y = g.r.y0; y < g.r.y1; y++) {
    const float* p = in.pixel(y, g.r.x0);
    const int n = g.width();
    for (int i = 0; i < n; i++) g.line[i] = p[i] / scale;
    g.finish(y);
  }
}

void dequantize_rows(const Piece& g) {
  const ByteView in = g.source(0);
  const float scale = g.run.call.weights[g.o.mult];
  const int z = g.o.zeros[0], n = g.width();
  for (int y = g.r.y0; y < g.r.y1; y++) {
    const uint8_t* p = in.pixel(y, g.r.x0);
    for (int i = 0; i < n; i++) g.line[i] = (float)(p[i] - z) * scale;
    store_positions(g.run, g.o, g.s, y, g.r.x0, g.r.w(), g.line, g.out.Cs, 0, g.out.Cs, g.fresh);
  }
}

void piece_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  const Tensor &out = run.call.tensors[o.out], &in = run.call.tensors[o.src[0]];
  if (item.action == kClean) return run.view(o.out, item.s).clean(item.r);
  // A maximum holds the columns that a row of outputs sees where the others hold numbers.
  const size_t seen = o.kind == kQMax ? (size_t)in.W * in.Cs / 4 + 16 : 0;
  size_t numbers = (size_t)item.r.w() * out.Cs + 16;
  if (numbers < seen) numbers = seen;
  float* line = run.memory[tid].get(2 * numbers + 64);
  const Piece g{run, o, out, item.r, item.s, run.fresh(item.s), line, reinterpret_cast<uint8_t*>(line + numbers)};
  switch (o.kind) {
    case kQSum: return sum_rows(g);
    case kQMul: return mul_rows(g);
    case kQMean: return mean_rows(g);
    case kQMax: return max_rows(g);
    case kQTable: return table_rows(g);
    case kQGather: return gather_rows(g);
    case kQuantize: return quantize_rows(g);
    case kDequantize: return dequantize_rows(g);
    default: return;
  }
}

Rect footprint(const Run& run, const Op& o, const Tensor& in, int i, const Rect& r) {
  if (o.kind == kQMean || o.kind == kQMax) {
    const int y = r.y0 * o.sh - o.pt, x = r.x0 * o.sw - o.pl;
    return {y, y + (r.h() - 1) * o.sh + o.kh, x, x + (r.w() - 1) * o.sw + o.kw};
  }
  if (o.kind == kQGather) {
    const Gather from(run, o);
    Rect f{in.H, 0, in.W, 0};
    span(from.rows(i) + r.y0, r.h(), &f.y0, &f.y1);
    span(from.columns(i) + r.x0, r.w(), &f.x0, &f.x1);
    return f;
  }
  if (in.H == 1 && in.W == 1) return {0, 1, 0, 1};
  return r;
}

void list_pieces(Run& run, const Op& o, int s) {
  const Tensor& t = run.call.tensors[o.out];
  open_output(run, o, s);
  const View out = run.view(o.out, s);
  const bool always = run.fresh(s) || out.restless();
  bool changed = always || out.has_stale(), everywhere = always;
  for (int i = 0; i < o.nsrc; i++) {
    const View src = run.view(o.src[i], s);
    changed |= src.changed();
    everywhere |= src.any[0] == kEverywhere;
  }
  if (!changed) return;
  const int wide = everywhere && t.W <= kMaxRow ? t.W : kColumns;
  const int high = everywhere && t.H * t.W < 4096 ? (t.H + 1) / 2 : kRegion;
  for (int y = 0; y < t.H; y += high)
    for (int x = 0; x < t.W; x += wide) {
      const Rect r{y, y + high < t.H ? y + high : t.H, x, x + wide < t.W ? x + wide : t.W};
      bool touch = always;
      for (int i = 0; i < o.nsrc && !touch; i++) {
        const View src = run.view(o.src[i], s);
        const Rect f = footprint(run, o, *src.t, i, r);
        touch = f.y1 > 0 && f.x1 > 0 && src.changed_in(f.y0, f.y1, f.x0, f.x1);
      }
      if (touch || out.stale_in(r)) run.items.push_back({r, s, 0, 0, touch ? kFire : kClean});
    }
}

}  // namespace

void run_qpixels(Run& run, const Op& o) {
  for (int s = 0; s < run.call.B; s++) list_pieces(run, o, s);
  double work = 0;
  for (const Item& item : run.items) work += (double)item.r.h() * item.r.w();
  const double each = o.kind == kQSum || o.kind == kQMean ? 1e-3 : o.kind == kQMax ? 4e-4 : 1e-4;
  run.dispatch(piece_item, (int)run.items.size(), work * run.call.tensors[o.out].Cs * each);
}

}  // namespace SKC_ISA
}  // namespace skc
