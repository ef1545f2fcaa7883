/* From mHC's projection to its coefficients and back, as hcmegatron/kernels/torch_coefficients.py; tokens in lanes.

   t [K,T]; logits = scale t + bias. The rows of pre, post and res begin at `at`, -1 for one that is not predicted.
   Coefficients and their gradients are [T,N] and [T,N,N]. */

#include "sinkhorn.h"

#define SPAN 30.0f /* of res's logits, beyond which only the logarithmic form is safe: LINEAR_SPAN of torch_sinkhorn */

typedef struct {
    int64_t pre, post, res; /* first rows */
} rows_at;

#define LOGIT(k) fused(splat(scale[k]), load(t + (k) * stride), splat(bias[k]))

/* Whether the linear form is safe for res's logits; not where one of them is NaN. */
static int narrow(const float *t, const float *scale, const float *bias, int64_t T) {
    float low = __builtin_inff(), high = -__builtin_inff();
    int fine = 1;
    for (int k = 0; k < N * N; k++) {
        const float a = scale[k], b = bias[k];
        const float *row = t + k * T;
        float least = __builtin_inff(), most = -__builtin_inff(), number = 0;
        int64_t from = 0;
        vec lows = splat(least), highs = splat(most), sums = splat(0);
        for (; from + LANES <= T; from += LANES) {
            const vec x = fused(splat(a), load(row + from), splat(b));
            lows = choose(x < lows, x, lows);
            highs = larger(x, highs);
            sums += x; /* a NaN stays; infinities show in the extremes */
        }
        for (int i = 0; i < LANES; i++) {
            if (lows[i] < least) least = lows[i];
            if (highs[i] > most) most = highs[i];
            number += sums[i];
        }
        for (; from < T; from++) {
            const float x = a * row[from] + b;
            if (x < least) least = x;
            if (x > most) most = x;
            number += x;
        }
        if (least < low) low = least;
        if (most > high) high = most;
        fine &= number == number;
    }
    return fine && high - low < SPAN;
}

/* LANES tokens' rows [count] from W, one lane each; of the last tokens, `tokens` of them. */
INLINE void scatter(float *p, const vec *W, const int count, int64_t tokens) {
    for (int64_t b = 0; b < tokens; b++)
        for (int k = 0; k < count; k++) p[b * count + k] = W[k][b];
}

INLINE void gather(vec *W, const float *p, const int count, int64_t tokens) {
    for (int64_t b = 0; b < tokens; b++)
        for (int k = 0; k < count; k++) W[k][b] = p[b * count + k];
}

/* M's place among res's logits: matrices are normalised as they are, or transposed. */
INLINE int place(int i, int j, int turn) { return turn ? j * N + i : i * N + j; }

/* In a loop of its own, through memory: unrolled, the exponentials would take the compiler seconds. */
INLINE void softmax_of_logits(vec M[N][N], const float *t, int64_t stride, const float *scale, const float *bias,
                              int64_t first, int turn) {
    vec L[N * N];
    ROLLED(i, 0, N) ROLLED(j, 0, N) L[i * N + j] = LOGIT(first + place(i, j, turn));
    softmax(L);
    STREAMS(i, 0) STREAMS(j, 0) M[i][j] = L[i * N + j];
}

/* LANES tokens, of which `tokens` are there. */
BLOCK void forward(const float *t, int64_t stride, const float *scale, const float *bias, float *pre, float *post,
                   float *res, rows_at at, int64_t tokens, float pre_eps, float post_eps, int turn_in, int turn_out,
                   int steps, int eps) {
    vec W[N * N], M[N][N], S[N];
    if (at.pre >= 0) {
        ROLLED(k, 0, N) W[k] = sigmoid(LOGIT(at.pre + k)) + splat(pre_eps);
        scatter(pre, W, N, tokens);
    }
    if (at.post >= 0) {
        ROLLED(k, 0, N) W[k] = sigmoid(LOGIT(at.post + k)) * splat(2) + splat(post_eps);
        scatter(post, W, N, tokens);
    }
    if (at.res >= 0) {
        softmax_of_logits(M, t, stride, scale, bias, at.res, turn_in);
        begin(M, M, eps);
        iterate(M, S, 0, steps, eps);
        STREAMS(i, 0) STREAMS(j, 0) W[place(i, j, turn_out)] = M[i][j];
        scatter(res, W, N * N, tokens);
    }
}

/* pre, post [T,N] and res [T,N,N], of those that are predicted. 1 where res's logits span too much, with nothing done. */
int coefficients_forward(const float *t, const float *scale, const float *bias, float *pre, float *post, float *res,
                         int64_t at_pre, int64_t at_post, int64_t at_res, int64_t columns, int64_t T, float pre_eps,
                         float post_eps, int turn_in, int turn_out, int steps, int eps) {
    const rows_at at = {at_pre, at_post, at_res};
    if (at_res >= 0 && !narrow(t + at_res * T, scale + at_res, bias + at_res, T)) return 1;
    for (int64_t first = 0; first < T; first += LANES) {
        const int64_t tokens = T - first < LANES ? T - first : LANES;
        const float *own = t + first;
        float rest[(2 * N + N * N) * LANES] = {0};
        if (tokens < LANES) {
            copy_rows(rest, LANES, own, T, columns, tokens);
            own = rest;
        }
        forward(own, tokens < LANES ? LANES : T, scale, bias, pre + first * N, post + first * N, res + first * N * N, at,
                tokens, pre_eps, post_eps, turn_in, turn_out, steps, eps);
    }
    return 0;
}

/* A logit's gradient dl to dt's row k, to dt_t and to the sums of dl t and of dl. Lanes without a token have dl 0. */
#define SPREAD(k, dl)                                                        \
    do {                                                                     \
        const vec t_k = load(t + (k) * stride), dt_k = (dl) * splat(scale[k]); \
        sums[2 * (k)] = fused(dl, t_k, sums[2 * (k)]);                       \
        sums[2 * (k) + 1] += (dl);                                           \
        dt_t = fused(dt_k, t_k, dt_t);                                       \
        store(dt + (k) * stride, dt_k);                                      \
    } while (0)

/* A sigmoid's gradients: of the first row's N logits from those, times `by`, of the coefficients d [tokens,N]. */
INLINE vec gate_back(const float *t, int64_t stride, const float *scale, const float *bias, const float *d, float *dt,
                     vec dt_t, loose_vec *sums, int64_t first, float by, int64_t tokens) {
    vec W[N];
    STREAMS(k, 0) W[k] = splat(0);
    gather(W, d, N, tokens);
    ROLLED(k, 0, N) {
        const vec p = sigmoid(LOGIT(first + k));
        const vec dl = W[k] * (fused(p, -p, p) * splat(by));
        SPREAD(first + k, dl);
    }
    return dt_t;
}

BLOCK void backward(const float *t, int64_t stride, const float *scale, const float *bias, const float *dpre,
                    const float *dpost, const float *dres, float *dt, float *dt_t_out, loose_vec *sums,
                    loose_vec *scratch, rows_at at, int64_t tokens, int turn_in, int turn_out, int steps, int eps) {
    vec dt_t = splat(0);
    if (at.pre >= 0 && dpre)
        dt_t = gate_back(t, stride, scale, bias, dpre, dt, dt_t, sums, at.pre, 1, tokens);
    if (at.post >= 0 && dpost)
        dt_t = gate_back(t, stride, scale, bias, dpost, dt, dt_t, sums, at.post, 2, tokens);
    if (at.res >= 0 && dres) {
        vec P[N][N], G[N][N], W[N * N];
        softmax_of_logits(P, t, stride, scale, bias, at.res, turn_in);
        STREAMS(i, 0) STREAMS(j, 0) W[i * N + j] = splat(0);
        gather(W, dres, N * N, tokens);
        STREAMS(i, 0) STREAMS(j, 0) G[i][j] = W[place(i, j, turn_out)];
        sinkhorn_back(P, G, scratch, steps, eps);
        STREAMS(i, 0) STREAMS(j, 0) W[place(i, j, turn_in)] = G[i][j];
        ROLLED(k, 0, N * N) SPREAD(at.res + k, W[k]);
    }
    store(dt_t_out, dt_t);
}

/* From the gradients of the coefficients, of which any may be missing (0), to dt [K,T], which is zero before; dt_t [T],
   the sums of dt t; and sums [2K], the gradient of scale and that of bias. scratch: steps N + 2 K vectors. 1 as above. */
int coefficients_backward(const float *t, const float *scale, const float *bias, const float *dpre, const float *dpost,
                          const float *dres, float *dt, float *dt_t, float *sums, float *scratch, int64_t at_pre,
                          int64_t at_post, int64_t at_res, int64_t columns, int64_t T, int turn_in, int turn_out,
                          int steps, int eps) {
    const rows_at at = {at_pre, at_post, at_res};
    if (at_res >= 0 && dres && !narrow(t + at_res * T, scale + at_res, bias + at_res, T)) return 1;
    loose_vec *lanes = (loose_vec *)scratch + (int64_t)steps * N;
    for (int64_t k = 0; k < 2 * columns; k++) lanes[k] = splat(0);
    for (int64_t first = 0; first < T; first += LANES) {
        const int64_t tokens = T - first < LANES ? T - first : LANES;
        const float *from = dpre ? dpre + first * N : 0, *by_post = dpost ? dpost + first * N : 0;
        const float *by_res = dres ? dres + first * N * N : 0;
        if (tokens == LANES) {
            backward(t + first, T, scale, bias, from, by_post, by_res, dt + first, dt_t + first, lanes,
                     (loose_vec *)scratch, at, tokens, turn_in, turn_out, steps, eps);
            continue;
        }
        float own[(2 * N + N * N) * LANES] = {0}, made[(2 * N + N * N) * LANES] = {0}, sum[LANES];
        copy_rows(own, LANES, t + first, T, columns, tokens);
        backward(own, LANES, scale, bias, from, by_post, by_res, made, sum, lanes, (loose_vec *)scratch, at, tokens,
                 turn_in, turn_out, steps, eps);
        copy_rows(dt + first, T, made, LANES, columns, tokens);
        copy_rows(dt_t + first, T, sum, LANES, 1, tokens);
    }
    for (int64_t k = 0; k < columns; k++) {
        sums[k] = total(lanes[2 * k]);
        sums[columns + k] = total(lanes[2 * k + 1]);
    }
    return 0;
}
