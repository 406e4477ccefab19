// Continues a prompt:
//
//     generate MODEL PROMPT [MAX_TOKENS [SEED]]
//
// README.md says how to build it.
#include <charconv>
#include <iostream>

#include "teeny.hpp"

/// Reads a number that is the whole text.
template <class Number>
static bool read(std::string_view text, Number &number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size();
}

int main(int argc, char **argv) {
    teeny::sampler_options sampling;
    teeny::generate_options options;

    if (argc < 3 || argc > 5 || (argc > 3 && !read(argv[3], options.max_tokens)) ||
        (argc > 4 && !read(argv[4], sampling.seed))) {
        std::cerr << "usage: " << argv[0] << " MODEL PROMPT [MAX_TOKENS [SEED]]\n";
        return 2;
    }
    try {
        const auto model = teeny::model::load(argv[1]);
        const auto print = [](std::string_view piece) {
            std::cout << piece << std::flush;
            return std::cout.good();  // stops when nobody reads it any more
        };
        model.generate(argv[2], print, sampling, options);
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
    return std::cout.good() ? 0 : 1;
}
