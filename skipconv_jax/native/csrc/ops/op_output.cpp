// Maps that leave a program.
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {
namespace {

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
    const float *from = v.pixel(y, r.x0), *end = to + (long)r.w() * t.C;
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

}  // namespace

void run_output(Run& run, const Op& o) {
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

}  // namespace SKC_ISA
}  // namespace skc
