// Rotation of queries and keys, and keys and values into the cache, for passes of many rows; a few rows
// are done where they are projected (linear.cu). And the norm of each query and key head before the
// rotation (arXiv:2010.04245), which for any number of rows takes a pass of its own: no warp of linear.cu has
// a whole head.
#include "common.cuh"

struct RotateArgs {
    float *q;         // (rows, q_ld), rotated in place
    const float *k;   // (rows, kv_ld); null with `rotate_normed`: keys and values lie in the cache already
    const float *v;   // (rows, kv_ld)
    const Row *rows;
    Encoding encoding; // width 0: nothing is rotated
    KvLayout kv;
    Norm q_norm, k_norm; // of each head; `rotate` does not look at them
    u32 q_ld, kv_ld, n_head;
};

KERNEL(128) rotate(RotateArgs a) {
    wait_for_previous();
    release_next();
    u32 r = blockIdx.x;
    Row row = a.rows[r];
    u32 head_dim = a.kv.head_dim, half = head_dim / 2;
    bool turns = a.encoding.width > 0;
    const float *encoding = turns ? encoding_of(a.encoding, r) : nullptr;
    float *q = a.q + (u64)r * a.q_ld;
    if (turns) {
        for (u32 i = threadIdx.x; i < a.n_head * half; i += blockDim.x) {
            float *first = q + i / half * head_dim + i % half;
            rotate_pair(first[0], first[half], encoding + 2 * (i % half));
        }
    }
    const float *k = a.k + (u64)r * a.kv_ld, *v = a.v + (u64)r * a.kv_ld;
    for (u32 i = threadIdx.x; i < a.kv.n_kv_head * head_dim; i += blockDim.x) {
        u32 head = i / head_dim, d = i % head_dim;
        float *key = cached_key(row, a.kv, head);
        key[PAGE * a.kv.head_ld + d] = v[i];
        if (!turns) {
            key[d] = k[i];
        } else if (d < half) {
            float x = k[i], y = k[i + half];
            rotate_pair(x, y, encoding + 2 * d);
            key[d] = x;
            key[d + half] = y;
        }
    }
}

// to = rotated(norm(x)), both (head_dim), by one warp. They may be the same: no lane writes before all have
// read for the norm, and then each what it alone reads.
DEVICE void norm_head(float *to, const float *x, const Norm &norm, u32 head_dim, const float *encoding) {
    float mean, scale;
    row_moments(x, head_dim, norm, mean, scale);
    warp_sync();
    u32 lane = threadIdx.x % 32;
    if (!encoding) {
        for (u32 i = lane; i < head_dim; i += 32) to[i] = normed(x[i], i, norm, mean, scale);
        return;
    }
    u32 half = head_dim / 2;
    for (u32 i = lane; i < half; i += 32) {
        float first = normed(x[i], i, norm, mean, scale);
        float second = normed(x[i + half], i + half, norm, mean, scale);
        rotate_pair(first, second, encoding + 2 * i);
        to[i] = first;
        to[i + half] = second;
    }
}

// Grid: (rows, heads / 4), a warp for each head: those of queries, then of keys, then of values if they are
// not in the cache yet.
KERNEL(128) rotate_normed(RotateArgs a) {
    wait_for_previous();
    release_next();
    u32 r = blockIdx.x, head = blockIdx.y * 4 + threadIdx.x / 32;
    u32 head_dim = a.kv.head_dim, n_kv_head = a.kv.n_kv_head;
    const float *encoding = a.encoding.width > 0 ? encoding_of(a.encoding, r) : nullptr;
    if (head < a.n_head) {
        float *q = a.q + (u64)r * a.q_ld + head * head_dim;
        norm_head(q, q, a.q_norm, head_dim, encoding);
        return;
    }
    head -= a.n_head;
    if (head < n_kv_head) {
        float *key = cached_key(a.rows[r], a.kv, head);
        const float *from = a.k ? a.k + (u64)r * a.kv_ld + head * head_dim : key;
        norm_head(key, from, a.k_norm, head_dim, encoding);
        return;
    }
    head -= n_kv_head;
    if (a.k && head < n_kv_head) {
        float *value = cached_key(a.rows[r], a.kv, head) + PAGE * a.kv.head_ld;
        const float *from = a.v + (u64)r * a.kv_ld + head * head_dim;
        for (u32 i = threadIdx.x % 32; i < head_dim; i += 32) value[i] = from[i];
    }
}
