/* Sinkhorn's iterations, forward and backward, over tensors [N, N, T] with tokens last. */

#include "sinkhorn.h"

/* The matrices of LANES tokens from P on, rows of numbers `stride` apart. */
INLINE void load_matrix(vec M[N][N], const float *P, int64_t stride) {
    STREAMS(i, 0) STREAMS(j, 0) M[i][j] = load(P + (i * N + j) * stride);
}

INLINE void store_matrix(float *P, vec M[N][N], int64_t stride) {
    STREAMS(i, 0) STREAMS(j, 0) store(P + (i * N + j) * stride, M[i][j]);
}

BLOCK void forward(float *P, int64_t stride, int steps, int eps) {
    vec M[N][N], S[N];
    load_matrix(M, P, stride);
    begin(M, M, eps);
    iterate(M, S, 0, steps, eps);
    store_matrix(P, M, stride);
}

BLOCK void backward(const float *P, float *G, int64_t stride, float *scratch, int steps, int eps) {
    vec Q[N][N], D[N][N];
    load_matrix(Q, P, stride);
    load_matrix(D, G, stride);
    sinkhorn_back(Q, D, (loose_vec *)scratch, steps, eps);
    store_matrix(G, D, stride);
}

/* P [N,N,T], the first softmax, to the matrices, in place. */
void sinkhorn_forward(float *P, int64_t T, int steps, int eps) {
    int64_t t = 0;
    for (; t + LANES <= T; t += LANES) forward(P + t, T, steps, eps);
    if (t == T) return;
    float rest[N * N * LANES] = {0};
    copy_rows(rest, LANES, P + t, T, N * N, T - t);
    forward(rest, LANES, steps, eps);
    copy_rows(P + t, T, rest, LANES, N * N, T - t);
}

/* G [N,N,T], the gradient of the matrices, to that of the logits, in place; P as above. scratch: steps N vectors. */
void sinkhorn_backward(const float *P, float *G, float *scratch, int64_t T, int steps, int eps) {
    int64_t t = 0;
    for (; t + LANES <= T; t += LANES) backward(P + t, G + t, T, scratch, steps, eps);
    if (t == T) return;
    float p[N * N * LANES] = {0}, g[N * N * LANES] = {0};
    copy_rows(p, LANES, P + t, T, N * N, T - t);
    copy_rows(g, LANES, G + t, T, N * N, T - t);
    backward(p, g, LANES, scratch, steps, eps);
    copy_rows(G + t, T, g, LANES, N * N, T - t);
}
