// Convolution without columns: an implicit matrix product, in fp32, tf32 or bf16.
//
//     y[n, i, j, o] = sum over u, v, c of x[n, i*sh + u*dh - ph, j*sw + v*dw - pw, c] * weight[u, v, c, o]
//
// It is im2col's product, columns (M, K) @ weight (K, O) with M = n*ho*wo and K = kh*kw*c, but the columns exist only in
// shared memory, STEP words of k at a time: what im2col writes to memory and reads back, nine times the image for 3x3, is not
// moved at all. The same kernel carries gradients back where the stride is 1, with the weight turned (elementwise.cu).
//
// Launch shape: block of 256 threads, grid (M / 128, O / TILE_N): one tile of 128 positions x TILE_N outputs each. Traffic:
// x about once for each column of tiles (the taps find it in the caches), the weight once for each row of tiles, from L2.
// While a step is multiplied, the next one is on its way from memory into registers, where nobody looks at it until then:
// two buffers, one barrier a step.
//
// Needs c to be a multiple of 4 (bf16: 8) and o a multiple of 4.
#include "common.cuh"
#include "tensor_core.cuh"

#define B_LOADS ((STEP * TILE_N / 4 + THREADS - 1) / THREADS)  // 16-byte pieces of weight that a thread fetches a step

extern "C" __global__ void __launch_bounds__(256) convolution(
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
    // Rows of A are padded by 4 words and rows of B by 8, so that the lanes of a warp read from 32 different banks.
    __shared__ __align__(16) unsigned A[2][TILE_M][STEP + 4];
    __shared__ __align__(16) unsigned B[2][STEP][TILE_N + 8];
    int t = threadIdx.x, m0 = blockIdx.x * TILE_M, o0 = blockIdx.y * TILE_N;

    // This thread fetches, of A, words 4 * quad .. 4 * quad + 3 of two positions.
    int quad = t % 4, row[2] = {t / 4, t / 4 + 64};
    int top[2], left[2], image[2];
    for (int k = 0; k < 2; k++) {
        Position p = position_of(m0 + row[k], ho, wo);
        top[k] = p.i * sh - ph, left[k] = p.j * sw - pw;
        image[k] = p.image < n ? p.image : -1;
    }

    uint4 a_raw[2], b_raw[B_LOADS];
    auto fetch = [&](int u, int v, int c0) {
        int channel = c0 + quad * 4 * PER_WORD;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int r = top[k] + u * dh, s = left[k] + v * dw;
            bool inside = image[k] >= 0 && r >= 0 && r < h && s >= 0 && s < w && channel < c;
            const activation* p = x + (((size_t)image[k] * h + r) * w + s) * c + channel;
            a_raw[k] = fetch_along_k(inside ? p : (const activation*)nullptr);
        }
#pragma unroll
        for (int k = 0; k < B_LOADS; k++) {
            int piece = t + k * THREADS, word = piece / (TILE_N / 4), column = o0 + piece % (TILE_N / 4) * 4;
            int channel = c0 + word * PER_WORD;
            const activation* p = weight + ((size_t)(u * kw + v) * c + channel) * o + column;
            bool inside = word < STEP && column < o;
            b_raw[k] = fetch_across_k(inside && channel < c ? p : (const activation*)nullptr,
                                      inside && channel + 1 < c ? p + o : (const activation*)nullptr);
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int k = 0; k < 2; k++) *(uint4*)&A[buffer][row[k]][4 * quad] = words_along_k(a_raw[k]);
#pragma unroll
        for (int k = 0; k < B_LOADS; k++) {
            int piece = t + k * THREADS, word = piece / (TILE_N / 4);
            if (word < STEP) *(uint4*)&B[buffer][word][piece % (TILE_N / 4) * 4] = words_across_k(b_raw[k]);
        }
    };

    float sums[BLOCKS_M][BLOCKS_N][4] = {};
    int u = 0, v = 0, c0 = 0, steps = kh * kw * ((c + STEP * PER_WORD - 1) / (STEP * PER_WORD));
    fetch(u, v, c0);
    keep(0);
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            c0 += STEP * PER_WORD;
            if (c0 >= c) c0 = 0, v++;
            if (v == kw) v = 0, u++;
            fetch(u, v, c0);
        }
        int buffer = step % 2;
        multiply_tiles(sums, [&](int r, int k) { return A[buffer][r][k]; }, [&](int k, int s) { return B[buffer][k][s]; });
        if (step + 1 < steps) keep(1 - buffer);
        __syncthreads();
    }

    write_tiles(sums, [&](int r, int s, float first, float second) {
        int m = m0 + r, column = o0 + s;
        if (m >= n * ho * wo || column >= o) return;
        activation* p = y + (size_t)m * o + column;
        if (accumulate) first += to_float(p[0]), second += to_float(p[1]);
        round_to(first, p[0]), round_to(second, p[1]);
    });
}
