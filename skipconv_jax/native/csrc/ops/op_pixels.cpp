// Operations whose every output position is made of a few positions of their sources: computed on
// regions of which a source changed.
#include "kernels/pixels.h"
#include "ops/chain.h"

namespace skc {
namespace SKC_ISA {
namespace {

constexpr int kWide = 64;  // columns of several regions computed as one

// The same where the region is handed on in a core's own cache.
int widest(int channels) {
  const int columns = 4096 / channels / kRegion * kRegion;
  return columns > kWide ? kWide : columns < kRegion ? kRegion : columns;
}

// What a region needs; `line` holds one pixel's channels and a vector more, or rows of a
// separable pool.
struct Region {
  Run& run;
  const Op& o;
  View& out;
  const Rect& r;
  int s;
  bool fresh;
  Activation act;
  float* line;
  View source(int i) const { return run.view(o.src[i], s); }
};

// Writes what f(y, x) gives by `put`, for every position.
template <class F>
SKC_INLINE void positions(const Region& g, F f) {
  write_rect(g.out, g.r, f);
}

// Writes the activation of f(c), channels [c, c + VW).
template <class F>
SKC_INLINE vf put(const Region& g, int y, int x, F f) {
  return write_values(g.out, y, x, g.fresh, [&](int c) { return activate(f(c), g.act, c); });
}

// Writes the activation of what `line` holds.
SKC_INLINE vf put_line(const Region& g, int y, int x) {
  return put(g, y, x, [&](int c) { return load(g.line + c); });
}

void add_rect(const Region& g) {
  const Op& o = g.o;
  const int n = o.nsrc;
  View src[kMaxSources] = {g.out, g.out, g.out, g.out, g.out, g.out, g.out, g.out};
  for (int i = 0; i < n; i++) src[i] = g.source(i);
  float k[kMaxSources];
  for (int i = 0; i < n; i++) k[i] = o.w < 0 ? 1.f : g.run.call.weights[o.w + i];
  if (n == 2 && o.w < 0 && o.fh[0] * o.fw[0] * o.fh[1] * o.fw[1] == 1 && g.act.none()) {
    positions(g, [&](int y, int x) {
      const float *p = src[0].pixel(y, x), *q = src[1].pixel(y, x);
      return write_values(g.out, y, x, g.fresh, [&](int c) { return load(p + c) + load(q + c); });
    });
    return;
  }
  positions(g, [&](int y, int x) {
    const float* p[kMaxSources];
    for (int i = 0; i < n; i++) p[i] = src[i].pixel(y / o.fh[i], x / o.fw[i]);
    return put(g, y, x, [&](int c) {
      vf v = load(p[0] + c);
      if (o.w >= 0) v *= k[0];
      for (int i = 1; i < n; i++) v += o.w < 0 ? load(p[i] + c) : load(p[i] + c) * k[i];
      return v;
    });
  });
}

// The largest of windows of which one is many times read: along rows first, then down the columns.
void max_pool_rect(const Region& g, const View& in) {
  const Op& o = g.o;
  const int cs = in.t->Cs, ya = g.r.y0 * o.sh - o.pt, yb = (g.r.y1 - 1) * o.sh - o.pt + o.kh;
  const int top = ya < 0 ? 0 : ya, bottom = yb < in.t->H ? yb : in.t->H;
  const long line = (long)g.r.w() * cs;
  float* rows = g.line;
  for (int y = top; y < bottom; y++)
    for (int x = g.r.x0; x < g.r.x1; x++) {
      const int xa = x * o.sw - o.pl, x0 = xa < 0 ? 0 : xa;
      const int x1 = xa + o.kw < in.t->W ? xa + o.kw : in.t->W;
      const float* p = in.pixel(y, x0);
      float* to = rows + (y - top) * line + (long)(x - g.r.x0) * cs;
      for (int c = 0; c < cs; c += VW) store(to + c, pool_window(p + c, 0, cs, 1, x1 - x0, true));
    }
  positions(g, [&](int y, int x) {
    const int y0 = y * o.sh - o.pt < top ? top : y * o.sh - o.pt;
    const int y1 = y * o.sh - o.pt + o.kh < bottom ? y * o.sh - o.pt + o.kh : bottom;
    const float* p = rows + (y0 - top) * line + (long)(x - g.r.x0) * cs;
    return put(g, y, x, [&](int c) { return pool_window(p + c, line, cs, y1 - y0, 1, true); });
  });
}

bool separable(const Op& o) { return o.kind == kPool && o.mode == kPoolMax && o.kh > 3 && o.kw > 3; }

void pool_rect(const Region& g) {
  const Op& o = g.o;
  const View in = g.source(0);
  if (separable(o)) return max_pool_rect(g, in);
  positions(g, [&](int y, int x) {
    const int ya = y * o.sh - o.pt, xa = x * o.sw - o.pl;
    const int y0 = ya < 0 ? 0 : ya, x0 = xa < 0 ? 0 : xa;
    const int y1 = ya + o.kh < in.t->H ? ya + o.kh : in.t->H;
    const int x1 = xa + o.kw < in.t->W ? xa + o.kw : in.t->W;
    const int taps = o.mode == kPoolMeanValid ? (y1 - y0) * (x1 - x0) : o.kh * o.kw;
    const bool mean = o.mode == kPoolMean || o.mode == kPoolMeanValid;
    const float* p = in.pixel(y0, x0);
    return put(g, y, x, [&](int c) {
      const vf v = pool_window(p + c, in.row, in.t->Cs, y1 - y0, x1 - x0, o.mode == kPoolMax);
      return mean ? v / (float)taps : v;
    });
  });
}

void affine_rect(const Region& g) {
  const View in = g.source(0);
  const float* scale = g.o.w < 0 ? nullptr : g.run.call.weights + g.o.w;
  const float* shift = g.o.bias < 0 ? nullptr : g.run.call.weights + g.o.bias;
  positions(g, [&](int y, int x) {
    const float* p = in.pixel(y, x);
    return put(g, y, x, [&](int c) {
      vf v = load(p + c);
      if (scale) v *= load(scale + c);
      if (shift) v += load(shift + c);
      return v;
    });
  });
}

void binary_rect(const Region& g) {
  const View a = g.source(0), b = g.source(1);
  const bool broadcast = b.t->H == 1 && b.t->W == 1;
  positions(g, [&](int y, int x) {
    const float *p = a.pixel(y, x), *q = broadcast ? b.cur : b.pixel(y, x);
    return put(g, y, x, [&](int c) { return binary(g.o.mode, load(p + c), load(q + c)); });
  });
}

#if defined(__AVX2__)
// One vector of a source and where its lanes go; moves to the same output vector follow each other.
struct Move {
  int source, channel;  // first channel of the vector
  vi from, to;          // lane of the source for each lane; lanes that are taken
};

// Moves of every output vector, by its number `first[v]` to `first[v + 1]`.
struct Moves {
  std::vector<Move> list;
  std::vector<int> first;
};

void plan_moves(const Op& o, const int32_t* runs, int vectors, Moves& moves) {
  moves.list.clear();
  moves.first.assign(1, 0);
  int lane = 0;
  auto next = [&] {
    if (++lane == VW) lane = 0, moves.first.push_back((int)moves.list.size());
  };
  for (int i = 0; i < o.count; i++, runs += 3)
    for (int c = runs[1]; c < runs[1] + runs[2]; c++) {
      if (runs[0] >= 0) {
        Move* found = nullptr;
        for (size_t k = moves.first.back(); k < moves.list.size(); k++)
          if (moves.list[k].source == runs[0] && moves.list[k].channel == c / VW * VW) found = &moves.list[k];
        if (!found) {
          moves.list.push_back({runs[0], c / VW * VW, vi{}, vi{}});
          found = &moves.list.back();
        }
        found->from[lane] = c % VW;
        found->to[lane] = -1;
      }
      next();
    }
  while ((int)moves.first.size() <= vectors) moves.first.push_back((int)moves.list.size());
}

SKC_INLINE vf moved(vf into, const Move& m, const float* p) {
#if defined(__AVX512F__)
  const __mmask16 to = _mm512_test_epi32_mask((__m512i)m.to, (__m512i)m.to);
  return (vf)_mm512_mask_permutexvar_ps((__m512)into, to, (__m512i)m.from, (__m512)load(p));
#else
  const __m256 v = _mm256_permutevar8x32_ps((__m256)load(p), (__m256i)m.from);
  return (vf)_mm256_blendv_ps((__m256)into, v, (__m256)m.to);
#endif
}

struct Gather {
  const Op& o;
  int vectors;
  Moves& moves;
  View src[kMaxSources];

  Gather(const Run& run, const Op& op, int s)
      : o(op), vectors(run.call.tensors[op.out].Cs / VW), moves(planned(run, op)),
        src{at(run, s, 0), at(run, s, 1), at(run, s, 2), at(run, s, 3),
            at(run, s, 4), at(run, s, 5), at(run, s, 6), at(run, s, 7)} {}
  View at(const Run& run, int s, int i) const { return run.view(o.src[i < o.nsrc ? i : 0], s); }
  static Moves& planned(const Run& run, const Op& o) {
    static thread_local Moves kept;
    static thread_local uint64_t frame = 0;
    static thread_local const Op* of = nullptr;
    if (frame != run.frame || of != &o) {
      plan_moves(o, run.call.table + o.table, run.call.tensors[o.out].Cs / VW, kept);
      frame = run.frame;
      of = &o;
    }
    return kept;
  }
  void sources(int y, int x, const float** from) const {
    for (int i = 0; i < o.nsrc; i++) from[i] = src[i].pixel(y / o.fh[i], x / o.fw[i]);
  }
  SKC_INLINE vf vector(const float* const* from, int v) const {
    vf out{};
    for (int k = moves.first[v]; k < moves.first[v + 1]; k++) {
      const Move& m = moves.list[k];
      out = moved(out, m, from[m.source] + m.channel);
    }
    return out;
  }
  void position(int y, int x, float* to) const {
    const float* from[kMaxSources];
    sources(y, x, from);
    for (int v = 0; v < vectors; v++) store(to + v * VW, vector(from, v));
  }
};

void channels_rect(const Region& g) {
  const Gather gather(g.run, g.o, g.s);
  positions(g, [&](int y, int x) {
    const float* from[kMaxSources];
    gather.sources(y, x, from);
    return put(g, y, x, [&](int c) { return gather.vector(from, c / VW); });
  });
}
#else
struct Gather {
  const Run& run;
  const Op& o;
  int s;
  Gather(const Run& r, const Op& op, int stream) : run(r), o(op), s(stream) {}
  void position(int y, int x, float* to) const {
    const float* from[kMaxSources];
    for (int i = 0; i < o.nsrc; i++) from[i] = run.view(o.src[i], s).pixel(y / o.fh[i], x / o.fw[i]);
    const Tensor& t = run.call.tensors[o.out];
    std::memset(to + t.C / VW * VW, 0, sizeof(float) * (t.Cs - t.C / VW * VW));
    gather_runs(from, run.call.table + o.table, o.count, to);
  }
};

void channels_rect(const Region& g) {
  const Gather gather(g.run, g.o, g.s);
  positions(g, [&](int y, int x) {
    gather.position(y, x, g.line);
    return put_line(g, y, x);
  });
}
#endif

// A shifted, strided window that may reach over the edge, where `a0` is read. It has no activation.
void window_rect(const Region& g) {
  const Op& o = g.o;
  const View in = g.source(0);
  positions(g, [&](int y, int x) {
    const int yy = y * o.sh - o.pt, xx = x * o.sw - o.pl;
    const bool inside = yy >= 0 && yy < in.t->H && xx >= 0 && xx < in.t->W;
    const float* p = inside ? in.pixel(yy, xx) : nullptr;
    return write_values(g.out, y, x, g.fresh, [&](int c) { return p ? load(p + c) : splat(o.a0); });
  });
}

// Index tables {rows: H x kh, columns: W x kw} in the integers, weights alike.
void resize_rect(const Region& g) {
  const Op& o = g.o;
  const View in = g.source(0);
  const int32_t *iy = g.run.call.table + o.table, *ix = iy + (long)g.out.t->H * o.kh;
  const float *wy = g.run.call.weights + o.w, *wx = wy + (long)g.out.t->H * o.kh;
  positions(g, [&](int y, int x) {
    const float* rows[kMaxTaps];
    for (int i = 0; i < o.kh; i++) rows[i] = in.pixel(iy[y * o.kh + i], 0);
    return put(g, y, x, [&](int c) {
      if (o.kh == 1 && o.kw == 1) return load(rows[0] + (long)ix[x] * in.t->Cs + c);
      const float* at[kMaxTaps];
      for (int i = 0; i < o.kh; i++) at[i] = rows[i] + c;
      return resample(at, wy + y * o.kh, o.kh, ix + x * o.kw, wx + x * o.kw, o.kw, in.t->Cs);
    });
  });
}

// Phase (y, x) mod kh, kw of the output is C channels of the input: one behind the other (mode 0), or
// every kh * kw-th (mode 1).
void depth_to_space_rect(const Region& g) {
  const Op& o = g.o;
  const View in = g.source(0);
  const int C = g.out.t->C, block = o.kh * o.kw;
  std::memset(g.line, 0, sizeof(float) * (g.out.t->Cs + VW));
  positions(g, [&](int y, int x) {
    const int phase = y % o.kh * o.kw + x % o.kw;
    const float* p = in.pixel(y / o.kh, x / o.kw) + (o.mode ? phase : (long)phase * C);
    if (!o.mode)
      std::memcpy(g.line, p, sizeof(float) * C);
    else
      for (int c = 0; c < C; c++) g.line[c] = p[c * block];
    return put_line(g, y, x);
  });
}

void space_to_depth_rect(const Region& g) {
  const Op& o = g.o;
  const View in = g.source(0);
  const int C = in.t->C, block = o.kh * o.kw;
  std::memset(g.line, 0, sizeof(float) * (g.out.t->Cs + VW));
  positions(g, [&](int y, int x) {
    for (int k = 0; k < block; k++) {
      const float* p = in.pixel(y * o.kh + k / o.kw, x * o.kw + k % o.kw);
      if (!o.mode)
        std::memcpy(g.line + (long)k * C, p, sizeof(float) * C);
      else
        for (int c = 0; c < C; c++) g.line[c * block + k] = p[c];
    }
    return put_line(g, y, x);
  });
}

void softmax_rect(const Region& g) {
  const View in = g.source(0);
  positions(g, [&](int y, int x) {
    softmax_pixel(in.pixel(y, x), in.t->C, g.line);
    return put_line(g, y, x);
  });
}

void reduce_rect(const Region& g) {
  const View in = g.source(0);
  positions(g, [&](int y, int x) {
    const float v = reduce_pixel(in.pixel(y, x), in.t->C, g.o.mode);
    return put(g, y, x, [&](int) { return splat(v); });
  });
}

// Gathers the channels of a region for the links that read them.
void gather_item(Run& run, const Op& o, const Item& item, int tid) {
  const Tensor& t = run.call.tensors[o.out];
  const Rect& r = item.r;
  const long pixels = (long)r.h() * r.w();
  float* x = run.memory[tid].get(pixels * t.Cs + 2 * VW);
  const Gather gather(run, o, item.s);
  float* to = x;
  for (int y = r.y0; y < r.y1; y++)
    for (int i = r.x0; i < r.x1; i++, to += t.Cs) gather.position(y, i, to);
  finish_positions(run, o, t.C, t.Cs, x, pixels);
  run_links(run, o, r, item.s, x, tid, 1);
}

void region_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  if (o.tail >= 0) return gather_item(run, o, item, tid);
  View out = run.view(o.out, item.s);
  if (item.action == kClean) return out.clean(item.r);
  size_t floats = out.t->Cs + 2 * VW;
  if (separable(o)) floats = ((item.r.h() - 1) * o.sh + o.kh) * (size_t)item.r.w() * out.t->Cs;
  float* line = run.memory[tid].get(floats);
  const Region g{run, o, out, item.r, item.s, run.fresh(item.s), Activation(o, run.call.weights), line};
  switch (o.kind) {
    case kAdd: return add_rect(g);
    case kPool: return pool_rect(g);
    case kAffine: return affine_rect(g);
    case kBinary: return binary_rect(g);
    case kChannels: return channels_rect(g);
    case kWindow: return window_rect(g);
    case kResize: return resize_rect(g);
    case kDepthToSpace: return depth_to_space_rect(g);
    case kSpaceToDepth: return space_to_depth_rect(g);
    case kSoftmax: return softmax_rect(g);
    case kReduce: return reduce_rect(g);
    default: return;
  }
}

// Positions of source i that the rectangle of the output is made of; may reach over the edge.
Rect footprint(const Run& run, const Op& o, const Tensor& in, int i, const Rect& r) {
  switch (o.kind) {
    case kPool:
    case kWindow: {
      const int kh = o.kind == kPool ? o.kh : 1, kw = o.kind == kPool ? o.kw : 1;
      const int y = r.y0 * o.sh - o.pt, x = r.x0 * o.sw - o.pl;
      return {y, y + (r.h() - 1) * o.sh + kh, x, x + (r.w() - 1) * o.sw + kw};
    }
    case kResize: {
      const int32_t *iy = run.call.table + o.table, *ix = iy + run.call.tensors[o.out].H * o.kh;
      Rect f{in.H, 0, in.W, 0};
      span(iy + r.y0 * o.kh, r.h() * o.kh, &f.y0, &f.y1);
      span(ix + r.x0 * o.kw, r.w() * o.kw, &f.x0, &f.x1);
      return f;
    }
    case kDepthToSpace:
      return {r.y0 / o.kh, (r.y1 - 1) / o.kh + 1, r.x0 / o.kw, (r.x1 - 1) / o.kw + 1};
    case kSpaceToDepth: return {r.y0 * o.kh, r.y1 * o.kh, r.x0 * o.kw, r.x1 * o.kw};
    case kBinary:
      if (in.H == 1 && in.W == 1) return {0, 1, 0, 1};
      return r;
    default:
      return {r.y0 / o.fh[i], (r.y1 - 1) / o.fh[i] + 1, r.x0 / o.fw[i], (r.x1 - 1) / o.fw[i] + 1};
  }
}

void list_regions(Run& run, const Op& o, int s) {
  const Tensor& t = run.call.tensors[o.out];
  View out = run.view(o.out, s);
  run.open(out, s);
  run.refresh[s] = o.tail >= 0 && open_links(run, o, s);
  const bool always = run.fresh(s) || out.restless() || run.refresh[s];
  const int wide = o.tail < 0 ? kWide : widest(t.Cs);
  bool changed = always || out.has_stale();
  for (int i = 0; i < o.nsrc; i++) changed |= run.view(o.src[i], s).changed();
  if (!changed) return;
  for (int y = 0; y < t.H; y += kRegion)
    for (int x = 0; x < t.W; x += kRegion) {
      const Rect r{y, y + kRegion < t.H ? y + kRegion : t.H, x, x + kRegion < t.W ? x + kRegion : t.W};
      bool touch = always;
      for (int i = 0; i < o.nsrc && !touch; i++) {
        const View src = run.view(o.src[i], s);
        const Rect f = footprint(run, o, *src.t, i, r);
        // Where a window lies beyond the edge it reads no source.
        touch = f.y1 > 0 && f.x1 > 0 && src.changed_in(f.y0, f.y1, f.x0, f.x1);
      }
      if (!touch && !out.stale_in(r)) continue;
      const Action action = touch ? kFire : kClean;
      // Neighbours are one item: long rows are what caches foresee.
      if (Item* last = run.items.empty() ? nullptr : &run.items.back();
          last && last->s == s && last->action == action && last->r.y0 == r.y0 && last->r.x1 == r.x0 &&
          r.x1 - last->r.x0 <= wide)
        last->r.x1 = r.x1;
      else
        run.items.push_back({r, s, 0, 0, action});
    }
}

}  // namespace

void run_pixels(Run& run, const Op& o) {
  for (int s = 0; s < run.call.B; s++) list_regions(run, o, s);
  const Tensor& t = run.call.tensors[o.out];
  if (o.tail < 0) halve_rows(run);
  double area = 0;
  for (const Item& item : run.items) area += (double)item.r.h() * item.r.w();
  run.dispatch(region_item, (int)run.items.size(), area * (t.Cs * 1.2e-4 + link_products(run, o) * 2e-5));
}

}  // namespace SKC_ISA
}  // namespace skc
