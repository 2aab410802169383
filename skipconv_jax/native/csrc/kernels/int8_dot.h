// Products of unsigned by signed bytes, four to a 32-bit lane, without saturation anywhere.
#pragma once
#include "kernels/int8_api.h"
#include "kernels/vec.h"
#if defined(__SSE2__) && !defined(SKC_GENERIC)
#include <immintrin.h>
#endif

namespace skc {
namespace SKC_ISA {

constexpr int kVecs = kBytePanel / VW;  // vectors of one panel
typedef int32_t viu __attribute__((vector_size(SKC_VW * 4), aligned(1), may_alias));

SKC_INLINE vi load_bytes(const void* p) { return *reinterpret_cast<const viu*>(p); }
SKC_INLINE vi splat_quad(const uint8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v - vi{};
}

#if defined(__AVX512VNNI__) && SKC_VW == 16
using QX = vi;
using QW = vi;
SKC_INLINE QX quad_x(vi v) { return v; }
SKC_INLINE QW quad_w(vi v) { return v; }
SKC_INLINE vi dot4(vi acc, QX x, QW w) {
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
}
#elif defined(__AVXVNNI__) && SKC_VW == 8
using QX = vi;
using QW = vi;
SKC_INLINE QX quad_x(vi v) { return v; }
SKC_INLINE QW quad_w(vi v) { return v; }
SKC_INLINE vi dot4(vi acc, QX x, QW w) {
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)x, (__m256i)w);
}
#else
// Bytes 0 and 2, and bytes 1 and 3, of every lane as 16-bit numbers: vpmaddubsw would add two products
// of bytes in 16 bits, which 255 * 127 * 2 overflows; vpmaddwd adds them in 32.
struct QX { vi even, odd; };
using QW = QX;
#if defined(SKC_GENERIC) || !defined(__SSE2__)
typedef int16_t vs __attribute__((vector_size(SKC_VW * 4)));
typedef uint16_t vus __attribute__((vector_size(SKC_VW * 4)));
SKC_INLINE QX quad_x(vi v) { return {v & 0x00ff00ff, (vi)((vus)v >> 8)}; }
SKC_INLINE QW quad_w(vi v) { return {(vi)((vs)((vus)v << 8) >> 8), (vi)((vs)v >> 8)}; }
SKC_INLINE vi pairs(vi a, vi b) {
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
#elif SKC_VW == 16
SKC_INLINE QX quad_x(vi v) { return {v & 0x00ff00ff, (vi)_mm512_srli_epi16((__m512i)v, 8)}; }
SKC_INLINE QW quad_w(vi v) {
  return {(vi)_mm512_srai_epi16(_mm512_slli_epi16((__m512i)v, 8), 8),
          (vi)_mm512_srai_epi16((__m512i)v, 8)};
}
SKC_INLINE vi pairs(vi a, vi b) { return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif SKC_VW == 8
SKC_INLINE QX quad_x(vi v) { return {v & 0x00ff00ff, (vi)_mm256_srli_epi16((__m256i)v, 8)}; }
SKC_INLINE QW quad_w(vi v) {
  return {(vi)_mm256_srai_epi16(_mm256_slli_epi16((__m256i)v, 8), 8),
          (vi)_mm256_srai_epi16((__m256i)v, 8)};
}
SKC_INLINE vi pairs(vi a, vi b) { return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#else
SKC_INLINE QX quad_x(vi v) { return {v & 0x00ff00ff, (vi)_mm_srli_epi16((__m128i)v, 8)}; }
SKC_INLINE QW quad_w(vi v) {
  return {(vi)_mm_srai_epi16(_mm_slli_epi16((__m128i)v, 8), 8), (vi)_mm_srai_epi16((__m128i)v, 8)};
}
SKC_INLINE vi pairs(vi a, vi b) { return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#endif
SKC_INLINE vi dot4(vi acc, QX x, QW w) { return acc + pairs(x.even, w.even) + pairs(x.odd, w.odd); }
#endif

// 16 channels of four rows of bytes, as lanes of the four bytes of one channel.
SKC_INLINE void interleave(const uint8_t* const* r, vi* to) {
#if defined(SKC_GENERIC) || !defined(__SSE2__)
  uint8_t out[kBytePanel * 4];
  for (int c = 0; c < kBytePanel; c++)
    for (int k = 0; k < 4; k++) out[4 * c + k] = r[k][c];
  for (int i = 0; i < kVecs; i++) to[i] = load_bytes(out + i * VW * 4);
#else
  const auto line = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  const __m128i a = line(r[0]), b = line(r[1]), c = line(r[2]), d = line(r[3]);
#if SKC_VW == 16
  __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(a), b, 1);
  v = _mm512_inserti32x4(_mm512_inserti32x4(v, c, 2), d, 3);
  v = _mm512_permutexvar_epi32(
      _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0), v);
  const __m128i turn = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  to[0] = (vi)_mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(turn));
#else
  const __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
  const __m128i ab2 = _mm_unpackhi_epi8(a, b), cd2 = _mm_unpackhi_epi8(c, d);
  const __m128i q[4] = {_mm_unpacklo_epi16(ab, cd), _mm_unpackhi_epi16(ab, cd),
                        _mm_unpacklo_epi16(ab2, cd2), _mm_unpackhi_epi16(ab2, cd2)};
#if SKC_VW == 8
  to[0] = (vi)_mm256_set_m128i(q[1], q[0]);
  to[1] = (vi)_mm256_set_m128i(q[3], q[2]);
#else
  for (int i = 0; i < 4; i++) to[i] = (vi)q[i];
#endif
#endif
#endif
}

// What an accumulator becomes, see `Made`.
struct Rounding {
  const QTile& t;
  vf lo, hi;
  explicit Rounding(const QTile& tile) : t(tile), lo(splat(tile.lo)), hi(splat(tile.hi)) {}

  vf real(vi acc, int c) const {
    return vmin(vmax(__builtin_convertvector(acc, vf) * load(t.mult + c), lo), hi);
  }
  // The bounds are small: adding 1.5 * 2^23 rounds to a whole number, half to even, in the low bits.
  vi whole(vi acc, int c) const { return (vi)(real(acc, c) + 12582912.f) - (0x4B400000 - t.shift); }

  // The 16 channels of one panel of one position, channels from c on.
  SKC_INLINE void put(const vi* acc, int c, long at) const {
    if (t.made == Made::kFloat) {
      float* to = static_cast<float*>(t.tmp) + at;
      for (int i = 0; i < kVecs; i++) store(to + i * VW, real(acc[i], c + i * VW));
      return;
    }
    vi v[kVecs];
    for (int i = 0; i < kVecs; i++) v[i] = whole(acc[i], c + i * VW);
    if (t.made == Made::kIndex) {
      uint16_t* to = static_cast<uint16_t*>(t.tmp) + at;
#if defined(__AVX512F__) && SKC_VW == 16
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)v[0]));
#else
      for (int i = 0; i < kVecs; i++)
        for (int k = 0; k < VW; k++) to[i * VW + k] = (uint16_t)v[i][k];
#endif
      return;
    }
    uint8_t* to = static_cast<uint8_t*>(t.tmp) + at;
#if defined(SKC_GENERIC) || !defined(__SSE2__)
    for (int i = 0; i < kVecs; i++)
      for (int k = 0; k < VW; k++) to[i * VW + k] = (uint8_t)v[i][k];
#else
    __m128i bytes;
#if SKC_VW == 16
    bytes = _mm512_cvtepi32_epi8((__m512i)v[0]);
#elif SKC_VW == 8
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]), 0xd8);
    bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
    bytes = _mm_packus_epi16(_mm_packs_epi32((__m128i)v[0], (__m128i)v[1]),
                             _mm_packs_epi32((__m128i)v[2], (__m128i)v[3]));
#endif
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#endif
  }
};

}  // namespace SKC_ISA
}  // namespace skc
