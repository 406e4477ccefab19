// The kernels `prefill_*` against plain f64 loops.
#include "sessions.h"

#include "prefill.cu"

namespace {

void launch(uint64_t seed, u32 blocks, const AttentionArgs &args) {
    emulation::Dim grid(blocks, args.n_head);
    u32 head_dim = args.kv.head_dim;
    if (head_dim <= 32) emulation::launch(seed, grid, 128, 0, ENTRY(prefill_32), args);
    else if (head_dim <= 64) emulation::launch(seed, grid, 128, 0, ENTRY(prefill_64), args);
    else emulation::launch(seed, grid, 128, 0, ENTRY(prefill_128), args);
}

// Rows at start .. start + n_rows of one session. blocks: 0 is one for each tile
void check(const Shape &shape, u64 start, u32 n_rows, u32 blocks, uint64_t seed) {
    Random random(seed * 1000003 + shape.head_dim);
    u32 width = shape.n_head * shape.head_dim, ld = padded(width);
    u64 last = start + n_rows - 1;
    Session session(shape, first_visible(start, shape.window), last, random);
    emulation::Array<float> q(queries_of(shape, n_rows, random)), slopes(slopes_of(shape));
    emulation::Array<Row> rows(n_rows);
    std::vector<float> wanted(n_rows * ld, UNTOUCHED);
    for (u32 row = 0; row < n_rows; row++) {
        rows[row] = {start + row, session.table.data(), 0, 0};
        attend(&wanted[row * ld], &q[row * ld], session, start + row, slopes_of(shape));
    }
    std::string name = name_of("prefill", shape, n_rows, last);
    // Two halves of bf16 keep 16 bits of each operand.
    float tolerance = __CUDA_ARCH__ >= 800 ? 1e-4f : 1e-5f;
    std::vector<float> before;
    for (u32 repeat = 0; repeat < 2; repeat++) {
        emulation::Array<float> out(n_rows * ld, UNTOUCHED);
        AttentionArgs args{out.data(), q.data(), rows.data(),  slopes.data(), nullptr,      nullptr,
                           layout_of(shape), ld, ld,           shape.n_head,  shape.window, n_rows,
                           0,          0,        1 / sqrtf(float(shape.head_dim))};
        launch(seed * 2 + repeat, blocks ? blocks : (n_rows + prefill::ROWS - 1) / prefill::ROWS, args);
        expect_near(name, out, wanted, tolerance);
        for (u32 row = 0; row < n_rows; row++)
            for (u32 i = width; i < ld; i++) expect(out[row * ld + i] == UNTOUCHED, name + ": writes beyond the width");
        if (repeat > 0) expect_equal(name + ": another order of the threads", out, before);
        before.assign(out.begin(), out.end());
    }
}

void check_seed(uint64_t seed) {
    const u32 head_dims[] = {1, 2, 6, 10, 16, 32, 33, 64, 80, 96, 128};
    const u32 groups[] = {1, 2, 3, 5, 12};
    const u32 lengths[] = {1, 63, 64, 65, 127, 128, 200};
    Random random(seed);
    u32 n = u32(seed);
    for (u32 head_dim : head_dims) {
        // Many heads only of narrow ones: the f64 loops take their time.
        u32 group = groups[n++ % (head_dim > 64 ? 2 : head_dim > 16 ? 4 : 5)];
        u32 n_kv_head = group > 3 ? 1 : 1 + random.below(2), n_head = group * n_kv_head;
        // From the beginning, and after some positions that are there already.
        u32 length = lengths[random.below(7)];
        Shape whole{head_dim, n_head, n_kv_head, 384, 384, random.below(2) == 0};
        check(whole, random.below(2) ? 0 : random.below(384 - length), length, random.below(3) == 0, seed);

        // Windows shorter than the rows, rings that have gone round, positions beyond 32 bits.
        u32 slots = PAGE * (2 + random.below(4));
        u32 rows = 1 + random.below(slots - 1), window = 1 + random.below(slots - rows + 1);
        if (random.below(3) == 0) window = slots - rows + 1;
        Shape ring{head_dim, n_head, n_kv_head, slots, window, random.below(2) == 0};
        u64 starts[] = {random.below(slots), slots * 3 + u64(random.below(slots)),
                        5000000000u + u64(random.below(1000)), (1ull << 40) + random.below(1000)};
        check(ring, starts[random.below(4)], rows, 0, seed);
    }
}

} // namespace

int main(int argc, char **argv) {
    for (uint64_t seed : seeds(argc, argv)) check_seed(seed);
}
