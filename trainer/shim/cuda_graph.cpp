// One training step as a CUDA graph, by torch's own class: it gives the graph a memory pool of its
// own and registers the device's random generator, which a raw stream capture would not.
#include "shim.h"

#include "guard.h"

void teeny_shim_free_message(char *message) {
    std::free(message);
}

#ifdef TEENY_CUDA

#include <ATen/Context.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <memory>

namespace {

using c10::cuda::CUDAStream;

class Graph : public at::cuda::CUDAGraph {
public:
    // Torch's capture_end gives up at its first error. Without this the allocator would go on
    // filling the pool of a graph that never came to be, and the generator would refuse random
    // numbers outside of a graph: the program could not go on without one.
    void abandon() noexcept {
        for (auto &state : captured_generator_states_) {
            state.first->capturing_ = false;
        }
        if (mempool_id_.first == 0 && mempool_id_.second == 0) {
            return;
        }
        teeny_shim_free_message(teeny::guarded([&] {
            c10::cuda::CUDACachingAllocator::endAllocateToPool(capture_dev_, mempool_id_);
            c10::cuda::CUDACachingAllocator::releasePool(capture_dev_, mempool_id_);
        }));
        teeny_shim_free_message(teeny::guarded([&] {
            at::getHostAllocator(at::kCUDA)->end_allocate_to_pool(mempool_id_);
            at::getHostAllocator(at::kCUDA)->release_pool(mempool_id_);
        }));
    }
};

} // namespace

struct teeny_graph {
    Graph graph;
    c10::DeviceIndex device;
};

struct teeny_recording {
    c10::DeviceIndex device;
    c10::DeviceIndex device_before;
    CUDAStream stream_before; // on `device`
    std::unique_ptr<teeny_graph> capturing;
};

namespace {

// Runs `work` while `device` is the current one.
template <typename Work>
void on_device(c10::DeviceIndex device, Work &&work) {
    const auto before = c10::cuda::current_device();
    c10::cuda::set_device(device);
    try {
        work();
    } catch (...) {
        c10::cuda::set_device(before);
        throw;
    }
    c10::cuda::set_device(before);
}

// Fails, with the reason that CUDA gives, unless there is such a device.
c10::DeviceIndex check_device(int device) {
    const int count = c10::cuda::device_count_ensure_non_zero();
    TORCH_CHECK(
        device >= 0 && device < count,
        "there is no CUDA device ", device, ": the last one is ", count - 1);
    return static_cast<c10::DeviceIndex>(device);
}

} // namespace

char *teeny_cuda_synchronize(int device) {
    return teeny::guarded(
        [&] { on_device(check_device(device), [] { c10::cuda::device_synchronize(); }); });
}

char *teeny_recording_open(int device, teeny_recording **out) {
    return teeny::guarded([&] {
        const auto index = check_device(device);
        at::globalContext().lazyInitDevice(at::kCUDA);
        const auto device_before = c10::cuda::current_device();
        c10::cuda::set_device(index);
        try {
            c10::cuda::device_synchronize();
            const auto stream_before = c10::cuda::getCurrentCUDAStream(index);
            const auto side = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index);
            auto recording = std::make_unique<teeny_recording>(
                teeny_recording{index, device_before, stream_before, nullptr});
            c10::cuda::setCurrentCUDAStream(side);
            *out = recording.release();
        } catch (...) {
            c10::cuda::set_device(device_before);
            throw;
        }
    });
}

char *teeny_recording_begin(teeny_recording *recording) {
    return teeny::guarded([&] {
        c10::cuda::device_synchronize();
        // As torch.cuda.graph does: what the warm-up left is of no use to the graph's own pool.
        c10::cuda::CUDACachingAllocator::emptyCache();
        auto graph = std::make_unique<teeny_graph>();
        graph->device = recording->device;
        // Thread-local: the thread that records is kept from what would wait for the device, and
        // others are not. Backward runs in a thread of autograd's, on the stream of forward and so
        // in the capture, and NCCL's watchdog asks for events all the time.
        recording->capturing = std::move(graph);
        recording->capturing->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    });
}

char *teeny_recording_end(teeny_recording *recording, teeny_graph **out) {
    auto graph = std::move(recording->capturing);
    char *message = teeny::guarded([&] {
        TORCH_CHECK(graph, "no capture has begun");
        graph->graph.capture_end();
        c10::cuda::device_synchronize();
    });
    if (message == nullptr) {
        *out = graph.release();
    } else if (graph) {
        graph->graph.abandon();
    }
    return message;
}

void teeny_recording_close(teeny_recording *recording) {
    if (recording->capturing) {
        teeny_graph *graph = nullptr;
        teeny_shim_free_message(teeny_recording_end(recording, &graph));
        if (graph != nullptr) {
            teeny_graph_free(graph);
        }
    }
    teeny_shim_free_message(teeny::guarded([&] { c10::cuda::device_synchronize(); }));
    teeny_shim_free_message(teeny::guarded([&] {
        c10::cuda::setCurrentCUDAStream(recording->stream_before);
        c10::cuda::set_device(recording->device_before);
    }));
    delete recording;
}

char *teeny_graph_replay(teeny_graph *graph) {
    return teeny::guarded([&] { graph->graph.replay(); });
}

void teeny_graph_free(teeny_graph *graph) {
    // A replay that is still running uses the memory that this gives back.
    teeny_shim_free_message(teeny_cuda_synchronize(graph->device));
    teeny_shim_free_message(teeny::guarded([&] { delete graph; }));
}

#else // without CUDA, or without its headers

char *teeny_cuda_synchronize(int) {
    return teeny::message(TEENY_WITHOUT_CUDA);
}

char *teeny_recording_open(int, teeny_recording **) {
    return teeny::message(TEENY_WITHOUT_CUDA);
}

char *teeny_recording_begin(teeny_recording *) {
    return teeny::message(TEENY_WITHOUT_CUDA);
}

char *teeny_recording_end(teeny_recording *, teeny_graph **) {
    return teeny::message(TEENY_WITHOUT_CUDA);
}

void teeny_recording_close(teeny_recording *) {}

char *teeny_graph_replay(teeny_graph *) {
    return teeny::message(TEENY_WITHOUT_CUDA);
}

void teeny_graph_free(teeny_graph *) {}

#endif
