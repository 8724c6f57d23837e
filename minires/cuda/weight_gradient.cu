// The weight's gradient of a convolution without columns: an implicit matrix product, split along the sum.
//
//     dweight[u, v, c, o] = sum over m = (n, i, j) of x[n, i*sh + u*dh - ph, j*sw + v*dw - pw, c] * dy[m, o]
//
// That is columnsᵀ (K, M) @ dy (M, O), K = kh*kw*c: a small result, 576 x 64 for 64 channels, of sums that are long, 524,288
// positions for a batch of 512 at 32x32. A tile for each block would leave most of the GPU idle, so the positions are cut
// into parts; each block sums up one part of one tile, and `sum_parts` adds the parts, in order: no atomics.
//
// Launch shape: block of 256 threads, grid (K / 128, O / TILE_N, parts). Traffic: x for each of the kh*kw taps and dy for each
// row of tiles, mostly out of the caches; partials written and read once.
//
// Needs c and o to be multiples of 4.
#include "common.cuh"
#include "tensor_core.cuh"

#define POSITIONS (STEP * PER_WORD)  // that a step takes

extern "C" __global__ void __launch_bounds__(256) weight_gradient(
    const activation* __restrict__ x,   // [n, h, w, c], aligned to 16
    const activation* __restrict__ dy,  // [n, ho, wo, o], aligned to 16
    float* __restrict__ partials,       // [parts, kh, kw, c, o], aligned to 8
    int parts,
    int positions_per_part,
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
    // Both factors lie across k here (neighbours in memory are neighbours along the tile), so both have k as their rows.
    __shared__ __align__(16) unsigned A[2][STEP][TILE_M + 8];
    __shared__ __align__(16) unsigned B[2][STEP][TILE_N + 8];
    __shared__ Window windows[2][POSITIONS];
    int t = threadIdx.x, k0 = blockIdx.x * TILE_M, o0 = blockIdx.y * TILE_N;
    int begin = blockIdx.z * positions_per_part, end = min(n * ho * wo, begin + positions_per_part);

    // This thread always fetches the same four rows (u, v, channel ...) of A, for words t / 32 and t / 32 + 8.
    int k = k0 + t % 32 * 4, channel = k % c, v = k / c % kw, u = k / c / kw;
    int down = k < kh * kw * c ? u * dh : h + ph, right = v * dw;  // from the window's start; of no row: below the image
    const activation* tap = x + ((long long)u * dh * w + right) * c + channel;

    // And of B four columns of the rows b_word, b_word + B_ROWS, ...
    int b_word = t / (TILE_N / 4), b_column = t % (TILE_N / 4) * 4;
    int b_first = b_word < STEP && o0 + b_column < o ? begin + b_word * PER_WORD : end;  // end: it fetches nothing
    const activation* b_from = dy + (size_t)(begin + b_word * PER_WORD) * o + o0 + b_column;

    auto locate = [&](int step) {  // two divisions a position, once for the block instead of once for each thread
        if (t >= POSITIONS) return;
        int m = begin + step * POSITIONS + t;
        windows[step % 2][t] = window_of(m, m < end, h, w, c, ho, wo, sh, sw, ph, pw);
    };
    auto inside = [&](const Window& window) {
        unsigned r = window.top + down, s = window.left + right;  // what is negative becomes large
        return r < h && s < w;
    };
    uint4 a_raw[2], b_raw[B_LOADS];
    auto fetch = [&](int step) {
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            int m = b_first + step * POSITIONS + i * B_ROWS * PER_WORD;
            const activation* p = b_from + (size_t)(step * POSITIONS + i * B_ROWS * PER_WORD) * o;
            b_raw[i] = fetch_across_k(p, m < end, p + o, m + 1 < end);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const Window* window = &windows[step % 2][(t / 32 + 8 * i) * PER_WORD];
            Window even = window[0], odd = window[PER_WORD - 1];
            a_raw[i] = fetch_across_k(tap + even.start, inside(even), tap + odd.start, inside(odd));
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < 2; i++) *(uint4*)&A[buffer][t / 32 + 8 * i][t % 32 * 4] = words_across_k(a_raw[i]);
#pragma unroll
        for (int i = 0; i < B_LOADS; i++)
            if (b_word < STEP) *(uint4*)&B[buffer][b_word + i * B_ROWS][b_column] = words_across_k(b_raw[i]);
    };

    float sums[BLOCKS_M][BLOCKS_N][4] = {};
    int steps = (end - begin + POSITIONS - 1) / POSITIONS;
    locate(0);
    locate(1);
    __syncthreads();
    fetch(0);
    keep(0);
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) fetch(step + 1);
        int buffer = step % 2;
        multiply_tiles(sums, [&](int r, int k) { return A[buffer][k][r]; }, [&](int k, int s) { return B[buffer][k][s]; });
        if (step + 1 < steps) keep(1 - buffer);
        if (step + 2 < steps) locate(step + 2);  // into the half that fetch(step) has read, a barrier ago
        __syncthreads();
    }

    float* out = partials + (size_t)blockIdx.z * kh * kw * c * o;
    write_tiles(sums, [&](int r, int s, float first, float second) {
        int row = k0 + r, column = o0 + s;
        if (row >= kh * kw * c || column >= o) return;
        store_pair(out + (size_t)row * o + column, first, second);
    });
}
