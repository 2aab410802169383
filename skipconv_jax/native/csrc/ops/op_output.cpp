// Maps that leave a program.
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {
namespace {

// A rectangle to its places in a buffer of planes, one row of a plane after the other.
void copy_planes(const View& v, const Rect& r, float* planes) {
  const Tensor& t = *v.t;
  for (int y = r.y0; y < r.y1; y++)
    for (int c = 0; c < t.C; c++) {
      const float* from = v.pixel(y, r.x0) + c;
      float* to = planes + ((long)c * t.H + y) * t.W + r.x0;
      for (int i = 0; i < r.w(); i++) to[i] = from[(long)i * t.Cs];
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
  if (o.first) return copy_planes(v, r, map);
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
  const double floats = list_outputs(run, o);
  run.dispatch(copy_item, (int)run.items.size(), floats * 1e-4);
}

}  // namespace SKC_ISA
}  // namespace skc
