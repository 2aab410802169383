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

// exp(-x) as 2^n 2^f with |f| <= 1/2 and a polynomial of degree 5; relative error 1e-7 and 2e-8 |x|.
// x is held to [-87, 87]: beyond, a sigmoid is within 1.7e-38 of 0 or 1. Not for NaN.
SKC_INLINE vf vexp_minus(vf x) {
  x = vmin(vmax(x, splat(-87.f)), splat(87.f));
  const vf t = 12582912.f - x * 1.44269504f;  // rounds to an integer in the low mantissa bits
  const vf n = t - 12582912.f;
  const vf f = -(x * 1.44269504f + n);
  vf p = splat(1.327645183e-3f);
  p = p * f + 9.675541173e-3f;
  p = p * f + 5.550713336e-2f;
  p = p * f + 2.402211973e-1f;
  p = p * f + 6.931469670e-1f;
  p = p * f + 1.0f;
  // Times 2^n: n is added to the exponent of p, which lies in [.7, 1.5].
  return (vf)((vi)p + ((vi)t << 23));
}

// 1 / d to 1e-7, for d from 1 to 1e38.
SKC_INLINE vf vreciprocal(vf d) {
#if defined(__AVX512F__)
  const vf r = (vf)_mm512_rcp14_ps((__m512)d);
  return r * (2.0f - d * r);
#else
  return 1.0f / d;
#endif
}

SKC_INLINE vf vswish(vf x) { return x * vreciprocal(1.0f + vexp_minus(x)); }
SKC_INLINE vf vsigmoid(vf x) {
  const vf y = vreciprocal(1.0f + vexp_minus(x));
  return x == x ? y : x;
}

template <class F>
SKC_INLINE vf lanes(vf v, F f) {
  for (int i = 0; i < VW; i++) v[i] = f(v[i]);
  return v;
}

SKC_INLINE vf activate(vf v, int act) {
  switch (act) {
    case kRelu: return vmax(v, vf{});
    case kRelu6: return vmin(vmax(v, vf{}), splat(6.f));
    case kSwish: return vswish(v);
    case kSigmoid: return vsigmoid(v);
    case kHardSwish: return v * vmin(vmax(v + 3.f, vf{}), splat(6.f)) / 6.f;
    case kTanh: return lanes(v, [](float x) { return std::tanh(x); });
    case kElu: return lanes(v, [](float x) { return x > 0 ? x : std::expm1(x); });
    case kGelu: return lanes(v, [](float x) { return .5f * x * std::erfc(-x * 0.70710678f); });
    case kExp: return lanes(v, [](float x) { return std::exp(x); });
    case kAbs: return vabs(v);
    case kSqrt: return lanes(v, [](float x) { return std::sqrt(x); });
    case kRsqrt: return lanes(v, [](float x) { return 1.f / std::sqrt(x); });
    case kSquare: return v * v;
    default: return v;
  }
}

}  // namespace SKC_ISA
}  // namespace skc
