// Many characters that begin alike: one prompt, fed once, and from there each goes its own way.
//
//     characters MODEL PROMPT N [MAX_TOKENS]
//
// A fork costs almost nothing: it shares the keys and values of what it has in common with the
// session that it comes from, in blocks of 64 tokens. README.md says how to build it.
#include <charconv>
#include <iostream>

#include "teeny.hpp"

/// Reads a number that is the whole text.
static bool read(std::string_view text, std::size_t &number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size();
}

/// Forks the session `n` times and has each fork speak, drawn with a seed of its own.
static void speak_all(const teeny::session &begin, std::size_t n,
                      const teeny::generate_options &options) {
    std::vector<teeny::session> characters;
    for (std::size_t i = 0; i < n; i++) {
        characters.push_back(begin.fork());
    }
    for (std::size_t i = 0; i < n; i++) {
        teeny::sampler_options sampling;
        sampling.seed = i;
        auto sampler = teeny::sampler::make(sampling);
        std::cout << "--- " << i << " ---\n";
        // No prompt: it goes on after what the session holds.
        for (std::string_view piece : characters[i].stream("", sampler, options)) {
            std::cout << piece << std::flush;
        }
        std::cout << '\n';
    }
    for (std::size_t i = 0; i < n; i++) {
        const teeny::session_stats stats = characters[i].stats();
        std::cerr << i << ": " << stats.kv_bytes << " bytes of keys and values, "
                  << stats.kv_shared_bytes << " of them shared\n";
    }
}

int main(int argc, char **argv) {
    std::size_t n = 0;
    teeny::generate_options options;

    if (argc < 4 || argc > 5 || !read(argv[3], n) || n < 1 || n > 10000 ||
        (argc > 4 && !read(argv[4], options.max_tokens))) {
        std::cerr << "usage: " << argv[0] << " MODEL PROMPT N [MAX_TOKENS]\n";
        return 2;
    }
    try {
        const auto model = teeny::model::load(argv[1]);
        auto begin = model.new_session();
        begin.feed(model.encode(argv[2]));
        speak_all(begin, n, options);
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
    return std::cout.good() ? 0 : 1;
}
