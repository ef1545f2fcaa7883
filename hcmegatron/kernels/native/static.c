/* A read whose mix is the same for all tokens, token by token, channels in lanes: C is a multiple of LANES. Streams H, x
   and their gradients are fp32 or bf16, the mix and its gradient fp32.

   x_m = sum_i mix[i,m] H_i; M, of m, is 1 (HC's A_m) or N (FC's Y). */

#include "lanes.h"

INLINE void forward(const void *H, const float *mix, void *x, int64_t T, int64_t C, const int bf16, const int M) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t at = 0; at < C; at += LANES) {
            vec h[N];
            STREAMS(i, 0) h[i] = load_stream(H, (t * N + i) * C + at, bf16);
            EACH(m, 0, M) {
                vec s = splat(mix[m]) * h[0];
                STREAMS(i, 1) s = fused(splat(mix[i * M + m]), h[i], s);
                store_stream(x, (t * M + m) * C + at, s, bf16);
            }
        }
}

INLINE void backward(const void *H, const float *mix, const void *dx, const void *dH, void *out, float *dmix, int64_t T,
                     int64_t C, const int bf16, const int M) {
    vec sums[N * N];
    for (int k = 0; k < M * N; k++) sums[k] = splat(0);
    for (int64_t t = 0; t < T; t++) {
        vec A[N * N]; /* of this token: sums over all of them are of few numbers each */
        EACH(k, 0, M * N) A[k] = splat(0);
        for (int64_t at = 0; at < C; at += LANES) {
            vec g[N];
            EACH(m, 0, M) g[m] = load_stream(dx, (t * M + m) * C + at, bf16);
            STREAMS(i, 0) {
                const int64_t own = (t * N + i) * C + at;
                const vec h = load_stream(H, own, bf16);
                vec s = dH ? load_stream(dH, own, bf16) : splat(0);
                EACH(m, 0, M) {
                    A[i * M + m] = fused(g[m], h, A[i * M + m]);
                    s = fused(splat(mix[i * M + m]), g[m], s);
                }
                store_stream(out, own, s, bf16);
            }
        }
        EACH(k, 0, M * N) sums[k] += A[k];
    }
    totals(sums, M * N, dmix);
}

/* M is `mixes`, 1 or N. */
#define BY_KIND(function, ...)                                                           \
    (mixes == 1 ? (bf16 ? function(__VA_ARGS__, 1, 1) : function(__VA_ARGS__, 0, 1))     \
                : (bf16 ? function(__VA_ARGS__, 1, N) : function(__VA_ARGS__, 0, N)))

/* x [T,M,C]; mix [N,M]. */
void static_read(const void *H, const float *mix, void *x, int64_t T, int64_t C, int mixes, int bf16) {
    BY_KIND(forward, H, mix, x, T, C);
}

/* out [T,N,C], the gradient of H, from dx [T,M,C] and from that of its other use dH, which may be missing (0); and dmix
   [N,M], summed over all tokens. */
void static_read_backward(const void *H, const float *mix, const void *dx, const void *dH, void *out, float *dmix,
                          int64_t T, int64_t C, int mixes, int bf16) {
    BY_KIND(backward, H, mix, dx, dH, out, dmix, T, C);
}
