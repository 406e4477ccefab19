// A switch saves what a called function must keep, which costs some nanoseconds. ucontext, which also saves
// the signal mask by a system call, serves where no assembly is written.

#include "fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)

asm(R"(
    .text
    .hidden teeny_emulation_switch
    .globl teeny_emulation_switch
    .type teeny_emulation_switch, @function
teeny_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size teeny_emulation_switch, .-teeny_emulation_switch
    .section .note.GNU-stack, "", @progbits
    .text
)");
// Words on a stack that waits: six registers, the address to go on at, and one for the alignment.
constexpr size_t SAVED = 8, RETURN = 6;

#elif defined(__aarch64__)

asm(R"(
    .text
    .hidden teeny_emulation_switch
    .globl teeny_emulation_switch
    .type teeny_emulation_switch, %function
teeny_emulation_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size teeny_emulation_switch, .-teeny_emulation_switch
    .section .note.GNU-stack, "", %progbits
    .text
)");
constexpr size_t SAVED = 20, RETURN = 11;

#endif

#ifndef WITH_UCONTEXT
// Keeps the own stack pointer in *own and goes on with the other.
extern "C" void teeny_emulation_switch(void **own, void *other);
#endif

namespace emulation {

namespace {

// AddressSanitizer makes frames larger.
#ifdef WITH_ASAN
constexpr size_t STACK = 512 * 1024;
#else
constexpr size_t STACK = 64 * 1024;
#endif

size_t page() {
    static const size_t size = size_t(sysconf(_SC_PAGESIZE));
    return size;
}

Fiber *resumed; // the fiber that runs

} // namespace

Fiber::Fiber() {
    void *memory = mmap(nullptr, page() + STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page(), PROT_NONE) != 0) {
        perror("the stack of an emulated thread");
        abort();
    }
    base = static_cast<unsigned char *>(memory);
    // Tops at the same place of a page would all meet in the same few lines of the CPU's caches.
    static size_t made = 0;
    offset = made++ % 61 * 64;
}

Fiber::~Fiber() { munmap(base, page() + STACK); }

bool Fiber::guards(const void *address) const {
    return address >= base && address < base + page();
}

void Fiber::start() {
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &resumed->caller_stack, &resumed->caller_stack_size);
#endif
    resumed->function();
    abort();
}

void Fiber::prepare(void (*f)()) {
    function = f;
    own_fake_stack = nullptr;
    unsigned char *lowest = base + page();
#ifdef WITH_ASAN
    // What frames that were left for good had poisoned.
    __asan_unpoison_memory_region(lowest, STACK);
#endif
#ifdef WITH_UCONTEXT
    getcontext(&own);
    own.uc_stack.ss_sp = lowest;
    own.uc_stack.ss_size = STACK;
    own.uc_link = nullptr;
    makecontext(&own, start, 0);
#else
    void **words = reinterpret_cast<void **>(lowest + STACK - offset) - SAVED;
    memset(words, 0, SAVED * sizeof *words);
    words[RETURN] = reinterpret_cast<void *>(&Fiber::start);
    own = words;
#endif
}

void Fiber::resume() {
    resumed = this;
#ifdef WITH_ASAN
    void *caller_fake_stack;
    __sanitizer_start_switch_fiber(&caller_fake_stack, base + page(), STACK);
#endif
#ifdef WITH_UCONTEXT
    swapcontext(&caller, &own);
#else
    teeny_emulation_switch(&caller, own);
#endif
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(caller_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave(bool for_good) {
    (void)for_good; // only AddressSanitizer wants to know
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &own_fake_stack, caller_stack, caller_stack_size);
#endif
#ifdef WITH_UCONTEXT
    swapcontext(&own, &caller);
#else
    teeny_emulation_switch(&own, caller);
#endif
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(own_fake_stack, &caller_stack, &caller_stack_size);
#endif
}

} // namespace emulation
