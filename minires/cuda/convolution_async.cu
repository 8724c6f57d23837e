// The convolution of convolution.cu in tf32, with copies that do not pass through registers (cp.async, sm_80 and later).
//
// A thread asks for 16 bytes to be copied from memory into shared memory, and goes on; before it needs them it waits for its
// copies (cp.async.wait_group). No registers hold what is on its way, so that with up to 64 columns two steps can be under
// way while one is multiplied. But what arrives has passed through no instruction: it is rounded to tf32 each time that a
// warp reads it, instead of once, when it is kept. With 128 columns this kernel then has 332 instructions a step on sm_90,
// where convolution.cu has 244.
//
// Without rounding it would have 235: the tensor core cuts the last 13 bits off. But cutting off makes all numbers smaller.
// On random numbers the error grows from 3.0e-4 to 7.7e-4 (L2, on the simulated GPU); where no term is negative, as behind a
// ReLU, from 2.7e-5 to 7.1e-4. Nobody has measured the speed of either, so `plan` does not choose this kernel:
// MINIRES_CUDA_CONV=async does.
//
// Launch shape, traffic and needs are those of convolution.cu.
#include "common.cuh"
#include "tensor_core.cuh"

#if TILE_N == 128  // steps in shared memory, of which one is multiplied; within 48 KB
#define STAGES 2
#else
#define STAGES 3
#endif

#ifndef CUDA_ON_CPU
// 16 bytes on their way from memory to shared memory; zeros instead where they are not inside: nothing is read there.
__device__ __forceinline__ void copy_async(unsigned* to, const void* from, bool inside) {
    unsigned address;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
// The end of a group of copies of this thread; and to wait until only its last `PENDING` groups are on their way.
__device__ __forceinline__ void commit_group() { asm volatile("cp.async.commit_group;"); }
template <int PENDING>
__device__ __forceinline__ void wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif

extern "C" __global__ void __launch_bounds__(256) convolution_async(
    const activation* __restrict__ x,       // [n, h, w, c], aligned to 16
    const activation* __restrict__ weight,  // [kh, kw, c, o], aligned to 16
    activation* __restrict__ y,             // [n, ho, wo, o], aligned to 16
    int accumulate,
    int n,
    int h,
    int w,
    int c,
    int o,
    int ho,
    int wo,
    int kh,
    int kw,
    int sh,
    int sw,
    int ph,
    int pw,
    int dh,
    int dw) {
    __shared__ __align__(16) unsigned A[STAGES][TILE_M][STEP + 4];
    __shared__ __align__(16) unsigned B[STAGES][STEP][TILE_N + 8];
    __shared__ Window windows[TILE_M];
    int t = threadIdx.x, m0 = blockIdx.x * TILE_M, o0 = blockIdx.y * TILE_N;
    if (t < TILE_M) windows[t] = window_of(m0 + t, m0 + t < n * ho * wo, h, w, c, ho, wo, sh, sw, ph, pw);

    // Each thread copies what it fetches in convolution.cu.
    int a_word = t % 4 * 4, b_word = t / (TILE_N / 4), b_column = t % (TILE_N / 4) * 4;
    int b_channel = b_word < STEP && o0 + b_column < o ? b_word : c;  // c: only zeros
    const activation *a_from = x + a_word, *b_from = weight + (size_t)b_word * o + o0 + b_column;
    int u = 0, v = 0, c0 = 0, steps = kh * kw * ((c + STEP - 1) / STEP);
    auto fetch = [&](int stage) {  // the next step
        int tap = (u * dh * w + v * dw) * c + c0, row = ((u * kw + v) * c + c0) * o;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Window window = windows[t / 4 + 64 * i];
            unsigned r = window.top + u * dh, s = window.left + v * dw;
            bool inside = r < h && s < w && c0 + a_word < c;
            copy_async(&A[stage][t / 4 + 64 * i][a_word], inside ? a_from + window.start + tap : x, inside);
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            bool inside = c0 + b_channel + i * B_ROWS < c;
            const activation* p = b_from + row + i * B_ROWS * o;
            if (b_word < STEP) copy_async(&B[stage][b_word + i * B_ROWS][b_column], inside ? p : weight, inside);
        }
        c0 += STEP;
        if (c0 >= c) c0 = 0, v++;
        if (v == kw) v = 0, u++;
    };

    float sums[BLOCKS_M][BLOCKS_N][4] = {};
    __syncthreads();  // the windows are there
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) fetch(step);
        commit_group();
    }
    int stage = 0;
    for (int step = 0; step < steps; step++) {
        wait_group<STAGES - 2>();  // for this thread's part of this step
        __syncthreads();           // for the others' parts; and all are done with the stage that is now overwritten
        if (step + STAGES - 1 < steps) fetch(stage == 0 ? STAGES - 1 : stage - 1);
        commit_group();
        multiply_tiles(sums, [&](int r, int k) { return round_to_tf32(A[stage][r][k]); },
                       [&](int k, int s) { return round_to_tf32(B[stage][k][s]); });
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }

    write_images(sums, y, m0, o0, n * ho * wo, o, accumulate);
}
