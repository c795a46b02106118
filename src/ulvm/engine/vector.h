// Vectors of 16 floats, in one register or several, and the functions of numbers.
//
// One width for every instruction set: weights lie alike in memory, and where a vector takes several
// registers, they share each constant and each load.

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
#define LANES 16  // floats in a register
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
enum { WIDE = 16 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

typedef float vec __attribute__((vector_size(WIDE * 4)));
typedef int32_t ivec __attribute__((vector_size(WIDE * 4)));
typedef float half __attribute__((vector_size(WIDE * 2)));
typedef float quarter __attribute__((vector_size(WIDE)));
typedef float reg __attribute__((vector_size(LANES * 4)));
// The same in memory, at any address.
typedef float vec_in_memory __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));
typedef float half_in_memory __attribute__((vector_size(WIDE * 2), aligned(4), may_alias));
typedef float quarter_in_memory __attribute__((vector_size(WIDE), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const vec_in_memory *)from; }
INLINE half load_half(const float *from) { return *(const half_in_memory *)from; }
INLINE void store(float *to, vec v) { *(vec_in_memory *)to = v; }
INLINE vec splat(float value) { return value - (vec){0}; }

// Four values, over and over.
INLINE vec load_four(const float *from) {
  const quarter q = *(const quarter_in_memory *)from;
  return __builtin_shufflevector(q, q, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
}

// The first `count` of the values, where there is no room for all.
INLINE void store_some(float *to, vec v, int count) {
  if (count >= WIDE) {
    store(to, v);
    return;
  }
  float values[WIDE];
  store(values, v);
  memcpy(to, values, (size_t)count * sizeof(float));
}

// A vector as the registers that hold it.
typedef union {
  vec whole;
  reg parts[WIDE / LANES];
} Registers;

// The larger or smaller of two, by the instruction that gives `b` where one is not a number.
#if defined(__AVX512F__)
INLINE reg max_of_registers(reg a, reg b) { return (reg)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE reg min_of_registers(reg a, reg b) { return (reg)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE reg max_of_registers(reg a, reg b) { return (reg)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE reg min_of_registers(reg a, reg b) { return (reg)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
INLINE reg max_of_registers(reg a, reg b) { return (reg)_mm_max_ps((__m128)a, (__m128)b); }
INLINE reg min_of_registers(reg a, reg b) { return (reg)_mm_min_ps((__m128)a, (__m128)b); }
#elif defined(__wasm_simd128__)
INLINE reg max_of_registers(reg a, reg b) { return (reg)wasm_f32x4_pmax((v128_t)b, (v128_t)a); }
INLINE reg min_of_registers(reg a, reg b) { return (reg)wasm_f32x4_pmin((v128_t)b, (v128_t)a); }
#else
typedef int32_t ireg __attribute__((vector_size(LANES * 4)));
INLINE reg max_of_registers(reg a, reg b) {
  const ireg larger = a > b;
  return (reg)((larger & (ireg)a) | (~larger & (ireg)b));
}
INLINE reg min_of_registers(reg a, reg b) {
  const ireg smaller = a < b;
  return (reg)((smaller & (ireg)a) | (~smaller & (ireg)b));
}
#endif

INLINE vec max_of(vec a, vec b) {
  Registers x = {a}, y = {b};
  UNROLL for (int i = 0; i < WIDE / LANES; i++) x.parts[i] = max_of_registers(x.parts[i], y.parts[i]);
  return x.whole;
}

INLINE vec min_of(vec a, vec b) {
  Registers x = {a}, y = {b};
  UNROLL for (int i = 0; i < WIDE / LANES; i++) x.parts[i] = min_of_registers(x.parts[i], y.parts[i]);
  return x.whole;
}

// 2^f for |f| ≤ 1/2, relative error 3e-6; exactly 1 at 0.
INLINE vec exp2_fraction(vec f) {
  vec p = 0.00958285304f * f + 0.0559064247f;
  p = p * f + 0.240240986f;
  p = p * f + 0.693124193f;
  return p * f + 1.0f;
}

// 2^t; below -126 it is 2^-126 or less, above 126 it is 2^126. Exactly 1 at 0.
INLINE vec exp2_of(vec t) {
#if LANES == 16
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

// Divisions run beside products, quicker than an estimate and its correction.
INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exp2_of(-LOG2_E * x)); }
INLINE vec silu(vec x) { return x / (1.0f + exp2_of(-LOG2_E * x)); }

// log(1 + exp(x)) = max(x, 0) + log(1 + u), u = exp(-|x|); error 3e-8 of the logarithm.
INLINE vec softplus(vec x) {
  const vec u = exp2_of(-LOG2_E * max_of(x, -x));
  const vec s = u - 0.5f, s2 = s * s;
  const vec low = (-0.067711447f * s + 0.132609085f) * s2 + (-0.288526665f * s + 0.810930219f);
  const vec high = (-0.00857446171f * s + 0.0115864768f) * s2 + (-0.020228246f * s + 0.0366338599f);
  const vec p = (0.0052326927f * (s2 * s2) + high) * (s2 * s2) + low;
  return max_of(x, splat(0)) + p * u;
}

// x · Phi(x), Phi the normal distribution.
#if defined(__AVX512F__)
// max(x, 0) - u · Phi(-u), u = |x|: the second by quartics around u = 0, 1/3, … 5, whose numbers
// lie in five registers; error 2e-07, beyond 5 less than 2e-6.
static const float gelu_quartics[5][16] = {
    {0.0f, -0.123147105f, -0.168328359f, -0.158655262f, -0.121614968f, -0.0796505911f,
     -0.0455002633f, -0.0229024309f, -0.010214346f, -0.00404969349f, -0.00143020095f,
     -0.000450510278f, -0.000126685165f, -3.18216227e-05f, -7.14297818e-06f, -1.43327708e-06f},
    {-0.166666748f, -0.0812170483f, -0.0131776212f, 0.027770532f, 0.0424893927f, 0.0393354909f,
     0.0284113198f, 0.0171235275f, 0.00885316911f, 0.00398188297f, 0.00157055765f, 0.00054598216f,
     0.000167848032f, 4.57385834e-05f, 1.10666001e-05f, 2.38046234e-06f},
    {0.0443283755f, 0.0396014889f, 0.0276066658f, 0.0134432362f, 0.00202524933f, -0.00429818697f,
     -0.00599902648f, -0.0050179029f, -0.00323601249f, -0.00172353785f, -0.000780668143f,
     -0.000305347836f, -0.000104079876f, -3.10987347e-05f, -8.17868247e-06f, -1.89869877e-06f},
    {-7.7100325e-06f, -0.0029972306f, -0.00464388326f, -0.00446024726f, -0.00299595357f,
     -0.00125938614f, -1.152837e-05f, 0.000537518181f, 0.000580452715f, 0.000410346989f,
     0.00022671716f, 0.00010362237f, 4.02162866e-05f, 1.34463549e-05f, 3.90793475e-06f,
     9.9318393e-07f},
    {-0.000807231823f, -0.00062399225f, -0.000178942794f, 0.000245330735f, 0.000442030269f,
     0.000393679122f, 0.000222447565f, 6.14391905e-05f, -2.70867503e-05f, -4.97359749e-05f,
     -3.93409952e-05f, -2.24748701e-05f, -1.0277523e-05f, -3.91856059e-06f, -1.27188526e-06f,
     -3.55789819e-07f}};

INLINE vec gelu(vec x) {
  const vec u = (vec)((ivec)x & 0x7fffffff);
  const vec at = min_of(splat(15.0f), 3.0f * u);  // a NaN stays one
  const vec rounded = at + 8388608.0f;            // 2^23: its last bits are the nearest whole number
  const vec f = at - (rounded - 8388608.0f);
  vec c[5];
  UNROLL for (int i = 0; i < 5; i++) {
    c[i] = (vec)_mm512_permutexvar_ps((__m512i)rounded, _mm512_loadu_ps(gelu_quartics[i]));
  }
  const vec tail = (((c[4] * f + c[3]) * f + c[2]) * f + c[1]) * f + c[0];
  return max_of(x, splat(0)) + tail;
}
#else
// Phi(x) = 1/2 + x · p(x²) for |x| ≤ 5; error 3e-7. In short chains, for each product waits for
// the one before.
INLINE vec gelu(vec x) {
  const vec inside = max_of(splat(-5.0f), min_of(splat(5.0f), x));
  const vec s = inside * inside * 0.08f - 1.0f;  // in -1..1, where the terms of p stay small
  const vec s2 = s * s, s4 = s2 * s2;
  const vec low = (-0.0404329496f * s + 0.0515214209f) * s2 + (-0.0702966524f * s + 0.14136378f);
  const vec middle =
      (-0.0109732333f * s + 0.0164976558f) * s2 + (-0.0233367304f * s + 0.0314262296f);
  const vec high = (-0.00151415456f * s + 0.00200185872f) * s2 +
                   (-0.00291567127f * s + 0.00616543182f);
  const vec p = ((0.000492970162f * s4 + high) * s4 + middle) * s4 + low;
  return x * (inside * p + 0.5f);
}
#endif

INLINE float sum_of(vec v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  return (v[0] + v[2]) + (v[1] + v[3]);
}

// a0 b0 a1 b1 …: the first and the second half.
INLINE void zip(vec a, vec b, vec *first, vec *second) {
  *first = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *second = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                    15, 31);
}

// The even and the odd of 32 values: the inverse.
INLINE void unzip(vec a, vec b, vec *even, vec *odd) {
  *even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

#endif
