// Attention of single queries (decode): rows of any sessions, each at its own position. The keys and values
// of a row are split into runs of pages, one block each; the last block of a row to arrive adds up the
// splits in their order, so that the result does not depend on which block was last.
#include "device.cuh"

namespace decode {

constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / 32;
// Lanes that share one key, four columns each at a time.
constexpr u32 LANES = 8;
// Keys of a page that a thread works on.
constexpr u32 KEYS = PAGE * LANES / THREADS;
// Columns of a key that are loaded before the first is used, in steps of 4 * LANES.
constexpr u32 STEPS = 2;
// Values that a thread loads before the first is used.
constexpr u32 AHEAD = 8;
// Query heads that share one load of keys and values; larger groups go in chunks of these.
// Eight of them in one go would take twice the registers of four, and the second load comes from a cache.
constexpr u32 CHUNK = 4;
// Columns that one float4 for each thread covers: the widest head. launch.rs knows it.
constexpr u32 COLUMNS = 4 * THREADS;

struct Shared {
    float *queries; // (CHUNK, COLUMNS): queries (G, ld); later the sums of the position groups
    float *scores;  // (CHUNK, PAGE)
    float *weights; // (PAGE, CHUNK): e^(score - maximum)
    float *rescale; // (CHUNK): what a new maximum makes of the sums before it
    float *slopes;  // (CHUNK)
    float *maximum; // (CHUNK)
    float *total;   // (CHUNK): sum of the weights
};

// What a row sees, in pages of positions (not of the ring).
struct Span {
    u32 first, last; // visible positions, counted from the start of the first page
    u32 ring_page;   // page of the ring where the first page lies
    u32 pages;       // that hold visible positions
    u32 used_splits; // that hold at least one of these pages
};

DEVICE Span span_of(u64 pos, const AttentionArgs &a) {
    u64 first = pos + 1 > a.window ? pos + 1 - a.window : 0;
    u64 page = first / PAGE;
    u32 ring = a.kv.slots / PAGE;
    Span span;
    span.first = (u32)first % PAGE;
    span.last = (u32)(pos - page * PAGE);
    // Division of 64 bits is slow, and nearly never needed.
    span.ring_page = page >> 32 ? (u32)(page % ring) : (u32)page % ring;
    span.pages = span.last / PAGE + 1;
    // With too few splits the last one takes the rest.
    u32 used = (span.pages - 1) / a.split_pages + 1;
    span.used_splits = used < a.splits ? used : a.splits;
    return span;
}

DEVICE float4_t load4(const float *p) { return *(const float4_t *)p; }

// Columns start + 4 * lane (+ 32) of the keys sub + 16 i; zeros for keys outside low..=high and beyond the
// row. k: (STEPS, KEYS)
DEVICE void load_keys(
    float4_t (&k)[STEPS][KEYS], const float *keys, u32 start, u32 head_ld, u32 low, u32 high) {
    u32 sub = threadIdx.x / LANES;
    u32 lane = threadIdx.x % LANES;
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        u32 column = start + (step * LANES + lane) * 4;
#pragma unroll
        for (u32 i = 0; i < KEYS; i++) {
            u32 key = sub + i * (THREADS / LANES);
            k[step][i] = float4_t{0.0f, 0.0f, 0.0f, 0.0f};
            if (key >= low && key <= high && column < head_ld) k[step][i] = load4(keys + key * head_ld + column);
        }
    }
}

// Four columns of the values position + i * stride; zeros outside low..=high.
DEVICE void load_values(
    float4_t (&v)[AHEAD], const float *values, u32 position, u32 stride, u32 head_ld, u32 low, u32 high) {
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++) {
        u32 at = position + i * stride;
        v[i] = float4_t{0.0f, 0.0f, 0.0f, 0.0f};
        if (at >= low && at <= high) v[i] = load4(values + at * head_ld);
    }
}

// Sums v over the LANES lanes. Each step hands half of what is left to the neighbour, so that lane l ends
// with the sums l * N / LANES .. (l + 1) * N / LANES; with N < LANES neighbours hold the same sum.
template <u32 N> DEVICE void sum_over_lanes(float (&v)[N]) {
    u32 n = N;
#pragma unroll
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) {
        bool upper = threadIdx.x & mask;
        if (n > 1) {
            n /= 2;
#pragma unroll
            for (u32 i = 0; i < N / 2; i++) {
                if (i < n) {
                    float keep = upper ? v[i + n] : v[i];
                    float give = upper ? v[i] : v[i + n];
                    v[i] = keep + shuffle_xor(give, (int)mask);
                }
            }
        } else {
            v[0] += shuffle_xor(v[0], (int)mask);
        }
    }
}

// Queries (G, ld) and slopes (G) of `heads` heads to shared memory, zero beyond; no scores yet.
template <u32 G>
DEVICE void stage_heads(const Shared &s, const float *q, const float *slopes, u32 heads, u32 head_dim, u32 ld) {
    if (threadIdx.x < G) {
        s.slopes[threadIdx.x] = threadIdx.x < heads ? slopes[threadIdx.x] : 0.0f;
        s.maximum[threadIdx.x] = -INFINITY;
        s.total[threadIdx.x] = 0.0f;
    }
#pragma unroll
    for (u32 g = 0; g < G; g++) {
        for (u32 c = threadIdx.x; c < ld; c += THREADS)
            s.queries[g * ld + c] = g < heads && c < head_dim ? q[g * head_dim + c] : 0.0f;
    }
}

// Scores of one page to shared memory, -infinity outside low..=high. k holds the first columns already.
// distance: of the page's first position from the query.
template <u32 G>
DEVICE void score_page(
    const Shared &s, float4_t (&k)[STEPS][KEYS], const float *keys, float scale, u32 distance, u32 head_ld,
    u32 ld, u32 low, u32 high) {
    u32 lane = threadIdx.x % LANES;
    float dots[KEYS * G];
#pragma unroll
    for (u32 i = 0; i < KEYS * G; i++) dots[i] = 0.0f;
    for (u32 start = 0;;) {
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            u32 column = start + (step * LANES + lane) * 4;
            // Uniform: all lanes of a step lie in the padded row or none.
            if (start + step * LANES * 4 < ld) {
#pragma unroll
                for (u32 g = 0; g < G; g++) {
                    float4_t q = load4(s.queries + g * ld + column);
#pragma unroll
                    for (u32 i = 0; i < KEYS; i++) {
                        float &dot = dots[i * G + g];
                        dot = fmaf(q.x, k[step][i].x, dot);
                        dot = fmaf(q.y, k[step][i].y, dot);
                        dot = fmaf(q.z, k[step][i].z, dot);
                        dot = fmaf(q.w, k[step][i].w, dot);
                    }
                }
            }
        }
        start += STEPS * LANES * 4;
        if (start >= ld) break;
        load_keys(k, keys, start, head_ld, low, high);
    }
    sum_over_lanes<KEYS * G>(dots);
    // Two lanes now hold the G sums of one key; of a single head both hold the one sum.
    static_assert(KEYS * 2 == LANES, "two lanes for each key");
    u32 key = threadIdx.x / LANES + lane / 2 * (THREADS / LANES);
    u32 g = lane % 2 * (G / 2);
    bool visible = key >= low && key <= high;
    float away = (float)(distance - key);
    if (G == 1 && lane % 2 == 1) return;
#pragma unroll
    for (u32 j = 0; j < (G + 1) / 2; j++)
        s.scores[(g + j) * PAGE + key] = visible ? fmaf(-s.slopes[g + j], away, dots[j] * scale) : -INFINITY;
}

// Scores of one page to weights, a warp for each head.
template <u32 G> DEVICE void weigh_page(const Shared &s) {
    u32 lane = threadIdx.x % 32;
    for (u32 g = threadIdx.x / 32; g < G; g += WARPS) {
        float a = s.scores[g * PAGE + lane];
        float b = s.scores[g * PAGE + lane + 32];
        float before = s.maximum[g];
        float most = a > b ? a : b;
        // All lanes have read the maximum when this is known.
        most = warp_max(before > most ? before : most);
        // exp_f32 stays above zero: what is not visible has to be left out here.
        a = a == -INFINITY ? 0.0f : exp_f32(a - most);
        b = b == -INFINITY ? 0.0f : exp_f32(b - most);
        s.weights[lane * G + g] = a;
        s.weights[(lane + 32) * G + g] = b;
        float sum = warp_sum(a + b);
        // All lanes have read the old maximum.
        warp_sync();
        if (lane == 0) {
            float rescale = exp_f32(before - most);
            s.rescale[g] = rescale;
            s.maximum[g] = most;
            s.total[g] = fmaf(s.total[g], rescale, sum);
        }
    }
}

// sums += Σ weights[position + i * stride] v[i]. sums: (G) four columns
template <u32 G>
DEVICE void mix_values(
    float4_t (&sums)[G], const float4_t (&v)[AHEAD], const float *weights, u32 position, u32 stride) {
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++) {
        // Beyond the page the value is zero, so that any weight will do.
        const float *row = weights + (position + i * stride) % PAGE * G;
        float w[G];
        if constexpr (G == 4) {
            float4_t four = load4(row);
            w[0] = four.x, w[1] = four.y, w[2] = four.z, w[3] = four.w;
        } else {
#pragma unroll
            for (u32 g = 0; g < G; g++) w[g] = row[g];
        }
#pragma unroll
        for (u32 g = 0; g < G; g++) {
            sums[g].x = fmaf(w[g], v[i].x, sums[g].x);
            sums[g].y = fmaf(w[g], v[i].y, sums[g].y);
            sums[g].z = fmaf(w[g], v[i].z, sums[g].z);
            sums[g].w = fmaf(w[g], v[i].w, sums[g].w);
        }
    }
}

DEVICE float *partial_of(const AttentionArgs &a, u32 row, u32 head, u32 split) {
    return a.partial + (((u64)row * a.n_head + head) * a.splits + split) * (a.kv.head_ld + 2);
}

// Adds up the splits of all heads of one group. A warp takes 32 columns of a head at a time.
DEVICE void combine(const AttentionArgs &a, u32 row, u32 first_head, u32 group, u32 used_splits) {
    u32 lane = threadIdx.x % 32;
    u32 head_ld = a.kv.head_ld;
    u32 blocks = (a.kv.head_dim + 31) / 32;
    for (u32 item = threadIdx.x / 32; item < group * blocks; item += WARPS) {
        u32 head = first_head + item / blocks;
        u32 column = item % blocks * 32 + lane;
        const float *partial = partial_of(a, row, head, 0);
        float most = -INFINITY;
        for (u32 split = lane; split < used_splits; split += 32) {
            float maximum = partial[(u64)split * (head_ld + 2) + head_ld];
            most = maximum > most ? maximum : most;
        }
        most = warp_max(most);
        float sum = 0.0f;
        float total = 0.0f;
        for (u32 start = 0; start < used_splits; start += 32) {
            const float *from = partial + (u64)start * (head_ld + 2);
            u32 n = used_splits - start < 32 ? used_splits - start : 32;
            float weight = 0.0f;
            if (lane < n) {
                const float *stats = from + lane * (head_ld + 2) + head_ld;
                weight = exp_f32(stats[0] - most);
                total = fmaf(weight, stats[1], total);
            }
#pragma unroll 8
            for (u32 i = 0; i < n; i++) {
                float w = shuffle(weight, (int)i);
                if (column < head_ld) sum = fmaf(w, from[i * (head_ld + 2) + column], sum);
            }
        }
        total = warp_sum(total);
        if (column < a.kv.head_dim) a.out[(u64)row * a.out_ld + head * a.kv.head_dim + column] = sum * (1.0f / total);
    }
}

// G query heads at a time.
template <u32 G> DEVICE void attend(const AttentionArgs &a, const Shared &s, u32 *last) {
    u32 kv_head = blockIdx.x;
    u32 split = blockIdx.y;
    u32 row = blockIdx.z;
    u32 group = a.n_head / a.kv.n_kv_head;
    u32 head_dim = a.kv.head_dim;
    u32 head_ld = a.kv.head_ld;
    u32 ld = (head_ld + 31) / 32 * 32;
    u64 pos = a.rows[row].pos;
    const u64 *table = a.rows[row].table;

    // Several groups of threads take every groups-th value of a page, a thread four columns of it.
    u32 quads = head_ld / 4;
    u32 groups = THREADS / quads;
    groups = groups < PAGE ? groups : PAGE;
    u32 quad = threadIdx.x % quads;
    // Threads that are left over begin beyond the page.
    u32 position = threadIdx.x / quads;
    position = position < groups ? position : PAGE;

    u32 used_splits = 1;
    for (u32 done = 0; done < group; done += G) {
        u32 first_head = kv_head * group + done;
        u32 heads = group - done < G ? group - done : G;
        // Before the position is needed: the two loads are under way together.
        const float *q = a.q + (u64)row * a.q_ld + first_head * head_dim;
        stage_heads<G>(s, q, a.slopes + first_head, heads, head_dim, ld);
        Span span = span_of(pos, a);
        used_splits = span.used_splits;
        if (split >= used_splits) return;
        u32 page = split * a.split_pages;
        u32 end = split + 1 < used_splits ? page + a.split_pages : span.pages;
        u32 ring = (span.ring_page + page) % (a.kv.slots / PAGE);

        float4_t sums[G];
#pragma unroll
        for (u32 g = 0; g < G; g++) sums[g] = float4_t{0.0f, 0.0f, 0.0f, 0.0f};

        bool staged = false;
        for (; page < end; page++) {
            u32 distance = span.last - page * PAGE;
            u32 low = page == 0 ? span.first : 0;
            u32 high = distance < PAGE ? distance : PAGE - 1;
            const float *keys = page_keys(table, a.kv, ring * PAGE, kv_head);
            const float *values = keys + PAGE * head_ld + quad * 4;
            float4_t k[STEPS][KEYS], v[AHEAD];
            load_keys(k, keys, 0, head_ld, low, high);
            // The values are needed only after the scores, but the wait is shared.
            load_values(v, values, position, groups, head_ld, low, high);
            if (!staged) block_sync();
            staged = true;
            score_page<G>(s, k, keys, a.scale, distance, head_ld, ld, low, high);
            block_sync();
            weigh_page<G>(s);
            block_sync();
#pragma unroll
            for (u32 g = 0; g < G; g++) {
                float rescale = s.rescale[g];
                sums[g].x *= rescale;
                sums[g].y *= rescale;
                sums[g].z *= rescale;
                sums[g].w *= rescale;
            }
            for (u32 at = position;;) {
                mix_values<G>(sums, v, s.weights, at, groups);
                at += AHEAD * groups;
                if (at > high) break;
                load_values(v, values, at, groups, head_ld, low, high);
            }
            ring = ring + 1 < a.kv.slots / PAGE ? ring + 1 : 0;
        }

        // The queries are no longer needed: no thread scores after the last page's first barrier.
        float4_t *parts = (float4_t *)s.queries; // (groups, G, quads)
        if (position < PAGE) {
#pragma unroll
            for (u32 g = 0; g < G; g++) parts[(position * G + g) * quads + quad] = sums[g];
        }
        block_sync();
        for (u32 i = threadIdx.x; i < heads * head_ld; i += THREADS) {
            float sum = s.queries[i];
            for (u32 part = 1; part < groups; part++) sum += s.queries[part * G * head_ld + i];
            u32 g = i / head_ld;
            u32 column = i % head_ld;
            if (used_splits == 1) {
                float scale = 1.0f / s.total[g];
                if (column < head_dim) a.out[(u64)row * a.out_ld + (first_head + g) * head_dim + column] = sum * scale;
            } else {
                float *partial = partial_of(a, row, first_head + g, split);
                partial[column] = sum;
                if (column == 0) partial[head_ld] = s.maximum[g], partial[head_ld + 1] = s.total[g];
            }
        }
        // The next chunk's queries go where the sums are being read.
        if (done + G < group) block_sync();
    }

    if (used_splits == 1) return;
    u32 *arrived = a.arrived + row * a.kv.n_kv_head + kv_head;
    thread_fence();
    block_sync();
    if (threadIdx.x == 0) *last = atomic_increment(arrived) + 1 == used_splits;
    block_sync();
    if (!*last) return;
    // The other blocks' writes, which they fenced before they arrived.
    thread_fence();
    combine(a, row, kv_head * group, group, used_splits);
    if (threadIdx.x == 0) *arrived = 0;
}

} // namespace decode

// Grid (n_kv_head, splits, rows).
KERNEL(128) attention(AttentionArgs a) {
    wait_for_previous();
    release_next();
    SHARED(float, queries, decode::CHUNK * decode::COLUMNS);
    SHARED(float, scores, decode::CHUNK * PAGE);
    SHARED(float, weights, decode::CHUNK * PAGE);
    SHARED(float, stats, 4 * decode::CHUNK);
    SHARED(u32, last, 1);
    decode::Shared s{
        queries, scores, weights, stats, stats + decode::CHUNK, stats + 2 * decode::CHUNK, stats + 3 * decode::CHUNK};
    u32 group = a.n_head / a.kv.n_kv_head;
    if (group == 1) decode::attend<1>(a, s, last);
    else if (group == 2) decode::attend<2>(a, s, last);
    else decode::attend<4>(a, s, last);
}
