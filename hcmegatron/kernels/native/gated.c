/* What of the gated residual's read (2608.30320) is as wide as the streams, token by token, channels in lanes: C is a
   multiple of LANES. Its products are torch's. R, x and their gradients are fp32 or bf16, everything else fp32.

   Rh = gamma R / rms(R) of every stream, gates G = sigmoid(L), x = mean_i G_i Rh_i. */

#include "lanes.h"

INLINE void norm_as(const void *R, const float *gamma, float *Rh, float *inverse, int64_t T, int64_t C, float eps,
                    const int bf16) {
    for (int64_t row = 0; row < T * N; row++) {
        const int64_t from = row * C, own = row % N * C;
        vec squares = splat(0);
        for (int64_t at = 0; at < C; at += LANES) {
            const vec r = load_stream(R, from + at, bf16);
            squares = fused(r, r, squares);
        }
        inverse[row] = 1 / __builtin_sqrtf(total(squares) / (float)C + eps);
        for (int64_t at = 0; at < C; at += LANES)
            store(Rh + from + at, load_stream(R, from + at, bf16) * splat(inverse[row]) * load(gamma + own + at));
    }
}

/* Rh [T,N,C] and 1 / rms [T,N] of R; gamma [N,C]. */
void gated_norm(const void *R, const float *gamma, float *Rh, float *inverse, int64_t T, int64_t C, float eps, int bf16) {
    if (bf16) norm_as(R, gamma, Rh, inverse, T, C, eps, 1);
    else norm_as(R, gamma, Rh, inverse, T, C, eps, 0);
}

INLINE void mix_as(const float *Rh, const float *L, void *x, float *shares, int64_t T, int64_t C, const int bf16) {
    for (int64_t t = 0; t < T; t++) {
        vec sums[N];
        ROLLED(i, 0, N) sums[i] = splat(0);
        for (int64_t at = 0; at < C; at += LANES) {
            vec s = splat(0);
            ROLLED(i, 0, N) {
                const int64_t k = (t * N + i) * C + at;
                const vec gate = sigmoid(load(L + k));
                s = fused(gate, load(Rh + k), s);
                sums[i] += gate;
            }
            store_stream(x, t * C + at, s / splat(N), bf16);
        }
        float whole[N];
        totals(sums, N, whole);
        ROLLED(i, 0, N) shares[t * N + i] = whole[i] / (float)(N * C);
    }
}

/* x [T,C], and the gates' means over C, divided by N, [T,N]; L [T,N,C] are the gates' logits. */
void gated_mix(const float *Rh, const float *L, void *x, float *shares, int64_t T, int64_t C, int bf16) {
    if (bf16) mix_as(Rh, L, x, shares, T, C, 1);
    else mix_as(Rh, L, x, shares, T, C, 0);
}

INLINE void gates_as(const void *R, const float *gamma, const float *inverse, const void *dx, float *L, float *dL,
                     float *Rh, int64_t T, int64_t C, const int bf16) {
    for (int64_t t = 0; t < T; t++)
        for (int i = 0; i < N; i++)
            for (int64_t at = 0; at < C; at += LANES) {
                const int64_t k = (t * N + i) * C + at;
                const vec rh = load_stream(R, k, bf16) * splat(inverse[t * N + i]) * load(gamma + i * C + at);
                const vec gate = sigmoid(load(L + k));
                const vec d = load_stream(dx, t * C + at, bf16) / splat(N) * gate;
                store(dL + k, d * rh * (splat(1) - gate));
                store(Rh + k, rh);
                store(L + k, gate);
            }
}

/* The gradient dL of the gates' logits L [T,N,C] from dx [T,C]; Rh once more; and the gates, which take L's place. */
void gated_backward_gates(const void *R, const float *gamma, const float *inverse, const void *dx, float *L, float *dL,
                          float *Rh, int64_t T, int64_t C, int bf16) {
    if (bf16) gates_as(R, gamma, inverse, dx, L, dL, Rh, T, C, 1);
    else gates_as(R, gamma, inverse, dx, L, dL, Rh, T, C, 0);
}

INLINE void streams_as(const void *R, const float *gamma, const float *inverse, const void *dx, const float *G, float *dRh,
                       const void *dR, void *out, float *dgamma, int64_t T, int64_t C, const int bf16) {
    for (int64_t t = 0; t < T; t++)
        for (int i = 0; i < N; i++) {
            const int64_t from = (t * N + i) * C;
            const vec by = splat(inverse[t * N + i]);
            vec sum = splat(0);
            for (int64_t at = 0; at < C; at += LANES) {
                const int64_t k = from + at, own = i * C + at;
                const vec unit = load_stream(R, k, bf16) * by;
                const vec d = fused(load_stream(dx, t * C + at, bf16) / splat(N), load(G + k), load(dRh + k));
                store(dRh + k, d);
                store(dgamma + own, fused(d, unit, load(dgamma + own)));
                sum = fused(d * load(gamma + own), unit, sum);
            }
            const vec along = splat(total(sum) / (float)C);
            for (int64_t at = 0; at < C; at += LANES) {
                const int64_t k = from + at;
                const vec unit = load_stream(R, k, bf16) * by;
                vec d = (load(dRh + k) * load(gamma + i * C + at) - unit * along) * by;
                if (dR) d += load_stream(dR, k, bf16);
                store_stream(out, k, d, bf16);
            }
        }
}

/* out [T,N,C], the gradient of R: of dRh [T,N,C] (what the projections' gradient gives Rh; it is used up) and gates G
   dx / N, through the norm, and on top dR, which may be missing (0). dgamma [N,C] is added to. */
void gated_backward_streams(const void *R, const float *gamma, const float *inverse, const void *dx, const float *G,
                            float *dRh, const void *dR, void *out, float *dgamma, int64_t T, int64_t C, int bf16) {
    if (bf16) streams_as(R, gamma, inverse, dx, G, dRh, dR, out, dgamma, T, C, 1);
    else streams_as(R, gamma, inverse, dx, G, dRh, dR, out, dgamma, T, C, 0);
}
