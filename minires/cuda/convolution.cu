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
    __shared__ Window windows[TILE_M];
    int t = threadIdx.x, m0 = blockIdx.x * TILE_M, o0 = blockIdx.y * TILE_N;
    if (t < TILE_M) windows[t] = window_of(m0 + t, m0 + t < n * ho * wo, h, w, c, ho, wo, sh, sw, ph, pw);

    // In each step this thread fetches of A four words of the positions t / 4 and t / 4 + 64; of B, four columns of the rows
    // b_word, b_word + B_ROWS, ... An address is a pointer of the thread's own, which stays, plus an offset that is the same
    // for all threads.
    int a_word = t % 4 * 4, a_channel = a_word * PER_WORD;
    int b_word = t / (TILE_N / 4), b_column = t % (TILE_N / 4) * 4;
    int b_channel = b_word < STEP && o0 + b_column < o ? b_word * PER_WORD : c;  // c: it fetches nothing
    const activation *a_from = x + a_channel, *b_from = weight + (size_t)b_word * PER_WORD * o + o0 + b_column;

    uint4 a_raw[2], b_raw[B_LOADS];
    auto fetch = [&](int u, int v, int c0) {
        int tap = (u * dh * w + v * dw) * c + c0;  // an image has less than 2^31 elements
        int row = ((u * kw + v) * c + c0) * o;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Window window = windows[t / 4 + 64 * i];
            unsigned r = window.top + u * dh, s = window.left + v * dw;  // what is negative becomes large
            a_raw[i] = fetch_along_k(a_from + window.start + tap, r < h && s < w && c0 + a_channel < c);
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            bool inside = c0 + b_channel + i * B_ROWS * PER_WORD < c;
            const activation* p = b_from + row + i * B_ROWS * PER_WORD * o;
            b_raw[i] = fetch_across_k(p, inside, p + o, inside);
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < 2; i++) *(uint4*)&A[buffer][t / 4 + 64 * i][a_word] = words_along_k(a_raw[i]);
#pragma unroll
        for (int i = 0; i < B_LOADS; i++)
            if (b_word < STEP) *(uint4*)&B[buffer][b_word + i * B_ROWS][b_column] = words_across_k(b_raw[i]);
    };

    float sums[BLOCKS_M][BLOCKS_N][4] = {};
    int u = 0, v = 0, c0 = 0, steps = kh * kw * ((c + STEP * PER_WORD - 1) / (STEP * PER_WORD));
    __syncthreads();  // the windows are there
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

    write_images(sums, y, m0, o0, n * ho * wo, o, accumulate);
}
