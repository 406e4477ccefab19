/* A model inside the program itself: one file to ship, and nothing to find or to open at run time.
 *
 *     embedded [MAX_TOKENS]
 *
 * Built in the repository's root, with the library inside too:
 *
 *     c++ -std=c++17 -I ffi/include ffi/examples/embedded.cpp target/release/libteeny.a \
 *         -lm -lpthread -ldl -o embedded
 *
 * Another model: -DMODEL_FILE='"path/of/the.safetensors"'.
 */
#include <charconv>
#include <iostream>

#include "teeny.hpp"

#ifndef MODEL_FILE
#define MODEL_FILE "data/shakespeare.safetensors"
#endif

// The assembler copies the file into the program's read-only data, which the system loads page by
// page as it is used and shares between processes, as it does with a mapped model file. At a
// multiple of 64 bytes teeny uses it where it lies.
#ifdef __APPLE__
#define SYMBOL(name) "_" name
#define READ_ONLY "__TEXT,__const"
#else
#define SYMBOL(name) name
#define READ_ONLY ".rodata"
#endif
asm(".pushsection " READ_ONLY "\n"
    ".balign 64\n"
    ".globl " SYMBOL("embedded_model") "\n"
    SYMBOL("embedded_model") ":\n"
    ".incbin \"" MODEL_FILE "\"\n"
    ".globl " SYMBOL("embedded_model_end") "\n"
    SYMBOL("embedded_model_end") ":\n"
    ".byte 0\n"
    ".popsection\n");
extern "C" const unsigned char embedded_model[], embedded_model_end[];

/// Reads a number that is the whole text.
static bool read(std::string_view text, std::size_t &number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size();
}

int main(int argc, char **argv) {
    teeny::generate_options options;

    if (argc > 2 || (argc == 2 && !read(argv[1], options.max_tokens))) {
        std::cerr << "usage: " << argv[0] << " [MAX_TOKENS]\n";
        return 2;
    }
    try {
        // Nothing to release: the memory is there as long as the program.
        const auto size = static_cast<std::size_t>(embedded_model_end - embedded_model);
        const auto model = teeny::model::load_static({embedded_model, size});
        auto session = model.new_session();
        for (std::string_view piece : session.stream("ROMEO:", options)) {
            std::cout << piece << std::flush;
        }
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
    return std::cout.good() ? 0 : 1;
}
