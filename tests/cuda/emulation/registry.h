// The kernels of one variant as the emulated driver finds and starts them: by name, with the addresses of
// their arguments.
#pragma once

#include "emulation.h"

namespace emulation {

struct Kernel {
    const char *name;
    unsigned bound;            // threads of a block
    std::vector<size_t> sizes; // of the arguments, in bytes
    std::function<void(void *const *arguments)> body;
};

template <class... P, size_t... i>
Kernel make_kernel(Entry<P...> entry, std::index_sequence<i...>) {
    return {entry.name, entry.bound, {sizeof(P)...}, [entry](void *const *arguments) {
                (void)arguments; // unused where there are none
                entry.function(*static_cast<std::remove_cv_t<P> *>(arguments[i])...);
            }};
}

template <class... P> Kernel make_kernel(Entry<P...> entry) {
    return make_kernel(entry, std::index_sequence_for<P...>());
}

} // namespace emulation

// What kernels.cpp defines, once for each target that teeny has PTX for.
namespace sm_75 {
const std::vector<emulation::Kernel> &kernels();
}
namespace sm_80 {
const std::vector<emulation::Kernel> &kernels();
}
namespace sm_90 {
const std::vector<emulation::Kernel> &kernels();
}
