// Logits to a token, then on to the next step: the same token as sampler/ draws on the CPU, bit for bit.
//
// A block for each row. Candidates are sorted as 64-bit keys, one for each thread at most; their weights are
// added one after the other by a single thread, because f32 sums depend on the order and the CPU's is the
// specification.
//
// Threads: a power of two from 32 to 1024, at least min(vocab_size, 1024). The host must not ask for a draw
// unless
//
//     temperature == 0 || (1 <= top_k && top_k <= 1024) || vocab_size <= 1024
//
// Twin of launch.rs `can_draw`. Without top-k, all of a large vocabulary would have to be sorted and added.
#include "device.cuh"

#define SAMPLE_THREADS 1024
#define NO_TOKEN 0xffffffffu // drawn where no logit is a number above -infinity
// Up to here it is faster to count for each key how many are larger than to sort.
#define RANKED 128
#define BINS 256
#define LARGEST 3.40282347e+38f

// A candidate as a number, larger for those that come first: logits in descending order, equal ones by token
// in ascending order. The upper half is 0 for a token that cannot be drawn.
DEVICE u64 key_of(float logit, u32 token) {
    u64 key = ~token;
    if (!(logit > -INFINITY)) return key;
    logit = (logit > LARGEST ? LARGEST : logit) + 0.0f; // the zeros are equal
    u32 bits = float_bits(logit);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)bits << 32 | key;
}

// Of the smallest finite logit, and less than any of its tokens'.
#define LEAST_KEY ((u64)0x00800000u << 32)

DEVICE bool possible(u64 key) { return key >> 32 != 0; }
DEVICE u32 token_of(u64 key) { return ~(u32)key; }
DEVICE float logit_of(u64 key) {
    u32 bits = (u32)(key >> 32);
    return bits_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

DEVICE u64 larger(u64 a, u64 b) { return b > a ? b : a; }

// Calls take(logit, token) for this thread's share of a row, (n).
template <class Take> DEVICE void each_logit(const float *logits, u32 n, const Take &take) {
    for (u32 i = 4 * threadIdx.x; i < n; i += 4 * blockDim.x) {
        float4_t v = *(const float4_t *)(logits + i);
        take(v.x, i);
        if (i + 1 < n) take(v.y, i + 1);
        if (i + 2 < n) take(v.z, i + 2);
        if (i + 3 < n) take(v.w, i + 3);
    }
}

// What cut_off() looks at: a key for each thread, or all of a row.
struct OneKey {
    u64 key;
    template <class Take> DEVICE void each(const Take &take) const { take(key); }
};

struct RowKeys {
    const float *logits;
    u32 n;
    template <class Take> DEVICE void each(const Take &take) const {
        each_logit(logits, n, [&](float logit, u32 token) { take(key_of(logit, token)); });
    }
};

// The largest of all threads' keys, in every thread. `best`: (32) shared, for this call alone.
DEVICE u64 block_largest(u64 key, u64 *best) {
    u32 lane = threadIdx.x % 32;
    for (int mask = 16; mask > 0; mask /= 2) key = larger(key, shuffle_xor(key, mask));
    if (lane == 0) best[threadIdx.x / 32] = key;
    block_sync();
    key = lane < blockDim.x / 32 ? best[lane] : 0;
    for (int mask = 16; mask > 0; mask /= 2) key = larger(key, shuffle_xor(key, mask));
    return key;
}

// Where a round of cut_off() ended.
struct Cut {
    u32 bin;   // BINS if there are fewer keys than wanted
    u32 above; // keys beyond the bin
    u32 n;     // and with those in it
};

// A number that at least `wanted` and at most `limit` keys reach, given that none is larger than `high`; `low`
// if fewer than `wanted` reach that. No two keys are equal.
// Every round divides low ..= high into bins, and goes on with the one in which the wanted key lies.
// `bins`: (BINS) shared, `cut`: shared.
template <class Keys>
DEVICE u64 cut_off(const Keys &keys, u32 wanted, u32 limit, u64 low, u64 high, u32 *bins, Cut *cut) {
    u32 lane = threadIdx.x % 32;
    u32 above = 0; // keys larger than `high`
    for (;;) {
        u32 shift = 0;
        while ((high - low) >> shift >= BINS) shift++;
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
        block_sync();
        keys.each([&](u64 key) {
            if (key >= low && key <= high) atomic_increment(&bins[(key - low) >> shift]);
        });
        block_sync();
        if (threadIdx.x < 32) {
            u32 own = 0;
            for (u32 i = 0; i < BINS / 32; i++) own += bins[lane * (BINS / 32) + i];
            u32 n = own; // of this lane's bins and all beyond
            for (u32 step = 1; step < 32; step *= 2) {
                u32 other = shuffle(n, (int)(lane + step));
                if (lane + step < 32) n += other;
            }
            n += above;
            if (lane == 0 && n < wanted) *cut = {BINS, 0, 0};
            if (n >= wanted && n - own < wanted) {
                n -= own;
                u32 bin = (lane + 1) * (BINS / 32), before;
                do {
                    before = n;
                    n += bins[--bin];
                } while (n < wanted);
                *cut = {bin, before, n};
            }
        }
        block_sync();
        if (cut->bin == BINS) return low;
        low += (u64)cut->bin << shift;
        if (cut->n <= limit) return low;
        high = low + min(high - low, ((u64)1 << shift) - 1);
        above = cut->above;
    }
}

// Puts all keys from `low` on into `keys`, in any order, with zeros behind, and returns their number: if there
// are more than threads, the rest is left out. `keys`: (blockDim.x) shared, `count`: shared.
DEVICE u32 gather(const float *logits, u32 vocab_size, u64 low, u64 *keys, u32 *count) {
    keys[threadIdx.x] = 0;
    if (threadIdx.x == 0) *count = 0;
    block_sync();
    float least = logit_of(low);
    each_logit(logits, vocab_size, [&](float logit, u32 token) {
        // Nearly all end here.
        if (!(logit >= least)) return;
        u64 key = key_of(logit, token);
        if (key < low) return;
        u32 slot = atomic_increment(count);
        if (slot < blockDim.x) keys[slot] = key;
    });
    block_sync();
    return *count;
}

struct alignas(16) KeyPair { u64 a, b; };

// The `n` keys in descending order into `sorted`; `keys` has zeros behind them and is overwritten. Both
// (blockDim.x), shared. Needs a barrier before and after.
DEVICE void sort(u64 *keys, u64 *sorted, u32 n) {
    u32 t = threadIdx.x;
    u64 key = keys[t];
    if (n <= RANKED) {
        if (t >= n) return;
        u32 rank = 0;
        const KeyPair *pairs = (const KeyPair *)keys;
        for (u32 i = 0; i < (n + 1) / 2; i++) {
            KeyPair pair = pairs[i];
            rank += (pair.a > key) + (pair.b > key);
        }
        sorted[rank] = key;
        return;
    }
    // Bitonic. Partners in other warps meet in `keys` and `sorted` by turns, so that one barrier will do.
    u64 *meet = sorted;
    u32 padded = RANKED;
    while (padded < n) padded *= 2;
    for (u32 size = 2; size <= padded; size *= 2) {
        for (u32 distance = size / 2; distance > 0; distance /= 2) {
            u64 other;
            if (distance < 32) {
                other = shuffle_xor(key, (int)distance);
            } else {
                meet[t] = key;
                block_sync();
                other = meet[t ^ distance];
                meet = meet == sorted ? keys : sorted;
            }
            bool descending = (t & size) == 0, first = (t & distance) == 0;
            if ((descending == first) == (other > key)) key = other;
        }
    }
    block_sync(); // `sorted` may still be read
    sorted[t] = key;
}

// v[i] = v[0] + .. + v[i], in this order, by a single thread. (n), and room for 4 more than blockDim.x, because
// the next four are loaded before these are stored.
DEVICE void add_up(float *v, u32 n) {
    float4_t *quads = (float4_t *)v;
    float4_t q = quads[0];
    float sum = 0.0f;
    for (u32 i = 0; i < (n + 3) / 4; i++) {
        float4_t next = quads[i + 1];
        q.x = sum += q.x;
        q.y = sum += q.y;
        q.z = sum += q.z;
        q.w = sum += q.w;
        quads[i] = q;
        q = next;
    }
}

// The first word of Philox4x32-10 with the key `seed` and the counter `step`, as sampler/mod.rs `philox`.
DEVICE u32 philox(u64 seed, u64 step) {
    u32 key[2] = {(u32)seed, (u32)(seed >> 32)};
    u32 counter[4] = {(u32)step, (u32)(step >> 32), 0, 0};
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)0xd2511f53u * counter[0];
        u64 b = (u64)0xcd9e8d57u * counter[2];
        counter[0] = (u32)(b >> 32) ^ counter[1] ^ key[0];
        counter[1] = (u32)b;
        counter[2] = (u32)(a >> 32) ^ counter[3] ^ key[1];
        counter[3] = (u32)a;
        key[0] += 0x9e3779b9u;
        key[1] += 0xbb67ae85u;
    }
    return counter[0];
}

// By one thread of the block: hands the token on. `pos` and `step` of the row and the pass are as they were
// before.
DEVICE void advance(const SampleArgs &a, u32 token, u64 pos, u32 step, u64 draw_step) {
    u32 r = blockIdx.x;
    a.drawn[(u64)step * a.n_rows + r] = token;
    a.rows[r].token = token == NO_TOKEN ? 0 : token;
    a.rows[r].pos = pos + 1;
    a.rows[r].slot = a.rows[r].slot + 1 < a.slots ? a.rows[r].slot + 1 : 0;
    a.draws[r].step = draw_step + 1;
    if (a.n_rows > 1) {
        thread_fence();
        if (atomic_increment(a.arrived) + 1 < a.n_rows) return;
        *a.arrived = 0;
    }
    *a.step = step + 1;
}

KERNEL(SAMPLE_THREADS) sample(SampleArgs a) {
    wait_for_previous();
    release_next();
    SHARED(u64, best, 32);
    SHARED(u64, keys, SAMPLE_THREADS);
    SHARED(u64, sorted, SAMPLE_THREADS);
    SHARED(float, nucleus, SAMPLE_THREADS + 4); // sums for top-p
    SHARED(float, sums, SAMPLE_THREADS + 4);    // sums for the draw
    SHARED(u32, bins, BINS);
    SHARED(Cut, cut, 1);
    SHARED(u32, count, 1);
    u32 t = threadIdx.x;
    const float *logits = a.logits + (u64)blockIdx.x * a.ld;
    // All loads at once: they take longer than all else for a small vocabulary.
    bool small = a.vocab_size <= blockDim.x;
    float logit = small && t < a.vocab_size ? logits[t] : -INFINITY;
    Draw d = a.draws[blockIdx.x];
    u64 pos = a.rows[blockIdx.x].pos;
    u32 step = *a.step;

    // This thread's candidate, or the first of its candidates.
    u64 key = 0;
    if (small) {
        if (t < a.vocab_size) key = key_of(logit, t);
    } else {
        u32 token = 0;
        each_logit(logits, a.vocab_size, [&](float other, u32 i) {
            other = other > LARGEST ? LARGEST : other;
            if (other > logit) {
                logit = other;
                token = i;
            }
        });
        if (logit > -INFINITY) key = key_of(logit, token);
    }

    if (d.temperature == 0.0f) {
        key = block_largest(key, best);
        if (t == 0) advance(a, possible(key) ? token_of(key) : NO_TOKEN, pos, step, d.step);
        return;
    }

    // 24 random bits are a number in [0, 1) that f32 holds exactly.
    float place = (float)(philox(d.seed, d.step) >> 8) * (1.0f / 16777216.0f);

    // Top-k. `n` keys, of which those that are not possible come last.
    u32 k = d.top_k == 0 ? blockDim.x : min(d.top_k, blockDim.x);
    u32 n = a.vocab_size;
    if (small) {
        keys[t] = key;
        block_sync();
    } else {
        u64 high = block_largest(key, best);
        u64 low = LEAST_KEY;
        if (possible(high)) {
            // The k-th of the threads' best is no better than the k-th of all, and seldom much worse.
            low = cut_off(OneKey{key}, k, k + k / 4 + 16, low, high, bins, cut);
        }
        n = gather(logits, a.vocab_size, low, keys, count);
        if (n > blockDim.x) {
            low = cut_off(RowKeys{logits, a.vocab_size}, k, blockDim.x, low, high, bins, cut);
            n = gather(logits, a.vocab_size, low, keys, count);
        }
    }
    sort(keys, sorted, n);
    block_sync();
    n = min(n, k);
    if (n == 0 || !possible(sorted[0])) {
        if (t == 0) advance(a, NO_TOKEN, pos, step, d.step);
        return;
    }

    // From here on thread t has the candidate t of the sorted ones. One that is left out keeps its place with
    // the weight 0, which changes no sum.
    bool there = t < n && possible(sorted[t]);
    float x = there ? logit_of(sorted[t]) - logit_of(sorted[0]) : 0.0f;
    // Top-p
    if (d.top_p < 1.0f) {
        if (t < n) nucleus[t] = there ? exp_f32(x) : 0.0f;
        block_sync();
        if (t == 0) add_up(nucleus, n);
        block_sync();
        // The one that reaches the share is the last that stays.
        if (there && t > 0) there = !(nucleus[t - 1] >= d.top_p * nucleus[n - 1]);
    }
    // Min-p
    if (d.min_p != 0.0f) there = there && x >= d.surely_below && exp_f32(x) >= d.min_p;
    // Temperature
    if (t < n) sums[t] = there ? exp_f32(x / d.temperature) : 0.0f;
    block_sync();
    if (t == 0) add_up(sums, n);
    block_sync();
    // The first whose sum is beyond the target. There is one: `place` is at most 1 - 2^-24, which makes the
    // product round to less than the total.
    float target = place * sums[n - 1];
    if (t < n && sums[t] > target && (t == 0 || !(sums[t - 1] > target)))
        advance(a, token_of(sorted[t]), pos, step, d.step);
}
