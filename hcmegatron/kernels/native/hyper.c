/* HC's and FC's dynamic read, token by token, channels in lanes: C is a multiple of LANES. Streams H, x and their
   gradients are fp32 or bf16, everything else fp32.

   Of every stream i and column k: z_k = W_k . (H_i - mean) / rms, coefficients f_k[i] = static_k[i] + scale_k tanh(z_k),
   x_m = sum_i f_m[i] H_i by the first M columns. What is per token is [K,N], columns first: M rows that read (HC's A_m,
   FC's Y), N that carry (A_r, A) and one that writes (B), whose scale is s_b, the others' s_a. M is 1 (HC) or N (FC). */

#include "lanes.h"

#define ORDINARY 0x1p40f /* of torch_rms */
#define VECTORS(K) (((K) * N + LANES - 1) / LANES) /* that hold a token's [K,N] */
#define MOST VECTORS(2 * N + 1)

typedef union {
    vec v[MOST];
    float at[MOST * LANES];
} numbers; /* of a token, or that are multiplied with them; zeros behind the last */

/* Within a few ulp: by the series where 1 - 2 / (e^2x + 1) would have few digits. */
INLINE vec tangent(vec x) {
    const vec square = x * x, size = choose(x < splat(0), -x, x);
    vec series = splat(62.0f / 2835);
    series = fused(series, square, splat(-17.0f / 315));
    series = fused(series, square, splat(2.0f / 15));
    series = fused(series, square, splat(-1.0f / 3));
    series = fused(series * square, x, x);
    const vec far = splat(1) - splat(2) / (exponential(size + size) + splat(1));
    return choose(size < splat(0.25f), series, choose(x < splat(0), -far, far));
}

INLINE float mean_of(const void *H, int64_t from, int64_t C, const int bf16) {
    vec sum = splat(0);
    for (int64_t at = 0; at < C; at += LANES) sum += load_stream(H, from + at, bf16);
    return total(sum) / (float)C;
}

INLINE void copy(float *to, const float *from, int count) {
    for (int k = 0; k < count; k++) to[k] = from[k];
}

/* Parameters that are columns side by side, [R,columns] each, as the papers have them; the last ones may be missing. */
typedef struct {
    float *at[3];
    int64_t columns[3];
} parts;

#define EACH_COLUMN(p, j, k, of) \
    for (int p = 0, k = 0; p < 3; p++) for (int64_t j = 0; j < (of).columns[p]; j++, k++)

/* The static parts [N,columns] to [K,N], and the scales of all of them. */
INLINE void spread(numbers *fixed, numbers *scales, parts static_, const float *s_a, const float *s_b, const int K) {
    EACH_COLUMN(p, j, k, static_)
        for (int i = 0; i < N; i++) {
            fixed->at[k * N + i] = static_.at[p][i * static_.columns[p] + j];
            scales->at[k * N + i] = k < K - 1 ? *s_a : *s_b;
        }
}

/* W's parts [C,columns], times the norm's weight where there is one, to [K,C]. */
static void weigh(float *weighed, parts W, const float *weight, int64_t C) {
    EACH_COLUMN(p, j, k, W)
        for (int64_t c = 0; c < C; c++) weighed[k * C + c] = W.at[p][c * W.columns[p] + j] * (weight ? weight[c] : 1);
}

/* And from the gradient of that to those of W's parts and of the weight [C]. */
static void unweigh(const float *weighed, parts W, const float *weight, parts dW, float *dweight, int64_t C) {
    for (int64_t c = 0; weight && c < C; c++) dweight[c] = 0;
    EACH_COLUMN(p, j, k, W)
        for (int64_t c = 0; c < C; c++) {
            const float d = weighed[k * C + c];
            const int64_t own = c * W.columns[p] + j;
            dW.at[p][own] = weight ? d * weight[c] : d;
            if (weight) dweight[c] += d * W.at[p][own];
        }
}

/* z of one token and its N 1 / rms. 1 where a stream's squares leave what is ordinary. */
INLINE int project(const void *H, const float *W, float *z, float *inverse, int64_t from, int64_t C, float eps,
                   int centring, const int bf16, const int K) {
    for (int i = 0; i < N; i++, from += C) {
        const vec mean = splat(centring ? mean_of(H, from, C, bf16) : 0);
        float sums[2 * N + 2];
        vec A[2 * N + 2];
        EACH(k, 0, K + 1) A[k] = splat(0);
        for (int64_t at = 0; at < C; at += LANES) {
            const vec c = load_stream(H, from + at, bf16) - mean;
            A[K] = fused(c, c, A[K]);
            EACH(k, 0, K) A[k] = fused(c, load(W + k * C + at), A[k]);
        }
        totals(A, K + 1, sums);
        inverse[i] = 1 / __builtin_sqrtf(sums[K] / (float)C + eps);
        if (!(inverse[i] > 1 / ORDINARY && inverse[i] < ORDINARY)) return 1;
        for (int k = 0; k < K; k++) z[k * N + i] = sums[k] * inverse[i];
    }
    return 0;
}

INLINE int forward_as(const void *H, const float *W, parts static_, const float *s_a, const float *s_b, float *z,
                      float *inverse, float *mix, float *carry, float *post, void *x, int64_t T, int64_t C, float eps,
                      int centring, int tanh, const int bf16, const int M) {
    const int K = M + N + 1;
    numbers fixed = {0}, scales = {0}, own = {0};
    spread(&fixed, &scales, static_, s_a, s_b, K);
    for (int64_t t = 0; t < T; t++) {
        if (project(H, W, own.at, inverse + t * N, t * N * C, C, eps, centring, bf16, K)) return 1;
        copy(z + t * K * N, own.at, K * N);
        ROLLED(g, 0, VECTORS(K)) {
            const vec p = tanh ? tangent(own.v[g]) : own.v[g];
            own.v[g] = fused(scales.v[g], p, fixed.v[g]);
        }
        copy(mix + t * M * N, own.at, M * N);
        copy(carry + t * N * N, own.at + M * N, N * N);
        copy(post + t * N, own.at + (M + N) * N, N);
        for (int64_t at = 0; at < C; at += LANES) {
            vec h[N];
            STREAMS(i, 0) h[i] = load_stream(H, (t * N + i) * C + at, bf16);
            EACH(m, 0, M) {
                vec s = splat(own.at[m * N]) * h[0];
                STREAMS(i, 1) s = fused(splat(own.at[m * N + i]), h[i], s);
                store_stream(x, (t * M + m) * C + at, s, bf16);
            }
        }
    }
    return 0;
}

/* M is `mixes`, 1 or N. */
#define BY_KIND(function, ...)                                                           \
    (mixes == 1 ? (bf16 ? function(__VA_ARGS__, 1, 1) : function(__VA_ARGS__, 0, 1))     \
                : (bf16 ? function(__VA_ARGS__, 1, N) : function(__VA_ARGS__, 0, N)))

/* The coefficients mix [T,M,N], carry [T,N,N] and post [T,N], and x [T,M,C]. The static parts are first [N,M], second
   [N,N] and third [N], W's of k0, k1 and of what is left of K columns. Kept for backward, one behind the other, are
   [K,C], W as it was used, z [T,K,N] and inverse [T,N]. 1 where the squares of streams leave what is ordinary. */
int hyper_read(const void *H, const float *weight, const float *s_a, const float *s_b, float *first, float *second,
               float *third, float *W0, float *W1, float *W2, float *kept, float *mix, float *carry, float *post, void *x,
               int64_t T, int64_t C, int64_t k0, int64_t k1, float eps, int centring, int tanh, int mixes, int bf16) {
    const int64_t K = mixes + N + 1;
    const parts static_ = {{first, second, third}, {mixes, N, 1}}, W = {{W0, W1, W2}, {k0, k1, K - k0 - k1}};
    float *z = kept + K * C, *inverse = z + T * K * N;
    weigh(kept, W, weight, C);
    return BY_KIND(forward_as, H, kept, static_, s_a, s_b, z, inverse, mix, carry, post, x, T, C, eps, centring, tanh);
}

/* What dx [M,C] gives a token's f_m[i], added to G. */
INLINE void through_x(const void *H, const void *dx, float *G, int64_t t, int64_t C, const int bf16, const int M) {
    float sums[N * N];
    vec A[N * N];
    EACH(k, 0, M * N) A[k] = splat(0);
    for (int64_t at = 0; at < C; at += LANES) {
        vec g[N];
        EACH(m, 0, M) g[m] = load_stream(dx, (t * M + m) * C + at, bf16);
        STREAMS(i, 0) {
            const vec h = load_stream(H, (t * N + i) * C + at, bf16);
            EACH(m, 0, M) A[m * N + i] = fused(g[m], h, A[m * N + i]);
        }
    }
    totals(A, M * N, sums);
    for (int k = 0; k < M * N; k++) G[k] += sums[k];
}

/* A token's gradient of H, and on top of dW [K,C] its share: of rows [K,N], the gradients of the products, `along` H -
   mean, and what is the same for all channels. */
INLINE void streams_back(const void *H, const float *W, const float *mix, const void *dx, const void *dH,
                         const float *rows, const float *mean, const float *along, const float *same, void *out,
                         float *dW, int64_t t, int64_t C, const int bf16, const int M, const int K) {
    for (int64_t at = 0; at < C; at += LANES) {
        vec c[N], s[N];
        STREAMS(i, 0) {
            const int64_t own = (t * N + i) * C + at;
            c[i] = load_stream(H, own, bf16) - splat(mean[i]);
            s[i] = fused(splat(along[i]), c[i], splat(same[i]));
            if (dH) s[i] += load_stream(dH, own, bf16);
        }
        if (dx)
            EACH(m, 0, M) {
                const vec g = load_stream(dx, (t * M + m) * C + at, bf16);
                STREAMS(i, 0) s[i] = fused(splat(mix[m * N + i]), g, s[i]);
            }
        ROLLED(k, 0, K) {
            const vec w = load(W + k * C + at);
            vec sum = load(dW + k * C + at);
            STREAMS(i, 0) {
                const vec r = splat(rows[k * N + i]);
                sum = fused(r, c[i], sum);
                s[i] = fused(r, w, s[i]);
            }
            store(dW + k * C + at, sum);
        }
        STREAMS(i, 0) store_stream(out, (t * N + i) * C + at, s[i], bf16);
    }
}

INLINE void backward_as(const void *H, const float *W, const float *s_a, const float *s_b, const float *z,
                        const float *inverse, const float *mix, const float *dmix, const float *dcarry,
                        const float *dpost, const void *dx, const void *dH, void *out, float *dW, parts dstatic,
                        float *ds_a, float *ds_b, int64_t T, int64_t C, int centring, int tanh, const int bf16,
                        const int M) {
    const int K = M + N + 1;
    numbers scales = {0}, own = {0}, G = {0}, dz_z, sums = {0}, by_scale = {0};
    float means[2 * N + 1] = {0};
    for (int k = 0; k < K * N; k++) scales.at[k] = k < (K - 1) * N ? *s_a : *s_b;
    for (int k = 0; centring && k < K; k++) means[k] = mean_of(W, k * C, C, 0);
    for (int64_t t = 0; t < T; t++) {
        copy(own.at, z + t * K * N, K * N);
        for (int k = 0; k < M * N; k++) G.at[k] = dmix ? dmix[t * M * N + k] : 0;
        for (int k = 0; k < N * N; k++) G.at[M * N + k] = dcarry ? dcarry[t * N * N + k] : 0;
        for (int k = 0; k < N; k++) G.at[(M + N) * N + k] = dpost ? dpost[t * N + k] : 0;
        if (dx) through_x(H, dx, G.at, t, C, bf16, M);
        ROLLED(g, 0, VECTORS(K)) {
            const vec p = tanh ? tangent(own.v[g]) : own.v[g];
            vec d = G.v[g] * scales.v[g];
            if (tanh) d = fused(d * -p, p, d);
            sums.v[g] += G.v[g];
            by_scale.v[g] = fused(G.v[g], p, by_scale.v[g]);
            dz_z.v[g] = d * own.v[g];
            own.v[g] = d;
        }
        float mean[N], along[N], same[N];
        for (int i = 0; i < N; i++) {
            const float by = inverse[t * N + i];
            float dots = 0;
            same[i] = mean[i] = 0;
            for (int k = 0; k < K; k++) {
                own.at[k * N + i] *= by;
                dots += dz_z.at[k * N + i];
                same[i] -= own.at[k * N + i] * means[k];
            }
            along[i] = -dots * by * by / (float)C;
            if (centring) mean[i] = mean_of(H, (t * N + i) * C, C, bf16);
        }
        streams_back(H, W, mix + t * M * N, dx, dH, own.at, mean, along, same, out, dW, t, C, bf16, M, K);
    }
    EACH_COLUMN(p, j, k, dstatic)
        for (int i = 0; i < N; i++) dstatic.at[p][i * dstatic.columns[p] + j] = sums.at[k * N + i];
    *ds_a = *ds_b = 0;
    for (int k = 0; k < K * N; k++) *(k < (K - 1) * N ? ds_a : ds_b) += by_scale.at[k];
}

/* out, the gradient of H, from those of the coefficients, of x and of H's other use, of which any may be missing (0); and
   those of all parameters. scratch [K,C]. */
void hyper_read_backward(const void *H, const float *weight, const float *s_a, const float *s_b, float *W0, float *W1,
                         float *W2, const float *kept, const float *mix, const float *dmix, const float *dcarry,
                         const float *dpost, const void *dx, const void *dH, void *out, float *scratch, float *dweight,
                         float *ds_a, float *ds_b, float *dfirst, float *dsecond, float *dthird, float *dW0, float *dW1,
                         float *dW2, int64_t T, int64_t C, int64_t k0, int64_t k1, int centring, int tanh, int mixes,
                         int bf16) {
    const int64_t K = mixes + N + 1, k2 = K - k0 - k1;
    const parts dstatic = {{dfirst, dsecond, dthird}, {mixes, N, 1}};
    const parts W = {{W0, W1, W2}, {k0, k1, k2}}, dW = {{dW0, dW1, dW2}, {k0, k1, k2}};
    const float *z = kept + K * C, *inverse = z + T * K * N;
    for (int64_t k = 0; k < K * C; k++) scratch[k] = 0;
    BY_KIND(backward_as, H, kept, s_a, s_b, z, inverse, mix, dmix, dcarry, dpost, dx, dH, out, scratch, dstatic, ds_a,
            ds_b, T, C, centring, tanh);
    unweigh(scratch, W, weight, dW, dweight, C);
}
