// Pooling of (n, h, w, c) images over kh x kw windows, and the mean over all positions.
//
//     y[n, i, j, c] = max over (u, v) of x[n, i*sh + u - ph, j*sw + v - pw, c]       (avg: the sum / (kh * kw))
//
// Backward is a gather: each input pixel looks at the windows that contain it and adds up what they hand to it. Scattering
// from the windows instead would need atomics wherever they overlap, and give other bits each time.
//
// Launch shape: a thread stays with VECTOR channels and walks over the positions (see batch_norm.cu). Traffic: max forward
// x and y once; max backward dx once, and of x, y, dy what the caches do not keep of the kh * kw uses.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) max_pool2d(
    const activation* __restrict__ x,  // [n, h, w, c], aligned
    activation* __restrict__ y,        // [n, ho, wo, c], aligned
    int n,
    int h,
    int w,
    int c,
    int ho,
    int wo,
    int kh,
    int kw,
    int sh,
    int sw,
    int ph,
    int pw) {
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= c) return;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < n * ho * wo; row += gridDim.y * blockDim.y) {
        auto [image, i, j] = position_of(row, ho, wo);
        Vector best;
        for (int k = 0; k < VECTOR; k++) best.v[k] = __uint_as_float(0xff800000u);  // minus infinity
        for (int u = max(0, ph - i * sh); u < kh && i * sh + u - ph < h; u++)
            for (int v = max(0, pw - j * sw); v < kw && j * sw + v - pw < w; v++) {
                Vector value = load(x + ((size_t)(image * h + i * sh + u - ph) * w + j * sw + v - pw) * c + channel);
                for (int k = 0; k < VECTOR; k++)
                    if (value.v[k] > best.v[k] || value.v[k] != value.v[k]) best.v[k] = value.v[k];
            }
        store(y + (size_t)row * c + channel, best);
    }
}

// A window hands dy to its first element, row by row, that equals its maximum.
extern "C" __global__ void __launch_bounds__(256, 4) max_pool2d_backward(
    const activation* __restrict__ dy,  // [n, ho, wo, c], aligned
    const activation* __restrict__ x,   // [n, h, w, c], aligned
    const activation* __restrict__ y,   // [n, ho, wo, c], aligned
    activation* __restrict__ dx,        // [n, h, w, c], aligned
    int n,
    int h,
    int w,
    int c,
    int ho,
    int wo,
    int kh,
    int kw,
    int sh,
    int sw,
    int ph,
    int pw) {
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= c) return;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < n * h * w; row += gridDim.y * blockDim.y) {
        auto [image, r, s] = position_of(row, h, w);
        Vector here = load(x + (size_t)row * c + channel), sum = {};
        // windows (i, j) with i*sh - ph <= r < i*sh - ph + kh, likewise for columns
        for (int i = max(0, (r + ph - kh + sh) / sh); i < ho && i * sh - ph <= r; i++)
            for (int j = max(0, (s + pw - kw + sw) / sw); j < wo && j * sw - pw <= s; j++) {
                size_t at = ((size_t)(image * ho + i) * wo + j) * c + channel;
                Vector best = load(y + at), gradient = load(dy + at);
                bool mine[VECTOR];
                for (int k = 0; k < VECTOR; k++) mine[k] = here.v[k] == best.v[k];
                // an earlier element of the window that equals the maximum takes it all
                for (int q = max(0, i * sh - ph); q <= r; q++)
                    for (int t = max(0, j * sw - pw); t < min(w, j * sw - pw + kw) && (q < r || t < s); t++) {
                        Vector earlier = load(x + ((size_t)(image * h + q) * w + t) * c + channel);
                        for (int k = 0; k < VECTOR; k++) mine[k] = mine[k] && earlier.v[k] != best.v[k];
                    }
                for (int k = 0; k < VECTOR; k++) sum.v[k] += mine[k] ? gradient.v[k] : 0.0f;
            }
        store(dx + (size_t)row * c + channel, sum);
    }
}

extern "C" __global__ void __launch_bounds__(256) avg_pool2d(
    const activation* __restrict__ x,  // [n, h, w, c], aligned
    activation* __restrict__ y,        // [n, ho, wo, c], aligned
    int n,
    int h,
    int w,
    int c,
    int ho,
    int wo,
    int kh,
    int kw,
    int sh,
    int sw,
    int ph,
    int pw) {
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= c) return;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < n * ho * wo; row += gridDim.y * blockDim.y) {
        auto [image, i, j] = position_of(row, ho, wo);
        Vector sum = {};
        for (int u = max(0, ph - i * sh); u < kh && i * sh + u - ph < h; u++)
            for (int v = max(0, pw - j * sw); v < kw && j * sw + v - pw < w; v++) {
                Vector value = load(x + ((size_t)(image * h + i * sh + u - ph) * w + j * sw + v - pw) * c + channel);
                for (int k = 0; k < VECTOR; k++) sum.v[k] += value.v[k];
            }
        for (int k = 0; k < VECTOR; k++) sum.v[k] /= kh * kw;
        store(y + (size_t)row * c + channel, sum);
    }
}

extern "C" __global__ void __launch_bounds__(256) avg_pool2d_backward(
    const activation* __restrict__ dy,  // [n, ho, wo, c], aligned
    activation* __restrict__ dx,        // [n, h, w, c], aligned
    int n,
    int h,
    int w,
    int c,
    int ho,
    int wo,
    int kh,
    int kw,
    int sh,
    int sw,
    int ph,
    int pw) {
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= c) return;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < n * h * w; row += gridDim.y * blockDim.y) {
        auto [image, r, s] = position_of(row, h, w);
        Vector sum = {};
        for (int i = max(0, (r + ph - kh + sh) / sh); i < ho && i * sh - ph <= r; i++)
            for (int j = max(0, (s + pw - kw + sw) / sw); j < wo && j * sw - pw <= s; j++) {
                Vector gradient = load(dy + ((size_t)(image * ho + i) * wo + j) * c + channel);
                for (int k = 0; k < VECTOR; k++) sum.v[k] += gradient.v[k];
            }
        for (int k = 0; k < VECTOR; k++) sum.v[k] /= kh * kw;
        store(dx + (size_t)row * c + channel, sum);
    }
}

// y[n, c] = mean of x[n, :, c] over the positions, in float32. Grid (n * c / (256 * VECTOR)), block 256.
extern "C" __global__ void __launch_bounds__(256) global_avg_pool2d(
    const activation* __restrict__ x,  // [n, positions, c], aligned
    float* __restrict__ y,             // [n, c], aligned
    float share,                       // 1 / positions
    int n,
    int positions,
    int c) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= n * c) return;
    const activation* from = x + (size_t)(i / c) * positions * c + i % c;
    Vector sum = {};
#pragma unroll 2
    for (int p = 0; p < positions; p++) {
        Vector value = load(from + (size_t)p * c);
        for (int k = 0; k < VECTOR; k++) sum.v[k] += value.v[k];
    }
    for (int k = 0; k < VECTOR; k++) sum.v[k] *= share;
    store(y + i, sum);
}

// dx[n, p, c] = dy[n, c] / positions.
extern "C" __global__ void __launch_bounds__(256) global_avg_pool2d_backward(
    const float* __restrict__ dy,  // [n, c], aligned
    activation* __restrict__ dx,   // [n, positions, c], aligned
    float share,                   // 1 / positions
    int n,
    int positions,
    int c) {
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= c) return;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < n * positions; row += gridDim.y * blockDim.y) {
        Vector value = load(dy + (size_t)(row / positions) * c + channel);
        for (int k = 0; k < VECTOR; k++) value.v[k] *= share;
        store(dx + (size_t)row * c + channel, value);
    }
}
