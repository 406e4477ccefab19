// The functions that a compiler calls with -fsanitize=thread. See races.h.

#include "emulation.h"

using emulation::watch;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}

#define ACCESS(size)                                                           \
    void __tsan_read##size(void *p) { watch(p, size, false); }                 \
    void __tsan_write##size(void *p) { watch(p, size, true); }                 \
    void __tsan_unaligned_read##size(void *p) { watch(p, size, false); }       \
    void __tsan_unaligned_write##size(void *p) { watch(p, size, true); }       \
    void __tsan_volatile_read##size(void *p) { watch(p, size, false); }        \
    void __tsan_volatile_write##size(void *p) { watch(p, size, true); }        \
    void __tsan_read_write##size(void *p) { watch(p, size, true); }            \
    void __tsan_unaligned_read_write##size(void *p) { watch(p, size, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

void __tsan_read_range(void *p, size_t size) { watch(p, size, false); }
void __tsan_write_range(void *p, size_t size) { watch(p, size, true); }

void *__tsan_memcpy(void *to, const void *from, size_t size) {
    watch(from, size, false);
    watch(to, size, true);
    return memcpy(to, from, size);
}
void *__tsan_memmove(void *to, const void *from, size_t size) {
    watch(from, size, false);
    watch(to, size, true);
    return memmove(to, from, size);
}
void *__tsan_memset(void *to, int value, size_t size) {
    watch(to, size, true);
    return memset(to, value, size);
}

// Of guards of local statics in the programs.
char __tsan_atomic8_load(const volatile char *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }

} // extern "C"
