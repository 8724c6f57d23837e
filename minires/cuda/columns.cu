// im2col and its transpose: a convolution as one matrix product.
//
//     columns[n, i, j, g, u, v, c] = x[n, i*sh + u*dh - ph, j*sw + v*dw - pw, g*C + c], 0 outside the image
//     dx[n, r, s, c] = sum of the columns that im2col would fill from x[n, r, s, c]
//
// for the groups g, of C channels each, of a convolution with groups: the columns of a group are neighbours. One group is
// the usual case.
//
// col2im gathers: each pixel finds the windows that contain it, kh * kw at most. No atomics, always the same order.
//
// Launch shape: a thread stays with VECTOR columns (or channels) and walks down the rows. Traffic: im2col writes
// kh * kw / (sh * sw) times the image, and reads it from memory about once, the rest from the caches; col2im the same back.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) im2col(
    const activation* __restrict__ x,  // [n, h, w, c], aligned
    activation* __restrict__ columns,  // [n, ho, wo, groups, kh, kw, c // groups], aligned
    int groups,
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
    int pw,
    int dh,
    int dw) {
    int k = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;  // of a row of columns
    if (k >= kh * kw * c) return;
    int size = c / groups, v = k / size % kw, u = k / size / kw % kh;
    int channel = k / (size * kw * kh) * size + k % size;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < n * ho * wo; row += gridDim.y * blockDim.y) {
        auto [image, i, j] = position_of(row, ho, wo);
        int r = i * sh + u * dh - ph, s = j * sw + v * dw - pw;
        Vector value = {};
        if (r >= 0 && r < h && s >= 0 && s < w) value = load(x + ((size_t)(image * h + r) * w + s) * c + channel);
        store(columns + (size_t)row * (kh * kw * c) + k, value);
    }
}

// dx = col2im(columns), or dx += it.
extern "C" __global__ void __launch_bounds__(256) col2im(
    const activation* __restrict__ columns,  // [n, ho, wo, groups, kh, kw, c // groups], aligned
    activation* __restrict__ dx,             // [n, h, w, c], aligned
    int accumulate,
    int groups,
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
    int pw,
    int dh,
    int dw) {
    int channel = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (channel >= c) return;
    int size = c / groups;
    columns += channel / size * (kh * kw * size) + channel % size;  // to the group, and the channel in it
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < n * h * w; row += gridDim.y * blockDim.y) {
        auto [image, r, s] = position_of(row, h, w);
        Vector sum = {};
        if (accumulate) sum = load(dx + (size_t)row * c + channel);
        for (int u = 0; u < kh; u++) {
            int i = r + ph - u * dh;  // i * sh, if it is a multiple
            if (i < 0 || i % sh || i / sh >= ho) continue;
            for (int v = 0; v < kw; v++) {
                int j = s + pw - v * dw;
                if (j < 0 || j % sw || j / sw >= wo) continue;
                size_t at = ((size_t)(image * ho + i / sh) * wo + j / sw) * (kh * kw * groups) + u * kw + v;
                Vector value = load(columns + at * size);
                for (int k = 0; k < VECTOR; k++) sum.v[k] += value.v[k];
            }
        }
        store(dx + (size_t)row * c + channel, sum);
    }
}
