// Sums over the rows of a (rows, channels) matrix, rows = N * H * W, in two launches.
//
//     sum = x.sum(axis=0)
//
// The rows are dealt out to as many parts as fill the GPU: with 16 rows of threads in a block, part p has the rows 16p to
// 16p + 15, then those 16 * parts further on, and so forth. Each block sums its part and writes the partial result; a
// second, small kernel adds the parts up in a fixed order. There are no atomics, so the same input gives the same bits.
//
// Launch shape of the kernel that reads the matrix: a block is (bx, 256 / bx) threads. Thread (tx, ty) stays with its
// VECTOR channels and walks down the rows; neighbouring threads read neighbouring addresses. The grid is
// (channels / (bx * VECTOR), parts). Traffic: the matrix once.
#include "common.cuh"

// partials[part, c] = sum of this part's rows. `sum_parts` adds the parts up.
extern "C" __global__ void __launch_bounds__(256) column_sum_partials(
    const activation* __restrict__ x,  // [rows, channels], aligned
    float* __restrict__ partials,      // [parts, channels]
    int rows,
    int channels,
    int parts) {
    __shared__ float sums[256][VECTOR];
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    float sum[VECTOR] = {0.0f};
    if (c < channels)
        for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += parts * blockDim.y) {
            Vector value = load(x + (size_t)row * channels + c);
            for (int i = 0; i < VECTOR; i++) sum[i] += value.v[i];
        }
    for (int i = 0; i < VECTOR; i++) sums[thread][i] = sum[i];
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half)
            for (int i = 0; i < VECTOR; i++) sums[thread][i] += sums[thread + half * blockDim.x][i];
        __syncthreads();
    }
    if (threadIdx.y == 0 && c < channels)
        for (int i = 0; i < VECTOR; i++) partials[(size_t)blockIdx.y * channels + c + i] = sums[thread][i];
}

// out = partials.sum(axis=0), part by part in order. Grid (size / 256), block 256.
extern "C" __global__ void sum_parts(
    const float* __restrict__ partials,  // [parts, size]
    float* __restrict__ out,             // [size]
    int parts,
    int size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    float sum = 0.0f;
    for (int part = 0; part < parts; part++) sum += partials[(size_t)part * size + i];
    out[i] = sum;
}
