// A skipped convolution: candidates, gates, then the blocks that fire with their epilogue.
#include "kernels/depthwise.h"
#include "kernels/winograd.h"
#include "ops/chain.h"
#include "ops/scaled.h"

namespace skc {
namespace SKC_ISA {
namespace {

constexpr float kSlack = 1.0001f;  // what rounding may add to a sum of change
constexpr int kTile = 8;  // blocks are computed in tiles of at most kTile rows

struct Source {
  View view;
  Input input;  // what the convolution reads: change, or values
};

Source source_of(const Op& o, const Run& run, int s) {
  View v = run.view(o.src[0], s);
  const Tensor& t = *v.t;
  const float* origin = run.arena(s) + (o.policy == kPrevious ? t.delta : t.cur);
  return {v, input_of(o, t, origin)};
}

// The rectangle of a scaled input, made in `local`.
Source scaled_source(const Op& o, const Run& run, int s, const Rect& r, bool change, float* local) {
  const View v = run.view(o.src[0], s);
  scale_rect(v, run.view(o.src[1], s), r, change, local);
  const long col = v.t->Cs, row = r.w() * col;
  return {v, {local - r.y0 * row - r.x0 * col, row, col}};
}

Rect block_rect(const Op& o, const Tensor& out, int by, int bx) {
  const int y0 = by * o.b, x0 = bx * o.b;
  return {y0, y0 + o.b < out.H ? y0 + o.b : out.H, x0, x0 + o.b < out.W ? x0 + o.b : out.W};
}

int tile_h(const Op& o, int rows) { return (rows - 1) * o.sh + (o.kh - 1) * o.dh + 1; }
int tile_w(const Op& o, int cols) { return (cols - 1) * o.sw + (o.kw - 1) * o.dw + 1; }

bool input_changed(const Op& o, const View& in, const Rect& r) {
  const int y = r.y0 * o.sh - o.pt, x = r.x0 * o.sw - o.pl;
  return in.changed_in(y, y + tile_h(o, r.h()), x, x + tile_w(o, r.w()));
}

// The block of a closed loop: what its gate compares, and where the tile lies in the input.
//
// The reference of a block that has seen no change since it last fired is the input itself, so it is
// stored only from the first change on that does not fire; until then the values before this frame,
// which the input's producer left in scratch (`old`), tell what changed.
struct ClosedBlock {
  const Op& o;
  const View& view;
  Input in;         // at the tile's first position
  int y0, x0;       // of the tile in the frame; may lie beyond its edge
  int th, tw, cs;
  float* ref;       // stored tile
  float* kept;      // whether it is the reference, or null where it always is
  float* bound;     // at least the largest sum of change since the reference, once that is stored

  bool stored() const { return !kept || *kept != 0.f; }
  float* row(float* tile, int y) const { return tile + (long)y * tw * cs; }

  // Pixels of the tile that changed this frame, as f(y, x) of the tile.
  template <class F>
  void changed_pixels(F f) const {
    const Tensor& t = *view.t;
    const int ya = y0 < 0 ? 0 : y0, yb = y0 + th < t.H ? y0 + th : t.H;
    const int xa = x0 < 0 ? 0 : x0, xb = x0 + tw < t.W ? x0 + tw : t.W;
    for (int y = ya; y < yb; y++) {
      const uint8_t* cells = view.cells + (y / kCell) * t.cw;
      for (int x = xa; x < xb;) {
        const int end = (x / kCell + 1) * kCell < xb ? (x / kCell + 1) * kCell : xb;
        if (!cells[x / kCell]) {
          x = end;
          continue;
        }
        for (; x < end; x++) f(y - y0, x - x0);
      }
    }
  }

  // Sums over channels of what changed since the reference, [th][tw].
  void change(float* m) const {
    if (!stored()) return recent(m);
    for (int y = 0; y < th; y++) change_of_row(in.base + y * in.row, row(ref, y), tw, cs, m + y * tw);
  }

  // The same of what changed in this frame.
  void recent(float* m) const {
    const Tensor& t = *view.t;
    if (view.any[0] == kEverywhere && y0 >= 0 && x0 >= 0 && y0 + th <= t.H && x0 + tw <= t.W) {
      for (int y = 0; y < th; y++)
        std::memcpy(m + y * tw, view.m + (long)(y0 + y) * t.Wp + x0, sizeof(float) * tw);
      return;
    }
    std::memset(m, 0, sizeof(float) * th * tw);
    changed_pixels([&](int y, int x) { m[y * tw + x] = view.m[(long)(y0 + y) * t.Wp + x0 + x]; });
  }

  // The tile as it was when the block last fired.
  void last(float* tile) const {
    for (int y = 0; y < th; y++)
      std::memcpy(row(tile, y), in.base + y * in.row, sizeof(float) * tw * cs);
    changed_pixels([&](int y, int x) {
      if (view.m[(long)(y0 + y) * view.t->Wp + x0 + x] != 0.f)
        std::memcpy(row(tile, y) + x * cs, view.old_pixel(y0 + y, x0 + x), sizeof(float) * cs);
    });
  }

  void fired() const {
    if (kept) {
      *kept = 0.f;
      return;
    }
    for (int y = 0; y < th; y++)
      std::memcpy(row(ref, y), in.base + y * in.row, sizeof(float) * tw * cs);
  }

  void skipped() const {
    if (stored()) return;
    last(ref);
    *kept = 1.f;
  }
};

ClosedBlock closed_block(const Op& o, const Run& run, const Source& src, const Candidate& c, const Rect& r) {
  const int cs = src.view.t->Cs, block = c.by * o.nbw + c.bx;
  const long full = (long)tile_h(o, o.b) * tile_w(o, o.b) * cs;
  float* kept = run.arena(c.s) + o.sig + 1 + (long)o.nbh * o.nbw + block;
  const bool lazy = src.view.old && !is_scaled(o);
  return {o,
          src.view,
          {src.input.at(o, r.y0, r.x0), src.input.row, src.input.col},
          r.y0 * o.sh - o.pt,
          r.x0 * o.sw - o.pl,
          tile_h(o, r.h()),
          tile_w(o, r.w()),
          cs,
          run.arena(c.s) + o.ref + block * full,
          lazy ? kept : nullptr,
          kept + (long)o.nbh * o.nbw};
}

// Closed loop: residual against the input of the last time this block fired.
bool reference_fires(const Op& o, const Run& run, const Source& src, const Candidate& c, const Rect& r,
                     float* local) {
  const Params gate{run.call.gates + o.gp};
  const ClosedBlock block = closed_block(o, run, src, c, r);
  const Rect origin{0, r.h(), 0, r.w()};
  bool fires = c.fresh || o.gate == kAlways;
  if (!fires && o.gate == kNorm) {
    // By the triangle inequality a sum grows by no more than what changed in this frame: as long as that
    // can't reach the threshold, nobody has to read the reference.
    if (block.kept && block.stored()) {
      block.recent(local);
      const float reach = *block.bound + support_max(o, local, block.tw, origin) * kSlack;
      if (gate.score(reach * kSlack) <= gate.p[0]) {
        *block.bound = reach;
        return false;
      }
    }
    block.change(local);
    const float sum = support_max(o, local, block.tw, origin);
    fires = gate.exceeds(sum);
    *block.bound = sum * kSlack;
  } else if (!fires) {
    const long line = (long)block.tw * block.cs;
    float* tile = block.ref;
    if (!block.stored()) block.last(tile = local);
    for (int y = 0; y < block.th; y++)
      for (long i = 0; i < line; i++)
        local[y * line + i] = block.in.base[y * block.in.row + i] - tile[y * line + i];
    const Input diff{local, line, block.cs};
    fires = !(gate.p[0] + linear_max(o, diff, origin, gate.p + 16, block.cs) < 0.f);
  }
  if (fires)
    block.fired();
  else
    block.skipped();
  return fires;
}

// Norm gates of a scaled input.
bool scaled_fires(const Op& o, const Run& run, const View& x, const Candidate& c, const Rect& r) {
  const Params gate{run.call.gates + o.gp};
  const View s = run.view(o.src[1], c.s);
  const int block = c.by * o.nbw + c.bx;
  float* top = run.arena(c.s) + o.top + (long)block * x.t->Cs;
  if (o.policy == kPrevious) {
    if (!input_changed(o, x, r) && gate.score(scaled_bound(s, top)) <= gate.p[0]) return false;
    return gate.exceeds(scaled_max(x, s, r, gate.enough(), top));
  }
  float& acc = run.arena(c.s)[o.acc + block];
  acc += gate.score(scaled_max(x, s, r, 3.4e38f, top));
  if (acc <= gate.p[0]) return false;
  acc = 0.f;
  return true;
}

bool change_fires(const Op& o, const Run& run, const Source& src, const Candidate& c, const Rect& r) {
  const Params gate{run.call.gates + o.gp};
  if (c.fresh || o.gate == kAlways) {
    const int block = c.by * o.nbw + c.bx;
    if (o.policy == kAccumulate) run.arena(c.s)[o.acc + block] = 0.f;
    // Nobody looked at the block's values: no bound until somebody does.
    if (is_scaled(o)) run.arena(c.s)[o.top + (long)block * src.view.t->Cs] = __builtin_inff();
    return true;
  }
  const Tensor& t = *src.view.t;
  if (is_linear(o))
    return !(gate.p[0] + linear_max(o, src.input, r, gate.p + 16, t.Cs) < 0.f);
  if (is_scaled(o)) return scaled_fires(o, run, src.view, c, r);
  const float* m = src.view.m + (long)(r.y0 * o.sh - o.pt) * t.Wp + r.x0 * o.sw - o.pl;
  const Rect origin{0, r.h(), 0, r.w()};
  if (o.policy == kPrevious)
    return gate.exceeds(support_max(o, m, t.Wp, origin));
  float& acc = run.arena(c.s)[o.acc + c.by * o.nbw + c.bx];
  acc += gate.score(support_max(o, m, t.Wp, origin));
  if (acc <= gate.p[0]) return false;
  acc = 0.f;
  return true;
}

void gate_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Candidate& c = run.candidates[i];
  const Tensor& out = run.call.tensors[o.out];
  const Rect r = block_rect(o, out, c.by, c.bx);
  Source src = source_of(o, run, c.s);
  const size_t tile = (size_t)tile_h(o, o.b) * tile_w(o, o.b), cs = src.view.t->Cs;
  const bool linear = o.policy == kClosedLoop && is_linear(o), made = is_scaled(o);
  const size_t floats = tile * (linear ? cs : 1) + 64;
  float* local = run.memory[tid].get(floats + (made ? tile * cs : 0));
  if (made && (o.policy == kClosedLoop || (is_linear(o) && !c.fresh)))
    src = scaled_source(o, run, c.s, r, o.policy != kClosedLoop, local + floats);
  const bool fires = o.policy == kClosedLoop ? reference_fires(o, run, src, c, r, local)
                                            : change_fires(o, run, src, c, r);
  const int block = c.by * o.nbw + c.bx;
  run.fire[(size_t)c.s * o.nbh * o.nbw + block] = fires ? kFire : kIdle;
  run.call.masks[(size_t)c.s * run.call.head->masks + o.mask + block] = fires ? 1.f : 0.f;
}

// What the epilogue compares with lies in memory, not in a cache: asked for before the products, it is
// there after them.
void prefetch(const View& out, const Rect& r, int c0, int c1) {
  const bool whole = c1 - c0 == out.t->Cs;
  for (int y = r.y0; y < r.y1; y++) {
    const float* row = out.pixel(y, r.x0) + c0;
    const int n = whole ? 1 : r.w(), floats = whole ? r.w() * out.t->Cs : c1 - c0;
    for (int i = 0; i < n; i++, row += out.t->Cs)
      for (int c = 0; c < floats; c += 16) __builtin_prefetch(row + c, 1, 2);
  }
}

// What a block that did not fire was computed from.
Input last_input(const Op& o, const Run& run, const Source& src, const Item& item) {
  const Candidate c{item.s, item.r.y0 / o.b, item.r.x0 / o.b, false};
  const ClosedBlock block = closed_block(o, run, src, c, item.r);
  if (!block.stored()) return src.input;
  const long col = block.cs, row = block.tw * col;
  return {block.ref - item.r.y0 * o.sh * row - item.r.x0 * o.sw * col, row, col};
}

// A tile of an operation that links follow: its output goes to them and is not stored.
void chain_item(Run& run, const Op& o, const Item& item, int tid) {
  const Source src = source_of(o, run, item.s);
  const Input input = item.action == kRefresh ? last_input(o, run, src, item) : src.input;
  const Tensor& out = run.call.tensors[o.out];
  const int ci = src.view.t->C, ics = src.view.t->Cs, cs = out.Cs, w = item.r.w();
  const long pixels = (long)item.r.h() * w, floats = pixels * cs + 4 * kPanel;
  const long extra = o.algo == kWinograd ? winograd_scratch(item.r.h(), w, ics) : 0;
  float* x = run.memory[tid].get(floats + extra);
  const float* weights = run.call.weights + o.w;
  const int panels = (cs + kPanel - 1) / kPanel;
  if (o.algo == kWinograd || o.algo == kGrouped) {
    if (o.algo == kGrouped) {
      std::memset(x, 0, floats * sizeof(float));
      conv_grouped(o, input, item.r, weights, ci, out.C, x, cs);
    } else {
      conv_winograd(o, input, item.r, weights, ci, ics, cs, 0, panels, x, cs, x + floats);
    }
    finish_positions(run, o, out.C, cs, x, pixels);
  } else {
    const int rows = o.algo == kDepthwise || w >= kChunk ? 1 : kChunk / w;
    for (Rect part = item.r; part.y0 < item.r.y1; part.y0 = part.y1) {
      part.y1 = part.y0 + rows < item.r.y1 ? part.y0 + rows : item.r.y1;
      float* to = x + (long)(part.y0 - item.r.y0) * w * cs;
      if (o.algo == kDepthwise)
        conv_depthwise(o, input, part, weights, cs, to, cs);
      else
        conv_direct(o, input, part, weights, ci, cs, 0, panels, to, cs);
      finish_positions(run, o, out.C, cs, to, (long)part.h() * w);
    }
  }
  run_links(run, o, item.r, item.s, x, tid, 1);
}

void block_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  if (o.tail >= 0) return chain_item(run, o, item, tid);
  View out = run.view(o.out, item.s);
  if (item.action == kClean) return out.clean(item.r);
  if (item.action == kRepeat) return repeat_rect(out, item.r);
  View res = run.view(o.res < 0 ? o.out : o.res, item.s);
  const Epilogue e = epilogue_of(o, run, out, o.res < 0 ? nullptr : &res, item.s);
  const int cs = out.t->Cs;
  if (item.action == kResidual) return epilogue(e, item.r, nullptr, 0, 0, cs, true);

  Source src = source_of(o, run, item.s);
  const int ci = src.view.t->C, ics = src.view.t->Cs, pixels = item.r.h() * item.r.w();
  const int c0 = item.p0 * kPanel, c1 = item.p1 * kPanel < cs ? item.p1 * kPanel : cs;
  const long stride = c1 - c0;
  const long temp = (long)pixels * stride + 2 * kPanel;
  const long extra = o.algo == kWinograd ? winograd_scratch(item.r.h(), item.r.w(), ics)
                     : is_scaled(o)      ? (long)pixels * ics
                                         : 0;
  float* tmp = run.memory[tid].get(temp + 64 + extra);
  if (out.cur && o.algo != kDepthwise) prefetch(out, item.r, c0, c1);
  if (is_scaled(o))
    src = scaled_source(o, run, item.s, item.r, o.policy == kPrevious, tmp + (temp + 15) / 16 * 16);
  const float* w = run.call.weights + o.w;
  if (o.algo == kWinograd)
    conv_winograd(o, src.input, item.r, w, ci, ics, cs, item.p0, item.p1, tmp, stride,
                  tmp + (temp + 15) / 16 * 16);
  else if (o.algo == kDepthwise) {
    // Row by row, so that what the epilogue reads is still in the nearest cache.
    for (Rect row = item.r; row.y0 < item.r.y1; row.y0++) {
      row.y1 = row.y0 + 1;
      conv_depthwise(o, src.input, row, w, cs, tmp, stride);
      epilogue(e, row, tmp, stride, c0, c1, true);
    }
    return;
  } else if (o.algo == kGrouped) {
    std::memset(tmp, 0, temp * sizeof(float));  // padding channels no group writes
    conv_grouped(o, src.input, item.r, w, ci, out.t->C, tmp, stride);
  } else {
    // A few rows at a time: what the epilogue reads is still in the nearest cache, and memory is read
    // and written in long runs, which the hardware foresees.
    const int rows = item.r.w() >= kChunk ? 1 : kChunk / item.r.w();
    for (Rect part = item.r; part.y0 < item.r.y1; part.y0 = part.y1) {
      part.y1 = part.y0 + rows < item.r.y1 ? part.y0 + rows : item.r.y1;
      conv_direct(o, src.input, part, w, ci, cs, item.p0, item.p1, tmp, stride);
      epilogue(e, part, tmp, stride, c0, c1, c0 == 0 && c1 == cs);
    }
    return;
  }
  epilogue(e, item.r, tmp, stride, c0, c1, c0 == 0 && c1 == cs);
}

void change_item(void* ctx, int, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Item& item = run.items[i];
  View out = run.view(run.op->out, item.s);
  const int panels = (out.t->Cs + kPanel - 1) / kPanel;
  if (item.action == kFire && item.p0 == 0 && item.p1 < panels) sum_change(out, item.r);
}

// Finds the candidates of one stream and fills in the masks of all other blocks.
void find_candidates(Run& run, const Op& o, int s) {
  const bool fresh = run.fresh(s);
  const float* gp = run.call.gates + o.gp;
  float* mask = run.call.masks + (size_t)s * run.call.head->masks + o.mask;
  const int blocks = o.nbh * o.nbw;
  std::memset(run.fire.data() + (size_t)s * blocks, kIdle, blocks);
  float* sig = o.sig < 0 ? nullptr : run.arena(s) + o.sig;
  const float idle = fresh ? 1.f : idle_mask(o, gp);
  for (int i = 0; i < blocks; i++) {
    // A linear gate in closed loop: an unchanged block that did not fire keeps its residual.
    mask[i] = sig && is_linear(o) && !fresh && sig[1 + i] == 0.f ? 0.f : idle;
  }
  // A lower threshold wakes blocks whose input did not change but whose reference is old.
  bool all = fresh || (sig && sig[0] != gp[0]);
  if (sig) sig[0] = gp[0];
  const View in = run.view(o.src[0], s);
  all = all || (is_scaled(o) && run.view(o.src[1], s).changed());
  if (!all && !in.changed()) return;
  const Tensor& out = run.call.tensors[o.out];
  for (int by = 0; by < o.nbh; by++)
    for (int bx = 0; bx < o.nbw; bx++)
      if (all || input_changed(o, in, block_rect(o, out, by, bx)))
        run.candidates.push_back({s, by, bx, fresh});
}

void add_tiles(Run& run, const Op& o, const Rect& r, int s, Action action) {
  const int panels = (run.call.tensors[o.out].Cs + kPanel - 1) / kPanel;
  for (int y = r.y0; y < r.y1; y += kTile)
    for (int x = r.x0; x < r.x1; x += o.mode) {
      const int y1 = y + kTile < r.y1 ? y + kTile : r.y1, x1 = x + o.mode < r.x1 ? x + o.mode : r.x1;
      run.items.push_back({{y, y1, x, x1}, s, 0, panels, action});
    }
}

// Lists block rows [y0, y1), in which action(bx) is what column bx has to do; neighbours that do the
// same are computed as one, up to o.mode columns.
template <class F>
void list_rows(Run& run, const Op& o, int s, int y0, int y1, F action) {
  const Tensor& t = run.call.tensors[o.out];
  const int bottom = y1 * o.b < t.H ? y1 * o.b : t.H;
  Rect open{0, 0, 0, 0};
  Action kind = kIdle;
  for (int bx = 0; bx <= o.nbw; bx++) {
    const Action now = bx < o.nbw ? action(bx) : kIdle;
    const int x1 = (bx + 1) * o.b < t.W ? (bx + 1) * o.b : t.W;
    if (now == kind && kind != kIdle && x1 - open.x0 <= o.mode) {
      open.x1 = x1;
      continue;
    }
    if (kind != kIdle) add_tiles(run, o, open, s, kind);
    open = {y0 * o.b, bottom, bx * o.b, x1};
    kind = now;
  }
}

// Lists tiles to compute. Where everything fires blocks do not matter, and small blocks that do the
// same in several rows become tiles of full height: larger tiles load each weight less often.
void list_items(Run& run, const Op& o, int s) {
  const Tensor& t = run.call.tensors[o.out];
  const int blocks = o.nbh * o.nbw, rows = o.b < kTile ? kTile / o.b : 1;
  Action* actions = run.fire.data() + (size_t)s * blocks;
  const View out = run.view(o.out, s), res = run.view(o.res < 0 ? o.out : o.res, s);
  int fired = 0;
  for (int i = 0; i < blocks; i++) {
    fired += actions[i] == kFire;
    if (actions[i] != kIdle) continue;
    const Rect r = block_rect(o, t, i / o.nbw, i % o.nbw);
    if (o.res >= 0 && res.changed_in(r.y0, r.y1, r.x0, r.x1)) actions[i] = kResidual;
    else if (out.restless()) actions[i] = o.z < 0 ? kRepeat : kResidual;
    else if (out.stale_in(r)) actions[i] = kClean;
    else if (run.refresh[s]) run.items.push_back({r, s, 0, 1, kRefresh});
  }
  if (fired == blocks) return add_tiles(run, o, {0, t.H, 0, t.W}, s, kFire);
  for (int by = 0; by < o.nbh; by += rows) {
    const int to = by + rows < o.nbh ? by + rows : o.nbh;
    const Action* top = actions + (size_t)by * o.nbw;
    auto same = [&](int bx) {
      for (int y = 1; y < to - by; y++)
        if (top[y * o.nbw + bx] != top[bx]) return false;
      return true;
    };
    list_rows(run, o, s, by, to, [&](int bx) { return same(bx) ? top[bx] : kIdle; });
    for (int y = by; y < to && to - by > 1; y++)
      list_rows(run, o, s, y, y + 1, [&](int bx) {
        return same(bx) ? kIdle : actions[(size_t)y * o.nbw + bx];
      });
  }
}

void push_cut(std::vector<Item>& list, Item item, int panels, int k, int parts) {
  item.p0 = panels * k / parts;
  item.p1 = panels * (k + 1) / parts;
  list.push_back(item);
}

// Cuts tiles over output channels: all of them where there are too few, or where the weights are so
// many that each core should keep its own share in cache; else those left over when every thread
// has taken the same number. True if any was cut.
bool split_channels(Run& run, const Op& o) {
  const int T = run.pool.threads(), co = run.call.tensors[o.out].Cs;
  const int panels = (co + kPanel - 1) / kPanel;
  if (T == 1 || panels == 1 || o.algo > kWinograd || o.tail >= 0) return false;
  int n = 0;
  for (const Item& item : run.items) n += item.action == kFire;
  const bool all = n > 0 && (n < T || o.count > (o.kh * o.kw == 1 ? 2000000 : 400000));  // bytes of weights
  if (!all && n % T == 0) return false;
  int parts = o.algo == kWinograd || n >= T ? T : 2 * T;
  if (parts > panels) parts = panels;
  static thread_local std::vector<Item> sorted;
  sorted.clear();
  for (int k = 0; all && k < parts; k++)
    for (const Item& item : run.items)
      if (item.action == kFire) push_cut(sorted, item, panels, k, parts);
  int whole = 0;
  for (const Item& item : run.items) {
    if (item.action != kFire) {
      sorted.push_back(item);
    } else if (!all && whole++ < n - n % T) {
      sorted.push_back(item);
    } else {
      for (int k = 0; !all && k < parts; k++) push_cut(sorted, item, panels, k, parts);
    }
  }
  run.items.swap(sorted);
  return true;
}

// What the items take on one thread, about: products at half of a core's rate, and the epilogue.
double microseconds(const Run& run, const Op& o) {
  const Tensor &in = run.call.tensors[o.src[0]], &out = run.call.tensors[o.out];
  const double own = (double)o.kh * o.kw * in.C / o.groups * out.Cs, rest = out.Cs * 5e-4;
  const double products = (own + link_products(run, o)) * 2e-5;
  double us = 0;
  for (const Item& item : run.items)
    us += (double)item.r.h() * item.r.w() * (item.action == kFire ? products + rest : rest);
  return us;
}

// Ranges of about equal work: a tile that only gets its epilogue costs a fraction of a convolution.
void balance(const Run& run, int* bounds) {
  const int T = run.pool.threads(), n = (int)run.items.size();
  auto cost = [](const Item& item) {
    const long area = (long)item.r.w() * item.r.h();
    return item.action == kFire ? 2 * (item.p1 - item.p0) * area : item.action == kResidual ? area / 8 + 1 : 1L;
  };
  long total = 0, sum = 0;
  for (const Item& item : run.items) total += cost(item);
  int k = 0;
  bounds[0] = 0;
  for (int i = 0; i < n; i++) {
    sum += cost(run.items[i]);
    while (k + 1 < T && 2 * sum * T >= 2 * total * (k + 1)) bounds[++k] = i + 1;
  }
  while (k < T) bounds[++k] = n;
}

}  // namespace

void run_conv(Run& run, const Op& o) {
  run.candidates.clear();
  const int blocks = o.nbh * o.nbw, B = run.call.B;
  if (run.fire.size() < (size_t)B * blocks) run.fire.resize((size_t)B * blocks);
  for (int s = 0; s < B; s++) find_candidates(run, o, s);
  const double area = (double)o.b * o.b;
  const int n = (int)run.candidates.size();
  const int ci = run.call.tensors[o.src[0]].C;
  const bool whole = o.policy == kClosedLoop || is_linear(o) || is_scaled(o);
  const double weight = whole ? ci / 8. + 9. : 2.;
  run.dispatch(gate_item, n, n * area * weight * 1e-3);

  bool any = n > 0;
  for (int s = 0; s < B; s++) {
    View out = run.view(o.out, s);
    run.open(out, s);
    run.refresh[s] = o.tail >= 0 && open_links(run, o, s);
    const bool res = o.res >= 0 && run.view(o.res, s).changed();
    if (n > 0 || res || out.has_stale() || out.restless() || run.refresh[s]) list_items(run, o, s), any = true;
    if (o.sig >= 0 && is_linear(o))
      std::memcpy(run.arena(s) + o.sig + 1, run.call.masks + (size_t)s * run.call.head->masks + o.mask,
                  sizeof(float) * blocks);
  }
  if (!any || run.items.empty()) return;
  // Winograd's tiles stay whole: their transforms share edges.
  if (o.algo != kWinograd && !is_scaled(o) && o.tail < 0) halve_rows(run);
  const bool split = split_channels(run, o);
  int bounds[kMaxThreads + 1];
  balance(run, bounds);
  run.dispatch(block_item, (int)run.items.size(), microseconds(run, o), bounds);
  if (split && run.call.tensors[o.out].m >= 0)
    run.dispatch(change_item, (int)run.items.size(), run.items.size() * 0.5);
}

}  // namespace SKC_ISA
}  // namespace skc
