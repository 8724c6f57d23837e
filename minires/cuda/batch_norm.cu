// Batch normalisation over the rows of a (rows, channels) matrix, rows = N * H * W; and, for a fused branch, the shortcut's
// addition and the ReLU in the same pass.
//
//     mean, var = x.mean(axis=0), x.var(axis=0)
//     y = relu((x - mean) / sqrt(var + eps) * weight + bias + shortcut)
//     g = dy * (y > 0);  dbias = g.sum(axis=0);  dweight = (g * x_hat).sum(axis=0)
//     dx = weight / std * (g - dbias / rows - x_hat * dweight / rows)
//
// Memory traffic, in passes over the matrix: forward 3 (statistics read x, apply reads x and writes y), backward 5 (reduce
// reads dy and x; apply reads dy and x and writes dx). Whether y > 0 is computed again from x; only with a shortcut y is
// read, and g written down as the shortcut's gradient: 4 forward, 7 backward. All are bound by memory.
//
// Launch shape of everything that reads the matrix: a block is (bx, 256 / bx) threads. Thread (tx, ty) stays with its
// VECTOR channels, so that their scale and shift are computed once, and walks down the rows; neighbouring threads read
// neighbouring addresses. The grid is (channels / (bx * VECTOR), parts).
//
// Sums are deterministic: each block writes its partial result, and a second small kernel merges them in a fixed order.
// There are no atomics, so the same input gives the same bits.
#include "common.cuh"

// Rows that a thread loads before it looks at them, so that enough reads are in flight to keep the memory busy: an H100
// needs some 17 KB of them on each multiprocessor. Backward loads two or three arrays, and has twice the blocks.
#define ROWS_AT_ONCE 8
#define BACKWARD_ROWS 2
#define MERGERS 32  // threads that merge the partial results of a channel

// Mean and sum of squares around it of two samples together (Chan, Golub, LeVeque 1979). Taking E[x^2] - E[x]^2 instead
// would lose the variance of a channel whose mean is large.
__device__ void merge(float& count, float& mean, float& squares, float other_count, float other_mean, float other_squares) {
    float total = count + other_count;
    if (other_count == 0.0f) return;
    float difference = other_mean - mean;
    mean += difference * __fdividef(other_count, total);  // off by 2 units in the last place; the exact one is a call
    squares += other_squares + difference * difference * __fdividef(count * other_count, total);
    count = total;
}

// partials[part, 0..2, c] = count, mean, squares of the rows that this part of the grid has seen.
extern "C" __global__ void __launch_bounds__(256) batch_norm_partials(
    const activation* __restrict__ x,  // [rows, channels], aligned
    float* __restrict__ partials,      // [parts, 3, channels]
    int rows,
    int channels,
    int parts) {
    __shared__ float means[256][VECTOR], squares[256][VECTOR], counts[256];
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    float count = 0.0f, mean[VECTOR] = {0.0f}, square[VECTOR] = {0.0f};
    int stride = parts * blockDim.y;
    if (c < channels) {
        for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += ROWS_AT_ONCE * stride) {
            Vector value[ROWS_AT_ONCE];
            int n = min(ROWS_AT_ONCE, (rows - row - 1) / stride + 1);
#pragma unroll
            for (int k = 0; k < ROWS_AT_ONCE; k++)
                if (k < n) value[k] = load(x + (size_t)(row + k * stride) * channels + c);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                float sum = 0.0f, around = 0.0f, so_far = count;
#pragma unroll
                for (int k = 0; k < ROWS_AT_ONCE; k++)
                    if (k < n) sum += value[k].v[i];
                float m = __fdividef(sum, (float)n);
#pragma unroll
                for (int k = 0; k < ROWS_AT_ONCE; k++)
                    if (k < n) around += (value[k].v[i] - m) * (value[k].v[i] - m);
                merge(so_far, mean[i], square[i], (float)n, m, around);
            }
            count += n;
        }
    }
    counts[thread] = count;
    for (int i = 0; i < VECTOR; i++) means[thread][i] = mean[i], squares[thread][i] = square[i];
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {  // a tree over threadIdx.y, always in the same order
        if (threadIdx.y < half) {
            int other = thread + half * blockDim.x;
            float n = counts[thread];
            for (int i = 0; i < VECTOR; i++) {
                n = counts[thread];
                merge(n, means[thread][i], squares[thread][i], counts[other], means[other][i], squares[other][i]);
            }
            counts[thread] = n;
        }
        __syncthreads();
    }
    if (threadIdx.y == 0 && c < channels)
        for (int i = 0; i < VECTOR; i++) {
            float* out = partials + (size_t)blockIdx.y * 3 * channels + c + i;
            out[0] = counts[thread], out[channels] = means[thread][i], out[2 * channels] = squares[thread][i];
        }
}

// The statistics from the partial ones. running_mean and running_var, if given, move towards them by `momentum`; the running
// variance is the unbiased one, and `unbiased` is rows / (rows - 1). `batches` counts the batches on the device, since a
// replayed graph runs no Python. Grid (channels / 32), block (32, MERGERS).
extern "C" __global__ void __launch_bounds__(1024) batch_norm_statistics(
    const float* __restrict__ partials,  // [parts, 3, channels]
    float* __restrict__ mean,            // [channels]
    float* __restrict__ var,             // [channels]
    float* __restrict__ running_mean,    // [channels], or null
    float* __restrict__ running_var,     // [channels], or null
    long long* __restrict__ batches,     // [1], or null
    float momentum,
    float unbiased,
    int parts,
    int channels) {
    __shared__ float counts[MERGERS][32], means[MERGERS][32], squares[MERGERS][32];
    int tx = threadIdx.x, ty = threadIdx.y, c = blockIdx.x * 32 + tx;
    float count = 0.0f, m = 0.0f, s = 0.0f;
    if (c < channels)
        for (int part = ty; part < parts; part += MERGERS) {
            const float* p = partials + (size_t)part * 3 * channels + c;
            merge(count, m, s, p[0], p[channels], p[2 * channels]);
        }
    counts[ty][tx] = count, means[ty][tx] = m, squares[ty][tx] = s;
    __syncthreads();
    for (int half = MERGERS / 2; half > 0; half /= 2) {
        if (ty < half) {
            merge(count, m, s, counts[ty + half][tx], means[ty + half][tx], squares[ty + half][tx]);
            counts[ty][tx] = count, means[ty][tx] = m, squares[ty][tx] = s;
        }
        __syncthreads();
    }
    if (ty > 0 || c >= channels) return;
    float v = s / count;
    mean[c] = m, var[c] = v;
    if (c == 0 && batches) batches[0] += 1;  // one thread of the whole grid
    if (running_mean) running_mean[c] += momentum * (m - running_mean[c]);
    if (running_var) running_var[c] += momentum * (v * unbiased - running_var[c]);
}

// y = (x - mean) * scale + bias [+ shortcut] [relu], scale = weight / sqrt(var + eps). y may be x.
extern "C" __global__ void __launch_bounds__(256) batch_norm_apply(
    const activation* x,                      // [rows, channels], aligned
    const float* __restrict__ mean,           // [channels]
    const float* __restrict__ var,            // [channels]
    const float* __restrict__ weight,         // [channels]
    const float* __restrict__ bias,           // [channels]
    const activation* __restrict__ shortcut,  // [rows, channels], aligned, or null
    activation* y,                            // [rows, channels], aligned
    float eps,
    int relu,
    int rows,
    int channels) {
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (c >= channels) return;
    float scale[VECTOR], centre[VECTOR], shift[VECTOR];
    for (int i = 0; i < VECTOR; i++) {
        scale[i] = batch_norm_scale(var[c + i], weight[c + i], eps);
        centre[i] = mean[c + i], shift[i] = bias[c + i];
    }
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
        size_t at = (size_t)row * channels + c;
        Vector value = load(x + at);
        for (int i = 0; i < VECTOR; i++) value.v[i] = batch_norm_value(value.v[i], centre[i], scale[i], shift[i]);
        if (shortcut) {
            Vector other = load(shortcut + at);
            for (int i = 0; i < VECTOR; i++) value.v[i] += other.v[i];
        }
        if (relu)
            for (int i = 0; i < VECTOR; i++) value.v[i] = value.v[i] > 0.0f || value.v[i] != value.v[i] ? value.v[i] : 0.0f;
        store(y + at, value);
    }
}

// partials[part, 0..1, c] = sum of g and of g * (x - mean) over this part's rows, with g = dy where y > 0. `y` is null if
// there was no ReLU, or if `bias` is given, to compute y again. g is written down where somebody (the shortcut) needs it.
// Four blocks on a multiprocessor, so at most 64 registers.
extern "C" __global__ void __launch_bounds__(256, 4) batch_norm_backward_partials(
    const activation* __restrict__ dy,  // [rows, channels], aligned
    const activation* __restrict__ x,   // [rows, channels], aligned
    const activation* __restrict__ y,   // [rows, channels], aligned, or null
    const float* __restrict__ mean,     // [channels]
    const float* __restrict__ var,      // [channels]
    const float* __restrict__ weight,   // [channels]
    const float* __restrict__ bias,     // [channels], or null
    activation* __restrict__ g,         // [rows, channels], aligned, or null
    float* __restrict__ partials,       // [parts, 2, channels]
    float eps,
    int rows,
    int channels,
    int parts) {
    __shared__ float sums[256][VECTOR], products[256][VECTOR];
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    float sum[VECTOR] = {0.0f}, product[VECTOR] = {0.0f}, centre[VECTOR], scale[VECTOR], shift[VECTOR];
    if (c < channels) {
        for (int i = 0; i < VECTOR; i++) {
            centre[i] = mean[c + i];
            if (bias) scale[i] = batch_norm_scale(var[c + i], weight[c + i], eps), shift[i] = bias[c + i];
        }
        int stride = parts * blockDim.y;
        for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += BACKWARD_ROWS * stride) {
            Vector gradient[BACKWARD_ROWS], input[BACKWARD_ROWS], output[BACKWARD_ROWS];
#pragma unroll
            for (int k = 0; k < BACKWARD_ROWS; k++) {
                size_t at = (size_t)(row + k * stride) * channels + c;
                if (row + k * stride >= rows) break;
                gradient[k] = load(dy + at), input[k] = load(x + at);
                if (y) output[k] = load(y + at);
            }
#pragma unroll
            for (int k = 0; k < BACKWARD_ROWS; k++) {
                if (row + k * stride >= rows) break;
                for (int i = 0; i < VECTOR; i++) {
                    float z = y ? output[k].v[i] : bias ? batch_norm_value(input[k].v[i], centre[i], scale[i], shift[i]) : 1.0f;
                    if (!(z > 0.0f)) gradient[k].v[i] = 0.0f;
                    sum[i] += gradient[k].v[i];
                    product[i] += gradient[k].v[i] * (input[k].v[i] - centre[i]);
                }
                if (g) store(g + (size_t)(row + k * stride) * channels + c, gradient[k]);
            }
        }
    }
    for (int i = 0; i < VECTOR; i++) sums[thread][i] = sum[i], products[thread][i] = product[i];
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half) {
            int other = thread + half * blockDim.x;
            for (int i = 0; i < VECTOR; i++) {
                sums[thread][i] += sums[other][i];
                products[thread][i] += products[other][i];
            }
        }
        __syncthreads();
    }
    if (threadIdx.y == 0 && c < channels)
        for (int i = 0; i < VECTOR; i++) {
            float* out = partials + (size_t)blockIdx.y * 2 * channels + c + i;
            out[0] = sums[thread][i], out[channels] = products[thread][i];
        }
}

// dbias, dweight, and dx as a * g + b * x + k per channel, coefficients = (a, b, k):
//
//     a = weight / std;  b = -a * dweight / (std * rows);  k = -a * dbias / rows - b * mean
//
// `count` is the number of rows, or 0 in evaluation, where mean and var are constants and dx = a * g. Grid (channels / 32),
// block (32, MERGERS).
extern "C" __global__ void __launch_bounds__(1024) batch_norm_backward_coefficients(
    const float* __restrict__ partials,  // [parts, 2, channels]
    const float* __restrict__ mean,      // [channels]
    const float* __restrict__ var,       // [channels]
    const float* __restrict__ weight,    // [channels]
    float* __restrict__ dweight,         // [channels]
    float* __restrict__ dbias,           // [channels]
    float* __restrict__ coefficients,    // [3, channels]
    float eps,
    int count,
    int parts,
    int channels) {
    __shared__ float sums[MERGERS][32], products[MERGERS][32];
    int tx = threadIdx.x, ty = threadIdx.y, c = blockIdx.x * 32 + tx;
    float sum = 0.0f, product = 0.0f;
    if (c < channels)
        for (int part = ty; part < parts; part += MERGERS) {
            const float* p = partials + (size_t)part * 2 * channels + c;
            sum += p[0], product += p[channels];
        }
    sums[ty][tx] = sum, products[ty][tx] = product;
    __syncthreads();
    for (int half = MERGERS / 2; half > 0; half /= 2) {
        if (ty < half) sums[ty][tx] = sum += sums[ty + half][tx], products[ty][tx] = product += products[ty + half][tx];
        __syncthreads();
    }
    if (ty == 0 && c < channels) {
        float inverse_std = 1.0f / sqrtf(var[c] + eps), a = batch_norm_scale(var[c], weight[c], eps);
        float dw = product * inverse_std;
        float b = count ? -a * inverse_std * dw / count : 0.0f;
        dbias[c] = sum;
        dweight[c] = dw;
        coefficients[c] = a;
        coefficients[channels + c] = b;
        coefficients[2 * channels + c] = count ? -a * sum / count - b * mean[c] : 0.0f;
    }
}

// dx = a * g + b * x + k, with g = dy where y > 0; y and bias as above. a is the scale of forward.
extern "C" __global__ void __launch_bounds__(256) batch_norm_backward_apply(
    const activation* __restrict__ dy,       // [rows, channels], aligned
    const activation* __restrict__ x,        // [rows, channels], aligned
    const activation* __restrict__ y,        // [rows, channels], aligned, or null
    const float* __restrict__ mean,          // [channels]
    const float* __restrict__ bias,          // [channels], or null
    const float* __restrict__ coefficients,  // [3, channels]
    activation* __restrict__ dx,             // [rows, channels], aligned
    int rows,
    int channels) {
    int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (c >= channels) return;
    float a[VECTOR], b[VECTOR], k[VECTOR], centre[VECTOR], shift[VECTOR];
    for (int i = 0; i < VECTOR; i++) {
        a[i] = coefficients[c + i], b[i] = coefficients[channels + c + i], k[i] = coefficients[2 * channels + c + i];
        if (bias) centre[i] = mean[c + i], shift[i] = bias[c + i];
    }
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
        size_t at = (size_t)row * channels + c;
        Vector gradient = load(dy + at), input = load(x + at);
        if (y) {
            Vector output = load(y + at);
            for (int i = 0; i < VECTOR; i++) gradient.v[i] = output.v[i] > 0.0f ? gradient.v[i] : 0.0f;
        }
        if (bias)
            for (int i = 0; i < VECTOR; i++)
                if (!(batch_norm_value(input.v[i], centre[i], a[i], shift[i]) > 0.0f)) gradient.v[i] = 0.0f;
        for (int i = 0; i < VECTOR; i++) gradient.v[i] = a[i] * gradient.v[i] + (b[i] * input.v[i] + k[i]);
        store(dx + at, gradient);
    }
}
