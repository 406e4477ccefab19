// Finds races on shared memory: two threads of a block that use the same byte, one of them writing, with no
// barrier in between. It does not depend on the order in which threads happen to run.
//
// A program has it when its kernels are compiled, but not linked, with -fsanitize=thread: the compiler then
// calls one function for each access, and races.cpp has these functions instead of ThreadSanitizer.
//
// A block_sync orders all threads of a block, a warp_sync those of a warp. Shuffles and votes order nothing:
// CUDA does not promise that they do. Global memory is not watched, nor is what an atomic does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulation {

// Who used a byte, and how many barriers had come before.
struct Access {
    unsigned thread = 0;
    uint64_t block_barriers = 0, warp_barriers = 0;

    // Whether `later` sees what this did.
    bool before(const Access &later) const {
        return block_barriers != later.block_barriers || thread == later.thread ||
               (thread / 32 == later.thread / 32 && warp_barriers != later.warp_barriers);
    }
};

// Of one block.
class Races {
  public:
    // The access that races with this one, or null.
    const Access *find(size_t offset, size_t size, const Access &now, bool write) {
        if (bytes.size() < offset + size) bytes.resize(offset + size);
        for (size_t i = offset; i < offset + size; i++) {
            Byte &byte = bytes[i];
            if (!byte.write.before(now)) return &byte.write;
            if (write) {
                for (const Access &read : byte.reads)
                    if (!read.before(now)) return &read;
                byte.write = now;
            } else {
                // Two readers, of two warps if there are: no writer is both of them.
                bool other = byte.reads[0].block_barriers == now.block_barriers &&
                             byte.reads[0].thread / 32 != now.thread / 32;
                byte.reads[other] = now;
            }
        }
        return nullptr;
    }

  private:
    struct Byte {
        Access write, reads[2];
    };
    std::vector<Byte> bytes;
};

} // namespace emulation
