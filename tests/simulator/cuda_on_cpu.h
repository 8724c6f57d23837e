// CUDA C on a CPU: enough of the language to compile minires' .cu files with g++ and run them, thread by thread.
//
// A kernel's threads run one after the other, in order or (cpu::reverse) backwards. Threads that wait for each other
// (__syncthreads, shuffles, tensor cores) are fibers: each has a stack, and waiting means switching to the next. A missing
// __syncthreads shows as two different answers in the two orders, a divergent one as a deadlock, which aborts. Shared
// memory is full of NaN when a block starts.
//
// What it does not model: speed, memory spaces, alignment beyond the host's own, rounding of __expf and friends.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define CUDA_ON_CPU 1
#define __global__
#define __device__ static
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cuda_shared")))
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

struct dim3 { unsigned x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cpu {
constexpr int MAX_THREADS = 1024;
constexpr size_t STACK = 64 << 10;
struct Fiber { jmp_buf at; bool started, done; ucontext_t first; };
static Fiber fibers[MAX_THREADS];
static std::vector<char> stacks;
static jmp_buf scheduler;
static void (*kernel)(void*);
static void* arguments;
static int current, threads, reverse;
static unsigned arrived[33], generation[33];  // of the barriers: 0 for the block, 1 + w for warp w
static uint64_t slots[MAX_THREADS];           // what a lane offers in a shuffle
// cp.async: what a thread has asked for arrives when the thread waits for it, and not before.
struct Copy { void* to; const void* from; bool inside; };
static std::vector<std::vector<Copy>> copies[MAX_THREADS];  // of each thread: groups, the last one still open
static unsigned operands[MAX_THREADS][6];     // a lane's part of both factors of a matrix product

static void place(int t) {
    current = t;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}
static void entry() {
    kernel(arguments);
    fibers[current].done = true;
    _longjmp(scheduler, 1);
}
// Let the others run. noipa: to the compiler it looks as if nothing could change meanwhile, and everything does.
__attribute__((noipa)) static void wait() {
    if (_setjmp(fibers[current].at) == 0) _longjmp(scheduler, 1);
}
static void barrier(int id, int count) {
    unsigned turn = generation[id];
    if (++arrived[id] == (unsigned)count) { arrived[id] = 0; generation[id]++; }
    while (generation[id] == turn) wait();
}
static void warp_barrier() {
    int warp = current / 32;
    barrier(1 + warp, min(32, threads - 32 * warp));
}
__attribute__((noipa)) static void resume(int t) {
    Fiber& fiber = fibers[t];
    place(t);
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.first);
}
static void run_fibers() {
    for (auto& groups : copies) groups.clear();
    if (stacks.size() < STACK * threads) stacks.resize(STACK * threads);
    memset(arrived, 0, sizeof arrived);
    for (int t = 0; t < threads; t++) {
        Fiber& fiber = fibers[t];
        fiber.started = fiber.done = false;
        getcontext(&fiber.first);
        fiber.first.uc_stack.ss_sp = &stacks[STACK * t];
        fiber.first.uc_stack.ss_size = STACK;
        makecontext(&fiber.first, entry, 0);
    }
    for (int left = threads, idle = 0; left;) {
        int before = left;
        for (int k = 0; k < threads; k++) {
            int t = reverse ? threads - 1 - k : k;
            if (fibers[t].done) continue;
            resume(t);
            left -= fibers[t].done;
        }
        idle = left == before ? idle + 1 : 0;
        if (idle > 100000) {
            fprintf(stderr, "cuda_on_cpu: deadlock, some threads wait at a barrier that others never reach\n");
            abort();
        }
    }
}
// grid and block: x, y, z of each. `cooperative`: the threads of a block wait for each other.
static void launch(const unsigned* shape, int cooperative, int backwards, void (*f)(void*), void* values) {
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    kernel = f;
    arguments = values;
    reverse = backwards;
    threads = shape[3] * shape[4] * shape[5];
    unsigned blocks = shape[0] * shape[1] * shape[2];
    for (unsigned k = 0; k < blocks; k++) {
        unsigned b = reverse ? blocks - 1 - k : k;
        blockIdx = {b % shape[0], b / shape[0] % shape[1], b / (shape[0] * shape[1])};
        if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
        if (cooperative) run_fibers();
        else
            for (int t = 0; t < threads; t++) {
                place(reverse ? threads - 1 - t : t);
                f(values);
            }
    }
}
}  // namespace cpu

// cp.async: see `copies`.
static inline void copy_async(void* to, const void* from, bool inside) {
    auto& groups = cpu::copies[cpu::current];
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({to, from, inside});
}
static inline void commit_group() {
    auto& groups = cpu::copies[cpu::current];
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}
template <int PENDING> static inline void wait_group() {
    auto& groups = cpu::copies[cpu::current];
    while (groups.size() > PENDING + 1) {
        for (cpu::Copy copy : groups.front())
            if (copy.inside) memcpy(copy.to, copy.from, 16); else memset(copy.to, 0, 16);
        groups.erase(groups.begin());
    }
}

static inline void __syncthreads() { cpu::barrier(0, cpu::threads); }
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask) {
    memcpy(&cpu::slots[cpu::current], &value, sizeof value);
    cpu::warp_barrier();
    T result;
    memcpy(&result, &cpu::slots[cpu::current ^ mask], sizeof result);
    cpu::warp_barrier();
    return result;
}

// The tensor cores: D (16x8) += A (16x8) B (8x8) in 32-bit words, one word being one TF32 number or two bfloat16. Which lane
// holds which element is in tensor_core.cuh.
static inline float word_product(unsigned a, unsigned b, bool pairs) {
    if (!pairs) return __uint_as_float(a & 0xffffe000u) * __uint_as_float(b & 0xffffe000u);  // no more is looked at
    return __uint_as_float(a << 16) * __uint_as_float(b << 16) +
           __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
}
static inline void emulated_mma(float* d, const unsigned* a, const unsigned* b, bool pairs) {
    int lane = cpu::current % 32, warp = cpu::current - lane;
    memcpy(cpu::operands[cpu::current], a, 16);
    memcpy(cpu::operands[cpu::current] + 4, b, 8);
    cpu::warp_barrier();
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        float sum = d[i];
        for (int k = 0; k < 8; k++)
            sum += word_product(cpu::operands[warp + 4 * (row % 8) + k % 4][row / 8 + 2 * (k / 4)],
                                cpu::operands[warp + 4 * column + k % 4][4 + k / 4], pairs);
        d[i] = sum;
    }
    cpu::warp_barrier();
}
