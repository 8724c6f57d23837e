// What the kernels share. The launcher pastes this text where a file includes it (launch.py): no include path is needed.
//
// ACTIVATION  the type in which images, feature maps and their gradients are stored: float or bfloat16
// VECTOR      how many neighbouring channels a thread handles: 4 (one access of 16 bytes, bfloat16: 8) or 1 (any shape and alignment)
#ifndef ACTIVATION
#define ACTIVATION float
#endif
#ifndef VECTOR
#define VECTOR 1
#endif

// bfloat16 is the upper half of a float: 1 bit of sign, 8 of exponent, 7 of mantissa. Written out, it needs no CUDA headers.
struct bfloat16 {
    unsigned short bits;
};
typedef ACTIVATION activation;

__device__ float to_float(float v) { return v; }
__device__ float to_float(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ unsigned bfloat16_bits(float v) {  // to the nearest, ties to even
    unsigned u = __float_as_uint(v);
    return v != v ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;  // NaN stays NaN
}
__device__ void round_to(float v, float& out) { out = v; }
__device__ void round_to(float v, bfloat16& out) { out.bits = (unsigned short)bfloat16_bits(v); }

// Where row number `row` of an array [images, height, width, ...] is. Two divisions, which cost some twenty instructions each.
struct Position {
    int image, i, j;
};
__device__ Position position_of(int row, int height, int width) {
    int line = row / width;
    return {line / height, line % height, row % width};
}

// VECTOR neighbouring elements, as floats. With VECTOR = 4 the address must be a multiple of 16 (bfloat16: 8) bytes.
struct Vector {
    float v[VECTOR];
};
__device__ Vector load(const float* p) {
    Vector r;
#if VECTOR == 4
    float4 f = *(const float4*)p;
    r.v[0] = f.x, r.v[1] = f.y, r.v[2] = f.z, r.v[3] = f.w;
#else
    r.v[0] = *p;
#endif
    return r;
}
__device__ void store(float* p, const Vector& r) {
#if VECTOR == 4
    *(float4*)p = make_float4(r.v[0], r.v[1], r.v[2], r.v[3]);
#else
    *p = r.v[0];
#endif
}
__device__ Vector load(const bfloat16* p) {
    Vector r;
#if VECTOR == 4
    uint2 u = *(const uint2*)p;
    r.v[0] = __uint_as_float(u.x << 16), r.v[1] = __uint_as_float(u.x & 0xffff0000u);
    r.v[2] = __uint_as_float(u.y << 16), r.v[3] = __uint_as_float(u.y & 0xffff0000u);
#else
    r.v[0] = to_float(*p);
#endif
    return r;
}
__device__ void store(bfloat16* p, const Vector& r) {
#if VECTOR == 4
    *(uint2*)p = make_uint2(bfloat16_bits(r.v[0]) | bfloat16_bits(r.v[1]) << 16,
                            bfloat16_bits(r.v[2]) | bfloat16_bits(r.v[3]) << 16);
#else
    round_to(r.v[0], *p);
#endif
}

// Batch norm of one element: (v - mean) * scale + bias. Backward computes it again where a ReLU followed, rather than
// reading what it gave, and needs the same bits: so both call this, and the rounding is spelt out (fmaf rounds once).
__device__ float batch_norm_scale(float var, float weight, float eps) { return weight / sqrtf(var + eps); }
__device__ float batch_norm_value(float v, float mean, float scale, float bias) { return fmaf(v - mean, scale, bias); }
