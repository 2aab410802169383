// One tensor of bytes of one stream: `View` keeps the map of what changed, this the values.
#pragma once
#include "kernels/int8_api.h"
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {

struct ByteView {
  View map;
  uint8_t* cur;  // first position of the frame
  long row;      // bytes
  int cs;

  ByteView(const Tensor& t, float* arena) : map(t, arena), row((long)t.Wp * t.Cs), cs(t.Cs) {
    cur = reinterpret_cast<uint8_t*>(arena + t.cur) + t.pt * row + (long)t.pl * t.Cs;
  }
  uint8_t* pixel(int y, int x) const { return cur + y * row + (long)x * cs; }

  // Border and values as the zero point has it, before a stream's first frame.
  void blank(float* arena) const {
    const Tensor& t = *map.t;
    std::memset(arena + t.cur, t.zero, (size_t)t.Hp * row);
  }

  // Marks the cells of n positions from (y, x) on whose flag is set, or all of them.
  void touch_flags(int y, int x, const uint8_t* flags, int n, bool all) {
    for (int i = 0; i < n;) {
      const int end = (x + i) / kCell * kCell + kCell - x;
      int any = all;
      for (; i < n && i < end; i++) any |= flags[i];
      if (any) map.touch(y, x + i - 1, 1.f);
    }
  }
};

inline bool of_bytes(const Tensor& t) { return t.bytes != 0; }

inline ByteView byte_view(const Run& run, int tensor, int s) {
  return ByteView(run.call.tensors[tensor], run.arena(s));
}

// Opens an operation's output for this frame.
inline void open_output(Run& run, const Op& o, int s) {
  View out = run.view(o.out, s);
  run.open(out, s);
  if (of_bytes(*out.t) && run.fresh(s)) byte_view(run, o.out, s).blank(run.arena(s));
}

// A table of bytes among the weights, or null.
inline const uint8_t* byte_table(const Run& run, const Op& o) {
  return o.lut < 0 ? nullptr : reinterpret_cast<const uint8_t*>(run.call.weights + o.lut);
}

inline Made made_by(const Op& o, const Tensor& out) {
  if (!of_bytes(out)) return Made::kFloat;
  return o.lut >= 0 && o.entries > 256 ? Made::kIndex : Made::kByte;
}

constexpr int kMaxRow = 4096;  // positions of one row that are stored at once

// Stores n <= kMaxRow positions of one row, `tmp` as `made` has it ([n][stride]), channels from c on.
inline void store_positions(Run& run, const Op& o, int s, int y, int x, int n, void* tmp, long stride,
                            int c, int width, bool fresh) {
  const Tensor& t = run.call.tensors[o.out];
  const Made made = made_by(o, t);
  if (made == Made::kFloat) {
    View out = run.view(o.out, s);
    const float* from = static_cast<const float*>(tmp);
    for (int i = 0; i < n; i++, from += stride)
      write_pixel(out, y, x + i, fresh, [&](int k) { return load(from + k); });
    return;
  }
  ByteView out = byte_view(run, o.out, s);
  uint8_t flags[kMaxRow];
  std::memset(flags, 0, n);
  run.call.q->store({tmp, stride, n, width, made == Made::kIndex, byte_table(run, o), o.entries,
                     out.pixel(y, x) + c, out.cs, flags});
  out.touch_flags(y, x, flags, n, fresh);
}

}  // namespace SKC_ISA
}  // namespace skc
