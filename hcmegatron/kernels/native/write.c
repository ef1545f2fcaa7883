/* Every connection's write, token by token, channels in lanes: C is a multiple of LANES.

   H'_o = sum_i res[o,i] H_i + post[o] y_o. y is the same for all streams, [T,1,C], or a part for each, [T,N,C]: `step`,
   from one stream's to the next, is 0 or C. Streams are fp32 or bf16, y and its gradient too, post and res fp32, of each
   token or `alike`, [N] and [N,N] for all of them. */

#include "lanes.h"

INLINE void forward(const void *H, const void *y, const float *post, const float *res, void *out, int64_t T, int64_t C,
                    int64_t step, int alike, const int bf16, const int y_bf16, const int identity) {
    const int64_t y_token = step ? N * C : C;
    for (int64_t t = 0; t < T; t++, post += alike ? 0 : N, res += identity || alike ? 0 : N * N)
        for (int64_t at = 0; at < C; at += LANES) {
            const int64_t h = t * N * C + at;
            vec x[N];
            STREAMS(i, 0) x[i] = load_stream(H, h + i * C, bf16);
            STREAMS(o, 0) {
                vec s = x[o];
                if (!identity) {
                    s = splat(res[o * N]) * x[0];
                    STREAMS(i, 1) s = fused(splat(res[o * N + i]), x[i], s);
                }
                s = fused(load_stream(y, t * y_token + o * step + at, y_bf16), splat(post[o]), s);
                store_stream(out, h + o * C, s, bf16);
            }
        }
}

INLINE void backward(const void *H, const void *y, const float *post, const float *res, const void *d, void *dH, void *dy,
                     float *dpost, float *dres, int64_t T, int64_t C, int64_t step, int alike, const int bf16,
                     const int y_bf16, const int identity) {
    const int64_t y_token = step ? N * C : C;
    vec all_A[N] = {0}, all_R[N * N] = {0}; /* over tokens that are alike */
    for (int64_t t = 0; t < T; t++, post += alike ? 0 : N, res += identity || alike ? 0 : N * N) {
        vec R[N][N], A[N];
        STREAMS(o, 0) {
            A[o] = splat(0);
            STREAMS(i, 0) R[o][i] = splat(0);
        }
        for (int64_t at = 0; at < C; at += LANES) {
            const int64_t h = t * N * C + at, own = t * y_token + at;
            vec g[N], s = splat(0);
            STREAMS(o, 0) {
                g[o] = load_stream(d, h + o * C, bf16);
                A[o] = fused(g[o], load_stream(y, own + o * step, y_bf16), A[o]);
                if (step) store_stream(dy, own + o * step, g[o] * splat(post[o]), y_bf16);
                else s = fused(splat(post[o]), g[o], s);
            }
            if (!step) store_stream(dy, own, s, y_bf16);
            if (identity) continue;
            STREAMS(i, 0) {
                const vec x = load_stream(H, h + i * C, bf16);
                vec sum = splat(0);
                STREAMS(o, 0) {
                    sum = fused(splat(res[o * N + i]), g[o], sum);
                    R[o][i] = fused(g[o], x, R[o][i]);
                }
                store_stream(dH, h + i * C, sum, bf16);
            }
        }
        if (alike) {
            STREAMS(o, 0) all_A[o] += A[o];
            for (int k = 0; k < N * N; k++) all_R[k] += (&R[0][0])[k];
        } else {
            totals(A, N, dpost + t * N);
            if (!identity) totals(&R[0][0], N * N, dres + t * N * N);
        }
    }
    if (alike) {
        totals(all_A, N, dpost);
        if (!identity) totals(all_R, N * N, dres);
    }
}

/* y may be fp32 beside bf16 streams, where a bias was added to it. */
#define BY_KIND(function, ...)                                                                    \
    do {                                                                                          \
        if (!bf16) res ? function(__VA_ARGS__, 0, 0, 0) : function(__VA_ARGS__, 0, 0, 1);         \
        else if (y_bf16) res ? function(__VA_ARGS__, 1, 1, 0) : function(__VA_ARGS__, 1, 1, 1);   \
        else res ? function(__VA_ARGS__, 1, 0, 0) : function(__VA_ARGS__, 1, 0, 1);               \
    } while (0)

/* out [T,N,C]; without res (0) the carry is the identity. */
void write_forward(const void *H, const void *y, const float *post, const float *res, void *out, int64_t T, int64_t C,
                   int64_t step, int alike, int bf16, int y_bf16) {
    BY_KIND(forward, H, y, post, res, out, T, C, step, alike);
}

/* The gradients of H, y, post and res from d, that of H'; of post and res that are `alike`, summed. Without res, those
   of y and post alone: the streams' is d, and H is not read. */
void write_backward(const void *H, const void *y, const float *post, const float *res, const void *d, void *dH, void *dy,
                    float *dpost, float *dres, int64_t T, int64_t C, int64_t step, int alike, int bf16, int y_bf16) {
    BY_KIND(backward, H, y, post, res, d, dH, dy, dpost, dres, T, C, step, alike);
}
