// Matrix product for more rows than linear.cu takes: prompts, and sessions that decode together.
//
// From Ampere on by tensor cores, which multiply bf16 and sum in f32. To keep nearly the accuracy of f32,
// a number is split into two of bf16, high + low: high is it rounded to 8 bits, low the rest cut to 8 bits,
// so that less than 2^-16 of it is lost. (For f16, whose 11 bits fit, nothing is lost.) A product is then
// high high + high low + low high; the left out low low is at most 2^-16 of it. bf16 weights are high only.
// Turing's tensor cores do not know bf16: there the product is by fused multiply-adds in f32.
//
// Numbers that the split cannot take give infinity or NaN: infinities themselves (whose low part is NaN) and
// those that round beyond the largest bf16. Any output that is not finite is therefore computed once more,
// in f32, which settles what it is.
//
// A block computes one tile of the output, out[row0 ..][col0 ..], over one part of k (blockIdx.z). Where k is
// split over blocks, the last of them to arrive adds all parts in their order, so the sum does not
// depend on who that is. Nothing but the number of parts decides in which order numbers are added.
#include "device.cuh"

#define MATMUL_THREADS 256
// Warps of a block stand in 4 rows and 2 columns over its tile.
#define MATMUL_WARP_ROWS 4
#define MATMUL_WARP_COLS 2

// Numbers in 16 bytes, which is what a thread loads at once.
template <class E> struct Vector {
    static const u32 WIDTH = 16 / sizeof(E);
};

template <class E> struct IsBf16 {
    static const bool VALUE = false;
};
template <> struct IsBf16<bf16> {
    static const bool VALUE = true;
};

// x as it lies in shared memory: 16 bytes that hold four neighbours in k. On tensor cores x, y are
// the high parts, z, w the low ones; otherwise the numbers themselves.
DEVICE u32x4 stage4(float x0, float x1, float x2, float x3) {
#if __CUDA_ARCH__ >= 800
    // Half of the last bit that stays, so that cutting rounds. A NaN may be lost here, but not in low.
    u32 h0 = float_bits(x0) + 0x8000u, h1 = float_bits(x1) + 0x8000u;
    u32 h2 = float_bits(x2) + 0x8000u, h3 = float_bits(x3) + 0x8000u;
    float l0 = x0 - bits_float(h0 & 0xffff0000u), l1 = x1 - bits_float(h1 & 0xffff0000u);
    float l2 = x2 - bits_float(h2 & 0xffff0000u), l3 = x3 - bits_float(h3 & 0xffff0000u);
    return {upper_halves(h0, h1), upper_halves(h2, h3), upper_halves(float_bits(l0), float_bits(l1)),
            upper_halves(float_bits(l2), float_bits(l3))};
#else
    return {float_bits(x0), float_bits(x1), float_bits(x2), float_bits(x3)};
#endif
}

// Puts one vector of weights, the i-th of its row, where `row` and its swizzle say.
DEVICE void stage_weights(u32x4 *row, u32 i, u32 swizzle, u32x4 v, float) {
    row[i ^ swizzle] = stage4(bits_float(v.x), bits_float(v.y), bits_float(v.z), bits_float(v.w));
}
template <class E> DEVICE float half_of(u32 v, bool second) {
    return to_f32(E{(u16)(second ? v >> 16 : v)});
}
template <class E> DEVICE void stage_halves(u32x4 *row, u32 i, u32 swizzle, u32x4 v) {
    row[2 * i ^ swizzle] = stage4(half_of<E>(v.x, false), half_of<E>(v.x, true), half_of<E>(v.y, false),
                                  half_of<E>(v.y, true));
    row[(2 * i + 1) ^ swizzle] = stage4(half_of<E>(v.z, false), half_of<E>(v.z, true),
                                        half_of<E>(v.w, false), half_of<E>(v.w, true));
}
DEVICE void stage_weights(u32x4 *row, u32 i, u32 swizzle, u32x4 v, f16) {
    stage_halves<f16>(row, i, swizzle, v);
}
DEVICE void stage_weights(u32x4 *row, u32 i, u32 swizzle, u32x4 v, bf16) {
#if __CUDA_ARCH__ >= 800
    row[i ^ swizzle] = v; // they need no split
#else
    stage_halves<bf16>(row, i, swizzle, v);
#endif
}

// A thread's part in loading DEPTH columns of a matrix at a time: the same 16 bytes of N rows, STEP apart.
// Where a tile reaches beyond the matrix its last row or column is loaded again: what is computed from
// it goes nowhere, and loads without a condition are short code.
template <class E, u32 N, u32 DEPTH> struct Loads {
    static const u32 VECTORS = DEPTH / Vector<E>::WIDTH, STEP = MATMUL_THREADS / VECTORS;
    u32 rows[N]; // where they start, in elements: a matrix has less than 2^32
    u32 k;

    DEVICE Loads(u32 ld, u32 first_row, u32 n_rows, u32 k0) {
#pragma unroll
        for (u32 i = 0; i < N; i++)
            rows[i] = min(first_row + threadIdx.x / VECTORS + i * STEP, n_rows - 1) * ld;
        k = k0 + threadIdx.x % VECTORS * Vector<E>::WIDTH;
    }
    // Columns from `end` on, a multiple of 32, do not exist; the last ones are loaded again.
    DEVICE void next(u32x4 (&v)[N], const E *matrix, u32 end) {
        u32 from = DEPTH == 32 ? k : min(k, end - Vector<E>::WIDTH);
#pragma unroll
        for (u32 i = 0; i < N; i++) v[i] = *(const u32x4 *)(matrix + (rows[i] + from));
        k += DEPTH;
    }
};

// One shape of tile: ROWS x COLS outputs, DEPTH of k in shared memory at a time, in one or two buffers.
// SPLIT: k may be split over blocks.
template <class E, u32 ROWS, u32 COLS, u32 DEPTH, u32 BUFFERS, bool SPLIT> struct Tile {
    // Units of 16 bytes. Rows of x, and of weights where they are split, hold DEPTH / 4.
    static const u32 UNITS = DEPTH / 4;
#if __CUDA_ARCH__ >= 800
    static const u32 W_UNITS = IsBf16<E>::VALUE ? DEPTH / 8 : UNITS;
#else
    static const u32 W_UNITS = UNITS;
#endif
    static const u32 X_SIZE = ROWS * UNITS, W_SIZE = COLS * W_UNITS;
    static const u32 SHARED_UNITS = (X_SIZE + W_SIZE) * BUFFERS;
    // Vectors of a row of weights in global memory.
    static const u32 W_VECTORS = DEPTH / Vector<E>::WIDTH;
    // What one thread loads of x and w.
    static const u32 X_LOADS = X_SIZE / MATMUL_THREADS;
    static const u32 W_LOADS = COLS * W_VECTORS / MATMUL_THREADS;
    // Outputs of one thread: on tensor cores those of MI x NI products of 16 x 8, else RI x CI single ones.
    static const u32 MI = ROWS / (16 * MATMUL_WARP_ROWS), NI = COLS / (8 * MATMUL_WARP_COLS);
    static const u32 RI = ROWS / 16, CI = COLS / 16;
    static const u32 OUTPUTS = ROWS * COLS / MATMUL_THREADS;

    // Without it the eight threads that read 16 bytes each at a time would meet in few of the 32 banks:
    // they read every second unit of two rows (tensor cores), or one unit of eight rows.
    DEVICE static u32 swizzle(u32 row) { return row % 8; }
    DEVICE static u32 w_swizzle(u32 row) {
        if (W_UNITS == UNITS) return row % 8;
        return W_UNITS % 8 == 0 ? row % 2 * 4 : 0; // four units of two rows
    }

    using XLoads = Loads<float, X_LOADS, DEPTH>;
    using WLoads = Loads<E, W_LOADS, DEPTH>;

    // Puts what was loaded into shared memory; rows from `rows` on are left out.
    DEVICE static void store(u32x4 *x, u32x4 *w, const u32x4 (&xv)[X_LOADS], const u32x4 (&wv)[W_LOADS],
                             u32 rows) {
        u32 row = threadIdx.x / UNITS, at = row * UNITS + (threadIdx.x % UNITS ^ swizzle(row));
#pragma unroll
        for (u32 i = 0; i < X_LOADS; i++) {
            if (i * XLoads::STEP >= rows) break;
            // The same swizzle in all of them: a multiple of eight rows lies between.
            x[at + i * MATMUL_THREADS] =
                stage4(bits_float(xv[i].x), bits_float(xv[i].y), bits_float(xv[i].z), bits_float(xv[i].w));
        }
        row = threadIdx.x / W_VECTORS;
#pragma unroll
        for (u32 i = 0; i < W_LOADS; i++) {
            stage_weights(w + (row + i * WLoads::STEP) * W_UNITS, threadIdx.x % W_VECTORS, w_swizzle(row),
                          wv[i], E());
        }
    }

#if __CUDA_ARCH__ >= 800
    // Where output e of this thread lies in the tile.
    DEVICE static u32 row_of(u32 e) {
        u32 warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4;
        return (warp / MATMUL_WARP_COLS * MI + e / (4 * NI)) * 16 + e / 2 % 2 * 8 + group;
    }
    DEVICE static u32 col_of(u32 e) {
        u32 warp = threadIdx.x / 32, t = threadIdx.x % 4;
        return (warp % MATMUL_WARP_COLS * NI + e / 4 % NI) * 8 + 2 * t + e % 2;
    }

    // sums += x w^T over `depth` of what is in shared memory, a multiple of 32. Two products, each 16 deep,
    // make 32. They take the numbers of k in another order than the instruction's, the same for x and w:
    // thread t has 8t .. 8t + 3 in the first and 8t + 4 .. 8t + 7 in the second, which lie together.
    DEVICE static void multiply(float (&sums)[OUTPUTS], const u32x4 *x, const u32x4 *w, u32 depth) {
        u32 warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        u32 row = warp / MATMUL_WARP_COLS * MI * 16 + group, col = warp % MATMUL_WARP_COLS * NI * 8 + group;
        x += row * UNITS;
        w += col * W_UNITS;
#pragma unroll 1
        for (u32 k = 0; k < depth / 32; k++) {
            u32x4 packed[NI]; // weights that need no split, of both products
            if (W_UNITS != UNITS) {
#pragma unroll
                for (u32 n = 0; n < NI; n++) packed[n] = w[n * 8 * W_UNITS + ((4 * k + t) ^ w_swizzle(col))];
            }
#pragma unroll (W_UNITS == UNITS ? 1 : 2) // no more than the registers allow
            for (u32 i = 0; i < 2; i++) {
                u32 unit = (8 * k + 2 * t + i) ^ swizzle(row); // rows 8 and 16 below have the same
                u32 high[MI][4], low[MI][4];
#pragma unroll
                for (u32 m = 0; m < MI; m++) {
                    u32x4 p = x[m * 16 * UNITS + unit], q = x[(m * 16 + 8) * UNITS + unit];
                    high[m][0] = p.x, high[m][1] = q.x, high[m][2] = p.y, high[m][3] = q.y;
                    low[m][0] = p.z, low[m][1] = q.z, low[m][2] = p.w, low[m][3] = q.w;
                }
#pragma unroll
                for (u32 n = 0; n < NI; n++) {
                    u32x4 p = W_UNITS != UNITS ? packed[n]
                                               : w[n * 8 * W_UNITS + ((8 * k + 2 * t + i) ^ w_swizzle(col))];
                    if (W_UNITS != UNITS && i == 1) p.x = p.z, p.y = p.w;
                    u32 w_high[2] = {p.x, p.y}, w_low[2] = {p.z, p.w};
#pragma unroll
                    for (u32 m = 0; m < MI; m++) {
                        // Tensor cores cut their sums, always towards zero, instead of rounding them. Short
                        // sums that are then added by rounding keep this from growing with k.
                        float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                        mma_bf16(d, low[m], w_high);
                        if (W_UNITS == UNITS) mma_bf16(d, high[m], w_low);
                        mma_bf16(d, high[m], w_high);
#pragma unroll
                        for (u32 e = 0; e < 4; e++) sums[(m * NI + n) * 4 + e] += d[e];
                    }
                }
            }
        }
    }
    // Whether the rows of this warp lie beyond the matrix.
    DEVICE static bool idle(const MatmulArgs &a, u32 row0) {
        return row0 + threadIdx.x / 32 / MATMUL_WARP_COLS * MI * 16 >= a.rows;
    }
#else
    DEVICE static u32 row_of(u32 e) { return threadIdx.x / 16 + e / CI * 16; }
    DEVICE static u32 col_of(u32 e) { return threadIdx.x % 16 + e % CI * 16; }

    DEVICE static void multiply(float (&sums)[OUTPUTS], const u32x4 *x, const u32x4 *w, u32 depth) {
        u32 row = threadIdx.x / 16, col = threadIdx.x % 16;
        x += row * UNITS;
        w += col * W_UNITS;
#pragma unroll 2
        for (u32 k = 0; k < depth / 4; k++) {
            u32x4 q[CI];
#pragma unroll
            for (u32 c = 0; c < CI; c++) q[c] = w[c * 16 * W_UNITS + (k ^ w_swizzle(col))];
#pragma unroll
            for (u32 r = 0; r < RI; r++) {
                u32x4 p = x[r * 16 * UNITS + (k ^ swizzle(row))];
#pragma unroll
                for (u32 c = 0; c < CI; c++) {
                    float sum = sums[r * CI + c];
                    sum = fmaf(bits_float(p.x), bits_float(q[c].x), sum);
                    sum = fmaf(bits_float(p.y), bits_float(q[c].y), sum);
                    sum = fmaf(bits_float(p.z), bits_float(q[c].z), sum);
                    sums[r * CI + c] = fmaf(bits_float(p.w), bits_float(q[c].w), sum);
                }
            }
        }
    }
    DEVICE static bool idle(const MatmulArgs &, u32) { return false; }
#endif

    // Puts the sums of all parts of k into the last block that arrives here; false in the others.
    DEVICE static bool gather(float (&sums)[OUTPUTS], const MatmulArgs &a, u32 row0, u32 *shared) {
        u32 tile = blockIdx.y * gridDim.x + blockIdx.x;
        const u32 PART = OUTPUTS / 4 * MATMUL_THREADS; // float4_t
        float4_t *parts = (float4_t *)a.partial + (u64)tile * gridDim.z * PART + threadIdx.x;
        bool part = !idle(a, row0);
        if (part) {
#pragma unroll
            for (u32 e = 0; e < OUTPUTS / 4; e++) {
                parts[blockIdx.z * PART + e * MATMUL_THREADS] = {sums[4 * e], sums[4 * e + 1], sums[4 * e + 2],
                                                                sums[4 * e + 3]};
            }
        }
        thread_fence();
        block_sync(); // the part is there, and shared memory no longer read
        if (threadIdx.x == 0) *shared = atomic_increment(a.arrived + tile);
        block_sync();
        if (*shared + 1 != gridDim.z) return false;
        thread_fence();
        if (threadIdx.x == 0) a.arrived[tile] = 0;
#pragma unroll
        for (u32 e = 0; e < OUTPUTS; e++) sums[e] = 0.0f;
        // Several at a time on their way, or every part would cost the memory's whole latency.
        const u32 AT_ONCE = 4;
#pragma unroll 1
        for (u32 z = 0; part && z < gridDim.z; z += AT_ONCE) {
            float4_t p[AT_ONCE][OUTPUTS / 4];
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i++)
#pragma unroll
                for (u32 e = 0; e < OUTPUTS / 4; e++)
                    p[i][e] = parts[min(z + i, gridDim.z - 1) * PART + e * MATMUL_THREADS];
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i++) {
                if (z + i >= gridDim.z) break;
#pragma unroll
                for (u32 e = 0; e < OUTPUTS / 4; e++) {
                    sums[4 * e] += p[i][e].x, sums[4 * e + 1] += p[i][e].y;
                    sums[4 * e + 2] += p[i][e].z, sums[4 * e + 3] += p[i][e].w;
                }
            }
        }
        return true;
    }

    DEVICE static void run(const MatmulArgs &a, u32x4 *shared) {
        // Row tiles next to each other in the grid: blocks that share weights run at the same time.
        u32 row0 = blockIdx.x * ROWS, col0 = blockIdx.y * COLS;
        // This block's part of k, in whole steps of DEPTH. Rows are padded to 32, by zeros.
        u32 end = (a.k + 31) / 32 * 32;
        u32 steps = (end + DEPTH - 1) / DEPTH;
        u32 per_part = (steps + gridDim.z - 1) / gridDim.z;
        u32 step = min(blockIdx.z * per_part, steps), last = min(step + per_part, steps);

        u32x4 xv[X_LOADS], wv[W_LOADS];
        XLoads x_loads(a.x_ld, row0, a.rows, step * DEPTH);
        WLoads w_loads(a.w_ld, col0, a.n, step * DEPTH);
        if (step < last) w_loads.next(wv, (const E *)a.w, end);
        wait_for_previous();
        release_next();
        if (step < last) x_loads.next(xv, a.x, end);

        float sums[OUTPUTS];
#pragma unroll
        for (u32 e = 0; e < OUTPUTS; e++) sums[e] = 0.0f;
#pragma unroll 1
        for (u32 buffer = 0; step < last; step++) {
            u32x4 *x = shared + buffer * (X_SIZE + W_SIZE), *w = x + X_SIZE;
            if (BUFFERS == 1) block_sync(); // the step before has been read
            else buffer ^= 1;
            store(x, w, xv, wv, a.rows - row0);
            block_sync();
            if (step + 1 < last) { // under way while this step is multiplied
                w_loads.next(wv, (const E *)a.w, end);
                x_loads.next(xv, a.x, end);
            }
            if (!idle(a, row0)) multiply(sums, x, w, DEPTH == 32 ? 32 : min(end - step * DEPTH, DEPTH));
        }
        if (SPLIT && gridDim.z > 1 && !gather(sums, a, row0, (u32 *)shared)) return;
        finish(sums, a, row0, col0, (float *)shared);
    }

    // Sums to out, with bias and what was there. By way of shared memory, so that a thread has four
    // neighbours and a warp whole rows.
    DEVICE static void finish(const float (&sums)[OUTPUTS], const MatmulArgs &a, u32 row0, u32 col0,
                              float *shared) {
        const u32 LD = COLS + 8; // padded against bank conflicts of the tensor cores' layout
        const u32 PASSES = OUTPUTS / 4, PASS_ROWS = ROWS / PASSES;
        block_sync(); // shared memory is no longer read
#pragma unroll
        for (u32 e = 0; e < OUTPUTS; e++) shared[row_of(e) * LD + col_of(e)] = sums[e];
        block_sync();

        u32 row = threadIdx.x / (COLS / 4), col = threadIdx.x % (COLS / 4) * 4;
        shared += row * LD + col;
        row += row0, col += col0;
        if (row >= a.rows || col >= a.n) return;
        u32 last = (a.rows - 1 - row) / PASS_ROWS;
        float *out = a.out + (u64)row * a.out_ld + col;
        if (a.add) {
            // All loads at once, then all sums.
            float4_t old[PASSES];
#pragma unroll
            for (u32 i = 0; i < PASSES; i++)
                old[i] = *(const float4_t *)(out + min(i, last) * PASS_ROWS * a.out_ld);
#pragma unroll
            for (u32 i = 0; i < PASSES; i++) {
                float4_t *sum = (float4_t *)(shared + i * (PASS_ROWS * LD));
                *sum = {sum->x + old[i].x, sum->y + old[i].y, sum->z + old[i].z, sum->w + old[i].w};
            }
        }
        u32 cols = min(a.n - col, 4u);
        float bias[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (a.bias) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) bias[j] = a.bias[col + min(j, cols - 1)];
        }
#pragma unroll 1
        for (u32 i = 0; i <= min(last, PASSES - 1); i++) {
            float4_t v = *(const float4_t *)shared;
#if __CUDA_ARCH__ >= 800
            if (!finite(v.x) || !finite(v.y) || !finite(v.z) || !finite(v.w)) {
#pragma unroll 1
                for (u32 j = 0; j < cols; j++)
                    if (!finite(shared[j]))
                        shared[j] = plain(a, row, col + j) + (a.add ? out[j] : 0.0f);
                v = *(const float4_t *)shared;
            }
#endif
            v = {v.x + bias[0], v.y + bias[1], v.z + bias[2], v.w + bias[3]};
            if (cols == 4) {
                *(float4_t *)out = v;
            } else { // the padding stays as it is
                out[0] = v.x;
                if (cols > 1) out[1] = v.y;
                if (cols > 2) out[2] = v.z;
            }
            shared += PASS_ROWS * LD;
            out += PASS_ROWS * a.out_ld;
            row += PASS_ROWS;
        }
    }

    DEVICE static bool finite(float x) { return fabsf(x) < INFINITY; }
    // One sum in f32.
    DEVICE static float plain(const MatmulArgs &a, u32 row, u32 col) {
        const float *x = a.x + (u64)row * a.x_ld;
        const E *w = (const E *)a.w + (u64)col * a.w_ld;
        float sum = 0.0f;
#pragma unroll 1
        for (u32 k = 0; k < a.k; k++) sum = fmaf(x[k], to_f32(w[k]), sum);
        return sum;
    }
};

// The two shapes. A multiprocessor takes two blocks of either. The host takes the large one where it gives
// at least 192 blocks for more than 32 rows; otherwise the small one, with k in as many parts as there is
// room for (at most 264 blocks). launch.rs has the same numbers.
template <class E> struct Tiles {
    using Large = Tile<E, 64, 64, 32, 2, false>;
    using Small = Tile<E, 64, 32, 128, 1, true>;
    static const u32 UNITS =
        Large::SHARED_UNITS > Small::SHARED_UNITS ? Large::SHARED_UNITS : Small::SHARED_UNITS;
};

template <class E> DEVICE void matmul(const MatmulArgs &a, u32x4 *shared) {
    if (a.small) Tiles<E>::Small::run(a, shared);
    else Tiles<E>::Large::run(a, shared);
}

KERNEL(MATMUL_THREADS) matmul_f32(MatmulArgs a) {
    SHARED(u32x4, shared, Tiles<float>::UNITS);
    matmul<float>(a, shared);
}
KERNEL(MATMUL_THREADS) matmul_f16(MatmulArgs a) {
    SHARED(u32x4, shared, Tiles<f16>::UNITS);
    matmul<f16>(a, shared);
}
KERNEL(MATMUL_THREADS) matmul_bf16(MatmulArgs a) {
    SHARED(u32x4, shared, Tiles<bf16>::UNITS);
    matmul<bf16>(a, shared);
}
