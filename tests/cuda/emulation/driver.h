// The state of the emulated driver: settings, what is alive, and what waits to run.
//
// | file | holds |
// |---|---|
// | driver.h, state.cpp | devices, memory, streams, graphs; how queued work runs |
// | call.h | what every function of the driver begins with |
// | memory.cpp, work.cpp | the functions of the CUDA driver, under their own names |
// | control.cpp | what tests set and read |
//
// Work on a stream runs at a random later time, at the latest when somebody waits for it. So host code that
// forgets to wait, or that writes to a buffer which a copy has yet to read, goes wrong for most seeds.
//
// What it cannot see: device addresses inside the arguments of kernels are not checked, so a wild one may
// end the process (writes next to an allocation and to freed memory are found); kernels of different streams
// never run at the same time; nothing here is slow or fast as on a device.
#pragma once

#include "ptx.h"
#include "registry.h"

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

typedef int CUresult;
typedef unsigned long long CUdeviceptr;

constexpr CUresult
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_INVALID_PTX = 218,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_UNKNOWN = 999;

namespace driver {

using emulation::Memory;

// What tests may set; the environment gives the first values.
struct Settings {
    uint64_t devices, capability, driver_version, total_memory, processors, seed;
    static Settings from_environment();
};

// The n-th call from now of a function fails.
struct Fault {
    std::string function; // "*" is any
    uint64_t calls;       // until it fails; 0 when it has
    CUresult error;
    bool lasting; // the device is lost: every later call of any function fails too
};

// Something that a stream does. It is given to several streams if it is part of a graph.
struct Work {
    enum Kind { kernel, copy, fill, event } kind;
    std::function<CUresult()> run;
};

struct Graph {
    std::vector<Work> work;
};

enum class Capture { none, active, invalidated };

struct Stream {
    bool blocking = true; // the default stream waits for it
    std::deque<Work> queue;
    Capture capture = Capture::none;
    int mode = 0; // of the capture: 0 global, 1 this thread, 2 relaxed
    std::thread::id thread; // which began the capture
    std::unique_ptr<Graph> graph;
};

struct Event {
    Stream *stream = nullptr; // that will reach it
    bool recorded = false, reached = false;
    double milliseconds = 0;
};

struct Module;

struct Function {
    Module *module;
    const emulation::Kernel *kernel;
    size_t most_dynamic = 0; // raised by cuFuncSetAttribute
};

struct Module {
    ptx::Module text;
    std::list<Function> functions;
};

struct Context {
    int device = 0, retained = 0;
};

struct Counters {
    uint64_t allocations = 0, pinned_allocations = 0, graph_launches = 0, copies = 0, fills = 0, executed = 0;
    std::map<std::string, uint64_t> calls, launches; // by function, by kernel
};

struct State {
    std::recursive_mutex lock;
    Settings settings = Settings::from_environment();
    std::vector<Fault> faults;
    CUresult lost = CUDA_SUCCESS; // the error of a device that no longer works
    Counters counters;
    uint64_t random = 0;
    bool initialized = false;

    Context contexts[16];
    std::map<uintptr_t, std::unique_ptr<Memory>> device, pinned;
    std::deque<std::unique_ptr<Memory>> freed; // still watched for a while
    size_t used = 0, freed_bytes = 0;
    Stream default_stream;
    std::map<void *, std::unique_ptr<Stream>> streams;
    std::map<void *, std::unique_ptr<Event>> events;
    std::map<void *, std::unique_ptr<Module>> modules;
    std::map<void *, std::unique_ptr<Graph>> graphs, executables;

    State();
    void reset();
    uint64_t next_random();
    bool one_in(unsigned n) { return next_random() % n == 0; }
};

State &state();

// A line on stderr, for what a test should not cause without knowing.
void complain(const std::string &text);

// Live memory that holds all the bytes, or null.
Memory *find(std::map<uintptr_t, std::unique_ptr<Memory>> &all, const void *address, size_t size);

// Now, later, or as part of a graph, whatever the stream does.
CUresult enqueue(Stream &stream, Work work);
// Runs all that waits.
CUresult finish(Stream &stream);
CUresult finish_all();
// Before an operation on the default stream: what it waits for.
CUresult finish_blocking();
// Frees device memory, but watches it for a while.
void retire(std::unique_ptr<Memory> memory);
// Whether this call is forbidden because of a capture, which is then invalid.
bool breaks_capture();

} // namespace driver
