// The sampler on the device against tokens that the sampler on the CPU has drawn: ../sample.rs writes them.
// Arguments: number of seeds, first seed, file of cases. The file, in the machine's byte order, is a list of
// passes:
//
//     u32 vocab_size, rows, steps
//     rows times: u64 seed, step; f32 temperature, top_p, min_p, surely_below; u32 top_k;
//                 u32 token[steps] (NO_TOKEN if the CPU refuses the logits); f32 logits[vocab_size]
#include "check.h"
#include "sample.cu"

// Of a ring, which no session is so short as to have.
const u32 SLOTS = 3;

// One row of a pass and what it is to draw.
struct Case {
    Draw draw;
    std::vector<u32> tokens;   // (steps)
    std::vector<float> logits; // (vocab_size)
};

struct Pass {
    u32 vocab_size, steps;
    std::vector<Case> rows;
};

class Reader {
  public:
    explicit Reader(const char *path) : file(fopen(path, "rb")) {
        expect(file, std::string("cannot open ") + path);
    }
    ~Reader() { fclose(file); }
    template <class T> void read(T *values, size_t n) {
        expect(fread(values, sizeof(T), n, file) == n, "the file of cases is cut off");
    }
    template <class T> T read() {
        T value;
        read(&value, 1);
        return value;
    }
    bool at_end() {
        int c = getc(file);
        if (c != EOF) ungetc(c, file);
        return c == EOF;
    }

  private:
    FILE *file;
};

static std::vector<Pass> read_passes(const char *path) {
    Reader reader(path);
    std::vector<Pass> passes;
    while (!reader.at_end()) {
        Pass pass;
        pass.vocab_size = reader.read<u32>();
        pass.rows.resize(reader.read<u32>());
        pass.steps = reader.read<u32>();
        for (Case &row : pass.rows) {
            Draw &d = row.draw;
            d.seed = reader.read<u64>();
            d.step = reader.read<u64>();
            d.temperature = reader.read<float>();
            d.top_p = reader.read<float>();
            d.min_p = reader.read<float>();
            d.surely_below = reader.read<float>();
            d.top_k = reader.read<u32>();
            d.reserved = 0;
            row.tokens.resize(pass.steps);
            reader.read(row.tokens.data(), pass.steps);
            row.logits.resize(pass.vocab_size);
            reader.read(row.logits.data(), pass.vocab_size);
        }
        passes.push_back(std::move(pass));
    }
    return passes;
}

static std::string describe(const Pass &pass, const Case &row) {
    char text[256];
    const Draw &d = row.draw;
    snprintf(text, sizeof text,
             "vocab_size %u, seed %llu, step %llu, temperature %.9g, top_p %.9g, min_p %.9g, top_k %u",
             pass.vocab_size, d.seed, d.step, double(d.temperature), double(d.top_p), double(d.min_p), d.top_k);
    return text;
}

// The host's choice.
static unsigned threads_for(u32 vocab_size) {
    unsigned threads = 32;
    while (threads < vocab_size && threads < SAMPLE_THREADS) threads *= 2;
    return threads;
}

static void check(uint64_t seed, const Pass &pass) {
    // Padding is zero, but should not be looked at: here any of it would be drawn.
    u32 ld = (pass.vocab_size + 31) / 32 * 32, n_rows = u32(pass.rows.size());
    emulation::Array<float> logits(size_t(n_rows) * ld, INFINITY);
    emulation::Array<Draw> draws(n_rows);
    emulation::Array<Row> rows(n_rows);
    for (u32 r = 0; r < n_rows; r++) {
        const Case &row = pass.rows[r];
        std::copy(row.logits.begin(), row.logits.end(), logits.data() + size_t(r) * ld);
        draws[r] = row.draw;
        rows[r] = {0xffffffffu + u64(r), (const u64 *)(u64(r) << 8), 12345, r % SLOTS};
    }
    emulation::Array<u32> drawn(size_t(pass.steps) * n_rows), step(1, 0), arrived(1, 0);
    for (u32 i = 0; i < pass.steps; i++) {
        SampleArgs args = {logits.data(), ld, pass.vocab_size, n_rows, SLOTS, rows.data(), draws.data(),
                           drawn.data(), step.data(), arrived.data()};
        emulation::launch(seed * 1000 + i, n_rows, threads_for(pass.vocab_size), 0, ENTRY(sample), args);
        expect(step[0] == i + 1 && arrived[0] == 0, "the counters are wrong");
        for (u32 r = 0; r < n_rows; r++) {
            const Case &row = pass.rows[r];
            u32 token = drawn[size_t(i) * n_rows + r], wanted = row.tokens[i];
            if (token != wanted)
                fail(describe(pass, row) + ": draw " + std::to_string(i) + " is " + std::to_string(token) +
                     ", wanted " + std::to_string(wanted) + " (scheduling seed " + std::to_string(seed) + ")");
            expect(rows[r].token == (wanted == NO_TOKEN ? 0 : wanted), "the row has another token");
            expect(rows[r].pos == 0xffffffffu + u64(r) + i + 1, "the row has another position");
            expect(rows[r].slot == (r + i + 1) % SLOTS, "the row has another slot");
            expect(rows[r].table == (const u64 *)(u64(r) << 8), "the row has another table");
            expect(draws[r].step == row.draw.step + i + 1, "the sampler has another step");
        }
    }
}

int main(int argc, char **argv) {
    expect(argc == 4, "arguments: number of seeds, first seed, file of cases");
    std::vector<Pass> passes = read_passes(argv[3]);
    size_t n = 0;
    for (uint64_t seed : seeds(argc, argv))
        for (const Pass &pass : passes) {
            check(seed, pass);
            n += pass.rows.size() * pass.steps;
        }
    printf("%zu draws\n", n);
}
