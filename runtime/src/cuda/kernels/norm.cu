// Normalisation as a pass of its own: before products of many rows, and for the last hidden states.
#include "common.cuh"

struct NormArgs {
    float *out;       // (rows, out_ld)
    const float *x;   // (.., x_ld)
    const u32 *pick;  // which row of x becomes which of out, (rows); null for all in order
    Norm norm;
    u32 out_ld, x_ld, width, rows;
};

// A warp for each row.
KERNEL(128) norm(NormArgs a) {
    wait_for_previous();
    release_next();
    u32 lane = threadIdx.x % 32;
    u32 r = blockIdx.x * 4 + threadIdx.x / 32;
    if (r >= a.rows) return;
    const float *x = a.x + (u64)(a.pick ? a.pick[r] : r) * a.x_ld;
    float *out = a.out + (u64)r * a.out_ld;
    if (a.norm.kind == NORM_NONE) {
        for (u32 i = lane; i < a.width; i += 32) out[i] = x[i];
        return;
    }
    float mean, scale;
    row_moments(x, a.width, a.norm, mean, scale);
    for (u32 i = lane; i < a.width; i += 32) out[i] = normed(x[i], i, a.norm, mean, scale);
}
