// Turns what libtorch throws into messages.
#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace teeny {

// A copy for `teeny_shim_free_message`. NULL would mean success, so no memory ends the program.
inline char *message(const std::string &text) {
    char *copy = strdup(text.c_str());
    if (!copy) {
        std::abort();
    }
    return copy;
}

// Runs `work`; its exceptions become messages, libtorch's own without their backtraces.
template <typename Work>
char *guarded(Work &&work) noexcept {
    try {
        work();
        return nullptr;
    } catch (const c10::Error &error) {
        return message(error.what_without_backtrace());
    } catch (const std::exception &error) {
        return message(error.what());
    } catch (...) {
        return message("libtorch threw something that is no exception");
    }
}

} // namespace teeny
