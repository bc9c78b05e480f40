// DivPrune (Alvar et al. 2025): max-min diverse picks for a whole batch; and greedy MAP of a determinantal point process
// (Chen et al. 2018, as CDPruner uses it).
//
// normalise_rows_T(const T* x, float* unit, long long rows, long long d)   T f32, bf16, f16
//   unit [rows, d] = x / max(|x|, 1e-12). grid `rows` (any), block 256. For f32 features: gram of `unit` in f32, then raw = 0 below.
//   bf16/f16 features need no such pass: one batched product with f32 output of the features themselves, then raw = 1.
// farthest_isolation(const float* gram, float* scale, float* isolation, int b, int n, int raw)
//   gram [b, n, n] f32 -> scale [b, n] f32: 1 (raw = 0) or max(sqrt(gram_ii), 1e-12) (raw = 1, gram of features as they are);
//   isolation [b, n] f32: cosine distance to the nearest other row (4 if n = 1). NaN counts as distance 0.
//   TWO launches: farthest_scale(const float* gram, float* scale, int b, int n, int raw) first, grid ceil(b * n / 256), block 256;
//   then this with grid (ceil(n / 8), b), block 256.
// farthest_picks(const float* gram, const float* scale, const float* isolation, void* picks, int b, int n, int keep, int out_i64)
//   picks [b, keep], i32 or i64, in pick order; lowest index wins ties. grid b; block: n rounded up to 32, at most 1024;
//   n <= 8192, 1 <= keep <= n. No dynamic shared memory.
// greedy_map(const float* gram, float* scratch, void* picks, int b, int n, int keep, int out_i64)
//   gram [b, n, n] f32: products of the features; scratch [b, keep, n] f32 (not initialised); picks as above. The residual starts as
//   the diagonal; pick its first maximum j; e = (gram_j - sum_s c_sj c_s) / sqrt(residual_j), 0 where residual_j <= 0; residual -= e^2,
//   0 at or below 1e-5 of its diagonal; picked rows are out. Rows with a NaN diagonal come last and touch no other.
//   grid b; block as farthest_picks; dynamic shared memory keep * 4 bytes. n <= 8192.

const float MIN_NORM = 1e-12f; // shorter rows count as zeros
const float FAR = 4.0f;        // farther than any cosine distance
const int COLUMNS = 8;         // per thread, at most

template <class T> __device__ __forceinline__ void normalise_rows(const T* x, float* unit, i64 rows, i64 d) {
    constexpr int N = Vec<T>::N;
    const bool vec = d % N == 0 && aligned(x) && aligned(unit);
    const i64 step = vec ? N : 1, stride = blockDim.x * step;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* from = x + row * d;
        float* to = unit + row * d;
        float sum[1] = {0.0f};
        for (i64 e = threadIdx.x * step; e < d; e += stride) {
            float v[N];
            if (vec) load(from + e, v);
            else v[0] = widen(from[e]);
#pragma unroll
            for (int k = 0; k < N; k++)
                if (vec || k == 0) sum[0] += v[k] * v[k];
        }
        block_sum(sum);
        // Not fmaxf: a NaN norm stays NaN.
        const float length = sqrtf(sum[0]), norm = length < MIN_NORM ? MIN_NORM : length;
        for (i64 e = threadIdx.x * step; e < d; e += stride) {
            if (vec) {
                float v[N];
                load(from + e, v);
#pragma unroll
                for (int k = 0; k < N; k++) v[k] /= norm;
#pragma unroll
                for (int k = 0; k < N; k += 4) store(to + e + k, *reinterpret_cast<float(*)[4]>(v + k));
            } else {
                to[e] = widen(from[e]) / norm;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) farthest_scale(const float* gram, float* scale, int b, int n, int raw) {
    const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= i64(b) * n) return;
    float norm = 1.0f;
    if (raw) {
        const float length = sqrtf(gram[i * n + i % n]);
        norm = length < MIN_NORM ? MIN_NORM : length;
    }
    scale[i] = norm;
}

// NaN counts as distance 0.
__device__ __forceinline__ float distance(float product, float a, float b) {
    const float value = 1.0f - product / a / b;
    return value == value ? value : 0.0f;
}

extern "C" __global__ void __launch_bounds__(256)
    farthest_isolation(const float* gram, const float* scale, float* isolation, int b, int n, int raw) {
    const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= n) return;
    const i64 image = blockIdx.y;
    const float* products = gram + (image * n + row) * n;
    const float* norms = scale + image * n;
    const float own = norms[row];
    float nearest = FAR;
    for (int j = lane; j < n; j += 32)
        if (j != row) nearest = fminf(nearest, distance(products[j], own, norms[j]));
    nearest = -warp_max(-nearest);
    if (lane == 0) isolation[image * n + row] = nearest;
}

// An unsigned integer that orders as the float does.
__device__ __forceinline__ u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Lowest index of the largest value over the block, the same in every thread. `values[c]` belongs to column threadIdx.x + c *
// blockDim.x. One barrier: two halves of `parts` take turns, `turn` counts the calls.
__device__ __forceinline__ int first_argmax(const float (&values)[COLUMNS], int n, int turn) {
    __shared__ u32 parts[2][2][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    u32 best = 0, index = 0xffffffffu;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const u32 j = threadIdx.x + c * blockDim.x;
        if (j < n) {
            const u32 value = ordered(values[c]);
            if (value > best) best = value, index = j;
        }
    }
    u32 top = __reduce_max_sync(~0u, best);
    u32 first = __reduce_min_sync(~0u, best == top ? index : 0xffffffffu);
    if (lane == 0) parts[turn & 1][0][warp] = top, parts[turn & 1][1][warp] = first;
    __syncthreads();
    best = lane < warps ? parts[turn & 1][0][lane] : 0;
    index = lane < warps ? parts[turn & 1][1][lane] : 0xffffffffu;
    top = __reduce_max_sync(~0u, best);
    return int(__reduce_min_sync(~0u, best == top ? index : 0xffffffffu));
}

__device__ __forceinline__ void put(void* picks, int is_i64, i64 at, int value) {
    if (is_i64) static_cast<i64*>(picks)[at] = value;
    else static_cast<int*>(picks)[at] = value;
}

extern "C" __global__ void __launch_bounds__(1024) farthest_picks(
    const float* gram, const float* scale, const float* isolation, void* picks, int b, int n, int keep, int out_i64) {
    const i64 image = blockIdx.x;
    const float* products = gram + image * n * n;
    const float* norms = scale + image * n;
    float nearest[COLUMNS], own[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int j = threadIdx.x + c * blockDim.x;
        own[c] = j < n ? norms[j] : 1.0f;
        nearest[c] = j < n ? isolation[image * n + j] : FAR;
    }
    int current = first_argmax(nearest, n, 0);
    if (threadIdx.x == 0) put(picks, out_i64, image * keep, current);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) nearest[c] = FAR;
    for (int t = 1; t < keep; t++) {
        const float* row = products + i64(current) * n;
        const float norm = norms[current];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const int j = threadIdx.x + c * blockDim.x;
            // A picked row is nearer than any other.
            if (j < n) nearest[c] = j == current ? -1.0f : fminf(nearest[c], distance(row[j], norm, own[c]));
        }
        current = first_argmax(nearest, n, t);
        if (threadIdx.x == 0) put(picks, out_i64, image * keep + t, current);
    }
}

const float RANK_EPS = 1e-6f;              // a residual below this share of its diagonal entry is rounding error
const float TAKEN = -2.0f, INVALID = -1.0f; // the residuals of picked rows and of rows with NaN

extern "C" __global__ void __launch_bounds__(1024)
    greedy_map(const float* gram, float* scratch, void* picks, int b, int n, int keep, int out_i64) {
    extern __shared__ float chosen[]; // column `current` of the factor rows
    __shared__ float gains[2];
    const i64 image = blockIdx.x;
    const float* products = gram + image * n * n;
    float* factors = scratch + image * keep * n;
    float residual[COLUMNS], floor[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int j = threadIdx.x + c * blockDim.x;
        const float diagonal = j < n ? products[i64(j) * n + j] : 0.0f;
        const bool broken = diagonal != diagonal;
        residual[c] = j >= n ? TAKEN : broken ? INVALID : diagonal;
        floor[c] = broken ? 0.0f : RANK_EPS * diagonal;
    }
    for (int t = 0; t < keep; t++) {
        const int current = first_argmax(residual, n, t); // its barrier: the last factor row is complete
        if (threadIdx.x == 0) put(picks, out_i64, image * keep + t, current);
        if (t + 1 == keep) break;
        for (int s = threadIdx.x; s < t; s += blockDim.x) chosen[s] = factors[i64(s) * n + current];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            if (threadIdx.x + c * blockDim.x == current) gains[t & 1] = residual[c];
        __syncthreads();
        const float gain = gains[t & 1], scale = gain > 0.0f ? 1.0f / sqrtf(gain) : 0.0f;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const int j = threadIdx.x + c * blockDim.x;
            if (j >= n) continue;
            float e = 0.0f;
            if (gain > 0.0f && residual[c] != INVALID) { // the factors of a NaN row stay 0
                e = products[i64(current) * n + j];
                for (int s = 0; s < t; s++) e -= chosen[s] * factors[i64(s) * n + j];
                e *= scale;
            }
            factors[i64(t) * n + j] = e;
            const float left = residual[c] - e * e;
            if (residual[c] >= 0.0f) residual[c] = left <= floor[c] ? 0.0f : left;
            if (j == current) residual[c] = TAKEN;
        }
    }
}

#define NORMALISE(T, NAME)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) normalise_rows_##NAME(const T* x, float* unit, i64 rows, i64 d) {     \
        normalise_rows<T>(x, unit, rows, d);                                                                                \
    }

NORMALISE(float, f32)
NORMALISE(bf16, bf16)
NORMALISE(f16, f16)
