// Checks the emulation by kernels whose results are known. Prints the order in which threads ran.

#include "check.h"
#include "probe.cu"

using emulation::Array;
using emulation::launch;

static void check_normalize(uint64_t seed, Random &random) {
    constexpr unsigned blocks = 20;
    Array<float> x(random.floats(blocks * 256)), out(blocks * 256);
    launch(seed, blocks, 256, 0, ENTRY(normalize), out.data(), x.data());
    std::vector<float> wanted;
    for (unsigned block = 0; block < blocks; block++) {
        std::vector<double> v(x.begin() + block * 256, x.begin() + block * 256 + 256);
        for (int round = 0; round < 3; round++) {
            double mean = 0, square = 0;
            for (double value : v) mean += value / 256;
            for (double &value : v) value -= mean;
            for (double value : v) square += value * value / 256;
            for (double &value : v) value /= sqrt(square);
        }
        wanted.insert(wanted.end(), v.begin(), v.end());
    }
    expect_near("normalize", out, wanted, 1e-4f);
}

static void check_turn_around(uint64_t seed) {
    Array<u32> x(128), out(128), wanted(128);
    for (u32 i = 0; i < 128; i++) x[i] = i, wanted[i] = i / 32 * 32 + 31 - i % 32;
    launch(seed, 2, 64, 64 * sizeof(u32), ENTRY(turn_around), out.data(), x.data());
    expect_equal("turn_around", out, wanted);
}

static void check_sum_of_blocks(uint64_t seed) {
    constexpr u32 blocks = 40;
    Array<u32> out(1), parts(blocks), arrived(1, 0);
    for (int round = 0; round < 2; round++) {
        for (u32 &part : parts) part = 0;
        out[0] = 0;
        launch(seed, blocks, 32, 0, ENTRY(sum_of_blocks), out.data(), parts.data(), arrived.data());
        expect_equal("sum_of_blocks", out, std::vector<u32>{blocks * (blocks + 1) / 2});
    }
}

static void check_order(uint64_t seed) {
    Array<u32> first(512), second(512), counter(1, 0);
    launch(seed, 4, 128, 0, ENTRY(order), first.data(), counter.data());
    counter[0] = 0;
    launch(seed, 4, 128, 0, ENTRY(order), second.data(), counter.data());
    expect_equal("the same seed", second, first);
    std::vector<bool> seen(512);
    for (u32 thread : first) seen[thread] = true;
    for (u32 i = 0; i < 512; i++) expect(seen[i], "thread " + std::to_string(i) + " did not run");
    u64 digest = 0;
    for (u32 thread : first) digest = digest * 31 + thread;
    printf("%llx\n", digest);
}

static void check_exchange(uint64_t seed) {
    Array<u32> out(160);
    std::vector<u32> wanted(160);
    for (u32 lane = 0; lane < 32; lane++) {
        wanted[lane] = (lane ^ 5) * 3;
        wanted[32 + lane] = 21;
        wanted[64 + lane] = 0x49249249;
        wanted[96 + lane] = 0;
        wanted[128 + lane] = lane % 16 * 3;
    }
    launch(seed, 1, 32, 0, ENTRY(exchange), out.data());
    expect_equal("exchange", out, wanted);
}

#if __CUDA_ARCH__ >= 800
static void check_product(uint64_t seed, Random &random) {
    Array<u16> a(16 * 16), b(16 * 8);
    Array<float> d(random.floats(16 * 8));
    for (u16 &x : a) x = to_bf16(random.number());
    for (u16 &x : b) x = to_bf16(random.number());
    std::vector<float> wanted(16 * 8);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            double sum = d[i * 8 + j];
            for (int k = 0; k < 16; k++)
                sum += double(bits_float(u32(a[i * 16 + k]) << 16)) * bits_float(u32(b[k * 8 + j]) << 16);
            wanted[i * 8 + j] = float(sum);
        }
    launch(seed, 1, 32, 0, ENTRY(product), d.data(), a.data(), b.data());
    expect_near("product", d, wanted, 1e-6f);
}
#endif

static void check_f16() {
    // Every number of 16 bits comes back.
    for (u32 bits = 0; bits < 65536; bits++) {
        float x = f16_to_f32((unsigned short)bits);
        if (x != x) expect((bits & 0x7fff) > 0x7c00, "f16: NaN of " + std::to_string(bits));
        else expect(to_f16(x) == bits, "f16: " + std::to_string(bits));
    }
    expect(f16_to_f32(0x3555) == 0.333251953125f && f16_to_f32(1) == 0x1p-24f, "f16: values");
}

int main(int argc, char **argv) {
    check_f16();
    for (uint64_t seed : seeds(argc, argv)) {
        Random random(seed);
        check_normalize(seed, random);
        check_turn_around(seed);
        check_sum_of_blocks(seed);
        check_order(seed);
        check_exchange(seed);
#if __CUDA_ARCH__ >= 800
        check_product(seed, random);
#endif
    }
}
