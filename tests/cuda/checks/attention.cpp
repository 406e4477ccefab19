// The kernel `attention` (decode) against plain f64 loops.
#include "sessions.h"

#include "attention.cu"

namespace {

// Pages that `window` positions touch at most.
u32 most_pages(u32 window) { return (window + PAGE - 2) / PAGE + 1; }

// One launch: a row for each position, each its own session.
void check(const Shape &shape, const std::vector<u64> &positions, u32 split_pages, u32 splits, uint64_t seed) {
    Random random(seed * 1000003 + shape.head_dim);
    u32 n_rows = u32(positions.size()), width = shape.n_head * shape.head_dim, ld = padded(width);
    KvLayout kv = layout_of(shape);
    emulation::Array<float> q(queries_of(shape, n_rows, random)), slopes(slopes_of(shape));
    std::vector<std::unique_ptr<Session>> sessions;
    emulation::Array<Row> rows(n_rows);
    std::vector<float> wanted(n_rows * ld, UNTOUCHED);
    for (u32 row = 0; row < n_rows; row++) {
        u64 pos = positions[row];
        sessions.push_back(std::make_unique<Session>(shape, first_visible(pos, shape.window), pos, random));
        rows[row] = {pos, sessions.back()->table.data(), 0, 0};
        attend(&wanted[row * ld], &q[row * ld], *sessions.back(), pos, slopes_of(shape));
    }
    std::string name = name_of("attention", shape, n_rows, positions.back());
    std::vector<float> before;
    for (u32 repeat = 0; repeat < 2; repeat++) {
        emulation::Array<float> out(n_rows * ld, UNTOUCHED);
        emulation::Array<float> partial(size_t(n_rows) * shape.n_head * splits * (kv.head_ld + 2));
        emulation::Array<u32> arrived(n_rows * shape.n_kv_head, 0u);
        AttentionArgs args{out.data(),     q.data(), rows.data(), slopes.data(), partial.data(),
                           arrived.data(), kv,       ld,          ld,            shape.n_head,
                           shape.window,   n_rows,   split_pages, splits,        1 / sqrtf(float(shape.head_dim))};
        emulation::launch(seed * 2 + repeat, {shape.n_kv_head, splits, n_rows}, 128, 0, ENTRY(attention), args);
        expect_near(name, out, wanted, 1e-5f);
        for (u32 row = 0; row < n_rows; row++)
            for (u32 i = width; i < ld; i++) expect(out[row * ld + i] == UNTOUCHED, name + ": writes beyond the width");
        for (u32 count : arrived) expect(count == 0, name + ": a counter is left");
        if (repeat > 0) expect_equal(name + ": another order of the threads", out, before);
        before.assign(out.begin(), out.end());
        if (repeat == 0) continue;

        // The last row alone.
        args.rows += n_rows - 1;
        args.q += (n_rows - 1) * ld;
        args.n_rows = 1;
        emulation::launch(seed, {shape.n_kv_head, splits, 1}, 128, 0, ENTRY(attention), args);
        std::vector<float> alone(out.begin(), out.begin() + ld), last(before.end() - ld, before.end());
        expect_equal(name + ": the last row alone", alone, last);
    }
}

void check_seed(uint64_t seed) {
    const u32 head_dims[] = {1, 2, 6, 10, 16, 32, 33, 64, 80, 96, 128, 160, 256, 512};
    const u32 groups[] = {1, 2, 3, 5, 12};
    const std::vector<u64> lengths = {1, 63, 64, 65, 127, 128, 200, 321};
    Random random(seed);
    u32 n = u32(seed);
    for (u32 head_dim : head_dims) {
        u32 group = groups[n++ % 5], n_kv_head = 1 + random.below(2), split_pages = 1 + random.below(2);
        bool wide = head_dim > 256;
        // Rows of all lengths, so that some splits of most rows are empty; nothing wraps.
        Shape whole{head_dim, group * n_kv_head, n_kv_head, 384, 384, random.below(2) == 0};
        std::vector<u64> positions;
        for (u64 length : lengths)
            if (!wide || random.below(4) == 0) positions.push_back(length - 1);
        positions.push_back(random.below(384));
        check(whole, positions, split_pages, (6 + split_pages - 1) / split_pages, seed);

        // Windows that end in the middle of a page, rings that have gone round, positions beyond 32 bits.
        u32 slots = PAGE * (1 + random.below(4)), window = 1 + random.below(slots);
        if (random.below(4) == 0) window = slots;
        Shape ring{head_dim, group * n_kv_head, n_kv_head, slots, window, random.below(2) == 0};
        positions = {slots * 3 + u64(random.below(slots)), (1ull << 40) + random.below(1000),
                     5000000000u + u64(random.below(1000))};
        if (!wide) {
            u64 more[] = {random.below(slots), slots - u64(1), slots, slots * u64(2) + PAGE};
            positions.insert(positions.begin(), more, more + 4);
        }
        u32 splits = (most_pages(window) + split_pages - 1) / split_pages;
        // Sometimes more than there can be, sometimes fewer.
        u32 change = random.below(3);
        if (change == 1) splits += 2;
        if (change == 2) splits = 1 + splits / 2;
        check(ring, positions, split_pages, splits, seed);
    }
    // More splits than one warp adds up at once.
    Shape longer{6, 2, 1, 64 * 80, 64 * 80, false};
    check(longer, {64 * 70 + u64(random.below(64)), 64 * 33}, 1, 80, seed);
}

} // namespace

int main(int argc, char **argv) {
    for (uint64_t seed : seeds(argc, argv)) check_seed(seed);
}
