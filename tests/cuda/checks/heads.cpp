// rotate.cu's `rotate_normed` against loops in f64: norms of query and key heads, with rotation and without,
// from activations into the cache and within it; and that nothing else is written.
//
// Tolerance: 3e-6, relative above 1, for sums of up to 512 squares and the rotation in f32.
#include "check.h"
#include "rotate.cu"

using emulation::Array;

static const float NOT_OURS = 7.25f; // stands where the kernel must not write

struct Case {
    u32 head_dim, n_head, n_kv_head, rows;
    bool turns, in_cache;
};

static const u32 SLOTS = 2 * PAGE, N_LAYER = 2, LAYER = 1;

static u32 padded(u32 width) { return (width + 31) / 32 * 32; }

// to = turned(norm(x)). (head_dim)
static void reference(double *to, const float *x, const float *weight, float eps, u32 head_dim, const float *turn) {
    double squares = 0;
    for (u32 i = 0; i < head_dim; i++) squares += double(x[i]) * x[i];
    double scale = 1 / sqrt(squares / head_dim + eps);
    for (u32 i = 0; i < head_dim; i++) to[i] = x[i] * scale * weight[i];
    if (!turn) return;
    u32 half = head_dim / 2;
    for (u32 i = 0; i < half; i++) {
        double a = to[i], b = to[i + half], cosine = turn[2 * i], sine = turn[2 * i + 1];
        to[i] = a * cosine - b * sine;
        to[i + half] = b * cosine + a * sine;
    }
}

static void check(const Case &c, uint64_t seed) {
    char name[160];
    snprintf(name, sizeof name, "rotate_normed head_dim %u heads %u/%u rows %u turns %d in_cache %d", c.head_dim,
             c.n_head, c.n_kv_head, c.rows, c.turns, c.in_cache);
    Random random(seed);
    u32 q_width = c.n_head * c.head_dim, kv_width = c.n_kv_head * c.head_dim;
    u32 q_ld = padded(q_width), kv_ld = padded(kv_width), head_ld = (c.head_dim + 3) / 4 * 4;
    KvLayout kv = {SLOTS, LAYER, c.n_kv_head, c.head_dim, head_ld};
    float eps = random.below(2) ? 1e-5f : 0.1f;
    Array<float> q_weight(random.floats(c.head_dim, 2)), k_weight(random.floats(c.head_dim, 2));

    // Two steps of encodings, of which the second runs; of true angles, so that nothing grows.
    u32 width = c.turns ? c.head_dim : 0, steps = 2;
    Array<float> encoding(std::vector<float>(max(steps * c.rows * width, 1u), 0.0f));
    for (u32 i = 0; i + 1 < steps * c.rows * width; i += 2) {
        float angle = 3 * random.number();
        encoding[i] = cosf(angle), encoding[i + 1] = sinf(angle);
    }
    Array<u32> step(1, 1u);

    Array<float> q(std::vector<float>(c.rows * q_ld, NOT_OURS));
    std::vector<float> q_before(c.rows * q_width), k(c.rows * kv_width), v(c.rows * kv_width);
    float size = random.below(2) ? 1 : 1e-4f; // where eps counts
    for (float &x : q_before) x = size * random.number();
    for (float &x : k) x = size * random.number();
    for (float &x : v) x = random.number();
    Array<float> k_rows(std::vector<float>(c.rows * kv_ld, NOT_OURS)), v_rows(std::vector<float>(c.rows * kv_ld, NOT_OURS));

    // A session for all rows, at positions that wrap around its ring.
    size_t head_size = 2 * PAGE * head_ld, page_size = N_LAYER * c.n_kv_head * head_size;
    Array<float> first_page(std::vector<float>(page_size, NOT_OURS)), second_page(std::vector<float>(page_size, NOT_OURS));
    Array<float> *pages[2] = {&first_page, &second_page};
    Array<u64> table(2);
    for (u32 p = 0; p < 2; p++) table[p] = (u64)pages[p]->data();
    std::vector<float> wanted_pages[2] = {std::vector<float>(page_size, NOT_OURS), std::vector<float>(page_size, NOT_OURS)};
    Array<Row> rows(c.rows);
    u64 first_pos = 3 * SLOTS - 5;

    std::vector<float> wanted_q(c.rows * q_ld, NOT_OURS);
    std::vector<double> head(c.head_dim);
    for (u32 r = 0; r < c.rows; r++) {
        u32 slot = (first_pos + r) % SLOTS;
        rows[r] = {first_pos + r, table.data(), 0, slot};
        const float *turn = c.turns ? &encoding[(c.rows + r) * width] : nullptr;
        for (u32 h = 0; h < c.n_head; h++) {
            const float *from = &q_before[r * q_width + h * c.head_dim];
            reference(head.data(), from, &q_weight[0], eps, c.head_dim, turn);
            for (u32 i = 0; i < c.head_dim; i++) {
                q[r * q_ld + h * c.head_dim + i] = from[i];
                wanted_q[r * q_ld + h * c.head_dim + i] = float(head[i]);
            }
        }
        for (u32 h = 0; h < c.n_kv_head; h++) {
            const float *key = &k[r * kv_width + h * c.head_dim], *value = &v[r * kv_width + h * c.head_dim];
            reference(head.data(), key, &k_weight[0], eps, c.head_dim, turn);
            size_t at = (LAYER * c.n_kv_head + h) * head_size + slot % PAGE * head_ld;
            for (u32 i = 0; i < c.head_dim; i++) {
                wanted_pages[slot / PAGE][at + i] = float(head[i]);
                wanted_pages[slot / PAGE][at + PAGE * head_ld + i] = value[i];
                if (c.in_cache) {
                    (*pages[slot / PAGE])[at + i] = key[i];
                    (*pages[slot / PAGE])[at + PAGE * head_ld + i] = value[i];
                } else {
                    k_rows[r * kv_ld + h * c.head_dim + i] = key[i];
                    v_rows[r * kv_ld + h * c.head_dim + i] = value[i];
                }
            }
        }
    }

    RotateArgs args = {};
    args.q = q.data();
    if (!c.in_cache) args.k = k_rows.data(), args.v = v_rows.data();
    args.rows = rows.data();
    args.encoding = {encoding.data(), step.data(), width, c.rows};
    args.kv = kv;
    args.q_norm = {q_weight.data(), nullptr, eps, NORM_RMS};
    args.k_norm = {k_weight.data(), nullptr, eps, NORM_RMS};
    args.q_ld = q_ld, args.kv_ld = kv_ld, args.n_head = c.n_head;
    u32 heads = c.n_head + (c.in_cache ? 1 : 2) * c.n_kv_head;
    emulation::launch(seed, {c.rows, (heads + 3) / 4, 1}, 128, 0, ENTRY(rotate_normed), args);

    expect_near(std::string(name) + ": queries", q, wanted_q, 3e-6f);
    for (u32 p = 0; p < 2; p++) expect_near(std::string(name) + ": cache", *pages[p], wanted_pages[p], 3e-6f);
}

int main(int argc, char **argv) {
    for (uint64_t seed : seeds(argc, argv)) {
        Random random(seed);
        for (u32 head_dim : {1, 2, 10, 31, 33, 64, 66, 128, 350, 512}) {
            for (bool in_cache : {false, true}) {
                u32 n_kv_head = 1 + random.below(3), n_head = n_kv_head * (1 + random.below(3));
                u32 rows = in_cache ? 1 + random.below(8) : 9 + random.below(9);
                bool turns = head_dim % 2 == 0 && random.below(3) != 0;
                check({head_dim, n_head, n_kv_head, rows, turns, in_cache}, random.next());
            }
        }
    }
}
