// Frames that become bytes as they enter a program, and bytes that leave it as real numbers.
#include "ops/q_view.h"

namespace skc {
namespace SKC_ISA {
namespace {

// Numbers to bytes: clamp(rint(x / scale)) + shift; NaN is the least.
void quantize(const Op& o, float scale, const float* x, int n, uint8_t* to) {
  const float lo = o.a0, hi = o.a1;
  const int less = 0x4B400000 - o.shift;
  for (int i = 0; i < n; i++) {
    float v = x[i] / scale;
    v = v > lo ? v : lo;
    v = (v < hi ? v : hi) + 12582912.f;
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    to[i] = (uint8_t)(bits - less);
  }
}

// Row y of a frame of W positions as [W][Cs]; `line` holds W * C bytes.
void frame_row(const Run& run, const Op& o, const Tensor& t, int s, int y, uint8_t* line, uint8_t* to) {
  const float* frame = run.call.in[o.io] + (long)s * t.H * t.W * t.C;
  const float scale = run.call.weights[o.mult];
  const long plane = (long)t.H * t.W;
  if (o.mode == 1)
    for (int c = 0; c < t.C; c++) quantize(o, scale, frame + c * plane + (long)y * t.W, t.W, line + (long)c * t.W);
  else
    quantize(o, scale, frame + (long)y * t.W * t.C, t.W * t.C, line);
  if (t.C == 3 && t.Cs == 4) {
    const uint8_t *a = line, *b = a + t.W, *c = b + t.W;
    for (int x = 0; x < t.W; x++) {
      const uint32_t v = o.mode == 1 ? a[x] | b[x] << 8 | (uint32_t)c[x] << 16
                                     : line[3 * x] | line[3 * x + 1] << 8 | (uint32_t)line[3 * x + 2] << 16;
      std::memcpy(to + 4 * x, &v, 4);
    }
    return;
  }
  std::memset(to, 0, (size_t)t.W * t.Cs);
  for (int x = 0; x < t.W; x++)
    for (int c = 0; c < t.C; c++) to[(long)x * t.Cs + c] = line[o.mode == 1 ? (long)c * t.W + x : (long)x * t.C + c];
}

void input_item(void* ctx, int tid, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  ByteView out = byte_view(run, o.out, item.s);
  const Tensor& t = *out.map.t;
  const size_t size = (size_t)t.W * t.Cs;
  uint8_t* row = reinterpret_cast<uint8_t*>(run.memory[tid].get(size / 2 + 64));
  const bool fresh = run.fresh(item.s);
  for (int y = item.r.y0; y < item.r.y1; y++) {
    frame_row(run, o, t, item.s, y, row + size, row);
    if (!fresh && std::memcmp(row, out.pixel(y, 0), size) == 0) continue;
    for (int x = 0; x < t.W; x += kCell) {
      const size_t n = (size_t)(x + kCell < t.W ? kCell : t.W - x) * t.Cs;
      if (!fresh && std::memcmp(row + (size_t)x * t.Cs, out.pixel(y, x), n) == 0) continue;
      out.map.touch(y, x, 1.f);
    }
    std::memcpy(out.pixel(y, 0), row, size);
  }
}

void output_item(void* ctx, int, int i) {
  Run& run = *static_cast<Run*>(ctx);
  const Op& o = *run.op;
  const Item& item = run.items[i];
  const ByteView v = byte_view(run, o.src[0], item.s);
  const Tensor& t = *v.map.t;
  const Rect& r = item.r;
  const float scale = run.call.weights[o.mult];
  const int z = o.zeros[0], C = t.C;
  float* map = run.call.out[o.io] + (long)item.s * o.count + o.mode;
  for (int y = r.y0; y < r.y1; y++)
    for (int x = r.x0; x < r.x1; x++) {
      const uint8_t* from = v.pixel(y, x);
      float* to = map + ((long)y * t.W + x) * C;
      for (int c = 0; c < C; c++) to[c] = (float)(from[c] - z) * scale;
    }
}

}  // namespace

void run_qinput(Run& run, const Op& o) {
  const Tensor& t = run.call.tensors[o.out];
  for (int s = 0; s < run.call.B; s++) {
    open_output(run, o, s);
    for (int y = 0; y < t.H; y += kRegion)
      run.items.push_back({{y, y + kRegion < t.H ? y + kRegion : t.H, 0, t.W}, s, 0, 0, kFire});
  }
  run.dispatch(input_item, (int)run.items.size(), run.items.size() * (double)t.W * t.C * 1e-3);
}

void run_qoutput(Run& run, const Op& o) {
  const double floats = list_outputs(run, o);
  run.dispatch(output_item, (int)run.items.size(), floats * 2e-4);
}

}  // namespace SKC_ISA
}  // namespace skc
