// From uint8 images, which stay on the device, to normalised and augmented float32 batches.
//
//     x[k] = (flip(crop(images[choice[k]])) / 255 - mean) / std
//
// crop cuts an (h, w) window at (top, left) out of the image padded with `padding` black pixels on each side.
// Launch shape: a thread a pixel, grid-stride, blocks of 256. Traffic: one byte read, four written, a colour.

__device__ float normalised(unsigned char pixel, float mean, float std) { return ((float)pixel / 255.0f - mean) / std; }

// The input row or column that an output row or column shows, or -1 for the padding.
__device__ int source_of(int at, int start, int padding, int size) {
    int from = at + start - padding;
    return from >= 0 && from < size ? from : -1;
}

extern "C" __global__ void crop_and_flip(
    const unsigned char* __restrict__ images,  // [n, h, w, c]
    const long long* __restrict__ top,         // [n]
    const long long* __restrict__ left,        // [n]
    const bool* __restrict__ flip,             // [n]
    unsigned char* __restrict__ out,           // [n, h, w, c]
    int padding,
    int n,
    int h,
    int w,
    int c) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n * h * w; i += gridDim.x * blockDim.x) {
        int s = i % w, r = i / w % h, image = i / (w * h);
        int row = source_of(r, (int)top[image], padding, h);
        int column = source_of(flip[image] ? w - 1 - s : s, (int)left[image], padding, w);
        for (int k = 0; k < c; k++)
            out[(size_t)i * c + k] =
                row < 0 || column < 0 ? 0 : images[((size_t)(image * h + row) * w + column) * c + k];
    }
}

extern "C" __global__ void normalize(
    const unsigned char* __restrict__ images,  // [pixels, c]
    const float* __restrict__ mean,            // [c]
    const float* __restrict__ std,             // [c]
    float* __restrict__ out,                   // [pixels, c]
    int pixels,
    int c) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < pixels; i += gridDim.x * blockDim.x)
        for (int k = 0; k < c; k++)
            out[(size_t)i * c + k] = normalised(images[(size_t)i * c + k], mean[k], std[k]);
}

// A whole batch in one launch. choices[begin + k] = (image, top, left, flip) of its k-th image; the random numbers of an epoch
// are drawn on the host and sent over once. The labels go along.
extern "C" __global__ void make_batch(
    const unsigned char* __restrict__ images,  // [count, h, w, c]
    const long long* __restrict__ labels,      // [count]
    const int* __restrict__ choices,           // [total, 4]
    const float* __restrict__ mean,            // [c]
    const float* __restrict__ std,             // [c]
    float* __restrict__ x,                     // [n, h, w, c]
    long long* __restrict__ y,                 // [n]
    int begin,
    int total,
    int count,
    int padding,
    int n,
    int h,
    int w,
    int c) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n * h * w; i += gridDim.x * blockDim.x) {
        int s = i % w, r = i / w % h, k = i / (w * h);
        const int* choice = choices + 4 * (size_t)(begin + k);
        int row = source_of(r, choice[1], padding, h);
        int column = source_of(choice[3] ? w - 1 - s : s, choice[2], padding, w);
        const unsigned char* pixel = images + ((size_t)(choice[0] * h + row) * w + column) * c;
        for (int k = 0; k < c; k++)
            x[(size_t)i * c + k] = normalised(row < 0 || column < 0 ? 0 : pixel[k], mean[k], std[k]);
        if (r == 0 && s == 0) y[k] = labels[choice[0]];
    }
}
