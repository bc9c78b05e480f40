// Shared by all kernels: the source handed to NVRTC is this text, then that of one other file. No headers are needed.
//
// Conventions of every kernel:
//  - Names end in the dtype they work on: `_f32`, `_bf16`, `_f16` (`T` in the signatures).
//  - Sizes and strides are in elements, `long long`; tensors are contiguous unless a stride is a parameter.
//  - A pointer marked `|null` may be null: that input is absent, that output is not wanted.
//  - Any base address that is a multiple of the element size works unless a file says otherwise; 16-byte accesses are
//    used where addresses and sizes allow them.
//  - Statistics and sums are in f32. No kernel uses floating-point atomics: results do not change between runs.
//  - Grids may be smaller than stated where a kernel says "any grid".
//  - Empty tensors must not be launched.

typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
struct bf16 { u16 bits; };
struct f16 { u16 bits; };

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
__device__ __forceinline__ float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(float x, bf16& y) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
__device__ __forceinline__ void narrow(float x, f16& y) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}

// x rounded to T.
template <class T> __device__ __forceinline__ float rounded(float x) {
    T y;
    narrow(x, y);
    return widen(y);
}

// 16 bytes of T.
template <class T> struct alignas(16) Vec {
    static constexpr int N = 16 / sizeof(T);
    T v[N];
};

template <class T> __device__ __forceinline__ void load(const T* from, float (&to)[Vec<T>::N]) {
    const Vec<T> x = *reinterpret_cast<const Vec<T>*>(from);
#pragma unroll
    for (int k = 0; k < Vec<T>::N; k++) to[k] = widen(x.v[k]);
}

template <class T> __device__ __forceinline__ void store(T* to, const float (&from)[Vec<T>::N]) {
    Vec<T> x;
#pragma unroll
    for (int k = 0; k < Vec<T>::N; k++) narrow(from[k], x.v[k]);
    *reinterpret_cast<Vec<T>*>(to) = x;
}

// Whether 16-byte accesses reach this address; null counts as yes.
__device__ __forceinline__ bool aligned(const void* p) { return (reinterpret_cast<size_t>(p) & 15) == 0; }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, m));
    return x;
}

// Sum over the block, the same value in every thread; K sums at once.
template <int K> __device__ __forceinline__ void block_sum(float (&x)[K]) {
    __shared__ float parts[K][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
#pragma unroll
    for (int k = 0; k < K; k++) x[k] = warp_sum(x[k]);
    __syncthreads(); // the last use of `parts` is over
    if (lane == 0)
#pragma unroll
        for (int k = 0; k < K; k++) parts[k][warp] = x[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) x[k] = warp_sum(lane < warps ? parts[k][lane] : 0.0f);
}

#define INFINITY_F __int_as_float(0x7f800000)
