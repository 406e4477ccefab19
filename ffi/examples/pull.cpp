// Asks for text piece by piece instead of being called with it, and mixes a sampler of its own:
//
//     pull MODEL PROMPT
//
// It ends with the paragraph. README.md says how to build it.
#include <iostream>

#include "teeny.hpp"

int main(int argc, char **argv) {
    if (argc != 3) {
        std::cerr << "usage: " << argv[0] << " MODEL PROMPT\n";
        return 2;
    }
    try {
        const auto model = teeny::model::load(argv[1]);
        auto session = model.new_session();
        // A chain of stages: each changes the logits or drops tokens, in the order of adding them.
        auto sampler = teeny::sampler::chain(1)
                           .add_penalties(64, 1.1F)
                           .add_top_k(20)
                           .add_top_p(0.9F)
                           .add_temperature(0.7F);
        teeny::generate_options options;
        options.max_tokens = 1000;
        options.stop = {"\n\n"};

        auto stream = session.stream(argv[2], sampler, options);
        for (std::string_view piece : stream) {
            // Between two pieces a program may do what it likes, and it may stop asking any time.
            std::cout << piece << std::flush;
            if (!std::cout) {
                return 1;  // nobody reads it any more
            }
        }
        std::cout << '\n';
        std::cerr << (stream.end_reason() == TEENY_END_STOP_TEXT ? "end of the paragraph"
                                                                 : "cut off")
                  << " after " << session.position() << " tokens\n";
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
