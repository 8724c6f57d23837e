// The matrix product inside a block, for convolution.cu and weight_gradient.cu, in three precisions:
//
//     PRECISION 0  fp32  plain multiply-adds of float
//     PRECISION 1  tf32  tensor cores, floats rounded to 10 bits of mantissa
//     PRECISION 2  bf16  tensor cores, bfloat16
//
// All work on 32-bit words: a word is one float, or two bfloat16 that are neighbours along k, the axis which is summed over.
// In words, the tensor core's instructions mma.m16n8k8 (tf32) and m16n8k16 (bf16) are the same: D (16x8) += A (16x8) B (8x8).
// A warp holds the matrices in its lanes' registers, with group = lane / 4 and q = lane % 4:
//
//     A: a[0] = (group, q), a[1] = (group + 8, q), a[2] = (group, q + 4), a[3] = (group + 8, q + 4)
//     B: b[0] = (q, group), b[1] = (q + 4, group)
//     D: d[0..1] = (group, 2q .. 2q + 1), d[2..3] = (group + 8, 2q .. 2q + 1)
//
// Source: NVIDIA's PTX ISA, section on matrix multiply-accumulate with mma.
//
// A block of 256 threads computes a tile of TILE_M x TILE_N sums, taking STEP words along k at a time. Its 8 warps share the
// tile in a WARPS_M x WARPS_N grid; a warp has BLOCKS_M x BLOCKS_N of those 16x8 matrices.
#ifndef TILE_N
#define TILE_N 64
#endif
#define TILE_M 128
#define STEP 16
#define THREADS 256
#if TILE_N == 128
#define WARPS_N 4
#elif TILE_N == 64
#define WARPS_N 2
#else
#define WARPS_N 1
#endif
#define WARPS_M (8 / WARPS_N)
#define BLOCKS_M (TILE_M / WARPS_M / 16)
#define BLOCKS_N (TILE_N / WARPS_N / 8)

#define B_ROWS (THREADS * 4 / TILE_N)             // rows of B that a block fetches at a time, 16 bytes a thread
#define B_LOADS ((STEP + B_ROWS - 1) / B_ROWS)  // so often in a step

#if PRECISION == 2
#define PER_WORD 2
#else
#define PER_WORD 1
#endif

// Rounds a float to the 10 bits of mantissa that the tensor core looks at: half of the last of them is added, and the core
// cuts off the 13 bits below, so that halves go away from zero. Three instructions; cvt.rna.tf32 takes four. What is not
// finite stays as it is: all bits of a NaN may be ones, and adding would make it zero. Source: round_half_ulp_truncate in
// NVIDIA's CUTLASS.
__device__ __forceinline__ unsigned round_to_tf32(unsigned v) {
    return fabsf(__uint_as_float(v)) < __uint_as_float(0x7f800000u) ? v + 0x1000u : v;
}

// d += a b, for one 16x8 matrix of the warp. In the assembly "+f" is a float that is read and written, "r" 32 bits of anything.
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_ON_CPU
    emulated_mma(d, a, b, PRECISION == 2);
#elif PRECISION == 2
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// sums += A B over STEP words of k. a(row, k) and b(k, column) give words out of shared memory, in the tile's coordinates.
template <class A, class B>
__device__ __forceinline__ void multiply_tiles(float (&sums)[BLOCKS_M][BLOCKS_N][4], A a, B b) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, q = lane % 4;
    int row = warp / WARPS_N * (16 * BLOCKS_M) + group, column = warp % WARPS_N * (8 * BLOCKS_N);
#if PRECISION == 0
    // The lanes hold the same elements of D as above, and each computes its own.
#pragma unroll
    for (int k = 0; k < STEP; k++) {
        float left[BLOCKS_M][2], right[BLOCKS_N][2];
#pragma unroll
        for (int i = 0; i < BLOCKS_M; i++)
            left[i][0] = __uint_as_float(a(row + 16 * i, k)), left[i][1] = __uint_as_float(a(row + 16 * i + 8, k));
#pragma unroll
        for (int j = 0; j < BLOCKS_N; j++)
            right[j][0] = __uint_as_float(b(k, column + 8 * j + 2 * q)),
            right[j][1] = __uint_as_float(b(k, column + 8 * j + 2 * q + 1));
#pragma unroll
        for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
            for (int j = 0; j < BLOCKS_N; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[i][j][e] += left[i][e / 2] * right[j][e % 2];
    }
#else
#pragma unroll
    for (int k = 0; k < STEP; k += 8) {
        unsigned left[BLOCKS_M][4], right[BLOCKS_N][2];
#pragma unroll
        for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) left[i][e] = a(row + 16 * i + 8 * (e % 2), k + q + 4 * (e / 2));
#pragma unroll
        for (int j = 0; j < BLOCKS_N; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) right[j][e] = b(k + q + 4 * e, column + 8 * j + group);
#pragma unroll
        for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
            for (int j = 0; j < BLOCKS_N; j++) multiply_add(sums[i][j], left[i], right[j]);
    }
#endif
}

// Two neighbouring elements in one access, so that the lanes of a warp write whole sectors of 32 bytes. The address must be
// a multiple of 8 (bfloat16: 4) bytes.
__device__ __forceinline__ float2 load_pair(const float* p) { return *(const float2*)p; }
__device__ __forceinline__ float2 load_pair(const bfloat16* p) {
    unsigned u = *(const unsigned*)p;
    return make_float2(__uint_as_float(u << 16), __uint_as_float(u & 0xffff0000u));
}
__device__ __forceinline__ void store_pair(float* p, float first, float second) { *(float2*)p = make_float2(first, second); }
__device__ __forceinline__ void store_pair(bfloat16* p, float first, float second) {
    *(unsigned*)p = bfloat16_bits(first) | bfloat16_bits(second) << 16;
}

// write(row, column, first, second) for each pair of neighbouring sums of this thread, in the tile's coordinates.
template <class Write>
__device__ __forceinline__ void write_tiles(float (&sums)[BLOCKS_M][BLOCKS_N][4], Write write) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, q = lane % 4;
    int row = warp / WARPS_N * (16 * BLOCKS_M) + group, column = warp % WARPS_N * (8 * BLOCKS_N) + 2 * q;
#pragma unroll
    for (int i = 0; i < BLOCKS_M; i++)
#pragma unroll
        for (int j = 0; j < BLOCKS_N; j++) {
            write(row + 16 * i, column + 8 * j, sums[i][j][0], sums[i][j][1]);
            write(row + 16 * i + 8, column + 8 * j, sums[i][j][2], sums[i][j][3]);
        }
}

// y (rows, o) = the sums, from row m0 and column o0 on; or y += them.
__device__ __forceinline__ void write_images(float (&sums)[BLOCKS_M][BLOCKS_N][4], activation* y, int m0, int o0, int rows, int o,
                                             bool accumulate) {
    write_tiles(sums, [&](int r, int s, float first, float second) {
        if (m0 + r >= rows || o0 + s >= o) return;
        activation* p = y + (size_t)(m0 + r) * o + o0 + s;
        if (accumulate) {
            float2 before = load_pair(p);
            first += before.x, second += before.y;
        }
        store_pair(p, first, second);
    });
}

// What a position of y sees of x: computed once for all threads and all steps, and kept in shared memory. Of a position that
// does not exist, all is below the image.
struct __align__(16) Window {
    long long start;  // the window's first element in x: perhaps outside the image, where nothing is read
    int top, left;    // its row and column
};
__device__ __forceinline__ Window window_of(int position, bool exists, int h, int w, int c, int ho, int wo, int sh, int sw,
                                            int ph, int pw) {
    Position p = position_of(position, ho, wo);
    int top = exists ? p.i * sh - ph : h, left = p.j * sw - pw;
    return {(((long long)p.image * h + top) * w + left) * c, top, left};
}

// On the way from memory into a tile, a thread holds 16 bytes in registers for the time of a multiplication: fetched before
// it, kept after it. What is fetched is raw: the first instruction that looks at it waits for memory, some 500 cycles, so
// rounding to tf32 and interleaving bfloat16 are left for when it is kept.
//
// Along k: four floats, or eight bfloat16. Across k: floats of row k for four neighbouring columns; or, for these columns,
// bfloat16 of the rows 2k (`even`) and 2k + 1 (`odd`). Zeros where it is not inside: nothing is read there.
__device__ __forceinline__ uint4 fetch_along_k(const activation* p, bool inside) {
    return inside ? *(const uint4*)p : make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ uint4 fetch_across_k(const float* p, bool inside, const float*, bool) {
    return inside ? *(const uint4*)p : make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ uint4 fetch_across_k(const bfloat16* even, bool even_inside, const bfloat16* odd, bool odd_inside) {
    uint2 e = even_inside ? *(const uint2*)even : make_uint2(0, 0), o = odd_inside ? *(const uint2*)odd : make_uint2(0, 0);
    return make_uint4(e.x, e.y, o.x, o.y);
}

// The four words of it.
__device__ __forceinline__ uint4 words_along_k(uint4 raw) {
#if PRECISION == 1
    return make_uint4(round_to_tf32(raw.x), round_to_tf32(raw.y), round_to_tf32(raw.z), round_to_tf32(raw.w));
#else
    return raw;
#endif
}
__device__ __forceinline__ uint4 words_across_k(uint4 raw) {
#if PRECISION == 2
    return make_uint4((raw.x & 0xffffu) | raw.z << 16, raw.x >> 16 | (raw.z & 0xffff0000u),
                      (raw.y & 0xffffu) | raw.w << 16, raw.y >> 16 | (raw.w & 0xffff0000u));
#else
    return words_along_k(raw);
#endif
}
