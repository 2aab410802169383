// Activations on vectors. All show NaN, and infinities as the formula of the dense network does.
#pragma once
#include "kernels/vec.h"

namespace skc {
namespace SKC_ISA {

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

// Beyond -87, where exp(-x) is held, a sigmoid is 0: times -inf that is NaN, as the product would be.
SKC_INLINE vf vsigmoid_factor(vf x) {
  const vf y = vreciprocal(1.0f + vexp_minus(x));
  return x < -87.f ? vf{} : y;
}
SKC_INLINE vf vswish(vf x) { return x * vsigmoid_factor(x); }
SKC_INLINE vf vsigmoid(vf x) { return x == x ? vsigmoid_factor(x) : x; }

// exp(r) - 1 = q and the n of x = n ln 2 + r, |r| <= ln(2)/2, for x in [-104, 89].
SKC_INLINE vf vexp_parts(vf x, vf& n) {
  const vf t = 12582912.f + x * 1.44269504f;
  n = t - 12582912.f;
  const vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r;
}

// 2^n for whole n in [-126, 127].
SKC_INLINE vf vpow2(vf n) {
  const vf t = n + 12582912.f;  // n in the low mantissa bits
  return (vf)(((vi)t << 23) + 0x3f800000);
}

// exp(x) to 2e-7, from 0 (denormals lose bits) to infinity.
SKC_INLINE vf vexp(vf x) {
  vf n;
  const vf q = vexp_parts(vmin(vmax(x, splat(-104.f)), splat(89.f)), n);
  const vf t = n * .5f + 12582912.f, half = t - 12582912.f;  // two factors: 2^128 is no float
  const vf y = (1.0f + q) * vpow2(half) * vpow2(n - half);
  return x == x ? y : x;
}

// exp(x) - 1 to 2e-7 of its value, for x <= 88.
SKC_INLINE vf vexpm1(vf x) {
  vf n;
  const vf q = vexp_parts(vmin(vmax(x, splat(-80.f)), splat(88.f)), n), s = vpow2(n);
  const vf y = s * q + (s - 1.0f);
  return x == x ? y : x;
}

SKC_INLINE vf vtanh(vf x) {
  const vf a = vmin(vabs(x), splat(10.f)), e = vexpm1(2.0f * a);
  const vf y = (vf)((vi)(e / (e + 2.0f)) | ((vi)x & (int32_t)0x80000000));
  return x == x ? y : x;
}

// log(1 + u) for u in [0, 1], as 2 atanh(u / (2 + u)).
SKC_INLINE vf vlog1p_unit(vf u) {
  const vf s = u / (2.0f + u), q = s * s;
  vf p = splat(1.f / 15);
  p = p * q + 1.f / 13;
  p = p * q + 1.f / 11;
  p = p * q + 1.f / 9;
  p = p * q + 1.f / 7;
  p = p * q + 1.f / 5;
  p = p * q + 1.f / 3;
  return 2.0f * s + 2.0f * s * (q * p);
}

SKC_INLINE vf vsoftplus(vf x) { return vmax(x, vf{}) + vlog1p_unit(vexp(-vabs(x))); }

// x tanh(log(1 + e^x)); beyond 20 the tanh is 1.
SKC_INLINE vf vmish(vf x) {
  const vf w = vexp(vmin(x, splat(20.f))), n = w * (w + 2.0f);
  return x * (n / (n + 2.0f));
}

// erfc(|x|) = t exp(-x^2 + P(t)), t = 2 / (2 + |x|), to 3e-7 of its value. P is a least-squares fit on
// Chebyshev points.
SKC_INLINE vf verfc_abs(vf x) {
  const vf a = vmin(vabs(x), splat(12.f)), t = 2.0f / (2.0f + a);
  vf p = splat(0.1756597202612923f);
  p = p * t - 0.8450797732547958f;
  p = p * t + 1.5348435910778873f;
  p = p * t - 1.1865369694067625f;
  p = p * t + 0.3128049547470643f;
  p = p * t - 0.19993128520670322f;
  p = p * t + 0.10003859198931378f;
  p = p * t + 0.37366370645256153f;
  p = p * t + 1.0000503033273425f;
  p = p * t - 1.265512764032839f;
  const vf y = t * vexp(p - a * a);
  return x == x ? y : x;
}

SKC_INLINE vf verf(vf x) {
  const vf a = vabs(x), q = x * x;
  vf p = splat(-1.f / 1320);  // Taylor near 0, where 1 - erfc would lose its bits
  p = p * q + 1.f / 216;
  p = p * q - 1.f / 42;
  p = p * q + 1.f / 10;
  p = p * q - 1.f / 3;
  const vf near = 1.12837917f * (x + x * q * p);
  const vf far = (vf)((vi)(1.0f - verfc_abs(x)) | ((vi)x & (int32_t)0x80000000));
  return a < .5f ? near : far;
}

// x Phi(x); where Phi is 0 the product of -inf is NaN, as in the dense network.
SKC_INLINE vf vgelu(vf x) {
  const vf e = .5f * verfc_abs(x * 0.70710678f);
  return x * (x > 0.f ? 1.0f - e : x < -14.f ? vf{} : e);
}

SKC_INLINE vf vgelu_tanh(vf x) {
  const vf u = 1.59576912f * (x + 0.044715f * x * x * x);  // 1 + tanh(u / 2) = 2 sigmoid(u)
  return x * vsigmoid_factor(u);
}

template <class F>
SKC_INLINE vf lanes(vf v, F f) {
  for (int i = 0; i < VW; i++) v[i] = f(v[i]);
  return v;
}

// An operation's activation; `slope` holds one value per channel, in whole vectors.
struct Activation {
  int act;
  float a0, a1;
  const float* slope;
  Activation(const Op& o, const float* weights)
      : act(o.act), a0(o.a0), a1(o.a1), slope(o.act == kPrelu ? weights + o.slope : nullptr) {}
  // Whether it is min(max(v, a0), a1).
  bool clamps() const { return act <= kClip; }
  // Whether it leaves everything as it is.
  bool none() const { return act == kNone; }
};

// Those whose cost hides a call.
static __attribute__((noinline)) vf activate_slowly(vf v, int act, float a0) {
  switch (act) {
    case kTanh: return vtanh(v);
    case kElu: return v > 0.f ? v : a0 * vexpm1(v);
    case kGelu: return vgelu(v);
    case kGeluTanh: return vgelu_tanh(v);
    case kMish: return vmish(v);
    case kSoftplus: return vsoftplus(v);
    case kErf: return verf(v);
    case kExp: return vexp(v);
    case kLog: return lanes(v, [](float x) { return std::log(x); });
    case kSqrt: return lanes(v, [](float x) { return std::sqrt(x); });
    case kRsqrt: return lanes(v, [](float x) { return 1.f / std::sqrt(x); });
    default: return v;
  }
}

// Channels [c, c + VW).
SKC_INLINE vf activate(vf v, const Activation& a, int c) {
  switch (a.act) {
    case kNone: return v;
    case kRelu:
    case kRelu6:
    case kClip: return vmin(vmax(v, splat(a.a0)), splat(a.a1));
    case kSwish: return vswish(v);
    case kSigmoid: return vsigmoid(v);
    case kHardSwish: return v * vmin(vmax(v + 3.f, vf{}), splat(6.f)) / 6.f;
    case kHardSigmoid: return vmin(vmax(v * a.a0 + a.a1, vf{}), splat(1.f));
    case kLeakyRelu: return v >= 0.f ? v : v * a.a0;
    case kPrelu: return v >= 0.f ? v : v * load(a.slope + c);
    case kAbs: return vabs(v);
    case kSquare: return v * v;
    default: return activate_slowly(v, a.act, a.a0);
  }
}

}  // namespace SKC_ISA
}  // namespace skc
