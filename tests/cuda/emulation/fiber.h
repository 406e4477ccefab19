// Stacks between which one thread of the CPU changes.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#define WITH_UCONTEXT 1
#include <ucontext.h>
#endif

namespace emulation {

// A stack with a guard page below it. Its function never returns: it leaves for good.
class Fiber {
  public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber &) = delete;
    Fiber &operator=(const Fiber &) = delete;

    // The next resume() calls `function`, whatever the fiber did before.
    void prepare(void (*function)());
    // Runs the fiber until it calls leave(). Only from outside all fibers.
    void resume();
    // From this fiber, which runs, back to its resume(). `for_good`: it will not be resumed again.
    void leave(bool for_good = false);
    // Whether the address lies in the guard page.
    bool guards(const void *address) const;

  private:
    static void start();

    unsigned char *base; // lowest address, of the guard page
    size_t offset;       // of the first frame from the highest address
    void (*function)() = nullptr;
#ifdef WITH_UCONTEXT
    ucontext_t own, caller;
#else
    void *own = nullptr, *caller = nullptr; // stack pointers
#endif
    // For AddressSanitizer.
    [[maybe_unused]] void *own_fake_stack = nullptr;
    [[maybe_unused]] const void *caller_stack = nullptr;
    [[maybe_unused]] size_t caller_stack_size = 0;
};

} // namespace emulation
