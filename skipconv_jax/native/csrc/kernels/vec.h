// Vectors of VW floats by compiler extension: one source for AVX-512 (16), AVX2 (8), NEON and portable (4).
#pragma once
#include <cmath>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "runtime/program.h"

#define SKC_INLINE inline __attribute__((always_inline))

namespace skc {
namespace SKC_ISA {

constexpr int VW = SKC_VW;
typedef float vf __attribute__((vector_size(SKC_VW * 4)));
typedef int32_t vi __attribute__((vector_size(SKC_VW * 4)));
typedef float vfu __attribute__((vector_size(SKC_VW * 4), aligned(4), may_alias));

SKC_INLINE vf load(const float* p) { return *reinterpret_cast<const vfu*>(p); }
SKC_INLINE void store(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }
SKC_INLINE vf splat(float s) { return s - vf{}; }
SKC_INLINE vf vabs(vf v) { return (vf)((vi)v & 0x7fffffff); }
// NaN stays NaN in both, as in jnp.maximum and jnp.minimum: of two operands one of which is NaN x86's
// instructions return the second, NEON's the NaN.
#if defined(__AVX512F__)
SKC_INLINE vf vmax(vf v, vf lo) { return (vf)_mm512_max_ps((__m512)lo, (__m512)v); }
SKC_INLINE vf vmin(vf v, vf hi) { return (vf)_mm512_min_ps((__m512)hi, (__m512)v); }
#elif defined(__AVX2__)
SKC_INLINE vf vmax(vf v, vf lo) { return (vf)_mm256_max_ps((__m256)lo, (__m256)v); }
SKC_INLINE vf vmin(vf v, vf hi) { return (vf)_mm256_min_ps((__m256)hi, (__m256)v); }
#elif defined(__aarch64__)
SKC_INLINE vf vmax(vf v, vf lo) { return (vf)vmaxq_f32((float32x4_t)v, (float32x4_t)lo); }
SKC_INLINE vf vmin(vf v, vf hi) { return (vf)vminq_f32((float32x4_t)v, (float32x4_t)hi); }
#else
SKC_INLINE vf vmax(vf v, vf lo) { return v < lo ? lo : v; }
SKC_INLINE vf vmin(vf v, vf hi) { return v > hi ? hi : v; }
#endif

SKC_INLINE float hsum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#elif defined(__aarch64__)
  return vaddvq_f32((float32x4_t)v);
#else
  float s = 0;
  for (int i = 0; i < VW; i++) s += v[i];
  return s;
#endif
}

SKC_INLINE bool any_lane(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int found = 0;
  for (int i = 0; i < VW; i++) found |= mask[i];
  return found != 0;
#endif
}

// Bit i is lane i of a mask.
SKC_INLINE unsigned lane_bits(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
  return (unsigned)_mm256_movemask_ps((__m256)mask);
#else
  unsigned bits = 0;
  for (int i = 0; i < VW; i++) bits |= mask[i] ? 1u << i : 0u;
  return bits;
#endif
}

// Lane i is the sum of the lanes of v[i].
SKC_INLINE vf row_sums(const vf* v) {
#if defined(__AVX512F__)
  // Halves of four steps: after each, half as many vectors hold twice as many rows.
  auto low32 = [](vf a, vf b) { return (vf)_mm512_unpacklo_ps((__m512)a, (__m512)b); };
  auto high32 = [](vf a, vf b) { return (vf)_mm512_unpackhi_ps((__m512)a, (__m512)b); };
  auto low64 = [](vf a, vf b) { return (vf)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); };
  auto high64 = [](vf a, vf b) { return (vf)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); };
  auto even = [](vf a, vf b) { return (vf)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88); };
  auto odd = [](vf a, vf b) { return (vf)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd); };
  // Each 128-bit lane holds a part of rows r to r + 3.
  auto four = [&](int r) {
    const vf a = low32(v[r], v[r + 1]) + high32(v[r], v[r + 1]);
    const vf b = low32(v[r + 2], v[r + 3]) + high32(v[r + 2], v[r + 3]);
    return low64(a, b) + high64(a, b);
  };
  auto eight = [&](int r) {
    const vf a = four(r), b = four(r + 4);
    return even(a, b) + odd(a, b);
  };
  const vf a = eight(0), b = eight(8);
  return even(a, b) + odd(a, b);
#else
  vf out{};
  for (int i = 0; i < VW; i++) out[i] = hsum(v[i]);
  return out;
#endif
}

// Pixels of three channels: VW of them as they lie in memory, and one vector per channel. Two permutes
// of two vectors each make one: where element i comes from in the first two, then in that and the third.
#if defined(__AVX512F__)
struct Three {
  alignas(64) int32_t split[3][2][16], join[3][2][16];
  constexpr Three() : split{}, join{} {
    for (int k = 0; k < 3; k++)
      for (int i = 0; i < 16; i++) {
        const int at = 3 * i + k, x = (16 * k + i) / 3, c = (16 * k + i) % 3;
        split[k][0][i] = at < 32 ? at : 0;
        split[k][1][i] = at < 32 ? i : at - 16;
        join[k][0][i] = c < 2 ? x + 16 * c : 0;
        join[k][1][i] = c < 2 ? i : x + 16;
      }
  }
};
inline constexpr Three kThree;

SKC_INLINE void permute3(const vf* from, const int32_t (*table)[2][16], vf* to) {
  for (int k = 0; k < 3; k++) {
    const __m512i first = _mm512_load_si512(table[k][0]), last = _mm512_load_si512(table[k][1]);
    const __m512 two = _mm512_permutex2var_ps((__m512)from[0], first, (__m512)from[1]);
    to[k] = (vf)_mm512_permutex2var_ps(two, last, (__m512)from[2]);
  }
}
SKC_INLINE void split3(const vf* from, vf* to) { permute3(from, kThree.split, to); }
SKC_INLINE void join3(const vf* from, vf* to) { permute3(from, kThree.join, to); }
#else
SKC_INLINE void split3(const vf* from, vf* to) {
  float flat[3 * VW];
  std::memcpy(flat, from, sizeof(flat));
  for (int k = 0; k < 3; k++)
    for (int i = 0; i < VW; i++) to[k][i] = flat[3 * i + k];
}
SKC_INLINE void join3(const vf* from, vf* to) {
  float flat[3 * VW];
  for (int i = 0; i < VW; i++)
    for (int k = 0; k < 3; k++) flat[3 * i + k] = from[k][i];
  std::memcpy(to, flat, sizeof(flat));
}
#endif

SKC_INLINE float hmax(vf v) {
  float top = v[0];
  for (int i = 1; i < VW; i++) top = v[i] > top ? v[i] : top;
  return top;
}

// Largest and smallest of two with NaN of either shown, as jnp.maximum and jnp.minimum do.
SKC_INLINE vf nan_max(vf a, vf b) { return b != b ? b : vmax(a, b); }
SKC_INLINE vf nan_min(vf a, vf b) { return b != b ? b : vmin(a, b); }

SKC_INLINE vi lane_numbers() {
  vi v;
  for (int i = 0; i < VW; i++) v[i] = i;
  return v;
}

// Zeroes the lanes at and beyond `left`, so that padding channels never count as change.
SKC_INLINE vf keep_lanes(vf v, int left) {
  if (left >= VW) return v;
  return (vf)((vi)v & (lane_numbers() < left));
}

}  // namespace SKC_ISA
}  // namespace skc
