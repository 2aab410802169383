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
