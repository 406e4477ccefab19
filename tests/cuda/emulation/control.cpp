// What tests set and read of the emulated driver; and the names of errors.

#include "driver.h"

using namespace driver;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

uint64_t *setting(const std::string &name) {
    Settings &s = state().settings;
    if (name == "devices") return &s.devices;
    if (name == "capability") return &s.capability;
    if (name == "driver") return &s.driver_version;
    if (name == "memory") return &s.total_memory;
    if (name == "processors") return &s.processors;
    if (name == "seed") return &s.seed;
    return nullptr;
}

} // namespace

// Settings and faults as the environment has them, counters zero, a lost device works again. What is alive
// stays alive.
EXPORT void emulator_reset() {
    State &s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    finish_all();
    s.reset();
}

// 1 if there is no such setting.
EXPORT int emulator_set(const char *name, uint64_t value) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    uint64_t *place = setting(name);
    if (!place) return 1;
    *place = value;
    if (place == &s.settings.seed) s.random = value;
    return 0;
}

// A setting, a number of living things, or a counter since the last reset; 2^64 - 1 if there is none such.
EXPORT uint64_t emulator_get(const char *wanted) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    std::string name = wanted;
    if (const uint64_t *place = setting(name)) return *place;
    if (name == "live_allocations") return s.device.size();
    if (name == "live_bytes") return s.used;
    if (name == "live_pinned") return s.pinned.size();
    if (name == "live_streams") return s.streams.size();
    if (name == "live_graphs") return s.graphs.size() + s.executables.size();
    if (name == "live_events") return s.events.size();
    if (name == "live_modules") return s.modules.size();
    if (name == "live_contexts") {
        uint64_t n = 0;
        for (const Context &c : s.contexts) n += uint64_t(c.retained);
        return n;
    }
    if (name == "allocations") return s.counters.allocations;
    if (name == "pinned_allocations") return s.counters.pinned_allocations;
    if (name == "graph_launches") return s.counters.graph_launches;
    if (name == "copies") return s.counters.copies;
    if (name == "fills") return s.counters.fills;
    if (name == "executed") return s.counters.executed;
    if (name == "launches") {
        uint64_t n = 0;
        for (const auto &[kernel, launches] : s.counters.launches) n += launches;
        return n;
    }
    if (name == "calls") {
        uint64_t n = 0;
        for (const auto &[function, calls] : s.counters.calls) n += calls;
        return n;
    }
    if (name == "lost") return uint64_t(s.lost);
    return ~uint64_t(0);
}

// Calls of a function since the last reset.
EXPORT uint64_t emulator_calls(const char *function) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    return s.counters.calls[function];
}

// Runs of a kernel since the last reset, those of graphs too.
EXPORT uint64_t emulator_launches(const char *kernel) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    return s.counters.launches[kernel];
}

// Of all kernels that the sources have for a target such as 80, the i-th name; null after the last.
EXPORT const char *emulator_kernel(unsigned target, unsigned i) {
    const auto &all = target >= 90 ? sm_90::kernels() : target >= 80 ? sm_80::kernels() : sm_75::kernels();
    return i < all.size() ? all[i].name : nullptr;
}

// The n-th call of the function from now on fails with `error`, and if `lasting` every later one. "*" stands
// for any function. A function that frees does its work all the same.
EXPORT void emulator_fail(const char *function, uint64_t n, int error, int lasting) {
    State &s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    s.faults.push_back({function, n, error, lasting != 0});
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **text) {
    static const std::map<CUresult, const char *> names = {
#define NAME(error) {error, #error}
        NAME(CUDA_SUCCESS), NAME(CUDA_ERROR_INVALID_VALUE), NAME(CUDA_ERROR_OUT_OF_MEMORY),
        NAME(CUDA_ERROR_NOT_INITIALIZED), NAME(CUDA_ERROR_NO_DEVICE), NAME(CUDA_ERROR_INVALID_DEVICE),
        NAME(CUDA_ERROR_INVALID_IMAGE), NAME(CUDA_ERROR_INVALID_CONTEXT), NAME(CUDA_ERROR_NO_BINARY_FOR_GPU),
        NAME(CUDA_ERROR_INVALID_PTX), NAME(CUDA_ERROR_UNSUPPORTED_PTX_VERSION), NAME(CUDA_ERROR_INVALID_HANDLE),
        NAME(CUDA_ERROR_ILLEGAL_STATE), NAME(CUDA_ERROR_NOT_FOUND), NAME(CUDA_ERROR_NOT_READY),
        NAME(CUDA_ERROR_ILLEGAL_ADDRESS), NAME(CUDA_ERROR_LAUNCH_FAILED), NAME(CUDA_ERROR_NOT_SUPPORTED),
        NAME(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED), NAME(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
        NAME(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED), NAME(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT),
        NAME(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD), NAME(CUDA_ERROR_UNKNOWN),
#undef NAME
    };
    auto it = names.find(error);
    *text = it == names.end() ? nullptr : it->second;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Words made from the name: "out of memory".
EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    static std::map<CUresult, std::string> words;
    static std::mutex lock;
    CUresult result = cuGetErrorName(error, text);
    if (result != CUDA_SUCCESS) return result;
    std::lock_guard<std::mutex> guard(lock);
    std::string &sentence = words[error];
    if (sentence.empty()) {
        sentence = *text + strlen(error == CUDA_SUCCESS ? "CUDA_" : "CUDA_ERROR_");
        for (char &c : sentence) c = c == '_' ? ' ' : char(tolower((unsigned char)c));
    }
    *text = sentence.c_str();
    return CUDA_SUCCESS;
}
