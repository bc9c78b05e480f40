// The backward of picking rows: a gather over the picks instead of a scatter, so that sums have one order and need no atomics.
//
// select_rows_backward_T_I(const T* grad, const I* ids, T* out, long long n, long long m, long long d)
//   grad [m, d], ids [m] (I: i32, i64), out [n, d]: row r is the sum of the rows of grad whose id is r, in their order, 0 without
//   any. Sums in f32, rounded to T after every 4096 ids. ids outside 0..n are ignored. grid n (any), block 256.

const int THREADS = 256, EACH = 4, SPAN = 4096;

template <class T, class I>
__device__ __forceinline__ void select_rows_backward(const T* grad, const I* ids, T* out, i64 n, i64 m, i64 d) {
    constexpr int N = Vec<T>::N;
    __shared__ int matches[SPAN];
    __shared__ int counts[THREADS / 32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const bool vec = d % N == 0 && aligned(grad) && aligned(out);
    for (i64 row = blockIdx.x; row < n; row += gridDim.x) {
        for (i64 from = 0; from < m; from += SPAN) {
            int found = 0;
            for (i64 at = from; at < m && at < from + SPAN; at += THREADS * EACH) {
                u32 hits = 0;
#pragma unroll
                for (int k = 0; k < EACH; k++) {
                    const i64 j = at + k * THREADS + threadIdx.x;
                    if (j < m && i64(ids[j]) == row) hits |= 1u << k;
                }
                if (!__syncthreads_or(hits)) continue;
                for (int k = 0; k < EACH; k++) {
                    const bool hit = hits >> k & 1;
                    const u32 votes = __ballot_sync(~0u, hit);
                    if (lane == 0) counts[warp] = __popc(votes);
                    __syncthreads();
                    int before = 0, all = 0;
#pragma unroll
                    for (int w = 0; w < THREADS / 32; w++) {
                        before += w < warp ? counts[w] : 0;
                        all += counts[w];
                    }
                    if (hit) matches[found + before + __popc(votes & ((1u << lane) - 1))] = int(at - from) + k * THREADS + threadIdx.x;
                    found += all;
                    __syncthreads();
                }
            }
            if (found == 0 && from > 0) continue;
            __syncthreads();
            for (i64 e = threadIdx.x * i64(N); e < d; e += THREADS * i64(N)) {
                float sum[N] = {}, g[N];
                if (from > 0) {
                    if (vec) load(out + row * d + e, sum);
                    else
                        for (int k = 0; k < N && e + k < d; k++) sum[k] = widen(out[row * d + e + k]);
                }
                for (int i = 0; i < found; i++) {
                    const T* line = grad + (from + matches[i]) * d + e;
                    if (vec) load(line, g);
                    else
                        for (int k = 0; k < N; k++) g[k] = e + k < d ? widen(line[k]) : 0.0f;
#pragma unroll
                    for (int k = 0; k < N; k++) sum[k] += g[k];
                }
                if (vec) store(out + row * d + e, sum);
                else
                    for (int k = 0; k < N && e + k < d; k++) narrow(sum[k], out[row * d + e + k]);
            }
            __syncthreads(); // `matches` is read
        }
    }
}

#define KERNEL(T, NAME, I, INDEX)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) select_rows_backward_##NAME##_##INDEX(                                \
        const T* grad, const I* ids, T* out, i64 n, i64 m, i64 d) {                                                         \
        select_rows_backward<T, I>(grad, ids, out, n, m, d);                                                                \
    }

KERNEL(float, f32, int, i32)
KERNEL(bf16, bf16, int, i32)
KERNEL(f16, f16, int, i32)
KERNEL(float, f32, i64, i64)
KERNEL(bf16, bf16, i64, i64)
KERNEL(f16, f16, i64, i64)
