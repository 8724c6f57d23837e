// Optimiser updates over the flat buffers, in place: the gradient read once, the others read and written once.
//
//     SGD   g = gradient + weight_decay * parameter;  velocity = momentum * velocity + g
//           parameter -= lr * (g + momentum * velocity if nesterov else velocity)
//     Adam  g = gradient + weight_decay * parameter  (AdamW: parameter *= 1 - lr * weight_decay)
//           mean = beta1 * mean + (1 - beta1) * g;  square = beta2 * square + (1 - beta2) * g * g
//           parameter -= lr / correction1 * mean / (sqrt(square / correction2) + eps)
//
// Launch shape: grid up to 2112 blocks of 256 threads, each element by one thread. Traffic: SGD 5, Adam 7 times the parameters' bytes.
//
// What changes from step to step (the learning rate, and Adam's corrections 1 - beta^step) is read from the device, from
// `schedule`: a CUDA graph, once recorded, repeats its kernels with the arguments they had. Where the fourth number of
// schedule is not 0, nothing is updated.

// schedule = (lr, correction1, correction2, 0): one thread. Its arguments go with the launch, so nothing is copied.
extern "C" __global__ void set_schedule(
    float* __restrict__ schedule,  // [4]
    float lr,
    float correction1,
    float correction2) {
    schedule[0] = lr, schedule[1] = correction1, schedule[2] = correction2, schedule[3] = 0.0f;
}

// No update by this schedule if the loss, or one before, is not finite, so that the weights stay those that gave the first
// such loss: the host reads it some steps late, and asks where it comes from. One thread.
extern "C" __global__ void stop_unless_finite(
    const float* __restrict__ loss,  // [1]
    float* __restrict__ stopped,     // [1]
    float* __restrict__ schedule     // [4]
) {
    if (loss[0] - loss[0] != 0.0f) stopped[0] = 1.0f;  // of NaN and infinity the difference is NaN, which is not 0
    schedule[3] = stopped[0];
}

extern "C" __global__ void sgd_update(
    float* __restrict__ parameter,       // [size]
    const float* __restrict__ gradient,  // [size]
    float* __restrict__ velocity,        // [size]
    const float* __restrict__ schedule,  // [4]
    float momentum,
    float weight_decay,
    int nesterov,
    long long size) {
    float lr = schedule[0];
    if (schedule[3] != 0.0f) return;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += (long long)gridDim.x * blockDim.x) {
        float g = gradient[i] + weight_decay * parameter[i];
        if (momentum != 0.0f) {
            float v = momentum * velocity[i] + g;
            velocity[i] = v;
            g = nesterov ? g + momentum * v : v;
        }
        parameter[i] -= lr * g;
    }
}

extern "C" __global__ void adam_update(
    float* __restrict__ parameter,       // [size]
    const float* __restrict__ gradient,  // [size]
    float* __restrict__ mean,            // [size]
    float* __restrict__ square,          // [size]
    const float* __restrict__ schedule,  // [4]
    float beta2,
    float one_minus_beta1,
    float one_minus_beta2,
    float eps,
    float weight_decay,
    int decoupled,
    long long size) {
    float lr = schedule[0], step_size = lr / schedule[1], root = sqrtf(schedule[2]);
    if (schedule[3] != 0.0f) return;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += (long long)gridDim.x * blockDim.x) {
        float p = parameter[i], g = gradient[i];
        if (decoupled) p *= 1.0f - lr * weight_decay;
        else g += weight_decay * p;
        float m = mean[i] + one_minus_beta1 * (g - mean[i]);
        float s = beta2 * square[i] + one_minus_beta2 * g * g;
        mean[i] = m;
        square[i] = s;
        parameter[i] = p - step_size * m / (sqrtf(s) / root + eps);
    }
}
