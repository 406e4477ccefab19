// Rotation of queries and keys, and keys and values into the cache, for passes of many rows; a few rows
// are done where they are projected (linear.cu).
#include "common.cuh"

struct RotateArgs {
    float *q;         // (rows, q_ld), rotated in place
    const float *k;   // (rows, kv_ld)
    const float *v;   // (rows, kv_ld)
    const Row *rows;
    Encoding encoding; // width 0: nothing is rotated
    KvLayout kv;
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
