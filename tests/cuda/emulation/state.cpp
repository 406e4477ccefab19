// See driver.h.

#include "driver.h"

namespace driver {

namespace {

// Freed memory that is still watched.
constexpr size_t WATCHED = 64 << 20;

uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

// EMULATOR_FAIL="cuMemAlloc_v2:3:2,cuStreamSynchronize:1:719:lasting"
std::vector<Fault> faults_from_environment() {
    std::vector<Fault> faults;
    const char *text = getenv("EMULATOR_FAIL");
    std::string rest = text ? text : "";
    while (!rest.empty()) {
        size_t comma = std::min(rest.find(','), rest.size());
        std::string rule = rest.substr(0, comma);
        rest.erase(0, comma + 1);
        char function[64];
        unsigned long long calls;
        int error, read = 0;
        if (sscanf(rule.c_str(), "%63[^:]:%llu:%d%n", function, &calls, &error, &read) < 3) {
            complain("EMULATOR_FAIL: " + rule + " is not function:calls:error");
            abort();
        }
        faults.push_back({function, calls, error, rule.substr(size_t(read)) == ":lasting"});
    }
    return faults;
}

CUresult run(const Work &work) {
    State &s = state();
    CUresult result = work.run();
    s.counters.executed++;
    if (work.kind == Work::copy) s.counters.copies++;
    if (work.kind == Work::fill) s.counters.fills++;
    if (result != CUDA_SUCCESS && s.lost == CUDA_SUCCESS) s.lost = result;
    return result;
}

} // namespace

Settings Settings::from_environment() {
    return {number("EMULATOR_DEVICES", 1),
            number("EMULATOR_CAPABILITY", 90),
            number("EMULATOR_DRIVER", 13000),
            number("EMULATOR_MEMORY", uint64_t(16) << 30),
            number("EMULATOR_PROCESSORS", 16),
            number("EMULATOR_SEED", 1)};
}

State::State() { reset(); }

void State::reset() {
    settings = Settings::from_environment();
    faults = faults_from_environment();
    lost = CUDA_SUCCESS;
    counters = Counters();
    random = settings.seed;
}

uint64_t State::next_random() {
    uint64_t z = (random += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

State &state() {
    // Never destroyed: the host may free things while the process ends.
    static State *the_state = new State;
    return *the_state;
}

void complain(const std::string &text) { fprintf(stderr, "emulated CUDA driver: %s\n", text.c_str()); }

Memory *find(std::map<uintptr_t, std::unique_ptr<Memory>> &all, const void *address, size_t size) {
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    auto it = all.upper_bound(at);
    if (it == all.begin()) return nullptr;
    --it;
    size_t offset = at - it->first;
    Memory *memory = it->second.get();
    return offset <= memory->size() && size <= memory->size() - offset ? memory : nullptr;
}

CUresult enqueue(Stream &stream, Work work) {
    State &s = state();
    if (stream.capture == Capture::invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream.capture == Capture::active) {
        stream.graph->work.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    if (&stream == &s.default_stream) finish_blocking();
    stream.queue.push_back(std::move(work));
    // A device that keeps up with the host, now and then. Errors show at a later call.
    if (s.one_in(8)) finish(stream);
    return CUDA_SUCCESS;
}

CUresult finish(Stream &stream) {
    while (!stream.queue.empty()) {
        Work work = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (state().lost == CUDA_SUCCESS) run(work);
    }
    return state().lost;
}

CUresult finish_all() {
    finish(state().default_stream);
    for (auto &[handle, stream] : state().streams) finish(*stream);
    return state().lost;
}

CUresult finish_blocking() {
    finish(state().default_stream);
    for (auto &[handle, stream] : state().streams)
        if (stream->blocking) finish(*stream);
    return state().lost;
}

void retire(std::unique_ptr<Memory> memory) {
    State &s = state();
    memset(memory->data(), 0xFF, memory->size());
    s.freed_bytes += memory->size();
    s.freed.push_back(std::move(memory));
    while (s.freed_bytes > WATCHED) {
        Memory &oldest = *s.freed.front();
        for (size_t i = 0; i < oldest.size(); i++) {
            if (oldest.data()[i] == 0xFF) continue;
            complain("freed memory was written to, byte " + std::to_string(i) + " of " +
                     std::to_string(oldest.size()));
            if (s.lost == CUDA_SUCCESS) s.lost = CUDA_ERROR_ILLEGAL_ADDRESS;
            break;
        }
        s.freed_bytes -= oldest.size();
        s.freed.pop_front();
    }
}

bool breaks_capture() {
    bool broken = false;
    for (auto &[handle, stream] : state().streams) {
        if (stream->capture == Capture::none) continue;
        if (stream->mode == 2 || (stream->mode == 1 && stream->thread != std::this_thread::get_id())) continue;
        stream->capture = Capture::invalidated;
        broken = true;
    }
    return broken;
}

} // namespace driver
