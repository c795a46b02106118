// Vectors of the instruction set that network.c is compiled for, and the functions of numbers.
//
// `vec` has as many floats as one register; `wide` always has 16, in one register or several, so
// that weights lie alike in memory for every instruction set.

#ifndef ULVM_VECTOR_H
#define ULVM_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
enum { WIDE = 16 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef float wide __attribute__((vector_size(WIDE * 4)));
typedef int32_t iwide __attribute__((vector_size(WIDE * 4)));
// The same in memory, at any address.
typedef float vec_in_memory __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float wide_in_memory __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const vec_in_memory *)from; }
INLINE void store(float *to, vec v) { *(vec_in_memory *)to = v; }
INLINE wide load_wide(const float *from) { return *(const wide_in_memory *)from; }
INLINE void store_wide(float *to, wide v) { *(wide_in_memory *)to = v; }
INLINE vec splat(float value) { return value - (vec){0}; }
INLINE wide splat_wide(float value) { return value - (wide){0}; }

// The larger of two, with the instruction that gives `b` where one is not a number.
INLINE vec max_of(vec a, vec b) {
#if defined(__AVX512F__)
  return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (vec)_mm_max_ps((__m128)a, (__m128)b);
#elif defined(__wasm_simd128__)
  return (vec)wasm_f32x4_pmax((v128_t)b, (v128_t)a);
#elif defined(__ARM_NEON)
  return (vec)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
  const ivec larger = a > b;
  return (vec)((larger & (ivec)a) | (~larger & (ivec)b));
#endif
}

INLINE vec min_of(vec a, vec b) { return -max_of(-a, -b); }

INLINE wide max_wide(wide a, wide b) {
  union {
    wide whole;
    vec parts[WIDE / LANES];
  } x = {a}, y = {b};
  for (int i = 0; i < WIDE / LANES; i++) x.parts[i] = max_of(x.parts[i], y.parts[i]);
  return x.whole;
}

// 1 / x for 1 ≤ x < 2^126.
INLINE vec reciprocal(vec x) {
#if defined(__AVX512F__)
  const vec r = (vec)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
#elif defined(__AVX2__)
  const vec r = (vec)_mm256_rcp_ps((__m256)x);
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// 2^f for |f| ≤ 1/2, relative error 9e-8; exactly 1 at 0.
INLINE vec exp2_fraction(vec f) {
  vec p = 0.00132647271f * f + 0.00967151264f;
  p = p * f + 0.0555073374f;
  p = p * f + 0.240222421f;
  p = p * f + 0.693146978f;
  return p * f + 1.0f;
}

// 2^t; below -126 it is 2^-126 or less, above 126 it is 2^126. Exactly 1 at 0.
INLINE vec exp2_of(vec t) {
#if defined(__AVX512F__)
  const __m512 clipped = _mm512_min_ps((__m512)t, _mm512_set1_ps(126.0f));
  const __m512 whole = _mm512_roundscale_ps(clipped, 8);  // to nearest, quietly
  return (vec)_mm512_scalef_ps((__m512)exp2_fraction((vec)(clipped - whole)), whole);
#else
  const float magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to whole numbers
  const vec clipped = max_of(min_of(t, splat(126.0f)), splat(-126.0f));
  const vec rounded = clipped + magic;
  const vec p = exp2_fraction(clipped - (rounded - magic));
  return (vec)((ivec)p + ((ivec)rounded << 23));
#endif
}

// 2^(dt · A), dt ≥ 0, A ≤ 0: a decay.
INLINE vec exp2_falling(vec dt, vec A) {
#if defined(__AVX512F__)
  const vec t = dt * A;
  const __m512 whole = _mm512_roundscale_ps((__m512)t, 8);
  return (vec)_mm512_scalef_ps((__m512)exp2_fraction(t - (vec)whole), whole);
#else
  const float magic = 12582912.0f;
  const vec t = max_of(dt * A, splat(-126.0f)), rounded = t + magic;
  const vec p = exp2_fraction(t - (rounded - magic));
  return (vec)((ivec)p + ((ivec)rounded << 23));
#endif
}

static const float LOG2_E = 1.44269504f;

INLINE vec sigmoid(vec x) { return reciprocal(1.0f + exp2_of(-LOG2_E * x)); }
INLINE vec silu(vec x) { return x * sigmoid(x); }

// log(1 + exp(x)) = max(x, 0) + log(1 + u), u = exp(-|x|); relative error 3e-8 of the logarithm.
INLINE vec softplus(vec x) {
  const vec u = exp2_of(-LOG2_E * max_of(x, -x));
  const vec s = u - 0.5f;
  vec p = 0.0052326927f * s - 0.00857446171f;
  p = p * s + 0.0115864768f;
  p = p * s - 0.020228246f;
  p = p * s + 0.0366338599f;
  p = p * s - 0.067711447f;
  p = p * s + 0.132609085f;
  p = p * s - 0.288526665f;
  p = p * s + 0.810930219f;
  return max_of(x, splat(0)) + p * u;
}

// x · Phi(x), Phi the normal distribution: Phi(x) = 1/2 + x · p(x²) for |x| ≤ 5; error 2e-6.
INLINE vec gelu(vec x) {
  const vec inside = max_of(min_of(x, splat(5.0f)), splat(-5.0f));
  const vec s = inside * inside * 0.08f - 1.0f;  // p in -1..1, where its terms stay small
  vec p = -0.00109637589f * s + 0.00319447327f;
  p = p * s - 0.00388682728f;
  p = p * s + 0.00511323604f;
  p = p * s - 0.0101654889f;
  p = p * s + 0.0169101581f;
  p = p * s - 0.0236249414f;
  p = p * s + 0.0313567183f;
  p = p * s - 0.0403919855f;
  p = p * s + 0.0515253976f;
  p = p * s - 0.0702982327f;
  p = p * s + 0.141363748f;
  return x * (inside * p + 0.5f);
}

INLINE float sum_of(wide v) {
  float sum = 0;
  for (int i = 0; i < WIDE; i++) sum += v[i];
  return sum;
}

// a0 b0 a1 b1 …: the first and the second half.
INLINE void zip(wide a, wide b, wide *first, wide *second) {
  *first = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *second = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                    15, 31);
}

// The even and the odd of 32 values: the inverse.
INLINE void unzip(wide a, wide b, wide *even, wide *odd) {
  *even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

#endif
