/* What a read does with the streams, token by token, channels in lanes: C is a multiple of LANES. Streams, x and their
   gradients are fp32 or bf16, everything else fp32. */

#include "lanes.h"

INLINE void aggregate_as(const void *H, const float *mix, void *x, int64_t T, int64_t C, const int bf16) {
    for (int64_t t = 0; t < T; t++, mix += N)
        for (int64_t at = 0; at < C; at += LANES) {
            vec s = splat(mix[0]) * load_stream(H, t * N * C + at, bf16);
            STREAMS(i, 1) s = fused(splat(mix[i]), load_stream(H, (t * N + i) * C + at, bf16), s);
            store_stream(x, t * C + at, s, bf16);
        }
}

/* x [T,C] = sum_i mix_i H_i. */
void aggregate(const void *H, const float *mix, void *x, int64_t T, int64_t C, int bf16) {
    if (bf16) aggregate_as(H, mix, x, T, C, 1);
    else aggregate_as(H, mix, x, T, C, 0);
}

INLINE void aggregate_backward_as(const void *H, const void *dx, float *dmix, int64_t T, int64_t C, const int bf16) {
    for (int64_t t = 0; t < T; t++) {
        vec A[N];
        STREAMS(i, 0) A[i] = splat(0);
        for (int64_t at = 0; at < C; at += LANES) {
            const vec g = load_stream(dx, t * C + at, bf16);
            STREAMS(i, 0) A[i] = fused(g, load_stream(H, (t * N + i) * C + at, bf16), A[i]);
        }
        totals(A, N, dmix + t * N);
    }
}

/* dmix [T,N] = dx H_i. */
void aggregate_backward(const void *H, const void *dx, float *dmix, int64_t T, int64_t C, int bf16) {
    if (bf16) aggregate_backward_as(H, dx, dmix, T, C, 1);
    else aggregate_backward_as(H, dx, dmix, T, C, 0);
}

INLINE void streams_backward_as(const float *through, const void *H, const float *c, const float *mix, const void *dx,
                                const void *dH, void *out, int64_t T, int64_t C, const int bf16) {
    for (int64_t t = 0; t < T; t++)
        for (int i = 0; i < N; i++) {
            const vec by = splat(c[t]), m = splat(mix[t * N + i]);
            for (int64_t at = 0; at < C; at += LANES) {
                const int64_t k = (t * N + i) * C + at;
                vec s = load(through + k);
                if (dH) s += load_stream(dH, k, bf16);
                s = fused(load_stream(H, k, bf16), by, s);
                store_stream(out, k, fused(m, load_stream(dx, t * C + at, bf16), s), bf16);
            }
        }
}

/* out [T,N,C] = through + dH + c H + mix dx: through [T,NC] is what came through the projection; dH may be missing (0). */
void streams_backward(const float *through, const void *H, const float *c, const float *mix, const void *dx,
                      const void *dH, void *out, int64_t T, int64_t C, int bf16) {
    if (bf16) streams_backward_as(through, H, c, mix, dx, dH, out, T, C, 1);
    else streams_backward_as(through, H, c, mix, dx, dH, out, T, C, 0);
}
