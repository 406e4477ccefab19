// The same through teeny.hpp.
#include <iostream>
#include <string_view>

#include "teeny.hpp"

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    try {
        const teeny::model model = teeny::model::load(argv[1]);
        teeny::session session = model.new_session();
        for (std::string_view piece : session.stream(argv[2])) {
            std::cout << piece;
        }
    } catch (const teeny::error &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
