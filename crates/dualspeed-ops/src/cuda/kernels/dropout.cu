// Dropout by keys: a mask element is a function of its row's state, a place and its column (src/dropout.rs, dualspeed-core/src/rng.rs).
//
// dropout_T(const T* x, const int* keys, const T* sum|null, T* y, long long rows, long long d, unsigned long long place, int threshold, float keep)
//   keys [rows, 2] i32: low and high half of each row's 64-bit state. y [rows, d] is x times 0 with probability threshold / 65536,
//   else times `keep` (that is, 1 / (1 - p)) rounded to T, plus sum where it is given. y may alias x or sum. d contiguous; T f32,
//   bf16, f16. grid `rows` (any), block 256.

typedef unsigned long long u64;

const u64 GOLDEN = 0x9E3779B97F4A7C15ull; // the increment of SplitMix64

__device__ __forceinline__ u64 finalise(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

template <class T>
__device__ __forceinline__ void dropout(
    const T* x, const int* keys, const T* sum, T* y, i64 rows, i64 d, u64 place, int threshold, float keep) {
    constexpr int N = Vec<T>::N, DRAWS = N / 4; // a draw serves four columns
    const bool vec = d % N == 0 && aligned(x) && aligned(sum) && aligned(y);
    const u64 mixed = finalise(place + GOLDEN);
    const float kept = rounded<T>(keep);
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const u64 state = u64(u32(keys[2 * row])) | u64(u32(keys[2 * row + 1])) << 32;
        const u64 stream = finalise((state ^ mixed) + GOLDEN);
        for (i64 e = threadIdx.x * i64(N); e < d; e += blockDim.x * i64(N)) {
            float v[N], s[N];
            if (vec) load(x + row * d + e, v);
            if (vec && sum) load(sum + row * d + e, s);
#pragma unroll
            for (int q = 0; q < DRAWS; q++) {
                const u64 bits = finalise(stream + u64(e / 4 + q + 1) * GOLDEN);
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const i64 j = e + q * 4 + k;
                    const float mask = int(bits >> (16 * k) & 0xffff) < threshold ? 0.0f : kept;
                    if (vec) v[q * 4 + k] = v[q * 4 + k] * mask + (sum ? s[q * 4 + k] : 0.0f);
                    else if (j < d) {
                        const i64 i = row * d + j;
                        narrow(widen(x[i]) * mask + (sum ? widen(sum[i]) : 0.0f), y[i]);
                    }
                }
            }
            if (vec) store(y + row * d + e, v);
        }
    }
}

#define KERNEL(T, NAME)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) dropout_##NAME(                                                       \
        const T* x, const int* keys, const T* sum, T* y, i64 rows, i64 d, u64 place, int threshold, float keep) {                         \
        dropout<T>(x, keys, sum, y, rows, d, place, threshold, keep);                                                            \
    }

KERNEL(float, f32)
KERNEL(bf16, bf16)
KERNEL(f16, f16)
