// Bytes on their way to where they are stored: tables, what changed, distances.
#pragma once
#include "kernels/int8_dot.h"

namespace skc {
namespace SKC_ISA {

#if defined(__AVX512BW__) && !defined(SKC_GENERIC)
// 256 entries in four registers; with VBMI, which not every processor with AVX-512 has.
__attribute__((target("avx512vbmi"), noinline)) static void look_up_vbmi(uint8_t* p, long n,
                                                                         const uint8_t* table) {
  __m512i t[4];
  for (int i = 0; i < 4; i++) t[i] = _mm512_loadu_si512(table + 64 * i);
  for (long i = 0; i < n; i += 64) {
    const __mmask64 some = n - i >= 64 ? ~0ull : (1ull << (n - i)) - 1;
    const __m512i v = _mm512_maskz_loadu_epi8(some, p + i);
    const __m512i low = _mm512_permutex2var_epi8(t[0], v, t[1]);
    const __m512i high = _mm512_permutex2var_epi8(t[2], v, t[3]);
    _mm512_mask_storeu_epi8(p + i, some, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high));
  }
}
#endif

// p[i] = table[p[i]], 256 entries.
static void look_up(uint8_t* p, long n, const uint8_t* table) {
#if defined(__AVX512BW__) && !defined(SKC_GENERIC)
  static const bool vbmi = __builtin_cpu_supports("avx512vbmi");
  if (vbmi) return look_up_vbmi(p, n, table);
#endif
  long i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t v, made = 0;
    std::memcpy(&v, p + i, 8);
    for (int k = 0; k < 64; k += 8) made |= (uint64_t)table[v >> k & 255] << k;
    std::memcpy(p + i, &made, 8);
  }
  for (; i < n; i++) p[i] = table[p[i]];
}

// Stores `width` bytes (a multiple of 16); whether any was another.
SKC_INLINE bool store_changed(const uint8_t* from, uint8_t* to, int width) {
  typedef int32_t line __attribute__((vector_size(16), aligned(1), may_alias));
  typedef int32_t v4 __attribute__((vector_size(16)));
#if defined(__AVX512BW__)
  __m512i d = _mm512_setzero_si512();
  int c = 0;
  for (; c + 64 <= width; c += 64) {
    const __m512i v = _mm512_loadu_si512(from + c);
    d = _mm512_or_si512(d, _mm512_xor_si512(v, _mm512_loadu_si512(to + c)));
    _mm512_storeu_si512(to + c, v);
  }
  if (c < width) {
    const __mmask64 some = (1ull << (width - c)) - 1;
    const __m512i v = _mm512_maskz_loadu_epi8(some, from + c);
    d = _mm512_or_si512(d, _mm512_xor_si512(v, _mm512_maskz_loadu_epi8(some, to + c)));
    _mm512_mask_storeu_epi8(to + c, some, v);
  }
  return _mm512_test_epi32_mask(d, d) != 0;
#else
  v4 d{};
  for (int c = 0; c < width; c += 16) {
    const v4 v = *reinterpret_cast<const line*>(from + c);
    d |= v ^ *reinterpret_cast<const line*>(to + c);
    *reinterpret_cast<line*>(to + c) = v;
  }
  return (d[0] | d[1] | d[2] | d[3]) != 0;
#endif
}

static void store_row(const QRow& r) {
  uint8_t* bytes = static_cast<uint8_t*>(r.tmp);
  if (r.wide) {
    // Bytes take the place of the indices they were read from.
    const uint16_t* index = static_cast<const uint16_t*>(r.tmp);
    for (long i = 0; i < r.n * r.stride; i++) bytes[i] = r.table[index[i]];
  } else if (r.table) {
    look_up(bytes, r.n * r.stride, r.table);
  }
  for (int x = 0; x < r.n; x++)
    r.flags[x] |= store_changed(bytes + x * r.stride, r.out + x * r.col, r.width);
}

static int distance(const uint8_t* a, const uint8_t* b, int n) {
  int sum = 0, i = 0;
#if defined(__AVX512BW__)
  __m512i total = _mm512_setzero_si512();
  for (; i < n; i += 64) {
    const __mmask64 some = n - i >= 64 ? ~0ull : (1ull << (n - i)) - 1;
    total = _mm512_add_epi64(total, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(some, a + i),
                                                    _mm512_maskz_loadu_epi8(some, b + i)));
  }
  return (int)_mm512_reduce_add_epi64(total);
#elif defined(__AVX2__)
  __m256i total = _mm256_setzero_si256();
  for (; i + 32 <= n; i += 32)
    total = _mm256_add_epi64(total, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i*)(a + i)),
                                                    _mm256_loadu_si256((const __m256i*)(b + i))));
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
  sum = _mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 2);
#endif
  for (; i < n; i++) sum += a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
  return sum;
}

}  // namespace SKC_ISA
}  // namespace skc
