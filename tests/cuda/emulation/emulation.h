// CUDA kernels on the CPU: what device.cuh needs under TEENY_EMULATION, and how a check program runs them.
//
// Every CUDA thread is a fiber. Fibers change only where a kernel synchronises, shuffles, or uses an atomic,
// in a random order that the seed fixes: warps have random priorities, so that one may run far ahead while
// others stand still, and several blocks of the grid are under way at once. A missing barrier then shows
// as a wrong result (for some seed of a few), other mistakes as an error that names kernel, block, and thread:
//
// * threads that wait at different barriers, or for threads that have ended;
// * shuffles, votes, and products that not all 32 lanes of a warp reach;
// * blocks larger than the kernel's bound; more shared memory than the launch may have;
// * writes next to shared arrays or to an `Array`; an overflow of a thread's stack;
// * a kernel that ends without wait_for_previous().
//
// Shared memory starts as NaN (bytes 0xFF) in every block, so that what was never written shows too.
//
// What it cannot see:
//
// * Missing thread_fence(): here every write is seen by all at once and in order.
// * Reads before wait_for_previous() of what the kernel before wrote: kernels run one after the other.
// * Races inside the stretch between two points where fibers change, unless their order changes a result;
//   those on shared memory all the same with races.h.
// * Shared memory counts when its declaration is reached; CUDA counts all declarations of a kernel.
// * Wild addresses: only the zones next to an array are watched. With -fsanitize=address, also others.
// * Bank conflicts, uncoalesced loads, registers, time: nothing here tells about speed.
// * Last bits: fused operations, exp, division are those of the CPU; mma_bf16 sums in double.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace emulation {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
    Dim() = default;
    Dim(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Where a thread stands in its grid.
struct Position {
    Dim thread, block, block_size, grid;
};

// Of the thread that runs now.
extern const Position *position;

// A line of a kernel, for the messages and to tell one barrier from another.
struct Line {
    const char *file;
    int number;
};

// What a thread may wait for.
enum class Wait { none, block_sync, warp_sync, shuffle, vote, product };

// Bytes that a lane can give to the others of its warp at once.
constexpr size_t LANE_BYTES = 32;

void wait_for_block(Line line);
// Gives `value` to the warp, waits for its other lanes, and returns the values of all 32, LANE_BYTES apart.
// They stay valid until the thread's next call.
const unsigned char *exchange(Wait kind, const void *value, size_t size, Line line);
// Another thread may run now.
void pause();
void waited_for_previous();
// For races.h: the running thread uses these bytes.
void watch(const void *address, size_t size, bool write);
// The block's own memory for one declaration; `key` is an address that belongs to the declaration alone.
void *shared_memory(const void *key, const char *name, size_t size, Line line);
void *dynamic_shared_memory();

template <class T> T from_lane(const unsigned char *values, unsigned lane) {
    T value;
    memcpy(&value, values + (lane & 31) * LANE_BYTES, sizeof value);
    return value;
}

inline unsigned lane() { return position->thread.x & 31; }

// For KERNEL.
template <bool within> using Within = std::enable_if_t<within, int>;

} // namespace emulation

// A kernel is a function template, so that ENTRY can ask how many threads it is bound to: the template
// exists only for numbers up to the bound.
#ifdef EMULATION_LIST
// Preprocessed with it, the source has this mark before every kernel's name.
#define KERNEL(threads) emulation_kernel
#else
#define KERNEL(threads) \
    template <unsigned block_threads = 1, ::emulation::Within<(block_threads <= (threads))> = 0> void
#endif
#define KERNEL_BLOCKS(threads, blocks) KERNEL(threads)
#define DEVICE inline
#define SHARED(type, name, count)                                                              \
    static char name##_key;                                                                    \
    type(&name)[count] = *(type(*)[count])::emulation::shared_memory(                          \
        &name##_key, #name, sizeof(type) * (count), ::emulation::Line{__FILE__, __LINE__})
#define DYNAMIC_SHARED(type, name) type *name = (type *)::emulation::dynamic_shared_memory()

#define threadIdx (::emulation::position->thread)
#define blockIdx (::emulation::position->block)
#define blockDim (::emulation::position->block_size)
#define gridDim (::emulation::position->grid)

// The last two arguments are always left out: they say where the call stands.
#define EMULATION_LINE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline float bits_float(unsigned x) {
    float f;
    memcpy(&f, &x, 4);
    return f;
}

inline unsigned float_bits(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

inline void block_sync(EMULATION_LINE) { emulation::wait_for_block({file, line}); }

inline void warp_sync(EMULATION_LINE) {
    emulation::exchange(emulation::Wait::warp_sync, nullptr, 0, {file, line});
}

template <class T> T shuffle_xor(T v, int mask, EMULATION_LINE) {
    static_assert(sizeof(T) <= 8, "CUDA shuffles 4 or 8 bytes");
    auto values = emulation::exchange(emulation::Wait::shuffle, &v, sizeof v, {file, line});
    return emulation::from_lane<T>(values, emulation::lane() ^ unsigned(mask));
}

template <class T> T shuffle(T v, int lane, EMULATION_LINE) {
    static_assert(sizeof(T) <= 8, "CUDA shuffles 4 or 8 bytes");
    auto values = emulation::exchange(emulation::Wait::shuffle, &v, sizeof v, {file, line});
    return emulation::from_lane<T>(values, unsigned(lane));
}

inline unsigned vote_ballot(bool v, EMULATION_LINE) {
    auto values = emulation::exchange(emulation::Wait::vote, &v, sizeof v, {file, line});
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        ballot |= unsigned(emulation::from_lane<bool>(values, lane)) << lane;
    return ballot;
}

inline bool vote_any(bool v, EMULATION_LINE) { return vote_ballot(v, file, line) != 0; }

inline void thread_fence() { emulation::pause(); }

// It races with nothing, see races.h.
__attribute__((no_sanitize("thread"))) inline unsigned atomic_increment(unsigned *counter) {
    emulation::pause();
    unsigned before = (*counter)++;
    emulation::pause();
    return before;
}

inline unsigned high_product(unsigned a, unsigned b) {
    return unsigned((unsigned long long)a * b >> 32);
}

inline void wait_for_previous() { emulation::waited_for_previous(); }
inline void release_next() {}

inline float f16_to_f32(unsigned short bits) {
    unsigned sign = unsigned(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    // Subnormal numbers are multiples of 2^-24.
    if (exponent == 0) return bits_float(sign | float_bits(float(fraction) * 0x1p-24f));
    if (exponent == 31) return bits_float(sign | 0x7f800000u | fraction << 13);
    return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
}

#if __CUDA_ARCH__ >= 800
// Twin of the instruction in device.cuh. The hardware's order of the sum is not documented.
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATION_LINE) {
    struct Lane {
        unsigned a[4], b[2];
    } own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    auto values = emulation::exchange(emulation::Wait::product, &own, sizeof own, {file, line});
    unsigned group = emulation::lane() / 4, t = emulation::lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned row_half = i / 2, column = 2 * t + i % 2;
        double sum = d[i];
        for (unsigned k = 0; k < 16; k++) {
            // Column k of a and row k of b lie with the lanes whose t is k % 8 / 2.
            auto left = emulation::from_lane<Lane>(values, 4 * group + k % 8 / 2);
            auto right = emulation::from_lane<Lane>(values, 4 * column + k % 8 / 2);
            unsigned x = left.a[row_half + 2 * (k / 8)], y = right.b[k / 8];
            sum += double(bits_float(k % 2 ? x & 0xffff0000u : x << 16)) *
                   double(bits_float(k % 2 ? y & 0xffff0000u : y << 16));
        }
        d[i] = float(sum);
    }
}
#endif

// CUDA has these without a header.
inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return b > a ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return b > a ? b : a; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return b > a ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

#undef EMULATION_LINE

namespace emulation {

// A kernel with its name and the most threads that a block may have.
template <class... P> struct Entry {
    const char *name;
    void (*function)(P...);
    unsigned bound;
};

// Largest n in from..to for which the kernel's template exists; `exists` is ENTRY's lambda.
template <class Exists, unsigned from, unsigned to> constexpr unsigned find_bound() {
    if constexpr (from == to) return from;
    else {
        constexpr unsigned middle = from + (to - from + 1) / 2;
        if constexpr (std::is_invocable_v<Exists, std::integral_constant<unsigned, middle>>)
            return find_bound<Exists, middle, to>();
        else return find_bound<Exists, from, middle - 1>();
    }
}

template <class Exists, class... P>
Entry<P...> make_entry(const char *name, void (*function)(P...), Exists) {
    return {name, function, find_bound<Exists, 1, 1024>()};
}

// The kernel of this name, for launch().
#define ENTRY(name)                                                      \
    ::emulation::make_entry(#name, &name<>, [](auto threads)             \
                            -> decltype((void)&name<decltype(threads)::value>) {})

// What CUDA gives a kernel without being asked.
constexpr size_t SHARED_LIMIT = 48 * 1024;

struct Launch {
    uint64_t seed;
    const char *name;
    unsigned bound; // threads of a block at most
    Dim grid;
    unsigned threads; // of a block
    size_t dynamic_shared;
    size_t shared_limit; // of both kinds together
    std::function<void()> body; // one thread
};

// Runs a kernel to its end; returns what went wrong, empty if nothing did. One kernel at a time: others wait.
std::string run(const Launch &launch);

// For the check programs, where a mistake ends the program with a message and status 1.
// `shared_limit`: as if the host had raised it by cuFuncSetAttribute.
template <class... P>
void launch_with_shared(uint64_t seed, Dim grid, unsigned threads, size_t dynamic_shared, size_t shared_limit,
                        Entry<P...> kernel, std::common_type_t<P>... args) {
    std::string error = run({seed, kernel.name, kernel.bound, grid, threads, dynamic_shared, shared_limit,
                             [&] { kernel.function(args...); }});
    if (error.empty()) return;
    fprintf(stderr, "%s (seed %llu)\n", error.c_str(), (unsigned long long)seed);
    exit(1);
}

template <class... P>
void launch(uint64_t seed, Dim grid, unsigned threads, size_t dynamic_shared, Entry<P...> kernel,
            std::common_type_t<P>... args) {
    launch_with_shared(seed, grid, threads, dynamic_shared, SHARED_LIMIT, kernel, args...);
}

// Global memory between two zones that must stay as they are. Starts as NaN (bytes 0xFF); freed, it is
// overwritten, so that a later use shows.
class Memory {
  public:
    explicit Memory(size_t size);
    ~Memory();
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    // Aligned to 256 bytes, as CUDA's are.
    unsigned char *data() const { return data_; }
    size_t size() const { return size_; }
    // Which zone was written to; empty if none.
    std::string damage() const;
    // Both zones as they were at first.
    void restore();

  private:
    unsigned char *data_;
    size_t size_;
};

// Numbers in global memory. run() looks at the zones of all of them after every kernel.
template <class T> class Array {
  public:
    explicit Array(size_t size) : memory(size * sizeof(T)), n(size) {}
    Array(size_t size, T value) : Array(size) {
        for (T &x : *this) x = value;
    }
    Array(const std::vector<T> &values) : Array(values.size()) {
        for (size_t i = 0; i < n; i++) data()[i] = values[i];
    }

    T *data() const { return reinterpret_cast<T *>(memory.data()); }
    size_t size() const { return n; }
    T &operator[](size_t i) const { return data()[i]; }
    T *begin() const { return data(); }
    T *end() const { return data() + n; }

  private:
    Memory memory;
    size_t n;
};

} // namespace emulation
