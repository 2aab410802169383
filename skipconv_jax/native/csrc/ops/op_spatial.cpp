// Mean, sum or maximum over all positions, from what is kept per region: only changed ones are read.
#include "kernels/pixels.h"
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {
namespace {

void partial_item(void* ctx, int, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  const View in = run.view(o.src[0], item.s);
  float* part = run.arena(item.s) + o.z + (long)item.p0 * in.t->Cs;
  const float* from = in.pixel(item.r.y0, item.r.x0);
  for (int c = 0; c < in.t->Cs; c += VW)
    store(part + c, pool_window(from + c, in.row, in.t->Cs, item.r.h(), item.r.w(),
                                o.mode == kSpatialMax));
}

}  // namespace

void run_spatial(Run& run, const Op& o) {
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
  const Activation act(o, run.call.weights);
  for (int s = 0; s < run.call.B; s++) {
    View out = run.view(o.out, s);
    run.open(out, s);
    const bool changed = run.fresh(s) || run.view(o.src[0], s).changed() || out.restless();
    if (!changed && out.has_stale()) out.clean({0, 1, 0, 1});
    if (!changed) continue;
    const float* parts = run.arena(s) + o.z;
    const vf count = splat(o.mode == kSpatialMean ? (float)t.H * t.W : 1.f);
    write_pixel(out, 0, 0, run.fresh(s), [&](int c) {
      const vf v = pool_window(parts + c, 0, t.Cs, 1, regions, o.mode == kSpatialMax);
      return activate(v / count, act, c);
    });
  }
}

}  // namespace SKC_ISA
}  // namespace skc
