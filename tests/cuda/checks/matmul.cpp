// matmul.cu against the sum in f64: both tiles, k in parts or not, all element types, odd sizes.
//
// Tolerance, as a share of the sum of |x w|: on tensor cores 2^-16 for what is cut off x, the same for
// weights in f32, and 2^-16 for the product of the low parts where weights have one; then what sums in
// f32 lose, 2^-24 for each addition in a row. Without tensor cores only the latter.
#include "check.h"
#include "matmul.cu"

#include <tuple>

using emulation::Array;

static const float NOT_OURS = 7.25f; // stands where the kernel must not write

template <class E> struct Kind;
template <> struct Kind<float> {
    static float make(float x) { return x; }
    static emulation::Entry<MatmulArgs> entry() { return ENTRY(matmul_f32); }
    static constexpr double SPLIT_LOSS = 3;
};
template <> struct Kind<f16> {
    static f16 make(float x) { return {to_f16(x)}; }
    static emulation::Entry<MatmulArgs> entry() { return ENTRY(matmul_f16); }
    static constexpr double SPLIT_LOSS = 2;
};
template <> struct Kind<bf16> {
    static bf16 make(float x) { return {to_bf16(x)}; }
    static emulation::Entry<MatmulArgs> entry() { return ENTRY(matmul_bf16); }
    static constexpr double SPLIT_LOSS = 1;
};

struct Case {
    unsigned rows, n, k;
    bool bias, add, small;
    unsigned parts;
};

static unsigned padded(unsigned n) { return (n + 31) / 32 * 32; }
static unsigned tiles(unsigned n, unsigned tile) { return (n + tile - 1) / tile; }

template <class E> struct Problem {
    Case c;
    // x and w have more columns than are read; NaN there.
    unsigned x_ld, w_ld, out_ld;
    Array<float> x, bias, before;
    Array<E> w;

    Problem(const Case &c, Random &random)
        : c(c), x_ld(padded(c.k) + 32), w_ld(padded(c.k) + 64), out_ld(padded(c.n) + 32),
          x(size_t(c.rows) * x_ld), bias(c.n), before(size_t(c.rows) * out_ld), w(size_t(c.n) * w_ld) {
        for (unsigned r = 0; r < c.rows; r++)
            for (unsigned i = 0; i < padded(c.k); i++) x[r * x_ld + i] = i < c.k ? random.number() : 0;
        for (unsigned r = 0; r < c.n; r++)
            for (unsigned i = 0; i < padded(c.k); i++)
                w[r * w_ld + i] = Kind<E>::make(i < c.k ? random.number() * 0.25f : 0);
        for (float &b : bias) b = random.number();
        for (size_t i = 0; i < before.size(); i++)
            before[i] = i % out_ld < c.n ? random.number() : NOT_OURS;
    }

    std::vector<float> run(uint64_t seed) const {
        unsigned down = tiles(c.rows, 64), across = tiles(c.n, c.small ? 32 : 64);
        Array<float> out(std::vector<float>(before.begin(), before.end()));
        Array<float> partial(c.parts > 1 ? size_t(down) * across * c.parts * (64 * 32) : 1);
        Array<u32> arrived(size_t(down) * across, 0u);
        MatmulArgs args = {};
        args.out = out.data(), args.x = x.data(), args.w = w.data();
        args.bias = c.bias ? bias.data() : nullptr;
        if (c.parts > 1) args.partial = partial.data(), args.arrived = arrived.data();
        args.rows = c.rows, args.n = c.n, args.k = c.k;
        args.out_ld = out_ld, args.x_ld = x_ld, args.w_ld = w_ld;
        args.add = c.add, args.small = c.small;
        emulation::launch(seed, {down, across, c.parts}, 256, 0, Kind<E>::entry(), args);
        for (u32 count : arrived) expect(count == 0, name() + ": a counter of parts is left");
        return std::vector<float>(out.begin(), out.end());
    }

    void compare(const std::vector<float> &out) const {
        for (unsigned r = 0; r < c.rows; r++) {
            for (unsigned i = 0; i < out_ld; i++) {
                float got = out[r * out_ld + i];
                if (i >= c.n) {
                    expect(got == NOT_OURS, name() + ": padding was written, " + at(r, i));
                    continue;
                }
                double sum = 0, size = 0;
                for (unsigned j = 0; j < c.k; j++) {
                    double product = double(x[r * x_ld + j]) * to_f32(w[i * w_ld + j]);
                    sum += product, size += fabs(product);
                }
                if (c.bias) sum += bias[i], size += fabs(bias[i]);
                if (c.add) sum += before[r * out_ld + i], size += fabs(before[r * out_ld + i]);
                // As f32 would have it: beyond its range infinity.
                float wanted = float(sum);
#if __CUDA_ARCH__ >= 800
                double share = Kind<E>::SPLIT_LOSS * 0x1p-16 + (c.k / 32 + 8 + c.parts) * 0x1p-24;
#else
                double share = (c.k + 8 + c.parts) * 0x1p-24;
#endif
                if (got == wanted || (got != got && wanted != wanted)) continue;
                if (fabs(got - sum) <= share * size) continue;
                char text[96];
                snprintf(text, sizeof text, " is %.9g, wanted %.9g +- %.2g", got, sum, share * size);
                fail(name() + ": " + at(r, i) + text);
            }
        }
    }

    std::string name() const {
        char text[160];
        snprintf(text, sizeof text, "%s rows %u n %u k %u bias %d add %d small %d parts %u", Kind<E>::entry().name,
                 c.rows, c.n, c.k, c.bias, c.add, c.small, c.parts);
        return text;
    }
    static std::string at(unsigned r, unsigned i) {
        return "[" + std::to_string(r) + ", " + std::to_string(i) + "]";
    }
};

// The result, and that another order of threads and blocks gives the same bits; and so does the other tile.
template <class E> static void check(const Case &c, uint64_t seed) {
    Random random(seed);
    Problem<E> problem(c, random);
    std::vector<float> out = problem.run(seed);
    problem.compare(out);
    if (c.parts == 1) problem.c.small = !c.small;
    std::vector<float> again = problem.run(~seed);
    expect(memcmp(out.data(), again.data(), out.size() * sizeof(float)) == 0,
           problem.name() + ": another order or tile gives other bits");
}

// Infinities, NaN, and numbers beyond the largest bf16 give what they give in f64.
template <class E> static void check_extremes(uint64_t seed, bool small, unsigned parts) {
    Random random(seed);
    Problem<E> problem({20, 40, 300, true, true, small, parts}, random);
    auto x = [&](unsigned row, unsigned i) -> float & { return problem.x[row * problem.x_ld + i]; };
    auto w = [&](unsigned row, unsigned i) -> E & { return problem.w[row * problem.w_ld + i]; };
    x(1, 5) = INFINITY;
    x(2, 299) = -INFINITY;
    x(3, 7) = bits_float(0x7fffffff); // the NaN that a GPU makes
    x(4, 8) = bits_float(0xff800001);
    x(5, 9) = 3.4e38f; // rounds to an infinite bf16; 3.39e38 is the largest
    x(6, 9) = 3.4e38f, x(6, 10) = 3.4e38f, x(6, 200) = 3.4e38f;
    x(7, 11) = 1e-40f, x(7, 12) = -1e-45f;
    x(8, 30) = INFINITY, x(8, 31) = -INFINITY;
    for (unsigned i = 0; i < 40; i += 2) {
        w(i, 9) = Kind<E>::make(1), w(i, 10) = Kind<E>::make(1), w(i, 200) = Kind<E>::make(1);
        w(i, 5) = Kind<E>::make(0); // 0 times infinity is NaN
    }
    w(3, 17) = Kind<E>::make(INFINITY);
    w(4, 18) = Kind<E>::make(bits_float(0x7fffffff));
    if (to_f32(Kind<E>::make(0x1p-126f)) != 0) { // not in f16: an infinite bf16, but a product of 4
        x(9, 40) = 3.4e38f;
        for (unsigned i = 0; i < 40; i++) w(i, 40) = Kind<E>::make(0x1p-126f);
    }
    if (sizeof(E) == 4) w(6, 19) = Kind<E>::make(-3.4e38f);
    problem.compare(problem.run(seed));
}

int main(int argc, char **argv) {
    std::vector<std::tuple<Case, int>> cases;
    unsigned turn = 0;
    for (unsigned rows : {1, 9, 16, 17, 64, 65, 130})
        for (unsigned n : {1, 7, 29, 64, 100, 257})
            for (unsigned k : {1, 16, 30, 37, 64, 256})
                for (int element = 0; element < 3; element++, turn++) {
                    // The other choices by chance, always the same.
                    Random random(turn);
                    bool small = random.below(3) != 0;
                    unsigned parts = small ? 1 + random.below(6) : 1; // some may be empty
                    bool bias = random.below(2) == 0, add = random.below(2) == 0;
                    cases.push_back({{rows, n, k, bias, add, small, parts}, element});
                }
    // Longer sums: several steps in every part.
    for (int element = 0; element < 3; element++)
        for (unsigned parts : {0, 1, 2, 3, 5}) // 0: the large tile
            cases.push_back({{33, 70, 700, true, false, parts != 0, max(parts, 1u)}, element});

    // Each seed has one case of fifteen.
    for (uint64_t seed : seeds(argc, argv)) {
        for (size_t i = seed % 15; i < cases.size(); i += 15) {
            auto [c, element] = cases[i];
            if (element == 0) check<float>(c, seed);
            if (element == 1) check<f16>(c, seed);
            if (element == 2) check<bf16>(c, seed);
        }
        bool small = seed % 2;
        unsigned parts = small ? 1 + unsigned(seed / 2 % 3) : 1;
        check_extremes<float>(seed, small, parts);
        check_extremes<f16>(seed, small, parts);
        check_extremes<bf16>(seed, small, parts);
    }
}
