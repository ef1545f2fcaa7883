/* Vectors of fp32 numbers, as wide as the machine's registers.

   N, the number of streams, is a constant of the code: a library is compiled for each. Sums and products are rounded
   where they are written (-ffp-contract=off); only `fused` rounds both at once. */

#pragma once

#include <stdint.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define COUNTED {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif defined(__AVX__)
#define LANES 8
#define COUNTED {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define LANES 4
#define COUNTED {0, 1, 2, 3}
#endif

#define INLINE static inline __attribute__((always_inline))
#define BLOCK static __attribute__((noinline))
/* Loops whose bounds are constants, written out; over streams where a token's matrix fits the registers. */
#define EACH(i, from, to) _Pragma("GCC unroll 16") for (int i = (from); i < (to); i++)
#if N > 4
#define STREAMS(i, from) ROLLED(i, from, N)
#else
#define STREAMS(i, from) EACH(i, from, N)
#endif
/* A loop whose body is long. */
#define ROLLED(i, from, to) _Pragma("GCC unroll 1") for (int i = (from); i < (to); i++)

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));
/* The same at any address, beside pointers of other types. */
typedef vec loose_vec __attribute__((aligned(4), may_alias));
typedef half loose_half __attribute__((aligned(2), may_alias));

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec load(const float *p) { return *(const loose_vec *)p; }

INLINE void store(float *p, vec v) { *(loose_vec *)p = v; }

/* a b + c, rounded once where the machine can. By name where there is one: of a loop GCC sometimes makes LANES scalars. */
INLINE vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    vec r;
    EACH(i, 0, LANES) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
}

/* a where the mask is all ones, b where it is zero. */
INLINE vec choose(whole mask, vec a, vec b) { return (vec)((mask & (whole)a) | (~mask & (whole)b)); }

/* The larger, b where there is no order. */
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

INLINE vec nearest(vec v) {
    vec r;
    EACH(i, 0, LANES) r[i] = __builtin_rintf(v[i]);
    return r;
}

/* v 2^q for whole q from -126 to 127. */
INLINE vec times_power(vec v, vec q) { return v * (vec)((__builtin_convertvector(q, whole) + 127) << 23); }

/* As Sleef's expf_u10, within 1 ulp; NaN of NaN. */
INLINE vec exponential(vec x) {
    x = choose(x < splat(-104), splat(-104), x);
    x = choose(x > splat(104), splat(104), x);
    vec q = nearest(x * splat(1.442695040888963407f));
    vec s = fused(q, splat(-0.693145751953125f), x);
    s = fused(q, splat(-1.428606765330187045e-06f), s);
    vec u = splat(0.000198527617612853646278381f);
    u = fused(u, s, splat(0.00139304355252534151077271f));
    u = fused(u, s, splat(0.00833336077630519866943359f));
    u = fused(u, s, splat(0.0416664853692054748535156f));
    u = fused(u, s, splat(0.166666671633720397949219f));
    u = fused(u, s, splat(0.5f));
    u = splat(1) + fused(s * s, u, s);
    vec part = nearest(q * splat(0.5f));
    return times_power(times_power(u, part), q - part);
}

INLINE vec sigmoid(vec x) { return splat(1) / (splat(1) + exponential(-x)); }

/* Halves of each run of 2 h lanes added up: a's sums in the lower, b's in the upper half of the run. */
INLINE vec fold(vec a, vec b, const int h) {
#ifdef __clang__
    vec low, high;
    EACH(i, 0, LANES) {
        low[i] = i & h ? b[i - h] : a[i];
        high[i] = i & h ? b[i] : a[i + h];
    }
    return low + high;
#else
    const whole lane = COUNTED, upper = (lane & h) != 0;
    return __builtin_shuffle(a, b, lane + (upper & (LANES - h))) +
           __builtin_shuffle(a, b, lane + (upper & LANES) + (~upper & h));
#endif
}

/* The sum of each vector's lanes to p [count], as a tree that is folded for LANES vectors at once. */
INLINE void totals(const vec *A, const int count, float *p) {
    EACH(group, 0, (count + LANES - 1) / LANES) {
        const int first = group * LANES, some = count - first < LANES ? count - first : LANES;
        vec B[LANES];
        EACH(k, 0, LANES) B[k] = k < some ? A[first + k] : splat(0);
        EACH(level, 1, 5) {
            const int h = LANES >> level;
            EACH(k, 0, h) if (k < some) B[k] = fold(B[k], B[k + h], h);
        }
        if (some == LANES) store(p + first, B[0]);
        else EACH(k, 0, some) p[first + k] = B[0][k];
    }
}

INLINE float total(vec v) {
    float sum;
    totals(&v, 1, &sum);
    return sum;
}

/* Streams: fp32, or bf16 rounded to the nearest, ties to even. */

INLINE vec load_stream(const void *p, int64_t at, const int bf16) {
    if (!bf16) return load((const float *)p + at);
    const half h = *(const loose_half *)((const uint16_t *)p + at);
    return (vec)(__builtin_convertvector(h, bits) << 16);
}

INLINE void store_stream(void *p, int64_t at, vec v, const int bf16) {
    if (!bf16) {
        store((float *)p + at, v);
        return;
    }
    const bits b = (bits)v;
    const bits rounded = (b + 0x7FFF + (b >> 16 & 1)) >> 16;
    const bits nan = (bits)(v != v);
    *(loose_half *)((uint16_t *)p + at) = __builtin_convertvector((nan & 0x7FC0) | (~nan & rounded), half);
}

/* Tokens in lanes, in tensors [rows, T]: the last tokens, fewer than LANES, are copied to rows of LANES and back. */

INLINE void copy_rows(float *to, int64_t to_stride, const float *from, int64_t stride, int rows, int64_t tokens) {
    for (int k = 0; k < rows; k++)
        for (int64_t b = 0; b < tokens; b++) to[k * to_stride + b] = from[k * stride + b];
}

#define WORDS(x) #x
#define NUMBER(x) WORDS(x)

/* The compiler and its version. */
const char *compiled_by(void) {
#ifdef __clang__
    return "clang " NUMBER(__clang_major__) "." NUMBER(__clang_minor__);
#else
    return "gcc " NUMBER(__GNUC__) "." NUMBER(__GNUC_MINOR__);
#endif
}
