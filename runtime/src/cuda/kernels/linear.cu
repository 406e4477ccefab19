// Matrix times one vector or up to eight: what decoding spends its time on. With everything around it
// that saves a pass: the norm before it, and after it bias and residual, rotation and the way into the
// cache, or the gated activation.
//
// A warp computes a *unit*, two outputs that belong together: neighbours, the two of a rotated pair, or
// gate and up. Several warps of a block may share a unit, each with a part of k.
#include "common.cuh"

#define EPILOGUE_STORE 0
#define EPILOGUE_ADD 1      // out += product
#define EPILOGUE_QKV 2      // three matrices: queries to out, keys and values to the cache
#define EPILOGUE_GATED 3    // two matrices: out = act(first) * second
#define EPILOGUE_ACTIVATE 4 // out = act(product)

#define LINEAR_THREADS 128
#define LINEAR_WARPS (LINEAR_THREADS / 32)

struct LinearMatrix {
    const void *w;     // (n, w_ld), zero beyond k
    const float *bias; // (n) or null
    u32 n;
    u32 units;         // that belong to it
};

struct LinearArgs {
    const float *x;    // (rows, x_ld), zero beyond k
    float *out;        // (rows, out_ld)
    LinearMatrix matrix[3];
    Norm norm;         // of x; its kind NORM_NONE takes x as it is
    const Row *row;
    Encoding encoding; // EPILOGUE_QKV: width 0 rotates nothing
    KvLayout kv;
    u32 rows, k, x_ld, out_ld, w_ld;
    u32 units;         // of all matrices
    u32 unit_warps;    // warps that share a unit: 1, 2 or 4
    u32 epilogue;
    u32 activation;
};

// Eight neighbouring weights of a row.
template <class E> struct Weights8;
template <> struct Weights8<float> {
    float4_t lo, hi;
    DEVICE void load(const float *w) {
        lo = ((const float4_t *)w)[0];
        hi = ((const float4_t *)w)[1];
    }
    DEVICE void unpack(float (&out)[8]) const {
        out[0] = lo.x, out[1] = lo.y, out[2] = lo.z, out[3] = lo.w;
        out[4] = hi.x, out[5] = hi.y, out[6] = hi.z, out[7] = hi.w;
    }
};
struct Halves8 {
    u32x4 bits;
    DEVICE u16 at(int i) const {
        u32 pair = i < 2 ? bits.x : i < 4 ? bits.y : i < 6 ? bits.z : bits.w;
        return (u16)(i % 2 ? pair >> 16 : pair);
    }
};
template <> struct Weights8<f16> {
    Halves8 halves;
    DEVICE void load(const f16 *w) { halves.bits = *(const u32x4 *)w; }
    DEVICE void unpack(float (&out)[8]) const {
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = f16_to_f32(halves.at(i));
    }
};
template <> struct Weights8<bf16> {
    Halves8 halves;
    DEVICE void load(const bf16 *w) { halves.bits = *(const u32x4 *)w; }
    DEVICE void unpack(float (&out)[8]) const {
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = bits_float((u32)halves.at(i) << 16);
    }
};

// The outputs of a unit: which matrix, and which two of its rows.
struct Unit {
    u32 matrix;
    u32 first, second;
    bool has_second;
};

DEVICE Unit unit_of(const LinearArgs &a, u32 unit) {
    Unit u;
    u.matrix = 0;
    u32 i = unit;
    if (a.epilogue == EPILOGUE_GATED) {
        u.first = u.second = i;
        u.has_second = true;
        return u;
    }
    if (a.epilogue == EPILOGUE_QKV) {
        while (u.matrix < 2 && i >= a.matrix[u.matrix].units) i -= a.matrix[u.matrix++].units;
        if (a.encoding.width > 0) {
            u32 half = a.kv.head_dim / 2;
            u.first = i / half * a.kv.head_dim + i % half;
            u.second = u.first + half;
            u.has_second = true;
            return u;
        }
    }
    u.first = 2 * i;
    u.has_second = u.first + 1 < a.matrix[u.matrix].n;
    u.second = u.has_second ? u.first + 1 : u.first;
    return u;
}

DEVICE float biased(const LinearMatrix &m, u32 i, float product) {
    return m.bias ? product + m.bias[i] : product;
}

// What becomes of the two products of a unit for one row.
DEVICE void finish_unit(const LinearArgs &a, const Unit &u, u32 t, float x, float y) {
    const LinearMatrix &m = a.matrix[u.matrix];
    float *out = a.out + (u64)t * a.out_ld;
    x = biased(m, u.first, x);
    if (a.epilogue == EPILOGUE_GATED) {
        y = biased(a.matrix[1], u.second, y);
        out[u.first] = activated(x, a.activation) * y;
        return;
    }
    y = biased(m, u.second, y);
    if (a.epilogue == EPILOGUE_QKV) {
        u32 head_dim = a.kv.head_dim;
        if (a.encoding.width > 0 && u.matrix < 2) {
            rotate_pair(x, y, encoding_of(a.encoding, t) + 2 * (u.first % head_dim));
        }
        if (u.matrix > 0) {
            u32 part = u.matrix == 2 ? PAGE * a.kv.head_ld : 0;
            float *to = cached_key(a.row[t], a.kv, u.first / head_dim) + part;
            to[u.first % head_dim] = x;
            if (u.has_second) {
                // Without rotation the two may belong to neighbouring heads.
                to = cached_key(a.row[t], a.kv, u.second / head_dim) + part;
                to[u.second % head_dim] = y;
            }
            return;
        }
    }
    if (a.epilogue == EPILOGUE_ADD) {
        x += out[u.first];
        if (u.has_second) y += out[u.second];
    } else if (a.epilogue == EPILOGUE_ACTIVATE) {
        x = activated(x, a.activation);
        y = activated(y, a.activation);
    }
    out[u.first] = x;
    if (u.has_second) out[u.second] = y;
}

// T: most rows.
template <class E, int T> DEVICE void linear(const LinearArgs &a) {
    SHARED(float, sums, LINEAR_WARPS * 2 * T);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 part = warp % a.unit_warps;
    u32 unit = (blockIdx.x * LINEAR_WARPS + warp) / a.unit_warps;
    bool there = unit < a.units;
    Unit u = unit_of(a, there ? unit : 0);
    const E *w0 = (const E *)a.matrix[u.matrix].w + (u64)u.first * a.w_ld;
    const LinearMatrix &second = a.matrix[a.epilogue == EPILOGUE_GATED ? 1 : u.matrix];
    const E *w1 = (const E *)second.w + (u64)u.second * a.w_ld;
    u32 k = (part * 32 + lane) * 8, stride = a.unit_warps * 256;

    // Weights depend on no other kernel: the first are on their way while the one before ends.
    Weights8<E> c0, c1;
    bool any = there && k < a.w_ld;
    if (any) {
        c0.load(w0 + k);
        c1.load(w1 + k);
    }
    wait_for_previous();
    release_next();

    const float *x = a.x;
    u32 x_ld = a.x_ld;
    if (a.norm.kind != NORM_NONE) {
        DYNAMIC_SHARED(float, normed_x); // (T, w_ld)
        // One row: every warp finds its moments and writes a quarter. Several: a warp a row.
        for (u32 t = T == 1 ? 0 : warp; t < a.rows; t += LINEAR_WARPS) {
            const float *row = a.x + (u64)t * a.x_ld;
            float mean, scale;
            row_moments(row, a.k, a.norm, mean, scale);
            for (u32 i = T == 1 ? threadIdx.x : lane; i < a.w_ld; i += T == 1 ? LINEAR_THREADS : 32) {
                normed_x[t * a.w_ld + i] = i < a.k ? normed(row[i], i, a.norm, mean, scale) : 0.0f;
            }
        }
        block_sync();
        x = normed_x;
        x_ld = a.w_ld;
    }

    float acc0[T], acc1[T];
#pragma unroll
    for (int t = 0; t < T; t++) acc0[t] = acc1[t] = 0.0f;
    while (any) {
        float v0[8], v1[8];
        c0.unpack(v0);
        c1.unpack(v1);
        u32 now = k;
        k += stride;
        any = k < a.w_ld;
        if (any) {
            c0.load(w0 + k);
            c1.load(w1 + k);
        }
#pragma unroll
        for (int t = 0; t < T; t++) {
            // Rows that are not there repeat the last one: no branch, and nothing looks at their sums.
            u32 row = T == 1 || t < (int)a.rows ? t : a.rows - 1;
            const float4_t *from = (const float4_t *)(x + row * x_ld + now);
            float4_t lo = from[0], hi = from[1];
            float xs[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
#pragma unroll
            for (int i = 0; i < 8; i++) {
                acc0[t] = fmaf(v0[i], xs[i], acc0[t]);
                acc1[t] = fmaf(v1[i], xs[i], acc1[t]);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        float s0 = warp_sum(acc0[t]), s1 = warp_sum(acc1[t]);
        if (lane == 0) {
            sums[(warp * 2) * T + t] = s0;
            sums[(warp * 2 + 1) * T + t] = s1;
        }
    }
    block_sync();
    if (there && part == 0 && lane < a.rows) {
        float s0 = 0.0f, s1 = 0.0f;
        for (u32 p = 0; p < a.unit_warps; p++) {
            s0 += sums[((warp + p) * 2) * T + lane];
            s1 += sums[((warp + p) * 2 + 1) * T + lane];
        }
        finish_unit(a, u, lane, s0, s1);
    }
}

KERNEL(LINEAR_THREADS) linear1_f32(LinearArgs a) { linear<float, 1>(a); }
KERNEL(LINEAR_THREADS) linear1_f16(LinearArgs a) { linear<f16, 1>(a); }
KERNEL(LINEAR_THREADS) linear1_bf16(LinearArgs a) { linear<bf16, 1>(a); }
KERNEL_BLOCKS(LINEAR_THREADS, 4) linear8_f32(LinearArgs a) { linear<float, 8>(a); }
KERNEL_BLOCKS(LINEAR_THREADS, 4) linear8_f16(LinearArgs a) { linear<f16, 8>(a); }
KERNEL_BLOCKS(LINEAR_THREADS, 4) linear8_bf16(LinearArgs a) { linear<bf16, 8>(a); }
