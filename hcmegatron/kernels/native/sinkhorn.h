/* Sinkhorn's iterations and their backward for LANES tokens, in the order of hcmegatron/kernels/torch_sinkhorn.py, whose
   linear form this is: the same bits for N up to 4, where torch sums one after the other. M[i][j]: i is summed first. */

#pragma once

#include "lanes.h"

enum { NONE, ADDITIVE, CLAMP }; /* where the epsilon goes */
#define EPS 1e-6f

/* Of line i: of the rows, or of the columns. */
#define LINE(M, i, j) (*(rows ? &(M)[i][j] : &(M)[j][i]))

INLINE void softmax(vec *M) {
    ROLLED(j, 0, N) {
        vec top = M[j], s = splat(0);
        STREAMS(i, 1) top = larger(M[i * N + j], top);
        ROLLED(i, 0, N) s += M[i * N + j] = exponential(M[i * N + j] - top);
        STREAMS(i, 0) M[i * N + j] /= s;
    }
}

/* What the iterations begin with, of the first softmax P. */
INLINE void begin(vec M[N][N], vec P[N][N], int eps) {
    STREAMS(i, 0) STREAMS(j, 0) M[i][j] = eps == ADDITIVE ? P[i][j] + splat(EPS) : P[i][j];
}

/* Every line divided by its sum, which goes to S [N]. */
INLINE void normalise(vec M[N][N], loose_vec *S, const int rows, int eps) {
    STREAMS(i, 0) {
        vec s = LINE(M, i, 0);
        STREAMS(j, 1) s += LINE(M, i, j);
        if (eps == ADDITIVE) s += splat(EPS);
        if (eps == CLAMP) s = larger(s, splat(EPS));
        S[i] = s;
        STREAMS(j, 0) LINE(M, i, j) /= s;
    }
}

/* All steps after the first softmax: rows, columns, ..., rows. Sums to S: every step's N, or the last step's where
   keep is 0. */
INLINE void iterate(vec M[N][N], loose_vec *S, const int keep, int steps, int eps) {
    for (int step = 0; step < steps - 1; step += 2) {
        normalise(M, S + keep * step * N, 1, eps);
        normalise(M, S + keep * (step + 1) * N, 0, eps);
    }
    normalise(M, S + keep * (steps - 1) * N, 1, eps);
}

/* G, the gradient of log M, pulled back through one normalisation, and M multiplied back by its sums. */
INLINE void pull(vec M[N][N], const loose_vec *S, vec G[N][N], const int rows, int eps) {
    STREAMS(i, 0) {
        vec s = S[i], pulled = splat(0);
        STREAMS(j, 0) pulled += LINE(G, i, j);
        if (eps == CLAMP) pulled *= choose(s > splat(EPS), splat(1), splat(0)); /* a clamped sum is a constant */
        STREAMS(j, 0) {
            LINE(G, i, j) = fused(-LINE(M, i, j), pulled, LINE(G, i, j)); /* as torch.addcmul, which contracts */
            LINE(M, i, j) *= s;
        }
    }
}

INLINE void iterate_back(vec M[N][N], const loose_vec *S, vec G[N][N], int steps, int eps) {
    pull(M, S + (steps - 1) * N, G, 1, eps);
    for (int step = steps - 2; step > 0; step -= 2) {
        pull(M, S + step * N, G, 0, eps);
        pull(M, S + (step - 1) * N, G, 1, eps);
    }
}

/* The gradient of log M, of what `begin` made, to that of the logits, whose softmax is P. */
INLINE void softmax_back(vec P[N][N], vec M[N][N], vec G[N][N], int eps) {
    if (eps == ADDITIVE) STREAMS(i, 0) STREAMS(j, 0) G[i][j] *= P[i][j] / M[i][j];
    STREAMS(j, 0) {
        vec s = splat(0);
        STREAMS(i, 0) s += G[i][j];
        STREAMS(i, 0) G[i][j] = fused(-P[i][j], s, G[i][j]);
    }
}

/* From the softmax P and the gradient G of the matrix to that of the logits, in place. S: steps N vectors of scratch. */
INLINE void sinkhorn_back(vec P[N][N], vec G[N][N], loose_vec *S, int steps, int eps) {
    vec M[N][N];
    begin(M, P, eps);
    iterate(M, S, 1, steps, eps);
    STREAMS(i, 0) STREAMS(j, 0) G[i][j] *= M[i][j];
    iterate_back(M, S, G, steps, eps);
    softmax_back(P, M, G, eps);
}
