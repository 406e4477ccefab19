// The C interface between the trainer and the parts of libtorch that tch does not bind.
//
// Every function that can fail returns NULL, or a message that `teeny_shim_free_message` frees. No
// C++ exception leaves them. Tensors are `at::Tensor *`: what tch calls `C_tensor`.
// `src/cuda_graph.rs` and `src/distributed.rs` repeat these declarations in Rust.
#pragma once

#include <cstdint>

extern "C" {

void teeny_shim_free_message(char *message);

// cuda_graph.cpp ------------------------------------------------------------------------------

// A capture that is being prepared or made. It belongs to the thread that opened it.
struct teeny_recording;
// A graph that can be replayed.
struct teeny_graph;

char *teeny_cuda_synchronize(int device);
// Waits for the device and makes a stream from torch's pool the current one of this thread.
char *teeny_recording_open(int device, teeny_recording **out);
// Waits for what ran on the stream so far, then begins to capture it.
char *teeny_recording_begin(teeny_recording *recording);
// Ends the capture; `out` is the graph.
char *teeny_recording_end(teeny_recording *recording, teeny_graph **out);
// Gives this thread the stream back that it had. Ends a capture that is still going on.
void teeny_recording_close(teeny_recording *recording);
char *teeny_graph_replay(teeny_graph *graph);
void teeny_graph_free(teeny_graph *graph);

// distributed.cpp -----------------------------------------------------------------------------

// A process group with the store through which its processes found each other.
struct teeny_group;

struct teeny_group_options {
    const char *host;     // where the store is
    std::uint16_t port;
    const char *prefix;   // of the names of this group in the store
    std::int32_t serve;   // whether this process holds the store
    std::int32_t rank;
    std::int32_t size;
    std::int32_t device;  // index of the CUDA device, or -1: NCCL, or Gloo
    std::int64_t timeout_ms;
};

char *teeny_group_connect(const teeny_group_options *options, teeny_group **out);
// The sum of all processes' tensors, in each of them.
char *teeny_group_all_reduce(teeny_group *group, void *tensor);
char *teeny_group_broadcast(teeny_group *group, void *tensor, std::int32_t root);
char *teeny_group_barrier(teeny_group *group);
void teeny_group_free(teeny_group *group);

}
