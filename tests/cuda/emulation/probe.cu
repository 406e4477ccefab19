// Kernels that test the emulation itself, one feature each. emulation.rs plants faults in them.
#include "device.cuh"

// The sum over all threads of a block of 256, in every thread.
DEVICE float block_sum(float v) {
    SHARED(float, sums, 8);
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    block_sync(); // the sums are there
    float sum = 0;
    for (int warp = 0; warp < 8; warp++) sum += sums[warp];
    block_sync(); // the sums are read, the next call may write them
    return sum;
}

// out (gridDim.x, 256) = x, less its mean over the block, divided by its standard deviation, three times.
KERNEL(256) normalize(float *out, const float *x) {
    wait_for_previous();
    release_next();
    u32 i = blockIdx.x * 256 + threadIdx.x;
    float v = x[i];
    for (int round = 0; round < 3; round++) {
        v -= block_sum(v) / 256;
        v /= sqrtf(block_sum(v * v) / 256);
    }
    out[i] = v;
}

// Every warp turns its 32 numbers around, through shared memory that the launch gives.
KERNEL(64) turn_around(u32 *out, const u32 *x) {
    wait_for_previous();
    DYNAMIC_SHARED(u32, buffer);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    buffer[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    warp_sync();
    out[blockIdx.x * 64 + threadIdx.x] = buffer[warp * 32 + 31 - lane];
}

// *out = the sum of 1 + block over all blocks, made by the last one to arrive. The counter is zero again.
KERNEL(32) sum_of_blocks(u32 *out, u32 *parts, u32 *arrived) {
    wait_for_previous();
    if (threadIdx.x == 0) parts[blockIdx.x] = blockIdx.x + 1;
    thread_fence();
    SHARED(u32, before, 1);
    if (threadIdx.x == 0) before[0] = atomic_increment(arrived);
    warp_sync();
    if (before[0] + 1 != gridDim.x) return;
    if (threadIdx.x == 0) {
        u32 sum = 0;
        for (u32 block = 0; block < gridDim.x; block++) sum += parts[block];
        *out = sum;
        *arrived = 0;
    }
}

// Which thread came when: (gridDim.x * blockDim.x).
KERNEL(128) order(u32 *out, u32 *counter) {
    wait_for_previous();
    out[atomic_increment(counter)] = blockIdx.x * blockDim.x + threadIdx.x;
}

// out (5, 32): what a warp's lanes tell each other.
KERNEL(32) exchange(u32 *out) {
    wait_for_previous();
    u32 lane = threadIdx.x;
    out[lane] = shuffle_xor(lane * 3, 5);
    out[32 + lane] = shuffle(lane * 3, 7);
    out[64 + lane] = vote_ballot(lane % 3 == 0);
    out[96 + lane] = vote_any(lane == 40);
    out[128 + lane] = high_product(lane << 28, 48);
}

#if __CUDA_ARCH__ >= 800
// d (16, 8) += a (16, 16) b (16, 8), row by row.
KERNEL(32) product(float *d, const u16 *a, const u16 *b) {
    wait_for_previous();
    u32 group = threadIdx.x / 4, t = threadIdx.x % 4;
    float sums[4];
    u32 left[4], right[2];
    for (u32 i = 0; i < 4; i++) sums[i] = d[(group + i / 2 * 8) * 8 + 2 * t + i % 2];
    for (u32 i = 0; i < 4; i++) {
        const u16 *pair = a + (group + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
        left[i] = pair[0] | (u32)pair[1] << 16;
    }
    for (u32 i = 0; i < 2; i++) {
        const u16 *pair = b + (2 * t + i * 8) * 8 + group;
        right[i] = pair[0] | (u32)pair[8] << 16;
    }
    mma_bf16(sums, left, right);
    for (u32 i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}
#endif
