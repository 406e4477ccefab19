// The driver's functions for devices, contexts, memory, and copies, with the driver's names and types: those
// that teeny calls, and their nearest neighbours. See driver.h for what is behind them.

#include "call.h"

using namespace driver;

namespace {

// --- copies and fills

// Rows on one side of a copy.
struct Side {
    bool device;
    unsigned char *first;
    size_t pitch;
};

struct Rows {
    size_t width, height;
    // Bytes from the first to the last.
    size_t reach(const Side &side) const { return height ? (height - 1) * side.pitch + width : 0; }
};

bool alive(const Side &side, size_t bytes) { return !side.device || find(state().device, side.first, bytes); }

CUresult copy_rows(Side to, Side from, Rows rows) {
    if (!alive(to, rows.reach(to)) || !alive(from, rows.reach(from)))
        return invalid("a copy to or from device memory that was freed before it ran", CUDA_ERROR_ILLEGAL_ADDRESS);
    for (size_t y = 0; y < rows.height; y++)
        memmove(to.first + y * to.pitch, from.first + y * from.pitch, rows.width);
    return CUDA_SUCCESS;
}

// On the stream, or at once and after the default stream's work if there is none.
CUresult copy(Side to, Side from, Rows rows, Stream *stream) {
    State &s = state();
    if (!rows.width || !rows.height) return CUDA_SUCCESS;
    if (!alive(to, rows.reach(to)) || !alive(from, rows.reach(from)))
        return invalid("a copy of " + std::to_string(rows.width) + " bytes in " + std::to_string(rows.height) +
                       " rows beyond device memory");
    if (!stream) {
        CUresult result = finish_blocking();
        if (result != CUDA_SUCCESS) return result;
        s.counters.copies++;
        return copy_rows(to, from, rows);
    }
    auto pageable = [&](const Side &side) { return !side.device && !find(s.pinned, side.first, rows.reach(side)); };
    bool capturing = stream->capture != Capture::none;
    if ((pageable(to) || pageable(from)) && capturing) {
        stream->capture = Capture::invalidated;
        return invalid("a captured copy of memory that is not pinned", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    if (pageable(from)) {
        // The driver reads it before it returns.
        auto staged = std::make_shared<std::vector<unsigned char>>(rows.width * rows.height);
        for (size_t y = 0; y < rows.height; y++)
            memcpy(staged->data() + y * rows.width, from.first + y * from.pitch, rows.width);
        return enqueue(*stream, {Work::copy, [=] {
                                     return copy_rows(to, {false, staged->data(), rows.width}, rows);
                                 }});
    }
    CUresult result = enqueue(*stream, {Work::copy, [=] { return copy_rows(to, from, rows); }});
    // The driver returns when it is there.
    return result == CUDA_SUCCESS && pageable(to) ? finish(*stream) : result;
}

CUresult copy_line(bool to_device, const void *to, bool from_device, const void *from, size_t bytes,
                   Stream *stream) {
    auto side = [&](bool device, const void *p) {
        return Side{device, static_cast<unsigned char *>(const_cast<void *>(p)), bytes};
    };
    return copy(side(to_device, to), side(from_device, from), {bytes, 1}, stream);
}

CUresult fill_now(unsigned char *to, unsigned char value, size_t bytes) {
    if (!find(state().device, to, bytes))
        return invalid("a fill of device memory that was freed before it ran", CUDA_ERROR_ILLEGAL_ADDRESS);
    memset(to, value, bytes);
    return CUDA_SUCCESS;
}

CUresult fill(CUdeviceptr address, unsigned char value, size_t bytes, Stream *stream) {
    unsigned char *to = on_device(address);
    if (!bytes) return CUDA_SUCCESS;
    if (!find(state().device, to, bytes))
        return invalid("a fill of " + std::to_string(bytes) + " bytes beyond device memory");
    Work work = {Work::fill, [=] { return fill_now(to, value, bytes); }};
    if (stream) return enqueue(*stream, std::move(work));
    // Even this form does not wait; but the default stream's work is done in order.
    return enqueue(state().default_stream, std::move(work));
}

struct Memcpy2D {
    size_t from_x, from_y;
    int from_type; // 1 host, 2 device
    const void *from_host;
    CUdeviceptr from_device;
    void *from_array;
    size_t from_pitch;
    size_t to_x, to_y;
    int to_type;
    void *to_host;
    CUdeviceptr to_device;
    void *to_array;
    size_t to_pitch;
    size_t width, height;
};

CUresult copy_2d(const Memcpy2D &c, Stream *stream) {
    auto side = [](int type, const void *host, CUdeviceptr device, size_t x, size_t y, size_t pitch) {
        auto *first = type == 1 ? static_cast<unsigned char *>(const_cast<void *>(host)) : on_device(device);
        return Side{type == 2, first + y * pitch + x, pitch};
    };
    if (c.from_type < 1 || c.from_type > 2 || c.to_type < 1 || c.to_type > 2)
        return invalid("a copy between other kinds of memory than host and device");
    if (c.from_x + c.width > c.from_pitch || c.to_x + c.width > c.to_pitch)
        return invalid("a copy of rows wider than their pitch");
    return copy(side(c.to_type, c.to_host, c.to_device, c.to_x, c.to_y, c.to_pitch),
                side(c.from_type, c.from_host, c.from_device, c.from_x, c.from_y, c.from_pitch), {c.width, c.height},
                stream);
}

Context *context_of(int device) {
    return device >= 0 && uint64_t(device) < std::min<uint64_t>(16, state().settings.devices)
               ? &state().contexts[device] : nullptr;
}

} // namespace

// --- devices and contexts

API cuInit(unsigned) {
    return call(__func__, NOTHING, [&] {
        if (!state().settings.devices) return CUDA_ERROR_NO_DEVICE;
        state().initialized = true;
        return CUDA_SUCCESS;
    });
}

API cuDriverGetVersion(int *version) {
    return call(__func__, NOTHING, [&] { return *version = int(state().settings.driver_version), CUDA_SUCCESS; });
}

API cuDeviceGetCount(int *count) {
    return call(__func__, INIT, [&] { return *count = int(state().settings.devices), CUDA_SUCCESS; });
}

API cuDeviceGet(int *device, int ordinal) {
    return call(__func__, INIT, [&] {
        if (!context_of(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
        *device = ordinal;
        return CUDA_SUCCESS;
    });
}

API cuDeviceGetName(char *name, int length, int device) {
    return call(__func__, INIT, [&] {
        if (!context_of(device)) return CUDA_ERROR_INVALID_DEVICE;
        snprintf(name, size_t(length), "Emulated GPU %d", device);
        return CUDA_SUCCESS;
    });
}

API cuDeviceGetAttribute(int *value, int attribute, int device) {
    return call(__func__, INIT, [&] {
        if (!context_of(device)) return CUDA_ERROR_INVALID_DEVICE;
        const Settings &s = state().settings;
        // By the numbers of CUdevice_attribute.
        const std::map<int, uint64_t> values = {
            {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},            // threads of a block, in all and by dimension
            {5, 0x7fffffff}, {6, 65535}, {7, 65535},             // blocks of a grid
            {8, emulation::SHARED_LIMIT}, {10, 32}, {12, 65536}, // shared memory, lanes of a warp, registers
            {16, s.processors}, {39, 2048}, {41, 1},             // unified addresses
            {75, s.capability / 10}, {76, s.capability % 10},
            {81, most_shared() + 1024}, {95, 1}, {97, most_shared()}, {115, 0}, // no memory pools
        };
        auto it = values.find(attribute);
        if (it == values.end()) return invalid("device attribute " + std::to_string(attribute) + " is not emulated");
        *value = int(it->second);
        return CUDA_SUCCESS;
    });
}

API cuDeviceTotalMem_v2(size_t *bytes, int device) {
    return call(__func__, INIT, [&] {
        if (!context_of(device)) return CUDA_ERROR_INVALID_DEVICE;
        *bytes = state().settings.total_memory;
        return CUDA_SUCCESS;
    });
}

API cuDevicePrimaryCtxRetain(void **context, int device) {
    return call(__func__, INIT, [&] {
        Context *c = context_of(device);
        if (!c) return CUDA_ERROR_INVALID_DEVICE;
        c->device = device;
        c->retained++;
        *context = c;
        return CUDA_SUCCESS;
    });
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    return call(__func__, INIT | FREES, [&] {
        Context *c = context_of(device);
        if (!c) return CUDA_ERROR_INVALID_DEVICE;
        if (!c->retained) return invalid("a context that is released too often", CUDA_ERROR_INVALID_CONTEXT);
        c->retained--;
        return CUDA_SUCCESS;
    });
}

API cuCtxSetCurrent(void *context) {
    return call(__func__, INIT, [&] {
        Context *c = static_cast<Context *>(context);
        if (c && (c < state().contexts || c >= state().contexts + 16 || !c->retained))
            return invalid("a context that does not exist", CUDA_ERROR_INVALID_CONTEXT);
        current = c;
        return CUDA_SUCCESS;
    });
}

API cuCtxGetCurrent(void **context) {
    return call(__func__, INIT, [&] { return *context = current, CUDA_SUCCESS; });
}

API cuCtxSynchronize() {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] { return finish_all(); });
}

// --- memory

API cuMemGetInfo_v2(size_t *available, size_t *total) {
    return call(__func__, CONTEXT, [&] {
        *total = state().settings.total_memory;
        *available = *total - std::min(*total, state().used);
        return CUDA_SUCCESS;
    });
}

API cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] {
        State &s = state();
        if (!bytes) return invalid("an allocation of no bytes");
        if (s.used > s.settings.total_memory || bytes > s.settings.total_memory - s.used)
            return CUDA_ERROR_OUT_OF_MEMORY;
        auto memory = std::make_unique<Memory>(bytes);
        unsigned char *data = memory->data();
        s.device[reinterpret_cast<uintptr_t>(data)] = std::move(memory);
        s.used += bytes;
        s.counters.allocations++;
        *address = reinterpret_cast<CUdeviceptr>(data);
        return CUDA_SUCCESS;
    });
}

API cuMemFree_v2(CUdeviceptr address) {
    return call(__func__, CONTEXT | NO_CAPTURE | FREES, [&] {
        State &s = state();
        if (!address) return CUDA_SUCCESS;
        auto it = s.device.find(uintptr_t(address));
        if (it == s.device.end()) return invalid("freeing device memory that is not allocated");
        // The driver waits too.
        CUresult result = finish_all();
        s.used -= it->second->size();
        retire(std::move(it->second));
        s.device.erase(it);
        return result;
    });
}

API cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] {
        State &s = state();
        if (!bytes) return invalid("an allocation of no bytes");
        auto memory = std::make_unique<Memory>(bytes);
        *address = memory->data();
        s.pinned[reinterpret_cast<uintptr_t>(*address)] = std::move(memory);
        s.counters.pinned_allocations++;
        return CUDA_SUCCESS;
    });
}

API cuMemFreeHost(void *address) {
    return call(__func__, CONTEXT | NO_CAPTURE | FREES, [&] {
        State &s = state();
        auto it = s.pinned.find(reinterpret_cast<uintptr_t>(address));
        if (it == s.pinned.end()) return invalid("freeing pinned memory that is not allocated");
        CUresult result = finish_all();
        retire(std::move(it->second));
        s.pinned.erase(it);
        return result;
    });
}

API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] { return fill(to, value, bytes, nullptr); });
}

API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, void *stream) {
    return call(__func__, CONTEXT, [&] {
        Stream *s = stream_of(stream);
        return s ? fill(to, value, bytes, s) : bad_handle("a stream");
    });
}

API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    return call(__func__, CONTEXT | NO_CAPTURE,
                [&] { return copy_line(true, on_device(to), false, from, bytes, nullptr); });
}

API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    return call(__func__, CONTEXT | NO_CAPTURE,
                [&] { return copy_line(false, to, true, on_device(from), bytes, nullptr); });
}

API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return call(__func__, CONTEXT | NO_CAPTURE,
                [&] { return copy_line(true, on_device(to), true, on_device(from), bytes, nullptr); });
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
    return call(__func__, CONTEXT, [&] {
        Stream *s = stream_of(stream);
        return s ? copy_line(true, on_device(to), false, from, bytes, s) : bad_handle("a stream");
    });
}

API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
    return call(__func__, CONTEXT, [&] {
        Stream *s = stream_of(stream);
        return s ? copy_line(false, to, true, on_device(from), bytes, s) : bad_handle("a stream");
    });
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) {
    return call(__func__, CONTEXT, [&] {
        Stream *s = stream_of(stream);
        return s ? copy_line(true, on_device(to), true, on_device(from), bytes, s) : bad_handle("a stream");
    });
}

API cuMemcpy2D_v2(const Memcpy2D *c) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] { return copy_2d(*c, nullptr); });
}

API cuMemcpy2DUnaligned_v2(const Memcpy2D *c) {
    return call(__func__, CONTEXT | NO_CAPTURE, [&] { return copy_2d(*c, nullptr); });
}

API cuMemcpy2DAsync_v2(const Memcpy2D *c, void *stream) {
    return call(__func__, CONTEXT, [&] {
        Stream *s = stream_of(stream);
        return s ? copy_2d(*c, s) : bad_handle("a stream");
    });
}
