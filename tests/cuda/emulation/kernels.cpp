// All kernels as one target has them. Compiled once for each, with
//     -DVARIANT=sm_80 -D__CUDA_ARCH__=800 -DSOURCE='"all.cu"' -DENTRIES='"sm_80.inc"'
// where sm_80.inc has a line ADD(name) for every kernel of the source. src/lib.rs makes it from the
// preprocessed source, so that none can be forgotten.

#include "registry.h"

// A namespace of its own: the targets' functions have the same names but not the same code.
namespace VARIANT {

#include SOURCE

const std::vector<emulation::Kernel> &kernels() {
    static const std::vector<emulation::Kernel> all = {
#define ADD(name) emulation::make_kernel(ENTRY(name)),
#include ENTRIES
#undef ADD
    };
    return all;
}

} // namespace VARIANT
