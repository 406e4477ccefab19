// Causal attention of consecutive rows of one session, whose keys and values are all stored already. Scores
// exist for one tile of keys at a time (online softmax). By tensor cores, each f32 operand as the sum of two
// bf16 numbers: from Ampere on. Turing's know no bf16; there prompts go through attention.cu, row by row.
#include "device.cuh"

#if __CUDA_ARCH__ >= 800

namespace prefill {

constexpr u32 THREADS = 128;

DEVICE float4_t load4(const float *p) { return *(const float4_t *)p; }

// What a block of rows needs to know: one query head, the rows first_row .. first_row + n.
struct Tile {
    u64 start;      // position of the first row
    u64 from, to;   // positions that any of the rows sees, both included
    u32 first_row;
    u32 n;          // rows that exist
    u32 head;
    u32 kv_head;
    float slope;
};

// Last rows first: they see the most keys, and short blocks should fill the gaps at the end.
DEVICE Tile tile_of(const AttentionArgs &a, u32 index, u32 rows) {
    Tile tile;
    tile.first_row = index * rows;
    tile.n = a.n_rows - tile.first_row < rows ? a.n_rows - tile.first_row : rows;
    tile.start = a.rows[0].pos + tile.first_row;
    tile.from = tile.start + 1 > a.window ? tile.start + 1 - a.window : 0;
    tile.to = tile.start + tile.n - 1;
    tile.head = blockIdx.y;
    tile.kv_head = tile.head / (a.n_head / a.kv.n_kv_head);
    tile.slope = a.slopes[tile.head];
    return tile;
}

// Page of the ring in which a page of positions lies.
DEVICE u32 ring_page(u64 page, u32 slots) {
    u32 ring = slots / PAGE;
    // Division of 64 bits is slow, and nearly never needed.
    return page >> 32 ? (u32)(page % ring) : (u32)page % ring;
}

// Score of a key `distance` before its query. What is not visible is beyond the window, or negative and
// as u32 larger than any window.
DEVICE float score_of(float dot, int distance, u32 window, float scale, float slope) {
    return (u32)distance < window ? fmaf(-slope, (float)distance, dot * scale) : -INFINITY;
}

// Turns one row's scores of a tile, held by LANES lanes in `score`, into weights; returns what a new maximum
// makes of the sums before. A row that sees nothing of the tile stays as it is. total: this lane's part
template <u32 N, int LANES> DEVICE float weigh(float (&score)[N], float &maximum, float &total) {
    float most = maximum;
#pragma unroll
    for (u32 i = 0; i < N; i++) most = score[i] > most ? score[i] : most;
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) {
        float other = shuffle_xor(most, mask);
        most = other > most ? other : most;
    }
    float base = most == -INFINITY ? 0.0f : most;
    float rescale = exp_f32(maximum - base);
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        // exp_f32 stays above zero: what is not visible has to be left out here.
        score[i] = score[i] == -INFINITY ? 0.0f : exp_f32(score[i] - base);
        sum += score[i];
    }
    maximum = most;
    total = fmaf(total, rescale, sum);
    return rescale;
}

// A warp owns 16 rows of queries, as one tile of mma_bf16; lane = 4 * group + t holds rows group and group + 8.
constexpr u32 ROWS = 64;
constexpr u32 KEYS = 32; // of a tile: half a page

// Two neighbours, each as the sum of two bf16 numbers, which together keep 16 bits and more of the 24.
struct Pair { u32 upper, lower; };

DEVICE Pair split(float x, float y) {
    u32 upper = pack_bf16(x, y);
    return {upper, pack_bf16(x - bits_float(upper << 16), y - bits_float(upper & 0xffff0000u))};
}

// d[n] += a b[n]; the product of the two lower halves is below the error. Sums that follow each other do not
// depend on each other, since each takes its time.
template <u32 N>
DEVICE void product(
    float (*d)[4], const u32 (&a)[4], const u32 (&a_lower)[4], const u32 (&b)[N][2], const u32 (&b_lower)[N][2]) {
#pragma unroll
    for (u32 n = 0; n < N; n++) mma_bf16(d[n], a_lower, b[n]);
#pragma unroll
    for (u32 n = 0; n < N; n++) mma_bf16(d[n], a, b_lower[n]);
#pragma unroll
    for (u32 n = 0; n < N; n++) mma_bf16(d[n], a, b[n]);
}

// Keys (KEYS, KEYS_LD): pairs of neighbours in a row, and four words more, so that no two of the 32 lanes
// that read eight keys meet in a bank. Values (KEYS / 2, VALUES_LD): since their product sums over positions,
// pairs of neighbours in a column. Of both upper halves, then lower.
template <u32 HD> constexpr u32 KEYS_LD = HD / 2 + 4;
template <u32 HD> constexpr u32 VALUES_LD = HD + 8;
template <u32 HD> constexpr u32 KEYS_SIZE = 2 * KEYS * KEYS_LD<HD>;
template <u32 HD> constexpr u32 SHARED_FLOATS = KEYS_SIZE<HD> + KEYS * VALUES_LD<HD>;

// One tile's keys and values on their way to shared memory, or a part of them.
template <u32 HD> struct Load {
    static constexpr u32 QUADS = HD / 4; // of columns
    static constexpr u32 N = HD > 32 ? 2 : 1;
    static constexpr u32 PARTS = (KEYS / 2 * QUADS + N * THREADS - 1) / (N * THREADS);
    // Of two positions that are neighbours.
    float4_t keys[N][2], values[N][2];

    // Zeros outside low..=high and beyond the width.
    DEVICE void load(u32 part, const float *from, u32 head_ld, u32 low, u32 high) {
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            u32 i = threadIdx.x + (part * N + n) * THREADS;
            u32 column = i % QUADS * 4;
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                u32 key = i / QUADS * 2 + j;
                keys[n][j] = values[n][j] = float4_t{0.0f, 0.0f, 0.0f, 0.0f};
                if (key >= low && key <= high && column < head_ld) {
                    keys[n][j] = load4(from + key * head_ld + column);
                    values[n][j] = load4(from + (PAGE + key) * head_ld + column);
                }
            }
        }
    }

    DEVICE void store(u32 part, u32 *shared) const {
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            u32 i = threadIdx.x + (part * N + n) * THREADS;
            if (i < KEYS / 2 * QUADS) {
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    const float4_t &k = keys[n][j];
                    Pair xy = split(k.x, k.y), zw = split(k.z, k.w);
                    u32 *to = shared + (i / QUADS * 2 + j) * KEYS_LD<HD> + i % QUADS * 2;
                    *(u64 *)to = xy.upper | (u64)zw.upper << 32;
                    *(u64 *)(to + KEYS * KEYS_LD<HD>) = xy.lower | (u64)zw.lower << 32;
                }
                const float4_t &a = values[n][0], &b = values[n][1];
                Pair x = split(a.x, b.x), y = split(a.y, b.y), z = split(a.z, b.z), w = split(a.w, b.w);
                u32 *to = shared + KEYS_SIZE<HD> + i / QUADS * VALUES_LD<HD> + i % QUADS * 4;
                *(u32x4 *)to = u32x4{x.upper, y.upper, z.upper, w.upper};
                *(u32x4 *)(to + KEYS / 2 * VALUES_LD<HD>) = u32x4{x.lower, y.lower, z.lower, w.lower};
            }
        }
    }
};

template <u32 HD> DEVICE void attend(const AttentionArgs &a, const Tile &tile, const u64 *table, float *buffer) {
    constexpr u32 STEPS = HD / 16; // of the sum over columns
    constexpr u32 COLUMNS = HD / 8; // tiles of eight columns
    constexpr u32 AT_ONCE = COLUMNS < 4 ? COLUMNS : 4;
    // The next tile is under way while this one is worked on; wider heads leave no registers for that.
    constexpr bool AHEAD = Load<HD>::PARTS == 1;
    u32 *shared = (u32 *)buffer;
    u32 group = threadIdx.x % 32 / 4;
    u32 t = threadIdx.x % 4;
    u32 warp_row = threadIdx.x / 32 * 16;
    u32 head_dim = a.kv.head_dim;
    u32 head_ld = a.kv.head_ld;

    // Tiles begin at multiples of KEYS.
    u64 start = tile.from / KEYS * KEYS;
    Load<HD> next;
    auto load = [&](u64 at, u32 part) {
        u32 low = tile.from > at ? (u32)(tile.from - at) : 0;
        u32 high = tile.to - at < KEYS ? (u32)(tile.to - at) : KEYS - 1;
        u32 slot = ring_page(at / PAGE, a.kv.slots) * PAGE;
        const float *from = page_keys(table, a.kv, slot, tile.kv_head) + (u32)(at % PAGE) * head_ld;
        next.load(part, from, head_ld, low, high);
    };
    if (AHEAD) load(start, 0);

    // Rows group and group + 8, columns 2t, 2t + 1 and 8 more.
    u32 q[STEPS][4], q_lower[STEPS][4];
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 row = warp_row + group + i % 2 * 8;
            u32 column = step * 16 + i / 2 * 8 + 2 * t;
            const float *from = a.q + (u64)(tile.first_row + row) * a.q_ld + tile.head * head_dim + column;
            float x = row < tile.n && column < head_dim ? from[0] : 0.0f;
            float y = row < tile.n && column + 1 < head_dim ? from[1] : 0.0f;
            Pair pair = split(x, y);
            q[step][i] = pair.upper;
            q_lower[step][i] = pair.lower;
        }
    }
    float sums[COLUMNS][4];
#pragma unroll
    for (u32 c = 0; c < COLUMNS; c++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) sums[c][i] = 0.0f;
    float maximum[2] = {-INFINITY, -INFINITY};
    float total[2] = {0.0f, 0.0f};

    // Positions of the warp's rows, and the first that any of them sees.
    u64 warp_start = tile.start + warp_row;
    u64 warp_from = warp_start + 1 > a.window ? warp_start + 1 - a.window : 0;
    for (; start <= tile.to; start += KEYS) {
        if (AHEAD) {
            next.store(0, shared);
        } else {
            for (u32 part = 0; part < Load<HD>::PARTS; part++) {
                load(start, part);
                next.store(part, shared);
            }
        }
        block_sync();
        if (AHEAD && start + KEYS <= tile.to) load(start + KEYS, 0);
        // The same for all lanes of a warp.
        if (start <= warp_start + 15 && start + KEYS > warp_from && warp_row < tile.n) {
            float scores[KEYS / 8][4]; // tiles of eight keys
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
            for (u32 step = 0; step < STEPS; step++) {
                u32 k[KEYS / 8][2], k_lower[KEYS / 8][2];
#pragma unroll
                for (u32 n = 0; n < KEYS / 8; n++) {
                    const u32 *from = shared + (n * 8 + group) * KEYS_LD<HD> + step * 8 + t;
                    const u32 *lower = from + KEYS * KEYS_LD<HD>;
                    k[n][0] = from[0], k[n][1] = from[4];
                    k_lower[n][0] = lower[0], k_lower[n][1] = lower[4];
                }
                product(scores, q[step], q_lower[step], k, k_lower);
            }
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                // From the tile's first position; fits, since the warp sees some of the tile.
                int distance = (int)(warp_start + group + half * 8 - start);
                float row[KEYS / 4];
#pragma unroll
                for (u32 i = 0; i < KEYS / 4; i++) {
                    u32 key = i / 2 * 8 + 2 * t + i % 2;
                    float dot = scores[i / 2][2 * half + i % 2];
                    row[i] = score_of(dot, distance - (int)key, a.window, a.scale, tile.slope);
                }
                float rescale = weigh<KEYS / 4, 4>(row, maximum[half], total[half]);
#pragma unroll
                for (u32 i = 0; i < KEYS / 4; i++) scores[i / 2][2 * half + i % 2] = row[i];
#pragma unroll
                for (u32 c = 0; c < COLUMNS; c++) {
                    sums[c][2 * half] *= rescale;
                    sums[c][2 * half + 1] *= rescale;
                }
            }
#pragma unroll
            for (u32 step = 0; step < KEYS / 16; step++) {
                // The layout of two tiles of scores is that of one tile of weights.
                u32 w[4], w_lower[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const float(&of)[4] = scores[2 * step + i / 2];
                    Pair pair = split(of[i % 2 * 2], of[i % 2 * 2 + 1]);
                    w[i] = pair.upper;
                    w_lower[i] = pair.lower;
                }
#pragma unroll
                for (u32 c = 0; c < COLUMNS; c += AT_ONCE) {
                    u32 v[AT_ONCE][2], v_lower[AT_ONCE][2];
#pragma unroll
                    for (u32 n = 0; n < AT_ONCE; n++) {
                        u32 column = (c + n) * 8 + group;
                        const u32 *from = shared + KEYS_SIZE<HD> + (step * 8 + t) * VALUES_LD<HD> + column;
                        const u32 *lower = from + KEYS / 2 * VALUES_LD<HD>;
                        v[n][0] = from[0], v[n][1] = from[4 * VALUES_LD<HD>];
                        v_lower[n][0] = lower[0], v_lower[n][1] = lower[4 * VALUES_LD<HD>];
                    }
                    product(sums + c, w, w_lower, v, v_lower);
                }
            }
        }
        // The next tile takes this one's place.
        block_sync();
    }

#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        total[half] += shuffle_xor(total[half], 2);
        total[half] += shuffle_xor(total[half], 1);
        u32 row = warp_row + group + half * 8;
        float scale = 1.0f / total[half];
        float *out = a.out + (u64)(tile.first_row + row) * a.out_ld + tile.head * head_dim;
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) {
            u32 column = c * 8 + 2 * t;
            if (row < tile.n && column < head_dim) out[column] = sums[c][2 * half] * scale;
            if (row < tile.n && column + 1 < head_dim) out[column + 1] = sums[c][2 * half + 1] * scale;
        }
    }
}

template <u32 HD> DEVICE void run(const AttentionArgs &a, float *buffer) {
    const u64 *table = a.rows[0].table;
    u32 tiles = (a.n_rows + ROWS - 1) / ROWS;
    // Any number of blocks will do; one for each tile is best.
    for (u32 i = blockIdx.x; i < tiles; i += gridDim.x) attend<HD>(a, tile_of(a, tiles - 1 - i, ROWS), table, buffer);
}

} // namespace prefill

// Grid (tiles of rows, n_head), for head_dim up to the number.
#define PREFILL(HD)                                                   \
    KERNEL_BLOCKS(128, 2) prefill_##HD(AttentionArgs a) {             \
        wait_for_previous();                                          \
        release_next();                                               \
        SHARED(float, buffer, prefill::SHARED_FLOATS<HD>);          \
        prefill::run<HD>(a, buffer);                                  \
    }
PREFILL(32)
PREFILL(64)
PREFILL(128)
#undef PREFILL

#endif
