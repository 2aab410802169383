// Convolution of bytes with dense channels: tiles of positions times panels of output channels.
#pragma once
#include "kernels/int8_dot.h"

namespace skc {
namespace SKC_ISA {

// Accumulators fill the registers that two panels of weights and an input leave.
constexpr int kBytePixels = VW == 16 ? 12 : VW == 8 ? 4 : 2;
constexpr int kBytePanels = VW == 16 ? 2 : 1;

template <int P, int N>
__attribute__((noinline)) void byte_tile(const QTile& t, const uint8_t* const* px, int panel, long at) {
  vi acc[P][N * kVecs];
  const int c = panel * kBytePanel;
  for (int v = 0; v < N * kVecs; v++) {
    const vi b = load_bytes(t.bias + c + v * VW);
    for (int p = 0; p < P; p++) acc[p][v] = b;
  }
  const long depth = (long)t.kh * t.kw * t.quads * 64;
  const int8_t* w = t.w + panel * depth;
  for (int ky = 0; ky < t.kh; ky++)
    for (int kx = 0; kx < t.kw; kx++) {
      const long off = ky * t.dh * t.row + kx * t.dw * t.col;
      const uint8_t* x[P];
      for (int p = 0; p < P; p++) x[p] = px[p] + off;
      for (long q = 0; q < t.quads; q++, w += 64) {
        QW wv[N * kVecs];
        for (int v = 0; v < N * kVecs; v++)
          wv[v] = quad_w(load_bytes(w + v / kVecs * depth + v % kVecs * VW * 4));
        for (int p = 0; p < P; p++) {
          const QX b = quad_x(splat_quad(x[p] + 4 * q));
          for (int v = 0; v < N * kVecs; v++) acc[p][v] = dot4(acc[p][v], b, wv[v]);
        }
      }
    }
  const Rounding round(t);
  for (int p = 0; p < P; p++)
    for (int n = 0; n < N; n++)
      round.put(acc[p] + n * kVecs, c + n * kBytePanel, at + p * t.stride + n * kBytePanel);
}

using ByteTileFn = void (*)(const QTile&, const uint8_t* const*, int, long);

template <int N>
SKC_INLINE ByteTileFn byte_tile_fn(int p) {
#if SKC_VW == 16
  static const ByteTileFn table[] = {
      byte_tile<1, N>, byte_tile<2, N>, byte_tile<3, N>,  byte_tile<4, N>,  byte_tile<5, N>,  byte_tile<6, N>,
      byte_tile<7, N>, byte_tile<8, N>, byte_tile<9, N>, byte_tile<10, N>, byte_tile<11, N>, byte_tile<12, N>};
#elif SKC_VW == 8
  static const ByteTileFn table[] = {byte_tile<1, N>, byte_tile<2, N>, byte_tile<3, N>, byte_tile<4, N>};
#else
  static const ByteTileFn table[] = {byte_tile<1, N>, byte_tile<2, N>};
#endif
  return table[p - 1];
}

static void byte_conv(const QTile& t) {
  const int n = (t.y1 - t.y0) * (t.x1 - t.x0);
  for (int p = t.p0; p < t.p1;) {
    const int panels = t.p1 - p >= kBytePanels ? kBytePanels : 1;
    int y = t.y0, x = t.x0;
    for (int q = 0; q < n; q += kBytePixels) {
      const uint8_t* px[kBytePixels];
      const int m = n - q < kBytePixels ? n - q : kBytePixels;
      for (int i = 0; i < m; i++) {
        px[i] = t.x + (long)y * t.sh * t.row + (long)x * t.sw * t.col;
        if (++x == t.x1) x = t.x0, y++;
      }
      const long at = q * t.stride + (long)(p - t.p0) * kBytePanel;
      const ByteTileFn fn = panels == kBytePanels ? byte_tile_fn<kBytePanels>(m) : byte_tile_fn<1>(m);
      fn(t, px, p, at);
    }
    p += panels;
  }
}

}  // namespace SKC_ISA
}  // namespace skc
