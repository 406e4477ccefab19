// What the check programs share. A check program includes the kernels' source, computes the same in plain
// loops, and compares:
//
//     #include "check.h"
//     #include "norm.cu"
//
//     int main(int argc, char **argv) {
//         for (uint64_t seed : seeds(argc, argv)) {
//             Random random(seed);
//             emulation::Array<float> x(random.floats(100)), out(100);
//             emulation::launch(seed, 4, 256, 0, ENTRY(norm), NormArgs{out.data(), x.data()});
//             expect_near("norm", out, wanted, 1e-5f);
//         }
//     }
//
// Arguments: number of seeds (20 if none is given), first seed (1). Status 1 and a message on a mismatch.
#pragma once

#include "emulation.h"

inline std::vector<uint64_t> seeds(int argc, char **argv) {
    uint64_t n = argc > 1 ? strtoull(argv[1], nullptr, 10) : 20;
    uint64_t first = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
    std::vector<uint64_t> all(n);
    for (uint64_t i = 0; i < n; i++) all[i] = first + i;
    return all;
}

// The same numbers on every machine.
struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed) {}

    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    // Below n.
    unsigned below(unsigned n) { return unsigned((next() >> 32) * n >> 32); }
    // -1 to 1.
    float number() { return float(int64_t(next()) >> 40) * 0x1p-23f; }
    std::vector<float> floats(size_t n, float scale = 1) {
        std::vector<float> all(n);
        for (float &x : all) x = scale * number();
        return all;
    }
};

[[noreturn]] inline void fail(const std::string &message) {
    fprintf(stderr, "%s\n", message.c_str());
    exit(1);
}

inline void expect(bool holds, const std::string &message) {
    if (!holds) fail(message);
}

// |got - wanted| <= tolerance * max(1, |wanted|) everywhere; equal infinities are near.
template <class Got, class Wanted>
void expect_near(const std::string &what, const Got &got, const Wanted &wanted, float tolerance) {
    expect(got.size() == wanted.size(), what + ": sizes differ");
    for (size_t i = 0; i < got.size(); i++) {
        float x = got[i], y = wanted[i];
        if (x == y || fabsf(x - y) <= tolerance * fmaxf(1, fabsf(y))) continue;
        char text[128];
        snprintf(text, sizeof text, ": [%zu] is %.9g, wanted %.9g", i, double(x), double(y));
        fail(what + text);
    }
}

// The same values, element by element; NaN equals NaN.
template <class Got, class Wanted>
void expect_equal(const std::string &what, const Got &got, const Wanted &wanted) {
    expect(got.size() == wanted.size(), what + ": sizes differ");
    for (size_t i = 0; i < got.size(); i++) {
        if (got[i] == wanted[i] || (got[i] != got[i] && wanted[i] != wanted[i])) continue;
        fail(what + ": [" + std::to_string(i) + "] is " + std::to_string(got[i]) + ", wanted " +
             std::to_string(wanted[i]));
    }
}

// To and from the element types of weights, rounded to nearest even.
inline unsigned short to_bf16(float x) {
    unsigned bits = float_bits(x);
    if (x != x) return (unsigned short)(bits >> 16 | 0x40);
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline unsigned short to_f16(float x) {
    unsigned bits = float_bits(x), sign = bits >> 16 & 0x8000;
    float size = fabsf(x);
    if (size != size) return (unsigned short)(sign | 0x7e00);
    if (size >= 65520.0f) return (unsigned short)(sign | 0x7c00);
    // Below the smallest normal number, steps of 2^-24; nearbyintf rounds to even.
    if (size < 0x1p-14f) return (unsigned short)(sign | unsigned(nearbyintf(size * 0x1p24f)));
    unsigned rounded = (bits & 0x7fffffffu) + 0xfffu + (bits >> 13 & 1);
    return (unsigned short)(sign | ((rounded >> 13) - (112u << 10)));
}
