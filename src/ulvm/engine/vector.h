// Vectors of 16 floats, in one register or several, and the functions of numbers.
//
// One width for every instruction set: weights lie alike in memory, and where a vector takes several
// registers, they share each constant and each load.

#ifndef ULVM_VECTOR_H
#define ULVM_VECTOR_H

#include <stdbool.h>
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
#if defined(__SSE2__) || defined(__wasm_simd128__) || defined(__ARM_NEON)
#define UNROLL _Pragma("GCC unroll 64")
#else
#define UNROLL  // of single floats the code would be large
#endif

typedef float vec __attribute__((vector_size(WIDE * 4)));
typedef int32_t ivec __attribute__((vector_size(WIDE * 4)));
typedef double pairs __attribute__((vector_size(WIDE * 4)));
typedef float quarter __attribute__((vector_size(WIDE)));
typedef float reg __attribute__((vector_size(LANES * 4)));
// The same in memory, at any address.
typedef float vec_in_memory __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));
typedef float quarter_in_memory __attribute__((vector_size(WIDE), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const vec_in_memory *)from; }
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

// 2^t; below -126 it is 2^-126 or less, above 126, unless it is known to be below, 2^126. Exactly 1 at 0.
// What is not a number stays so, here and below: a damaged network must not give a plausible mask.
INLINE vec power_of_two(vec t, bool below) {
#if LANES == 16
  const __m512 clipped = below ? (__m512)t : _mm512_min_ps(_mm512_set1_ps(126.0f), (__m512)t);
  const __m512 whole = _mm512_roundscale_ps(clipped, 8);  // to nearest, quietly
  return (vec)_mm512_scalef_ps((__m512)exp2_fraction((vec)(clipped - whole)), whole);
#else
  const float magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to whole numbers
  const vec clipped = max_of(splat(-126.0f), below ? t : min_of(splat(126.0f), t));
  const vec rounded = clipped + magic;
  const vec p = exp2_fraction(clipped - (rounded - magic));
  return (vec)((ivec)p + ((ivec)rounded << 23));
#endif
}

INLINE vec exp2_of(vec t) { return power_of_two(t, false); }

// 2^(dt · A), dt ≥ 0, A ≤ 0: a decay.
INLINE vec exp2_falling(vec dt, vec A) { return power_of_two(dt * A, true); }

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
  return max_of(splat(0), x) + p * u;
}

// x · Phi(x), Phi the normal distribution.
#if defined(__AVX512F__)
// max(x, 0) - u · Phi(-u), u = |x|: the second by cubics around u = 0, 1/6, … 31/6, whose numbers
// lie in eight registers; error 4e-07.
static const float gelu_cubics[4][32] = {
    {0.0f, -0.072302319f, -0.123146807f, -0.154268565f, -0.168328272f, -0.16860701f,
     -0.158655375f, -0.141951441f, -0.121615177f, -0.100211019f, -0.07965078f, -0.0611904174f,
     -0.0455003724f, -0.0327820354f, -0.0229024629f, -0.0155241662f, -0.0102143346f,
     -0.00652589861f, -0.00404966965f, -0.00244142896f, -0.00143018188f, -0.000814186803f,
     -0.000450499157f, -0.00024229449f, -0.000126679985f, -6.43897683e-05f, -3.18196117e-05f,
     -1.52884328e-05f, -7.14231346e-06f, -3.24442574e-06f, -1.43308762e-06f, -6.15537899e-07f},
    {-0.0833345059f, -0.0613738523f, -0.0406078924f, -0.022084236f, -0.00658796134f,
     0.00543294681f, 0.0138858471f, 0.0189987329f, 0.0212448015f, 0.0212448763f, 0.0196675066f,
     0.0171434725f, 0.0142053363f, 0.0112556783f, 0.00856153828f, 0.00626853076f, 0.00442649573f,
     0.00301900678f, 0.00199094122f, 0.00127062643f, 0.000785308306f, 0.000470289989f,
     0.000273018002f, 0.000153702136f, 8.39398524e-05f, 4.44807139e-05f, 2.28764788e-05f,
     1.14210314e-05f, 5.53596975e-06f, 2.60566409e-06f, 1.19106574e-06f, 5.28804624e-07f},
    {0.0110959718f, 0.0107650665f, 0.009890684f, 0.0085506049f, 0.00689886722f, 0.0051126733f,
     0.00336458504f, 0.00179838412f, 0.000513160974f, -0.000442758712f, -0.00106842359f,
     -0.00139988777f, -0.0014962772f, -0.00142568564f, -0.00125349838f, -0.00103455962f,
     -0.00080941063f, -0.000603996339f, -0.000431656778f, -0.000296307261f, -0.000195780587f,
     -0.000124715285f, -7.66893705e-05f, -4.55665927e-05f, -2.61819219e-05f, -1.45574511e-05f,
     -7.83673619e-06f, -4.08649345e-06f, -2.06491325e-06f, -1.01142549e-06f, -4.8036691e-07f,
     -2.21273415e-07f},
    {-4.91855149e-05f, -0.00020051555f, -0.000376621846f, -0.000508271975f, -0.00058313006f,
     -0.000598183697f, -0.00055934025f, -0.000479394451f, -0.000374824499f, -0.00026246425f,
     -0.00015667873f, -6.75803961e-05f, -4.33491388e-07f, 4.39093022e-05f, 6.78915112e-05f,
     7.58746881e-05f, 7.28330403e-05f, 6.34056892e-05f, 5.12943997e-05f, 3.90722676e-05f,
     2.82477834e-05f, 1.94842995e-05f, 1.28690005e-05f, 8.16033583e-06f, 4.97776603e-06f,
     2.92542889e-06f, 1.65844162e-06f, 9.07803743e-07f, 4.80191323e-07f, 2.45616884e-07f,
     1.21553948e-07f, 5.82312332e-08f}};

INLINE vec gelu(vec x) {
  const vec u = (vec)((ivec)x & 0x7fffffff);
  const vec at = min_of(splat(31.0f), 6.0f * u);
  const vec rounded = at + 8388608.0f;            // 2^23: its last bits are the nearest whole number
  const vec f = at - (rounded - 8388608.0f);
  vec c[4];
  UNROLL for (int i = 0; i < 4; i++) {
    c[i] = (vec)_mm512_permutex2var_ps(_mm512_loadu_ps(gelu_cubics[i]), (__m512i)rounded,
                                       _mm512_loadu_ps(gelu_cubics[i] + 16));
  }
  const vec tail = ((c[3] * f + c[2]) * f + c[1]) * f + c[0];
  return max_of(splat(0), x) + tail;
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

// Of four vectors the 4×4 matrix in each quarter, transposed: value 4q + i of vector j becomes value
// 4q + j of vector i. Its own inverse.
INLINE void transpose_quarters(const vec in[4], vec out[4]) {
  vec halves[4];
  UNROLL for (int i = 0; i < 2; i++) {
    const vec a = in[2 * i], b = in[2 * i + 1];
    halves[i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    halves[2 + i] =
        __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
  UNROLL for (int i = 0; i < 2; i++) {  // pairs of floats as one value each
    const pairs a = (pairs)halves[2 * i], b = (pairs)halves[2 * i + 1];
    out[2 * i] = (vec)__builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    out[2 * i + 1] = (vec)__builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
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
