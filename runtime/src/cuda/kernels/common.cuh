// What several families share: normalisation of a row, activations, where a row's encoding and its place
// in the cache are.
#pragma once
#include "device.cuh"

// Norms and activations by number. Twins of launch.rs.
#define NORM_NONE 0
#define NORM_LAYER 1 // arXiv:1607.06450
#define NORM_RMS 2   // arXiv:1910.07467
#define ACT_RELU 0
#define ACT_GELU 1 // exact, arXiv:1606.08415
#define ACT_SILU 2 // of the gate, arXiv:1702.03118
#define ACT_RELU2 3 // arXiv:2109.08668
#define ACT_CAP 4   // of logits, arXiv:2408.00118; known to activate.cu alone
#define ACT_GELU_TANH 5 // arXiv:1606.08415, section 2

struct Norm {
    const float *weight; // (width), or (head_dim) for queries and keys
    const float *bias;   // the same, or null
    float eps;
    u32 kind;
};

// A pass's positional encodings: rotations or sinusoids.
struct Encoding {
    const float *values; // (steps, rows, width)
    const u32 *step;     // the step that runs
    u32 width;
    u32 rows;
};

DEVICE const float *encoding_of(const Encoding &e, u32 row) {
    return e.values + ((u64)*e.step * e.rows + row) * e.width;
}

// Mean and scale of a row, computed by one warp: every lane gets both. The variance is taken about the
// mean in a second pass.
DEVICE void row_moments(const float *x, u32 width, const Norm &norm, float &mean, float &scale) {
    u32 lane = threadIdx.x % 32;
    mean = 0.0f;
    if (norm.kind == NORM_LAYER) {
        float sum = 0.0f;
        for (u32 i = lane; i < width; i += 32) sum += x[i];
        mean = warp_sum(sum) / (float)width;
    }
    float squares = 0.0f;
    for (u32 i = lane; i < width; i += 32) {
        float d = x[i] - mean;
        squares = fmaf(d, d, squares);
    }
    scale = 1.0f / sqrtf(warp_sum(squares) / (float)width + norm.eps);
}

DEVICE float normed(float x, u32 i, const Norm &norm, float mean, float scale) {
    float y = (x - mean) * scale;
    return norm.bias ? fmaf(y, norm.weight[i], norm.bias[i]) : y * norm.weight[i];
}

DEVICE float activated(float x, u32 activation) {
    if (activation == ACT_GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    if (activation == ACT_RELU || activation == ACT_RELU2) {
        float y = x < 0.0f ? 0.0f : x;
        return activation == ACT_RELU ? y : y * y;
    }
    // GELU by tanh is x times the sigmoid of another number, as scalar.rs `gelu_tanh`.
    float z = activation == ACT_GELU_TANH ? 1.595769f * fmaf(0.044715f * x * x, x, x) : x;
    return x / (1.0f + exp_f32(-z));
}

// Turns a pair (i, i + head_dim / 2) by its angle (RoPE, arXiv:2104.09864); `turn`: cosine, sine.
DEVICE void rotate_pair(float &a, float &b, const float *turn) {
    float c = turn[0], s = turn[1];
    float first = fmaf(a, c, -(b * s));
    b = fmaf(b, c, a * s);
    a = first;
}

// Where the keys of a position and head are, (head_ld); its values follow after PAGE * head_ld floats.
DEVICE float *cached_key(const Row &row, const KvLayout &kv, u32 kv_head) {
    return page_keys(row.table, kv, row.slot, kv_head) + row.slot % PAGE * kv.head_ld;
}
