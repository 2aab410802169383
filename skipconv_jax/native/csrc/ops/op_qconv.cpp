// A skipped convolution of bytes: candidates, gates on integers, then the blocks that fire.
#include "kernels/gate.h"
#include "ops/q_view.h"

namespace skc {
namespace SKC_ISA {
namespace {

constexpr int kTileRows = 8, kTilePixels = 128;

Rect block_rect(const Op& o, const Tensor& out, int by, int bx) {
  const int y0 = by * o.b, x0 = bx * o.b;
  return {y0, y0 + o.b < out.H ? y0 + o.b : out.H, x0, x0 + o.b < out.W ? x0 + o.b : out.W};
}

int extent(int outputs, int stride, int taps, int dilation) {
  return (outputs - 1) * stride + (taps - 1) * dilation + 1;
}

// What the outputs of a rectangle see; may reach over the edge, into the border.
Rect support(const Op& o, const Rect& r) {
  const int y = r.y0 * o.sh - o.pt, x = r.x0 * o.sw - o.pl;
  return {y, y + extent(r.h(), o.sh, o.kh, o.dh), x, x + extent(r.w(), o.sw, o.kw, o.dw)};
}

bool input_changed(const Op& o, const View& in, const Rect& r) {
  const Rect f = support(o, r);
  return in.changed_in(f.y0, f.y1, f.x0, f.x1);
}

// Largest sum of m over the support of an output; m is [h][w] of the support of the rectangle.
int largest_sum(const Op& o, const int* m, int w, const Rect& r) {
  int best = 0;
  for (int y = 0; y < r.h(); y++)
    for (int x = 0; x < r.w(); x++) {
      const int* p = m + y * o.sh * w + x * o.sw;
      int sum = 0;
      for (int ky = 0; ky < o.kh; ky++)
        for (int kx = 0; kx < o.kw; kx++) sum += p[ky * o.dh * w + kx * o.dw];
      best = sum > best ? sum : best;
    }
  return best;
}

// Whether every position of a support belongs to some output.
bool without_gaps(const Op& o) {
  return o.sh <= o.kh && o.sw <= o.kw && o.dh == 1 && o.dw == 1;
}

// Closed loop: what the block sees against what it saw when it last fired; remembers it if it fires.
bool block_fires(const Op& o, const Run& run, const Candidate& c, const Rect& r, int* m) {
  const Params gate{run.call.gates + o.gp};
  const ByteView in = byte_view(run, o.src[0], c.s);
  const Rect f = support(o, r);
  const int line = f.w() * in.cs, most = extent(o.b, o.sh, o.kh, o.dh) * extent(o.b, o.sw, o.kw, o.dw);
  uint8_t* ref = reinterpret_cast<uint8_t*>(run.arena(c.s) + o.ref) + (long)(c.by * o.nbw + c.bx) * most * in.cs;
  const auto distance = run.call.q->distance;
  bool fires = c.fresh || o.gate == kAlways || gate.p[0] < 0.f;
  if (!fires && gate.p[0] == 0.f && gate.p[1] > 0.f && without_gaps(o)) {
    for (int y = 0; y < f.h() && !fires; y++)
      fires = std::memcmp(in.pixel(f.y0 + y, f.x0), ref + (long)y * line, line) != 0;
  } else if (!fires) {
    bool any = false;
    for (int y = 0; y < f.h(); y++) {
      const uint8_t *p = in.pixel(f.y0 + y, f.x0), *q = ref + (long)y * line;
      if (std::memcmp(p, q, line) == 0) {
        std::memset(m + y * f.w(), 0, sizeof(int) * f.w());
        continue;
      }
      any = true;
      for (int x = 0; x < f.w(); x++) m[y * f.w() + x] = distance(p + x * in.cs, q + x * in.cs, in.cs);
    }
    const int change = any ? largest_sum(o, m, f.w(), r) : 0;
    fires = !((float)change * gate.p[1] <= gate.p[0]);
  }
  for (int y = 0; y < f.h() && fires; y++)
    std::memcpy(ref + (long)y * line, in.pixel(f.y0 + y, f.x0), line);
  return fires;
}

void gate_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Candidate& c = run.candidates[i];
  const Rect r = block_rect(o, run.call.tensors[o.out], c.by, c.bx);
  const Rect f = support(o, r);
  int* m = reinterpret_cast<int*>(run.memory[tid].get((size_t)f.h() * f.w()));
  const bool fires = o.ref < 0 || block_fires(o, run, c, r, m);
  const int block = c.by * o.nbw + c.bx;
  run.fire[(size_t)c.s * o.nbh * o.nbw + block] = fires ? kFire : kIdle;
  run.call.masks[(size_t)c.s * run.call.head->masks + o.mask + block] = fires ? 1.f : 0.f;
}

int panels_of(const Op& o, const Tensor& out) {
  return o.algo == kGrouped ? 1 : out.Cs / kBytePanel;
}

void block_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  const Tensor& out = run.call.tensors[o.out];
  if (item.action == kClean) return run.view(o.out, item.s).clean(item.r);
  const ByteView in = byte_view(run, o.src[0], item.s);
  const Made made = made_by(o, out);
  const Rect& r = item.r;
  const bool grouped = o.algo == kGrouped;
  const int p0 = item.p0, p1 = item.p1, width = grouped ? out.Cs : (p1 - p0) * kBytePanel;
  // Groups one behind the other write whole panels: what the last one pads lies behind the channels.
  const long stride = grouped ? width + kBytePanel : width, size = (long)made;
  const size_t bytes = ((size_t)r.h() * r.w() * stride + 2 * kBytePanel) * size;
  uint8_t* tmp = reinterpret_cast<uint8_t*>(run.memory[tid].get((bytes + 3) / 4 + 16));
  QTile t{in.pixel(0, 0) - o.pt * in.row - (long)o.pl * in.cs,
          in.row, in.cs, o.sh, o.sw, o.kh, o.kw, o.dh, o.dw, o.count,
          reinterpret_cast<const int8_t*>(run.call.weights + o.w),
          reinterpret_cast<const int32_t*>(run.call.weights + o.bias), run.call.weights + o.mult,
          o.a0, o.a1, o.shift, r.y0, r.y1, r.x0, r.x1, p0, p1, made, tmp, stride};
  if (o.algo == kDepthwise) {
    run.call.q->depthwise(t);
  } else if (grouped) {
    std::memset(tmp, 0, bytes);
    const int ci = in.map.t->C / o.groups, co = out.C / o.groups, panels = (co + kBytePanel - 1) / kBytePanel;
    const long depth = (long)o.kh * o.kw * o.count * 64;
    const uint8_t* x = t.x;
    t.p0 = 0, t.p1 = panels;
    for (int k = 0; k < o.groups; k++) {
      t.x = x + k * ci;
      t.tmp = tmp + (long)k * co * size;
      run.call.q->conv(t);
      t.w += panels * depth, t.bias += panels * kBytePanel, t.mult += panels * kBytePanel;
    }
    for (long p = 0; p < (long)r.h() * r.w(); p++)
      std::memset(tmp + (p * stride + out.C) * size, 0, (out.Cs - out.C) * size);
  } else {
    // Positions without padding channels: a kernel row is one run of bytes.
    if (o.dw == 1 && o.count * 4 == in.cs) t.quads *= o.kw, t.kw = 1;
    run.call.q->conv(t);
  }
  const bool fresh = run.fresh(item.s);
  for (int y = r.y0; y < r.y1; y++, tmp += r.w() * stride * size)
    store_positions(run, o, item.s, y, r.x0, r.w(), tmp, stride, p0 * kBytePanel, width, fresh);
}

// Finds the candidates of one stream and fills in the masks of all other blocks.
void find_candidates(Run& run, const Op& o, int s) {
  const bool fresh = run.fresh(s);
  const float* gp = run.call.gates + o.gp;
  const int blocks = o.nbh * o.nbw;
  float* mask = run.call.masks + (size_t)s * run.call.head->masks + o.mask;
  std::memset(run.fire.data() + (size_t)s * blocks, kIdle, blocks);
  const float idle = fresh ? 1.f : idle_mask(o, gp);
  for (int i = 0; i < blocks; i++) mask[i] = idle;
  // A lower threshold wakes blocks whose input did not change but whose reference is old.
  float* sig = o.sig < 0 ? nullptr : run.arena(s) + o.sig;
  const bool all = fresh || (sig && *sig != gp[0]);
  if (sig) *sig = gp[0];
  const View in = run.view(o.src[0], s);
  if (!all && !in.changed()) return;
  const Tensor& out = run.call.tensors[o.out];
  for (int by = 0; by < o.nbh; by++)
    for (int bx = 0; bx < o.nbw; bx++)
      if (all || input_changed(o, in, block_rect(o, out, by, bx)))
        run.candidates.push_back({s, by, bx, fresh});
}

// Bands of whole rows, as many for each thread.
void add_bands(Run& run, const Op& o, int s) {
  const Tensor& t = run.call.tensors[o.out];
  const int T = run.pool.threads(), panels = panels_of(o, t);
  int bands = (t.H * t.W + kTilePixels - 1) / kTilePixels;
  bands = (bands + T - 1) / T * T;
  if (bands > t.H) bands = t.H;
  // Few rows: each thread takes a share of the channels instead.
  const int parts = bands % T != 0 && panels >= 2 * T ? T : 1;
  for (int k = 0; k < parts; k++)
    for (int i = 0; i < bands; i++)
      run.items.push_back({{t.H * i / bands, t.H * (i + 1) / bands, 0, t.W}, s, panels * k / parts,
                           panels * (k + 1) / parts, kFire});
}

void list_items(Run& run, const Op& o, int s) {
  const Tensor& t = run.call.tensors[o.out];
  const int blocks = o.nbh * o.nbw, panels = panels_of(o, t);
  const Action* actions = run.fire.data() + (size_t)s * blocks;
  const View out = run.view(o.out, s);
  int fired = 0;
  for (int i = 0; i < blocks; i++) fired += actions[i] == kFire;
  if (fired == blocks && t.W <= kMaxRow) return add_bands(run, o, s);
  for (int by = 0; by < o.nbh; by++)
    for (int bx = 0; bx < o.nbw;) {
      const Rect r = block_rect(o, t, by, bx);
      if (actions[by * o.nbw + bx++] != kFire) {
        if (out.stale_in(r)) run.items.push_back({r, s, 0, panels, kClean});
        continue;
      }
      Rect all = r;
      while (bx < o.nbw && actions[by * o.nbw + bx] == kFire && all.w() + o.b <= kTilePixels / kTileRows * 4)
        all.x1 = block_rect(o, t, by, bx++).x1;
      for (int y = r.y0; y < r.y1; y += kTileRows)
        run.items.push_back({{y, y + kTileRows < r.y1 ? y + kTileRows : r.y1, all.x0, all.x1}, s, 0, panels, kFire});
    }
}

// Tiles over channels where there are fewer of them than threads.
void split_channels(Run& run, const Op& o) {
  const int T = run.pool.threads(), panels = panels_of(o, run.call.tensors[o.out]), n = (int)run.items.size();
  if (n == 0 || n >= T || panels < 2 || run.items[0].action != kFire) return;
  if (!of_bytes(run.call.tensors[o.out])) return;
  const int parts = T < panels ? T : panels;
  for (int i = 0; i < n; i++) {
    const Item whole = run.items[i];
    if (whole.action != kFire || whole.p1 - whole.p0 != panels) continue;
    run.items[i].p1 = panels / parts;
    for (int k = 1; k < parts; k++) {
      run.items.push_back(whole);
      run.items.back().p0 = panels * k / parts, run.items.back().p1 = panels * (k + 1) / parts;
    }
  }
}

}  // namespace

void run_qconv(Run& run, const Op& o) {
  run.candidates.clear();
  const int blocks = o.nbh * o.nbw, B = run.call.B;
  if (run.fire.size() < (size_t)B * blocks) run.fire.resize((size_t)B * blocks);
  for (int s = 0; s < B; s++) find_candidates(run, o, s);
  const int n = (int)run.candidates.size(), ci = run.call.tensors[o.src[0]].C;
  run.dispatch(gate_item, n, o.ref < 0 ? 0. : n * (double)o.b * o.b * ci * 1e-4);
  double work = 0;
  for (int s = 0; s < B; s++) {
    open_output(run, o, s);
    if (n > 0 || run.view(o.out, s).has_stale()) list_items(run, o, s);
  }
  const Tensor& out = run.call.tensors[o.out];
  for (const Item& item : run.items) work += (double)item.r.h() * item.r.w();
  work *= (double)o.kh * o.kw * o.count * 4 * (o.algo == kDepthwise ? 1 : out.Cs) * 1e-5;
  if (work > 3.0) split_channels(run, o);
  run.dispatch(block_item, (int)run.items.size(), work);
}

}  // namespace SKC_ISA
}  // namespace skc
