// What every function of the emulated driver begins with, and what they share.
#pragma once

#include "driver.h"

#define API extern "C" __attribute__((visibility("default"))) CUresult

namespace driver {

// What must hold before a function does anything.
enum Needs {
    NOTHING = 0,
    INIT = 1,
    CONTEXT = 2 | INIT,   // current in the calling thread
    NO_CAPTURE = 4,       // may not be called while the thread captures
    FREES = 8,            // does its work even if it is told to fail: nobody could do it again
};

// The calling thread's context.
inline thread_local Context *current;

template <class Body> CUresult call(const char *name, int needs, Body body) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    s.counters.calls[name]++;
    CUresult told = CUDA_SUCCESS;
    for (Fault &fault : s.faults) {
        if (!fault.calls || (fault.function != "*" && fault.function != name) || --fault.calls) continue;
        told = fault.error;
        if (fault.lasting) s.lost = fault.error;
    }
    if ((needs & INIT) && !s.initialized) return CUDA_ERROR_NOT_INITIALIZED;
    if (told == CUDA_SUCCESS && (needs & INIT)) told = s.lost;
    if (told != CUDA_SUCCESS && !(needs & FREES)) return told;
    if ((needs & CONTEXT) == CONTEXT && (!current || !current->retained)) {
        complain(std::string(name) + " without a context in this thread");
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if ((needs & NO_CAPTURE) && breaks_capture()) {
        complain(std::string(name) + " while a stream captures");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    CUresult result = body();
    return told == CUDA_SUCCESS ? result : told;
}

inline CUresult invalid(const std::string &what, CUresult error = CUDA_ERROR_INVALID_VALUE) {
    complain(what);
    return error;
}

template <class T> T *look_up(std::map<void *, std::unique_ptr<T>> &all, void *handle) {
    auto it = all.find(handle);
    return it == all.end() ? nullptr : it->second.get();
}

template <class T> void *add(std::map<void *, std::unique_ptr<T>> &all, std::unique_ptr<T> value) {
    void *handle = value.get();
    all[handle] = std::move(value);
    return handle;
}

inline Stream *stream_of(void *handle) {
    return handle ? look_up(state().streams, handle) : &state().default_stream;
}

inline CUresult bad_handle(const char *what) {
    return invalid(std::string(what) + " that does not exist", CUDA_ERROR_INVALID_HANDLE);
}

inline unsigned char *on_device(CUdeviceptr address) { return reinterpret_cast<unsigned char *>(address); }

// Bytes that a block can have when it is asked for by cuFuncSetAttribute.
inline size_t most_shared() {
    uint64_t capability = state().settings.capability;
    size_t kilobytes = capability < 80 ? 64 : capability == 80 || capability == 87 ? 163
                     : capability == 86 || capability == 89 || capability >= 120 ? 99 : 227;
    return kilobytes * 1024;
}

} // namespace driver
