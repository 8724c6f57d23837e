// Passes over one array, and small copies that change a layout. The formula of each stands above it, the first being
//
//     y = max(x, 0)
//
// Launch shape: grid-stride loops, grid up to 2112 blocks of 256 threads; each thread takes VECTOR neighbouring elements,
// then jumps ahead by the whole grid. Traffic: every operand once.
#include "common.cuh"

#define FOR_EACH(i, size)                                                                        \
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR; i < (size); \
         i += (long long)gridDim.x * blockDim.x * VECTOR)

// y = max(x, 0); NaN stays NaN, as in NumPy
extern "C" __global__ void relu(
    const activation* __restrict__ x,  // [size], aligned
    activation* __restrict__ y,        // [size], aligned
    long long size) {
    FOR_EACH(i, size) {
        Vector v = load(x + i);
        for (int k = 0; k < VECTOR; k++) v.v[k] = v.v[k] > 0.0f || v.v[k] != v.v[k] ? v.v[k] : 0.0f;
        store(y + i, v);
    }
}

// dx = dy * (y > 0)
extern "C" __global__ void relu_backward(
    const activation* __restrict__ dy,  // [size], aligned
    const activation* __restrict__ y,   // [size], aligned
    activation* __restrict__ dx,        // [size], aligned
    long long size) {
    FOR_EACH(i, size) {
        Vector gradient = load(dy + i), output = load(y + i);
        for (int k = 0; k < VECTOR; k++) gradient.v[k] = output.v[k] > 0.0f ? gradient.v[k] : 0.0f;
        store(dx + i, gradient);
    }
}

// a += b
extern "C" __global__ void accumulate(
    activation* __restrict__ a,        // [size], aligned
    const activation* __restrict__ b,  // [size], aligned
    long long size) {
    FOR_EACH(i, size) {
        Vector x = load(a + i), y = load(b + i);
        for (int k = 0; k < VECTOR; k++) x.v[k] += y.v[k];
        store(a + i, x);
    }
}

// y[row, c] = y[row, c] * scale[c] + shift[c] [+ shortcut[row, c]] [relu]: batch norm in inference, or a bias (scale null)
extern "C" __global__ void scale_and_shift(
    activation* __restrict__ y,               // [size], aligned
    const float* __restrict__ scale,          // [channels], or null
    const float* __restrict__ shift,          // [channels]
    const activation* __restrict__ shortcut,  // [size], aligned, or null
    int relu,
    int channels,
    long long size) {
    FOR_EACH(i, size) {
        int c = (int)(i % channels);
        Vector v = load(y + i);
        for (int k = 0; k < VECTOR; k++) v.v[k] = scale ? v.v[k] * scale[c + k] + shift[c + k] : v.v[k] + shift[c + k];
        if (shortcut) {
            Vector r = load(shortcut + i);
            for (int k = 0; k < VECTOR; k++) v.v[k] += r.v[k];
        }
        if (relu)
            for (int k = 0; k < VECTOR; k++) v.v[k] = v.v[k] > 0.0f || v.v[k] != v.v[k] ? v.v[k] : 0.0f;
        store(y + i, v);
    }
}

// y = x, rounded to the type of the activations (float to bfloat16)
extern "C" __global__ void from_float(
    const float* __restrict__ x,  // [size], aligned
    activation* __restrict__ y,   // [size], aligned
    long long size) {
    FOR_EACH(i, size) store(y + i, load(x + i));
}

// y = x in float32
extern "C" __global__ void as_float(
    const activation* __restrict__ x,  // [size], aligned
    float* __restrict__ y,             // [size], aligned
    long long size) {
    FOR_EACH(i, size) store(y + i, load(x + i));
}

// turned[taps - 1 - t, o, c] = weight[t, c, o], rounded to the activations' type: the weight with which a convolution of
// stride 1 carries gradients back. One thread an element; a weight is small, so nobody minds the strided reads.
extern "C" __global__ void turn_weight(
    const float* __restrict__ weight,  // [taps, channels, outputs]
    activation* __restrict__ turned,   // [taps, channels, outputs]
    int taps,
    int channels,
    int outputs) {
    int size = taps * channels * outputs;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
        int c = i % channels, o = i / channels % outputs, t = i / (channels * outputs);
        round_to(weight[((taps - 1 - t) * channels + c) * outputs + o], turned[i]);
    }
}
