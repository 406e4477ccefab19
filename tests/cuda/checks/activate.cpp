// activate.cu against the functions in f64: every activation, with a gate and without, the soft cap of
// logits, and what lies beyond ordinary numbers.
//
// Tolerance: 4e-7 of the result, a few units in the last place.
#include "check.h"
#include "activate.cu"

using emulation::Array;

static const float NOT_OURS = 7.25f; // stands where the kernel must not write

static double reference(double x, u32 activation, double cap) {
    double positive = x < 0 ? 0 : x;
    if (activation == ACT_RELU) return positive;
    if (activation == ACT_RELU2) return positive * positive;
    if (activation == ACT_GELU) return 0.5 * x * erfc(-x / sqrt(2.0));
    if (activation == ACT_SILU) return x / (1 + exp(-x));
    if (activation == ACT_GELU_TANH) return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    return cap * tanh(x / cap);
}

static bool is_gelu(u32 activation) { return activation == ACT_GELU || activation == ACT_GELU_TANH; }

static void check(u32 activation, bool gated, u32 rows, u32 width, float cap, uint64_t seed) {
    char name[120];
    snprintf(name, sizeof name, "activate %u gated %d rows %u width %u cap %g", activation, gated, rows, width, cap);
    Random random(seed);
    u32 ld = (width + 31) / 32 * 32 + 32;
    Array<float> up(std::vector<float>(rows * ld, NOT_OURS)), gate(std::vector<float>(rows * ld, NOT_OURS));
    for (u32 r = 0; r < rows; r++) {
        for (u32 i = 0; i < width; i++) {
            // Of all sizes from 1e-4 to 30, or to 8 caps; GELU in f32 is no more exact further down.
            float most = activation == ACT_CAP ? 8 * cap : is_gelu(activation) ? 3 : 30;
            float x = most * random.number() * powf(10, -float(random.below(5)));
            if (activation == ACT_CAP || activation == ACT_RELU2) {
                static const float ODD[] = {INFINITY, -INFINITY, 0.0f, -0.0f, 3e38f, -3e38f, 1e-30f, -1e-30f};
                if (random.below(20) == 0) x = ODD[random.below(8)];
                if (random.below(100) == 0) x = bits_float(0x7fffffff);
            }
            (gated ? gate : up)[r * ld + i] = x;
            if (gated) up[r * ld + i] = random.number();
        }
    }
    std::vector<float> before(up.begin(), up.end());
    ActivateArgs args = {up.data(), gated ? gate.data() : nullptr, ld, width, rows, activation, cap};
    emulation::launch(seed, {(width + 255) / 256, rows, 1}, 256, 0, ENTRY(activate), args);
    for (u32 i = 0; i < rows * ld; i++) {
        double x = gated ? gate[i] : before[i];
        double wanted = i % ld >= width ? NOT_OURS : reference(x, activation, cap) * (gated ? before[i] : 1);
        if (up[i] == float(wanted) || (up[i] != up[i] && wanted != wanted)) continue;
        if (fabs(up[i] - wanted) <= 4e-7 * fabs(wanted) + (is_gelu(activation) ? 2e-7 : 1e-37)) continue;
        char text[120];
        snprintf(text, sizeof text, ": [%u] of %.9g is %.9g, wanted %.9g", i, x, up[i], wanted);
        fail(std::string(name) + text);
    }
}

int main(int argc, char **argv) {
    for (uint64_t seed : seeds(argc, argv)) {
        Random random(seed);
        for (u32 rows : {1, 3}) {
            for (u32 width : {1, 37, 300}) {
                for (u32 activation : {ACT_RELU, ACT_GELU, ACT_GELU_TANH, ACT_RELU2})
                    check(activation, false, rows, width, 0, random.next());
                check(ACT_SILU, true, rows, width, 0, random.next());
                for (float cap : {0.1f, 1.5f, 30.0f, 1000.0f}) check(ACT_CAP, false, rows, width, cap, random.next());
            }
        }
    }
}
