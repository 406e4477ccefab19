// Activation as a pass of its own, after products of many rows; and the soft cap of logits after any: in
// linear.cu it would cost every other product registers.
#include "common.cuh"

struct ActivateArgs {
    float *up;         // (rows, ld), becomes act(up), or act(gate) * up
    const float *gate; // (rows, ld) or null
    u32 ld, width, rows;
    u32 activation;
    float cap;         // of ACT_CAP
};

KERNEL(256) activate(ActivateArgs a) {
    wait_for_previous();
    release_next();
    u64 row = (u64)blockIdx.y * a.ld;
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= a.width) return;
    float up = a.up[row + i];
    if (a.activation == ACT_CAP) {
        a.up[row + i] = a.cap * tanh_f32(up / a.cap);
        return;
    }
    a.up[row + i] = a.gate ? activated(a.gate[row + i], a.activation) * up
                           : activated(up, a.activation);
}
