// Depthwise convolution of bytes: kernel rows are interleaved, four to a lane, and a column of input
// that is interleaved once serves every neighbour that sees it.
#pragma once
#include "kernels/int8_dot.h"

namespace skc {
namespace SKC_ISA {

// Column of input at p: rows 4 q to 4 q + 3 of the kernel; those beyond its end have weights of 0.
SKC_INLINE void byte_column(const QTile& t, const uint8_t* p, int q, QX* to) {
  const uint8_t* rows[4];
  for (int k = 0; k < 4; k++) rows[k] = p + (4 * q + k < t.kh ? 4 * q + k : 0) * t.dh * t.row;
  vi v[kVecs];
  interleave(rows, v);
  for (int i = 0; i < kVecs; i++) to[i] = quad_x(v[i]);
}

// N neighbouring outputs of one panel.
template <int KW, int S, int Q, int N>
SKC_INLINE void byte_depthwise_run(const QTile& t, const uint8_t* from, const int8_t* w, int c, long at,
                                   const Rounding& round) {
  vi acc[N][kVecs];
  for (int v = 0; v < kVecs; v++) {
    const vi b = load_bytes(t.bias + c + v * VW);
    for (int i = 0; i < N; i++) acc[i][v] = b;
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; q++) {
    QW wv[KW][kVecs];
    for (int kx = 0; kx < KW; kx++)
      for (int v = 0; v < kVecs; v++) wv[kx][v] = quad_w(load_bytes(w + (kx * Q + q) * 64 + v * VW * 4));
#pragma GCC unroll 32
    for (int j = 0; j < (N - 1) * S + KW; j++) {
      QX column[kVecs];
      byte_column(t, from + j * t.col, q, column);
#pragma GCC unroll 8
      for (int kx = 0; kx < KW; kx++)
        if (j >= kx && (j - kx) % S == 0 && (j - kx) / S < N)
          for (int v = 0; v < kVecs; v++)
            acc[(j - kx) / S][v] = dot4(acc[(j - kx) / S][v], column[v], wv[kx][v]);
    }
  }
  for (int i = 0; i < N; i++) round.put(acc[i], c, at + i * t.stride);
}

// One output of any geometry.
static void byte_depthwise_one(const QTile& t, const uint8_t* from, const int8_t* w, int c, long at,
                               const Rounding& round) {
  vi acc[kVecs];
  for (int v = 0; v < kVecs; v++) acc[v] = load_bytes(t.bias + c + v * VW);
  for (int kx = 0; kx < t.kw; kx++)
    for (int q = 0; q < t.quads; q++, w += 64) {
      QX column[kVecs];
      byte_column(t, from + kx * t.dw * t.col, q, column);
      for (int v = 0; v < kVecs; v++)
        acc[v] = dot4(acc[v], column[v], quad_w(load_bytes(w + v * VW * 4)));
    }
  round.put(acc, c, at);
}

template <int KW, int S, int Q>
static void byte_depthwise_row(const QTile& t, const uint8_t* from, int n, const int8_t* w, int c, long at,
                               const Rounding& round) {
  constexpr int N = VW == 16 ? 8 : 4;
  const long step = S * t.col;
  int x = 0;
  for (; x + N <= n; x += N)
    byte_depthwise_run<KW, S, Q, N>(t, from + x * step, w, c, at + x * t.stride, round);
  for (; x + 2 <= n; x += 2)
    byte_depthwise_run<KW, S, Q, 2>(t, from + x * step, w, c, at + x * t.stride, round);
  for (; x < n; x++) byte_depthwise_one(t, from + x * step, w, c, at + x * t.stride, round);
}

static void byte_depthwise(const QTile& t) {
  const int n = t.x1 - t.x0, key = t.dw == 1 && t.quads == (t.kw + 3) / 4 ? t.kw * 10 + t.sw : 0;
  const Rounding round(t);
  for (int p = t.p0; p < t.p1; p++) {
    const int c = p * kBytePanel;
    const int8_t* w = t.w + (long)p * t.kw * t.quads * 64;
    for (int y = t.y0; y < t.y1; y++) {
      const uint8_t* from = t.x + (long)y * t.sh * t.row + (long)t.x0 * t.sw * t.col + c;
      const long at = (long)(y - t.y0) * n * t.stride + (long)(p - t.p0) * kBytePanel;
      switch (key) {
        case 31: byte_depthwise_row<3, 1, 1>(t, from, n, w, c, at, round); break;
        case 32: byte_depthwise_row<3, 2, 1>(t, from, n, w, c, at, round); break;
        case 51: byte_depthwise_row<5, 1, 2>(t, from, n, w, c, at, round); break;
        case 52: byte_depthwise_row<5, 2, 2>(t, from, n, w, c, at, round); break;
        default:
          for (int x = 0; x < n; x++)
            byte_depthwise_one(t, from + (long)x * t.sw * t.col, w, c, at + x * t.stride, round);
      }
    }
  }
}

}  // namespace SKC_ISA
}  // namespace skc
