// How likely a model finds a text, token by token, with what it would rather have read:
//
//     score MODEL TEXT [TOP_N]
//
// README.md says how to build it.
#include <charconv>
#include <cmath>
#include <iomanip>
#include <iostream>

#include "teeny.hpp"

/// Reads a number that is the whole text.
static bool read(std::string_view text, std::size_t &number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size();
}

/// Prints a token in quotes, on one line whatever is in it.
static void print_token(const teeny::model &model, std::uint32_t token) {
    static const char digits[] = "0123456789abcdef";
    std::cout << '\'';
    for (char c : model.token_bytes(token)) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '\n') {
            std::cout << "\\n";
        } else if (byte < ' ' || byte == 127) {
            std::cout << "\\x" << digits[byte >> 4] << digits[byte & 15];
        } else {
            std::cout << c;
        }
    }
    std::cout << '\'';
}

/// Prints a line for each token: the token, its log-probability, and the likeliest in its place.
static void score(const teeny::model &model, std::string_view text, std::size_t top_n) {
    // This call does all when the sums are enough.
    const teeny::text_score total = model.score_text(text);
    const auto tokens = model.encode(text);
    const auto scores = model.new_session().score(tokens, top_n);

    std::cout << std::fixed << std::setprecision(4);
    for (std::size_t i = 0; i < tokens.size(); i++) {
        print_token(model, tokens[i]);
        if (std::isnan(scores.log_probs[i])) {
            std::cout << "\t-";  // the first token: nothing precedes it
        } else {
            std::cout << '\t' << scores.log_probs[i];
        }
        for (std::size_t k = i * top_n; k < (i + 1) * top_n; k++) {
            if (scores.top_tokens[k] != UINT32_MAX) {
                std::cout << '\t';
                print_token(model, scores.top_tokens[k]);
                std::cout << ' ' << std::exp(static_cast<double>(scores.top_log_probs[k]));
            }
        }
        std::cout << '\n';
    }
    std::cout << total.n_scored << " tokens, log-probability " << total.log_prob << ", perplexity "
              << total.perplexity << '\n';
}

int main(int argc, char **argv) {
    std::size_t top_n = 3;

    if (argc < 3 || argc > 4 || (argc == 4 && !read(argv[3], top_n)) || top_n > 1000) {
        std::cerr << "usage: " << argv[0] << " MODEL TEXT [TOP_N]\n";
        return 2;
    }
    try {
        score(teeny::model::load(argv[1]), argv[2], top_n);
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
    return std::cout.flush() ? 0 : 1;
}
