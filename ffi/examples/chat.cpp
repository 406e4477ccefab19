// Talks with a model that knows plays:
//
//     chat MODEL [SEED]
//
// Each line of the input is spoken by one character of the play, and the model answers as another.
// One session lasts the whole conversation, so no word of it is computed twice; when the model's
// context is full, the session forgets the oldest words and goes on. README.md says how to build
// it.
#include <algorithm>
#include <charconv>
#include <iomanip>
#include <iostream>

#include "teeny.hpp"

// The model has learned from plays written like this: a name, a speech, an empty line.
static const std::string you = "FIRST LORD:\n";
static const std::string romeo = "ROMEO:\n";
static const std::string end_of_speech = "\n\n";

/// Reads a number that is the whole text.
static bool read(std::string_view text, std::uint64_t &number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size();
}

/// Has the model answer every line of the input.
static void chat(teeny::session &session, teeny::sampler &sampler) {
    teeny::generate_options options;
    options.max_tokens = 400;
    options.stop = {end_of_speech};
    bool open = false;  // its last speech was cut off before its end
    std::string line;

    while (std::cout && std::cerr << "> " && std::getline(std::cin, line)) {
        line.resize(std::min(line.size(), line.find('\r')));
        if (line.empty()) {
            continue;
        }
        // Only what is new is fed: the session remembers the rest.
        const std::string prompt =
            (open ? end_of_speech : "") + you + line + end_of_speech + romeo;
        try {
            for (std::string_view piece : session.stream(prompt, sampler, options)) {
                std::cout << piece << std::flush;
            }
        } catch (const teeny::error &error) {
            if (error.status() != TEENY_TOKENIZER && error.status() != TEENY_INVALID_ARGUMENT) {
                throw;
            }
            // Nothing has become of that line: the conversation goes on from where it was.
            std::cerr << "Please say that in other letters: " << error.what() << '\n';
            continue;
        }
        open = session.stats().end_reason != TEENY_END_STOP_TEXT;
        std::cout << end_of_speech << std::flush;
    }
}

int main(int argc, char **argv) {
    teeny::sampler_options sampling;

    if (argc < 2 || argc > 3 || (argc == 3 && !read(argv[2], sampling.seed))) {
        std::cerr << "usage: " << argv[0] << " MODEL [SEED]\n";
        return 2;
    }
    try {
        const auto model = teeny::model::load(argv[1]);
        auto session = model.new_session();
        auto sampler = teeny::sampler::make(sampling);
        chat(session, sampler);

        const teeny::session_stats stats = session.stats();
        const double seconds = static_cast<double>(stats.decode_ns) / 1e9;
        std::cerr << '\n' << session.position() << " tokens, " << std::fixed << std::setprecision(0)
                  << (seconds > 0 ? static_cast<double>(stats.decode_tokens) / seconds : 0)
                  << " tok/s\n";
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
    return std::cout.good() ? 0 : 1;
}
