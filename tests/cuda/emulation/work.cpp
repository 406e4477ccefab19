// The driver's functions for streams, graphs, events, modules, and kernels. See memory.cpp for the others.

#include "call.h"

using namespace driver;

namespace {

// --- kernels

Function *function_of(void *handle) {
    for (auto &[key, module] : state().modules)
        for (Function &f : module->functions)
            if (&f == handle) return &f;
    return nullptr;
}

CUresult launch(void *handle, emulation::Dim grid, emulation::Dim block, size_t dynamic, void *stream_handle,
                void **parameters, void **extra) {
    State &s = state();
    Function *f = function_of(handle);
    Stream *stream = stream_of(stream_handle);
    if (!f || !stream) return bad_handle(f ? "a stream" : "a function");
    const emulation::Kernel *kernel = f->kernel;
    std::string name = kernel->name;
    if (extra) return invalid(name + ": arguments in `extra` are not emulated", CUDA_ERROR_NOT_SUPPORTED);
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff)
        return invalid(name + ": a grid of " + std::to_string(grid.x) + " by " + std::to_string(grid.y) + " by " +
                       std::to_string(grid.z) + " blocks");
    if (block.y != 1 || block.z != 1 || !block.x || block.x > kernel->bound)
        return invalid(name + ": blocks of " + std::to_string(block.x) + " by " + std::to_string(block.y) + " by " +
                       std::to_string(block.z) + " threads, at most " + std::to_string(kernel->bound) +
                       " in one dimension are allowed");
    if (dynamic > std::max(emulation::SHARED_LIMIT, f->most_dynamic))
        return invalid(name + ": " + std::to_string(dynamic) + " bytes of dynamic shared memory");
    size_t limit = std::max(emulation::SHARED_LIMIT, std::min(most_shared(), f->most_dynamic + emulation::SHARED_LIMIT));
    if (f->most_dynamic == 0) limit = emulation::SHARED_LIMIT;

    // Copied now: the caller's may change after the call.
    struct Arguments {
        std::vector<std::vector<unsigned char>> values;
        std::vector<void *> addresses;
    };
    auto arguments = std::make_shared<Arguments>();
    for (size_t i = 0; i < kernel->sizes.size(); i++) {
        auto *bytes = static_cast<unsigned char *>(parameters[i]);
        arguments->values.emplace_back(bytes, bytes + kernel->sizes[i]);
    }
    for (auto &value : arguments->values) arguments->addresses.push_back(value.data());
    return enqueue(*stream, {Work::kernel, [=, &s] {
        s.counters.launches[kernel->name]++;
        std::string error = emulation::run({s.next_random(), kernel->name, kernel->bound, grid, block.x, dynamic, limit,
                                            [&] { kernel->body(arguments->addresses.data()); }});
        if (error.empty()) return CUDA_SUCCESS;
        return invalid(error, CUDA_ERROR_LAUNCH_FAILED);
    }});
}

CUresult load(void **out, const void *image) {
    State &s = state();
    auto module = std::make_unique<Module>();
    ptx::Module &text = module->text;
    if (!ptx::parse(static_cast<const char *>(image), text))
        return invalid("an image that is not PTX", CUDA_ERROR_INVALID_IMAGE);
    // CUDA 11.x came with PTX 7.x, 12.0 with 8.0; 12.6 brought none, so those after it lag by one.
    uint64_t major = s.settings.driver_version / 1000, minor = s.settings.driver_version % 1000 / 10;
    uint64_t newest = (major - 4) * 10 + minor - (major == 12 && minor >= 6 ? 1 : 0);
    if (text.version > newest)
        return invalid("PTX of version " + std::to_string(text.version) + ", at most " + std::to_string(newest) +
                       " can be read", CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    uint64_t capability = s.settings.capability;
    if (text.target > capability || (text.exact && text.target != capability))
        return invalid("PTX for sm_" + std::to_string(text.target) + " on sm_" + std::to_string(capability),
                       CUDA_ERROR_NO_BINARY_FOR_GPU);
    *out = add(s.modules, std::move(module));
    return CUDA_SUCCESS;
}

CUresult get_function(void **out, Module &module, const std::string &name) {
    auto entry = module.text.entries.find(name);
    if (entry == module.text.entries.end())
        return invalid("the PTX has no entry " + name, CUDA_ERROR_NOT_FOUND);
    for (Function &f : module.functions)
        if (f.kernel->name == name) return *out = &f, CUDA_SUCCESS;
    const auto &kernels = module.text.target >= 90   ? sm_90::kernels()
                          : module.text.target >= 80 ? sm_80::kernels()
                                                     : sm_75::kernels();
    for (const emulation::Kernel &kernel : kernels) {
        if (kernel.name != name) continue;
        if (entry->second.sizes != kernel.sizes || (entry->second.threads && entry->second.threads != kernel.bound))
            return invalid("the PTX of " + name + " is not of today's sources: other parameters or threads",
                           CUDA_ERROR_INVALID_IMAGE);
        module.functions.push_back({&module, &kernel, 0});
        *out = &module.functions.back();
        return CUDA_SUCCESS;
    }
    return invalid("the sources have no kernel " + name + ", the PTX has", CUDA_ERROR_NOT_FOUND);
}

struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int number;
    };
};

struct LaunchConfig {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
    void *stream;
    LaunchAttribute *attributes;
    unsigned n_attributes;
};

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

} // namespace

// --- streams

API cuStreamCreate(void **out, unsigned flags) {
    return call(__func__, CONTEXT, [&] {
        auto stream = std::make_unique<Stream>();
        stream->blocking = !(flags & 1);
        *out = add(state().streams, std::move(stream));
        return CUDA_SUCCESS;
    });
}

API cuStreamDestroy_v2(void *handle) {
    return call(__func__, CONTEXT | FREES, [&] {
        State &s = state();
        auto it = s.streams.find(handle);
        if (it == s.streams.end()) return bad_handle("a stream");
        // What waits is still done.
        CUresult result = finish(*it->second);
        for (auto &[key, event] : s.events)
            if (event->stream == it->second.get()) event->stream = nullptr;
        s.streams.erase(it);
        return result;
    });
}

API cuStreamSynchronize(void *handle) {
    return call(__func__, CONTEXT, [&] {
        Stream *stream = stream_of(handle);
        if (!stream) return bad_handle("a stream");
        if (stream->capture != Capture::none) {
            stream->capture = Capture::invalidated;
            return invalid("cuStreamSynchronize of a stream that captures", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        return finish(*stream);
    });
}

API cuStreamQuery(void *handle) {
    return call(__func__, CONTEXT, [&] {
        Stream *stream = stream_of(handle);
        if (!stream) return bad_handle("a stream");
        if (stream->queue.empty()) return CUDA_SUCCESS;
        // Whoever asks again and again must see it end.
        if (state().one_in(4)) return finish(*stream);
        return CUDA_ERROR_NOT_READY;
    });
}

API cuStreamBeginCapture_v2(void *handle, int mode) {
    return call(__func__, CONTEXT, [&] {
        Stream *stream = stream_of(handle);
        if (!stream) return bad_handle("a stream");
        if (!handle) return invalid("the default stream cannot capture", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        if (stream->capture != Capture::none) return invalid("a stream that captures already", CUDA_ERROR_ILLEGAL_STATE);
        stream->capture = Capture::active;
        stream->mode = mode;
        stream->thread = std::this_thread::get_id();
        stream->graph = std::make_unique<Graph>();
        return CUDA_SUCCESS;
    });
}

API cuStreamEndCapture(void *handle, void **graph) {
    return call(__func__, CONTEXT | FREES, [&] {
        *graph = nullptr;
        Stream *stream = stream_of(handle);
        if (!stream) return bad_handle("a stream");
        if (stream->capture == Capture::none) return CUDA_ERROR_ILLEGAL_STATE;
        if (stream->mode != 2 && stream->thread != std::this_thread::get_id())
            return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
        bool sound = stream->capture == Capture::active && state().lost == CUDA_SUCCESS;
        stream->capture = Capture::none;
        if (!sound) {
            stream->graph.reset();
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        *graph = add(state().graphs, std::move(stream->graph));
        return CUDA_SUCCESS;
    });
}

API cuStreamIsCapturing(void *handle, int *status) {
    return call(__func__, CONTEXT, [&] {
        Stream *stream = stream_of(handle);
        if (!stream) return bad_handle("a stream");
        *status = int(stream->capture);
        return CUDA_SUCCESS;
    });
}

API cuStreamWaitEvent(void *handle, void *event, unsigned) {
    return call(__func__, CONTEXT, [&] {
        Stream *stream = stream_of(handle);
        Event *e = look_up(state().events, event);
        if (!stream || !e) return bad_handle("a stream or event");
        return enqueue(*stream, {Work::event, [=] {
                                     Event *still = look_up(state().events, event);
                                     if (still && !still->reached && still->stream) finish(*still->stream);
                                     return CUDA_SUCCESS;
                                 }});
    });
}

// --- graphs

API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    return call(__func__, CONTEXT, [&] {
        Graph *g = look_up(state().graphs, graph);
        if (!g) return bad_handle("a graph");
        *executable = add(state().executables, std::make_unique<Graph>(*g));
        return CUDA_SUCCESS;
    });
}

API cuGraphInstantiate_v2(void **executable, void *graph, void **, char *, size_t) {
    return cuGraphInstantiateWithFlags(executable, graph, 0);
}

API cuGraphLaunch(void *executable, void *handle) {
    return call(__func__, CONTEXT, [&] {
        State &s = state();
        Graph *g = look_up(s.executables, executable);
        Stream *stream = stream_of(handle);
        if (!g || !stream) return bad_handle("a graph or stream");
        if (stream->capture != Capture::none)
            return invalid("launching a graph while capturing is not emulated", CUDA_ERROR_NOT_SUPPORTED);
        s.counters.graph_launches++;
        for (const Work &work : g->work) {
            CUresult result = enqueue(*stream, work);
            if (result != CUDA_SUCCESS) return result;
        }
        return CUDA_SUCCESS;
    });
}

API cuGraphExecDestroy(void *executable) {
    return call(__func__, CONTEXT | FREES,
                [&] { return state().executables.erase(executable) ? CUDA_SUCCESS : bad_handle("a graph"); });
}

API cuGraphDestroy(void *graph) {
    return call(__func__, CONTEXT | FREES,
                [&] { return state().graphs.erase(graph) ? CUDA_SUCCESS : bad_handle("a graph"); });
}

// --- events

API cuEventCreate(void **event, unsigned) {
    return call(__func__, CONTEXT, [&] { return *event = add(state().events, std::make_unique<Event>()), CUDA_SUCCESS; });
}

API cuEventRecord(void *handle, void *stream_handle) {
    return call(__func__, CONTEXT, [&] {
        Event *event = look_up(state().events, handle);
        Stream *stream = stream_of(stream_handle);
        if (!event || !stream) return bad_handle("an event or stream");
        event->recorded = true;
        event->reached = false;
        event->stream = stream;
        return enqueue(*stream, {Work::event, [=] {
                                     Event *still = look_up(state().events, handle);
                                     if (still) still->reached = true, still->milliseconds = now();
                                     return CUDA_SUCCESS;
                                 }});
    });
}

API cuEventSynchronize(void *handle) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] {
        Event *event = look_up(state().events, handle);
        if (!event) return bad_handle("an event");
        return event->recorded && !event->reached && event->stream ? finish(*event->stream) : CUDA_SUCCESS;
    });
}

API cuEventQuery(void *handle) {
    return call(__func__, CONTEXT, [&] {
        Event *event = look_up(state().events, handle);
        if (!event) return bad_handle("an event");
        if (!event->recorded || event->reached) return CUDA_SUCCESS;
        return state().one_in(4) && event->stream ? finish(*event->stream) : CUDA_ERROR_NOT_READY;
    });
}

API cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    return call(__func__, CONTEXT, [&] {
        Event *from = look_up(state().events, start), *to = look_up(state().events, end);
        if (!from || !to || !from->recorded || !to->recorded) return bad_handle("a recorded event");
        if (!from->reached || !to->reached) return CUDA_ERROR_NOT_READY;
        *milliseconds = float(to->milliseconds - from->milliseconds);
        return CUDA_SUCCESS;
    });
}

API cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

API cuEventDestroy_v2(void *event) {
    return call(__func__, CONTEXT | FREES,
                [&] { return state().events.erase(event) ? CUDA_SUCCESS : bad_handle("an event"); });
}

// --- modules and kernels

API cuModuleLoadData(void **module, const void *image) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] { return load(module, image); });
}

API cuModuleLoadDataEx(void **module, const void *image, unsigned, int *, void **) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] { return load(module, image); });
}

API cuModuleUnload(void *module) {
    return call(__func__, CONTEXT | NO_CAPTURE | FREES, [&] {
        finish_all();
        return state().modules.erase(module) ? CUDA_SUCCESS : bad_handle("a module");
    });
}

API cuModuleGetFunction(void **function, void *module, const char *name) {
    return call(__func__, CONTEXT, [&] {
        Module *m = look_up(state().modules, module);
        return m ? get_function(function, *m, name) : bad_handle("a module");
    });
}

API cuFuncGetAttribute(int *value, int attribute, void *function) {
    return call(__func__, CONTEXT, [&] {
        Function *f = function_of(function);
        if (!f) return bad_handle("a function");
        if (attribute == 0) *value = int(f->kernel->bound);
        else if (attribute == 8) *value = int(std::max(f->most_dynamic, emulation::SHARED_LIMIT));
        else return invalid("function attribute " + std::to_string(attribute) + " is not emulated");
        return CUDA_SUCCESS;
    });
}

API cuFuncSetAttribute(void *function, int attribute, int value) {
    return call(__func__, CONTEXT, [&] {
        Function *f = function_of(function);
        if (!f) return bad_handle("a function");
        if (attribute == 9) return CUDA_SUCCESS; // a hint about the cache
        if (attribute != 8) return invalid("function attribute " + std::to_string(attribute) + " is not emulated");
        if (value < 0 || size_t(value) > most_shared())
            return invalid(std::string(f->kernel->name) + ": " + std::to_string(value) + " bytes of shared memory");
        f->most_dynamic = size_t(value);
        return CUDA_SUCCESS;
    });
}

API cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra) {
    return call(__func__, CONTEXT, [&] {
        return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream, parameters, extra);
    });
}

API cuLaunchKernelEx(const LaunchConfig *c, void *function, void **parameters, void **extra) {
    return call(__func__, CONTEXT, [&] {
        const Settings &s = state().settings;
        for (unsigned i = 0; i < c->n_attributes; i++) {
            const LaunchAttribute &a = c->attributes[i];
            constexpr int IGNORE = 0, PROGRAMMATIC = 6;
            if (a.id == IGNORE || (a.id == PROGRAMMATIC && !a.number)) continue;
            if (a.id != PROGRAMMATIC || s.capability < 90)
                return invalid("launch attribute " + std::to_string(a.id) + " is not there on sm_" +
                               std::to_string(s.capability), CUDA_ERROR_NOT_SUPPORTED);
            Stream *stream = stream_of(c->stream);
            if (stream && stream->capture == Capture::active && s.driver_version < 12030) {
                stream->capture = Capture::invalidated;
                return invalid("drivers before 12.3 cannot capture programmatic launches",
                               CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
            }
        }
        return launch(function, {c->grid_x, c->grid_y, c->grid_z}, {c->block_x, c->block_y, c->block_z}, c->shared,
                      c->stream, parameters, extra);
    });
}
