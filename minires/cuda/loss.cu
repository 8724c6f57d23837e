// Softmax and cross-entropy of (rows, classes) logits, float32.
//
//     p = exp(z - max(z)) / sum(exp(z - max(z)))
//     loss = mean over rows of -sum_k target_k log p_k,  target = (1 - s) onehot(label) + s / classes
//     dz = (p - target) * dloss / rows
//
// A label that is no class makes the loss and its row of dz NaN.
//
// Launch shape: block (32, 8), one warp a row, its lanes striding over the classes. Traffic: logits three times (out of the
// cache, but for the first), probabilities once.

__device__ float warp_max(float v) {
    for (int d = 16; d > 0; d /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, v, d);
        v = other > v || other != other ? other : v;  // NaN wins: a broken loss must be seen
    }
    return v;
}
__device__ float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy(
    const float* __restrict__ logits,      // [rows, classes]
    const long long* __restrict__ labels,  // [rows]
    float* __restrict__ probabilities,     // [rows, classes]
    float* __restrict__ losses,            // [rows]
    float smoothing,
    int rows,
    int classes) {
    int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (row >= rows) return;  // a whole warp at once
    const float* z = logits + (size_t)row * classes;
    float highest = __uint_as_float(0xff800000u), sum = 0.0f, of_all = 0.0f;
    for (int k = lane; k < classes; k += 32) highest = z[k] > highest || z[k] != z[k] ? z[k] : highest;
    highest = warp_max(highest);
    for (int k = lane; k < classes; k += 32) sum += expf(z[k] - highest);
    float log_sum = logf(warp_sum(sum));
    for (int k = lane; k < classes; k += 32) {
        float log_p = z[k] - highest - log_sum;
        probabilities[(size_t)row * classes + k] = expf(log_p);
        of_all += log_p;
    }
    of_all = warp_sum(of_all);
    if (lane == 0) {
        long long label = labels[row];  // nobody has looked at it: that would have stopped the GPU
        float of_label = label >= 0 && label < classes ? z[label] : __uint_as_float(0x7fffffffu);  // NaN
        float loss = -(of_label - highest - log_sum);
        // without smoothing, 0 * infinity must not get in
        losses[row] = smoothing == 0.0f ? loss : (1.0f - smoothing) * loss - smoothing * of_all / classes;
    }
}

// mean = values.mean(): one block of 256 threads, each a stride of the values, then a tree.
extern "C" __global__ void __launch_bounds__(256) mean_of(
    const float* __restrict__ values,  // [count]
    float* __restrict__ mean,          // [1]
    int count) {
    __shared__ float sums[256];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += 256) sum += values[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) mean[0] = sums[0] / count;
}

// Grid (rows * classes / 256), block 256.
extern "C" __global__ void cross_entropy_backward(
    const float* __restrict__ dloss,          // [1]
    const float* __restrict__ probabilities,  // [rows, classes]
    const long long* __restrict__ labels,     // [rows]
    float* __restrict__ dlogits,              // [rows, classes]
    float smoothing,
    int rows,
    int classes) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * classes) return;
    long long label = labels[i / classes];
    float target = smoothing / classes + (i % classes == label ? 1.0f - smoothing : 0.0f);
    if (label < 0 || label >= classes) target = __uint_as_float(0x7fffffffu);
    dlogits[i] = (probabilities[i] - target) * (dloss[0] / rows);
}

// results[slot] = (loss, share of rows whose largest logit is that of the label): what the training loop wants to know of a
// step, kept on the device until somebody reads many at once. One block of 256 threads, a row each.
extern "C" __global__ void __launch_bounds__(256) record_step(
    const float* __restrict__ loss,        // [1]
    const float* __restrict__ logits,      // [rows, classes]
    const long long* __restrict__ labels,  // [rows]
    float* __restrict__ results,           // [slots, 2]
    int slot,
    int slots,
    int rows,
    int classes) {
    __shared__ int right[256];
    int count = 0;
    for (int row = threadIdx.x; row < rows; row += 256) {
        const float* z = logits + (size_t)row * classes;
        int best = 0;  // the first of equal ones, as argmax has it
        for (int k = 1; k < classes; k++)
            if (z[k] > z[best]) best = k;
        count += best == labels[row];
    }
    right[threadIdx.x] = count;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) right[threadIdx.x] += right[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        results[2 * slot] = loss[0];
        results[2 * slot + 1] = (float)right[0] / rows;
    }
}
