// Links of a chain: gates, products and epilogues of one tile, whose input has just been made.
#include "kernels/gate.h"
#include "ops/chain.h"

#include <mutex>

namespace skc {
namespace SKC_ISA {
namespace {

std::mutex g_note;

// Times of links add up over threads; `execute` takes them out of the operation they ran in.
struct Note {
  const Run& run;
  const Op& o;
  const double start;
  Note(const Run& r, const Op& op) : run(r), o(op), start(r.call.profile ? seconds() : 0.) {}
  void end(double positions) const {
    if (!run.call.profile) return;
    const double took = (seconds() - start) / run.pool.threads();
    std::lock_guard<std::mutex> hold(g_note);
    double* entry = run.call.profile + 2 * (&o - run.call.ops);
    entry[0] += took;
    entry[1] += positions;
    *run.linked += took;
  }
};

// One link on one stream. Flags of blocks: 1, x was not finite when it fired in this frame; 2, in one
// before: x - x is NaN as long as it stays, so the block fires again.
struct Link {
  const Run& run;
  const Op& o;
  const int s, tid, level;
  const Tensor &in, &out;
  const bool fresh;
  float *mask, *flags, *refs;

  Link(const Run& run, const Op& o, int s, int tid, int level)
      : run(run), o(o), s(s), tid(tid), level(level), in(run.call.tensors[o.src[0]]),
        out(run.call.tensors[o.out]), fresh(run.fresh(s)),
        mask(run.call.masks + (size_t)s * run.call.head->masks + o.mask),
        flags(run.arena(s) + o.sig + 1 + (long)o.nbh * o.nbw), refs(run.arena(s) + o.ref) {}

  Rect block(int by, int bx) const {
    const int y = by * o.b, x = bx * o.b;
    return {y, y + o.b < out.H ? y + o.b : out.H, x, x + o.b < out.W ? x + o.b : out.W};
  }
  float* reference(int by, int bx) const { return refs + ((long)by * o.nbw + bx) * o.b * o.b * in.Cs; }
  Input stored(const Rect& r, int by, int bx) const {
    return seen(reference(by, bx), r, r.w());
  }
  // A buffer of rows of `width` positions whose first one is that of the rectangle.
  Input seen(const float* x, const Rect& r, int width) const {
    const long col = in.Cs, row = width * col;
    return {x - r.y0 * row - r.x0 * col, row, col};
  }

  // Whether the sum over channels of |x - reference| passes the gate; the first row that does settles it.
  bool exceeds(const Params& gate, const Rect& r, const Input& x, const float* ref) const {
    float m[2 * kMaxLinkBlock + 2 * VW];
    const Rect line{0, 1, 0, r.w()};
    for (int y = r.y0; y < r.y1; y++, ref += (long)r.w() * in.Cs) {
      change_of_row(x.at(o, y, r.x0), ref, r.w(), in.Cs, m);
      if (gate.exceeds(support_max(o, m, r.w(), line))) return true;
    }
    return false;
  }

  // Makes x the reference. True if all of it is finite.
  bool keep(const Rect& r, const Input& x, float* ref) const {
    vf bad = vf{};
    for (int y = r.y0; y < r.y1; y++) {
      const float* from = x.at(o, y, r.x0);
      const long n = (long)r.w() * in.Cs;
      for (long i = 0; i < n; i += VW) {
        const vf v = load(from + i);
        bad += v * 0.f;
        store(ref + i, v);
      }
      ref += n;
    }
    return hsum(bad) == 0.f;
  }

  bool fires(const Rect& r, int by, int bx, const Input& x) const {
    if (o.gate == kAlways) return true;
    float* ref = reference(by, bx);
    const Params gate{run.call.gates + o.gp};
    const bool fired = fresh || exceeds(gate, r, x, ref);
    const int i = by * o.nbw + bx;
    mask[i] = fired ? 1.f : 0.f;
    flags[i] = fired && !keep(r, x, ref) ? 1.f : 0.f;
    return fired;
  }

  // Products and epilogue of a rectangle, some rows at a time, and the links behind.
  void compute(const Rect& r, const Input& x) const {
    const Note note(run, o);
    const int rows = r.w() >= kChunk ? 1 : kChunk / r.w(), cs = out.Cs;
    const int panels = (cs + kPanel - 1) / kPanel;
    const long pixels = (long)r.h() * r.w(), chunk = (long)rows * r.w();
    const bool stored = o.tail < 0;
    float* y = run.memory[level * kMaxThreads + tid].get((stored ? chunk : pixels) * cs + 4 * kPanel);
    const float* w = run.call.weights + o.w;
    View view = run.view(o.out, s);
    const Epilogue e = epilogue_of(o, run, view, nullptr, s);
    for (Rect part = r; part.y0 < r.y1; part.y0 = part.y1) {
      part.y1 = part.y0 + rows < r.y1 ? part.y0 + rows : r.y1;
      float* to = stored ? y : y + (long)(part.y0 - r.y0) * r.w() * cs;
      conv_direct(o, x, part, w, in.C, cs, 0, panels, to, cs);
      if (stored)
        epilogue(e, part, to, cs, 0, cs, true);
      else
        finish_positions(run, o, out.C, cs, to, (long)part.h() * part.w());
    }
    note.end((double)pixels);
    if (!stored) run_links(run, o, r, s, y, tid, level + 1);
  }

  // A rectangle of whole blocks: neighbours that fire are computed as one.
  void evaluate(const Rect& r, const float* made) const {
    const Input x = seen(made, r, r.w());
    const bool wake = o.tail >= 0 && run.refresh[s];
    for (int by = r.y0 / o.b; by * o.b < r.y1; by++) {
      Rect open{0, 0, 0, 0};
      for (int bx = r.x0 / o.b; bx * o.b < r.x1; bx++) {
        const Rect one = block(by, bx);
        if (fires(one, by, bx, x)) {
          if (open.x1 == one.x0 && open.w() > 0)
            open.x1 = one.x1;
          else
            open = one;
          if (one.x1 < r.x1) continue;
        } else if (wake) {
          compute(one, stored(one, by, bx));
        }
        if (open.w() > 0) compute(open, x);
        open = {0, 0, 0, 0};
      }
    }
  }
};

template <Kind A>
void finish_as(const Activation& act, const float* bias, int C, int cs, float* x, long n) {
  const vf lo = splat(act.a0), hi = splat(act.a1);
  for (long i = 0; i < n; i++, x += cs)
    for (int c = 0; c < cs; c += VW) {
      vf v = load(x + c);
      if (bias) v += load(bias + c);
      v = A == Kind::kClamp ? vmin(vmax(v, lo), hi) : A == Kind::kSwish ? vswish(v) : activate(v, act, c);
      store(x + c, keep_lanes(v, C - c));
    }
}

}  // namespace

void finish_positions(const Run& run, const Op& o, int C, int cs, float* x, long n) {
  const Activation act(o, run.call.weights);
  const float* bias = o.bias < 0 ? nullptr : run.call.weights + o.bias;
  if (act.clamps()) return finish_as<Kind::kClamp>(act, bias, C, cs, x, n);
  if (act.act == kSwish) return finish_as<Kind::kSwish>(act, bias, C, cs, x, n);
  finish_as<Kind::kOther>(act, bias, C, cs, x, n);
}

bool open_links(Run& run, const Op& o, int s) {
  bool wake = false;
  const bool fresh = run.fresh(s);
  each_link(run, o, [&](const Op& link) {
    const float* gp = run.call.gates + link.gp;
    float* sig = run.arena(s) + link.sig;
    wake |= !fresh && sig[0] != gp[0];
    sig[0] = gp[0];
    float* mask = run.call.masks + (size_t)s * run.call.head->masks + link.mask;
    const float idle = fresh ? 1.f : idle_mask(link, gp);
    for (int i = 0; i < link.nbh * link.nbw; i++) mask[i] = idle;
    View out = run.view(link.out, s);
    run.open(out, s);
    wake |= open_links(run, link, s);
  });
  return wake;
}

void run_links(const Run& run, const Op& o, const Rect& r, int s, const float* x, int tid, int level) {
  each_link(run, o, [&](const Op& link) { Link(run, link, s, tid, level).evaluate(r, x); });
}

void close_link(Run& run, const Op& o) {
  for (int s = 0; s < run.call.B; s++) {
    const Link link(run, o, s, 0, 1);
    for (int i = 0; i < o.nbh * o.nbw && o.gate != kAlways; i++) {
      if (link.flags[i] == 2.f) {
        const int by = i / o.nbw, bx = i % o.nbw;
        link.mask[i] = 1.f;
        link.compute(link.block(by, bx), link.stored(link.block(by, bx), by, bx));
      }
      if (link.flags[i] != 0.f) link.flags[i] = 2.f;
    }
    View out = run.view(o.out, s);
    if (!out.cur || !out.restless()) continue;
    for (int i = 0; i < o.nbh * o.nbw; i++) {
      const Rect r = link.block(i / o.nbw, i % o.nbw);
      if (!out.changed_in(r.y0, r.y1, r.x0, r.x1)) repeat_rect(out, r);
    }
  }
}

double link_products(const Run& run, const Op& o) {
  double sum = 0;
  each_link(run, o, [&](const Op& link) {
    const Tensor &in = run.call.tensors[link.src[0]], &out = run.call.tensors[link.out];
    sum += (double)in.C * out.Cs + link_products(run, link);
  });
  return sum;
}

}  // namespace SKC_ISA
}  // namespace skc
