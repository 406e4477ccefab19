// What the kernels use of the device, in one place, so that they compile as CUDA (NVRTC, no headers) and
// as C++ for the emulation in tests/cuda, which defines TEENY_EMULATION and the names below by itself:
// KERNEL, KERNEL_BLOCKS, SHARED, DYNAMIC_SHARED, threadIdx and its like, block_sync, warp_sync, shuffle_xor, vote_any,
// thread_fence, atomic_increment, wait_for_previous, release_next, f16_to_f32, mma_bf16.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef TEENY_EMULATION
#include "emulation.h"
#else

// An entry point for blocks of `threads` threads.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// The same, with so many blocks at a time on a multiprocessor in mind: the assembler may use as many registers
// as these leave, where it would otherwise save some and spill.
#define KERNEL_BLOCKS(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

#define INFINITY __int_as_float(0x7f800000)

DEVICE u32 float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(u32 x) { return __uint_as_float(x); }

// All threads of the block, and all their shared and global writes.
DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }
template <class T> DEVICE T shuffle_xor(T v, int mask) { return __shfl_xor_sync(~0u, v, mask); }
// The value of lane `lane` of the warp.
template <class T> DEVICE T shuffle(T v, int lane) { return __shfl_sync(~0u, v, lane); }
DEVICE bool vote_any(bool v) { return __any_sync(~0u, v); }
// Lanes of the warp for which v holds, as bits.
DEVICE u32 vote_ballot(bool v) { return __ballot_sync(~0u, v); }
// This thread's writes before it are seen by every block before its writes after it.
DEVICE void thread_fence() { __threadfence(); }
// Adds one and returns what was there before. On global or shared memory.
DEVICE u32 atomic_increment(u32 *counter) { return atomicAdd(counter, 1u); }
DEVICE u32 high_product(u32 a, u32 b) { return __umulhi(a, b); }

// Programmatic dependent launch: from Hopper on a kernel may start before the one before it has ended,
// and waits here until that one's writes can be seen. Elsewhere the launch itself waits.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void release_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE float f16_to_f32(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

#if __CUDA_ARCH__ >= 800
// d += a b for one 16x8 tile with k = 16, bf16 operands, f32 sums, spread over a warp as PTX's
// mma.sync.aligned.m16n8k16 defines: lane = 4 * group + t; a: rows group, group + 8, columns 2t, 2t+1 (+8);
// b: rows 2t, 2t+1 (+8), column group; d: rows group, group + 8, columns 2t, 2t+1.
// Each u32 of a and b holds two neighbours in k, the first in its low half.
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#endif // TEENY_EMULATION

// The upper halves of two words, the first in the low half: two numbers as bf16, by cutting.
DEVICE u32 upper_halves(u32 first, u32 second) {
#ifdef TEENY_EMULATION
    return first >> 16 | (second & 0xffff0000u);
#else
    return __byte_perm(first, second, 0x7632);
#endif
}

// Slots of one page of keys and values; kv_cache.rs has the same.
#define PAGE 64

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(f16 x) { return f16_to_f32(x.bits); }
DEVICE float to_f32(bf16 x) { return bits_float(u32(x.bits) << 16); }

// Four numbers that are loaded at once; a plain struct, so that the emulation needs no more.
struct alignas(16) float4_t { float x, y, z, w; };
struct alignas(16) u32x4 { u32 x, y, z, w; };

// One row of a pass. Twin of launch.rs `Row`.
struct Row {
    u64 pos;          // position in its session
    const u64 *table; // (slots / PAGE) addresses of the session's pages
    u32 token;
    u32 slot;         // of the ring, pos % slots: division of 64 bits is slow
};

// Where the keys and values of one layer lie in a page. Twin of launch.rs `KvLayout`.
struct KvLayout {
    u32 slots;     // of the ring, a multiple of PAGE
    u32 layer;
    u32 n_kv_head;
    u32 head_dim;
    u32 head_ld;   // head_dim rounded up to 4
};

// Start of the keys of one head in the page that holds `slot`, (PAGE, head_ld); values follow after
// PAGE * head_ld floats.
DEVICE float *page_keys(const u64 *table, const KvLayout &kv, u32 slot, u32 kv_head) {
    float *page = (float *)table[slot / PAGE];
    return page + (u64)((kv.layer * kv.n_kv_head + kv_head) * 2) * (PAGE * kv.head_ld);
}

struct AttentionArgs {
    float *out;          // (rows, out_ld): heads side by side, head_dim wide each
    const float *q;      // (rows, q_ld), rotated already
    const Row *rows;
    const float *slopes; // (n_head)
    float *partial;      // decode: (rows, n_head, splits, head_ld + 2): sums, then maximum, then total
    u32 *arrived;        // decode: (rows, n_kv_head) zeros, and zeros again afterwards
    KvLayout kv;
    u32 q_ld, out_ld;
    u32 n_head;
    u32 window;
    u32 n_rows;
    u32 split_pages;     // decode: pages of positions that one split covers
    u32 splits;          // decode: gridDim.y; enough for window / PAGE + 1 pages
    float scale;         // 1 / sqrt(head_dim)
};

// Grid: (row tiles, column tiles, parts of k). A tile has 64 rows and 64 columns, or 32 with `small`;
// only then k may be split: part i is steps i * n .. i * n + n of 128, n = steps / parts rounded up.
struct MatmulArgs {
    float *out;        // (rows, out_ld)
    const float *x;    // (rows, x_ld), x_ld >= k rounded up to 32, zero beyond k
    const void *w;     // (n, w_ld), zero beyond k
    const float *bias; // (n) or null
    float *partial;    // with more than one part: (column tiles, row tiles, parts, 64 * 32)
    u32 *arrived;      // likewise: (column tiles, row tiles) zeros, and zeros again afterwards
    u32 rows, n, k;
    u32 out_ld, x_ld, w_ld;
    u32 add;           // 1: out += product + bias; 0: out = product + bias
    u32 small;         // 1: the small tile, 0: the large one
};

// One session's sampler. Twin of launch.rs `Draw`.
struct Draw {
    u64 seed;
    u64 step;          // counter of the random numbers; the kernel adds one
    float temperature; // 0 takes the most likely token
    float top_p;       // 1 is off
    float min_p;       // 0 is off
    u32 top_k;         // 0 is off
    float surely_below; // ln(min_p) - 0.01, as candidates.rs has it; not read where min_p is off
    u32 reserved;
};

struct SampleArgs {
    const float *logits; // (n_rows, ld)
    u32 ld, vocab_size, n_rows;
    u32 slots;           // of the sessions' rings
    Row *rows;           // token and pos of the next step are written here: token drawn, pos + 1
    Draw *draws;         // (n_rows)
    u32 *drawn;          // (steps, n_rows): row *step receives the tokens
    u32 *step;           // steps done in this pass; the last block to arrive adds one
    u32 *arrived;        // one counter, zero before and after
};

DEVICE float warp_sum(float v) {
    for (int mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
    return v;
}
DEVICE float warp_max(float v) {
    for (int mask = 16; mask > 0; mask /= 2) {
        float other = shuffle_xor(v, mask);
        v = other > v ? other : v;
    }
    return v;
}

// e^x as scalar.rs `exp`: the same bits as on the CPU.
DEVICE float exp_f32(float x) {
    const float round = 12582912.0f;
    // As Rust's clamp: NaN stays NaN.
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    float shifted = fmaf(x, 1.44269504088896341f, round);
    float n = shifted - round;
    float r = fmaf(n, -0.6933594f, x);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3982e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r * r, r) + 1.0f;
    u32 exponent = (float_bits(shifted) - float_bits(round) + 127u) << 23;
    return p * bits_float(exponent);
}

// tanh(x) as scalar.rs `tanh`: the same bits as on the CPU.
DEVICE float tanh_f32(float x) {
    float size = fabsf(x), square = x * x;
    float p = -5.7049887e-3f;
    p = fmaf(p, square, 2.0639089e-2f);
    p = fmaf(p, square, -5.3739716e-2f);
    p = fmaf(p, square, 1.3331442e-1f);
    p = fmaf(p, square, -3.3333282e-1f);
    float near = fmaf(p * square, x, x);
    float far = copysignf(1.0f - 2.0f / (exp_f32(2.0f * size) + 1.0f), x);
    return size < 0.625f ? near : far;
}

#if __CUDA_ARCH__ >= 800
// Two numbers rounded to the nearest bf16 (ties to even), the first in the low half: operands of mma_bf16.
DEVICE u32 pack_bf16(float x, float y) {
#ifdef TEENY_EMULATION
    u32 halves[2] = {float_bits(x), float_bits(y)};
    for (u32 &bits : halves) bits = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return halves[0] | halves[1] << 16;
#else
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
    return pair;
#endif
}
#endif
