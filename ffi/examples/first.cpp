// The smallest program: continues "ROMEO:" with the model that ships.
//
//     cargo build --release -p teeny-ffi
//     c++ -std=c++17 -I ffi/include ffi/examples/first.cpp target/release/libteeny.a
//         -lm -lpthread -ldl -o first
//     ./first
#include <iostream>
#include <string_view>

#include "teeny.hpp"

int main() {
    try {
        const teeny::model model = teeny::model::load("data/shakespeare.safetensors");
        teeny::session session = model.new_session();
        for (std::string_view piece : session.stream("ROMEO:")) {
            std::cout << piece;
        }
    } catch (const teeny::error &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
