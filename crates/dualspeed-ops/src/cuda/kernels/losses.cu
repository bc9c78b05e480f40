// Cross entropy, distillation and accuracy of a chunk of rows from its logits. T is the dtype of the logits: f32, bf16 or f16.
// One block per row; block 512 (any multiple of 32 up to 1024 works); no dynamic shared memory.
//
// token_losses_forward_T(const T* logits, const T* teacher|null, const void* targets, float* out,
//                        long long vocab, long long rows, float tau, int targets_i64)
//   logits, teacher [rows, vocab]; targets [rows], i64 or i32; out [rows, 3] f32: cross entropy, tau^2 KL(teacher || student) at
//   temperature tau (0 without a teacher), 1 where the target is the first arg max. grid `rows` (any).
//   A target outside 0..vocab yields NaN.
// token_losses_backward_T(T* logits, const T* teacher|null, const void* targets, const float* grad,
//                         long long vocab, long long rows, float tau, int targets_i64)
//   Overwrites logits with their gradient, from grad [rows, 3] f32 (last column unused). grid `rows` (any).
// token_losses_backward_f32_U(const float* logits, const float* teacher|null, const void* targets, const float* grad, U* out,
//                             long long vocab, long long rows, float tau, int targets_i64)    for U bf16, f16
//   The same from f32 logits into `out` [rows, vocab] of U, for the products that follow.

// The softmax statistics of a row, merged in any order: maxima, sums of exponentials relative to them at temperature 1 and tau,
// and the teacher-weighted sum of (teacher - student) / tau.
struct Stats {
    float max;          // of the student's logits
    int argmax;         // the first of them
    float sum, sum_tau; // of exp(s - max), exp((s - max) / tau)
    float teacher_max, teacher_sum, cross;
};

const float LOWEST = -3.4028235e38f;

__device__ __forceinline__ Stats no_stats() { return {LOWEST, 0x7fffffff, 0.0f, 0.0f, LOWEST, 0.0f, 0.0f}; }

__device__ __forceinline__ void merge(Stats& a, const Stats& b, float inv_tau, bool distil) {
    const float max = fmaxf(a.max, b.max);
    if (b.max > a.max || (b.max == a.max && b.argmax < a.argmax)) a.argmax = b.argmax;
    a.sum = a.sum * expf(a.max - max) + b.sum * expf(b.max - max);
    if (distil) {
        a.sum_tau = a.sum_tau * expf((a.max - max) * inv_tau) + b.sum_tau * expf((b.max - max) * inv_tau);
        const float top = fmaxf(a.teacher_max, b.teacher_max);
        const float fa = expf((a.teacher_max - top) * inv_tau), fb = expf((b.teacher_max - top) * inv_tau);
        a.teacher_sum = a.teacher_sum * fa + b.teacher_sum * fb;
        a.cross = a.cross * fa + b.cross * fb;
        a.teacher_max = top;
    }
    a.max = max;
}

// N logits at once: one rescaling per N.
template <int N>
__device__ __forceinline__ void add(Stats& a, const float (&s)[N], const float (&t)[N], int at, int count, float inv_tau, bool distil) {
    Stats b = no_stats();
#pragma unroll
    for (int k = 0; k < N; k++)
        if (k < count) {
            if (s[k] > b.max || b.argmax == 0x7fffffff) b.max = s[k], b.argmax = at + k;
            b.teacher_max = fmaxf(b.teacher_max, t[k]);
        }
    b.max = fmaxf(b.max, a.max); // relative to the common maximum, so that merging rescales one side only
    if (distil) b.teacher_max = fmaxf(b.teacher_max, a.teacher_max);
    if (b.max == a.max) b.argmax = a.argmax; // a holds the lower index
#pragma unroll
    for (int k = 0; k < N; k++)
        if (k < count) {
            b.sum += expf(s[k] - b.max);
            if (distil) {
                const float weight = expf((t[k] - b.teacher_max) * inv_tau);
                b.sum_tau += expf((s[k] - b.max) * inv_tau);
                b.teacher_sum += weight;
                b.cross += weight * ((t[k] - s[k]) * inv_tau);
            }
        }
    merge(a, b, inv_tau, distil);
}

// Of a whole row, the same in every thread.
template <class T>
__device__ __forceinline__ Stats row_stats(const T* logits, const T* teacher, i64 vocab, float inv_tau) {
    constexpr int N = Vec<T>::N;
    const bool distil = teacher != nullptr, vec = aligned(logits) && aligned(teacher);
    Stats stats = no_stats();
    for (i64 e = i64(threadIdx.x) * N; e < vocab; e += i64(blockDim.x) * N) {
        const int count = vocab - e < N ? int(vocab - e) : N;
        float s[N], t[N];
#pragma unroll
        for (int k = 0; k < N; k++) s[k] = t[k] = 0.0f;
        if (vec && count == N) {
            load(logits + e, s);
            if (distil) load(teacher + e, t);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++)
                if (k < count) {
                    s[k] = widen(logits[e + k]);
                    if (distil) t[k] = widen(teacher[e + k]);
                }
        }
        add(stats, s, t, int(e), count, inv_tau, distil);
    }
    auto reduce = [&](Stats& a) {
#pragma unroll
        for (int m = 16; m > 0; m >>= 1) {
            Stats b;
            b.max = __shfl_xor_sync(~0u, a.max, m);
            b.argmax = __shfl_xor_sync(~0u, a.argmax, m);
            b.sum = __shfl_xor_sync(~0u, a.sum, m);
            b.sum_tau = __shfl_xor_sync(~0u, a.sum_tau, m);
            b.teacher_max = __shfl_xor_sync(~0u, a.teacher_max, m);
            b.teacher_sum = __shfl_xor_sync(~0u, a.teacher_sum, m);
            b.cross = __shfl_xor_sync(~0u, a.cross, m);
            merge(a, b, inv_tau, distil);
        }
    };
    __shared__ Stats parts[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    reduce(stats);
    __syncthreads(); // the previous row's use of `parts` is over
    if (lane == 0) parts[warp] = stats;
    __syncthreads();
    stats = lane < warps ? parts[lane] : no_stats();
    reduce(stats);
    return stats;
}

__device__ __forceinline__ i64 target_of(const void* targets, i64 row, int is_i64) {
    return is_i64 ? static_cast<const i64*>(targets)[row] : i64(static_cast<const int*>(targets)[row]);
}

template <class T>
__device__ __forceinline__ void losses_forward(
    const T* logits, const T* teacher, const void* targets, float* out, i64 vocab, i64 rows, float tau, int targets_i64) {
    const float inv_tau = 1.0f / tau;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* s = logits + row * vocab;
        const Stats stats = row_stats(s, teacher ? teacher + row * vocab : nullptr, vocab, inv_tau);
        if (threadIdx.x != 0) continue;
        const i64 target = target_of(targets, row, targets_i64);
        const bool valid = target >= 0 && target < vocab;
        float kl = 0.0f;
        if (teacher) {
            const float student = stats.max * inv_tau + logf(stats.sum_tau);
            const float other = stats.teacher_max * inv_tau + logf(stats.teacher_sum);
            kl = tau * tau * (stats.cross / stats.teacher_sum + student - other);
        }
        out[row * 3] = valid ? logf(stats.sum) + (stats.max - widen(s[target])) : __uint_as_float(0x7fc00000);
        out[row * 3 + 1] = kl;
        out[row * 3 + 2] = target == stats.argmax ? 1.0f : 0.0f;
    }
}

// `out` may be `logits`.
template <class T, class U>
__device__ __forceinline__ void losses_backward(
    const T* logits, const T* teacher, const void* targets, const float* grad, U* out, i64 vocab, i64 rows, float tau,
    int targets_i64) {
    constexpr int N = Vec<T>::N > Vec<U>::N ? Vec<T>::N : Vec<U>::N;
    const float inv_tau = 1.0f / tau;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* s = logits + row * vocab;
        const T* t = teacher ? teacher + row * vocab : nullptr;
        U* to = out + row * vocab;
        const Stats stats = row_stats(s, t, vocab, inv_tau); // its last barrier: every thread has read the row
        const float grad_ce = grad[row * 3], grad_kl = grad[row * 3 + 1] * tau;
        const float norm = grad_ce / stats.sum;
        const float norm_tau = teacher ? grad_kl / stats.sum_tau : 0.0f, norm_teacher = teacher ? grad_kl / stats.teacher_sum : 0.0f;
        const i64 target = target_of(targets, row, targets_i64);
        const bool vec = aligned(s) && aligned(t) && aligned(to);
        for (i64 e = i64(threadIdx.x) * N; e < vocab; e += i64(blockDim.x) * N) {
            const bool whole = vec && e + N <= vocab;
            float a[N], b[N];
#pragma unroll
            for (int k = 0; k < N; k++) a[k] = b[k] = 0.0f;
            if (whole) {
#pragma unroll
                for (int k = 0; k < N; k += Vec<T>::N) {
                    load(s + e + k, *reinterpret_cast<float(*)[Vec<T>::N]>(a + k));
                    if (t) load(t + e + k, *reinterpret_cast<float(*)[Vec<T>::N]>(b + k));
                }
            } else {
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (e + k < vocab) {
                        a[k] = widen(s[e + k]);
                        if (t) b[k] = widen(t[e + k]);
                    }
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                float g = norm * expf(a[k] - stats.max);
                if (e + k == target) g -= grad_ce;
                if (t)
                    g += norm_tau * expf((a[k] - stats.max) * inv_tau) -
                         norm_teacher * expf((b[k] - stats.teacher_max) * inv_tau);
                a[k] = g;
            }
            if (whole) {
#pragma unroll
                for (int k = 0; k < N; k += Vec<U>::N) store(to + e + k, *reinterpret_cast<float(*)[Vec<U>::N]>(a + k));
            } else {
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (e + k < vocab) narrow(a[k], to[e + k]);
            }
        }
    }
}

#define FORWARD(T, NAME)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(1024) token_losses_forward_##NAME(                                         \
        const T* logits, const T* teacher, const void* targets, float* out, i64 vocab, i64 rows, float tau,                 \
        int targets_i64) {                                                                                                  \
        losses_forward<T>(logits, teacher, targets, out, vocab, rows, tau, targets_i64);                                    \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(1024) token_losses_backward_##NAME(                                        \
        T* logits, const T* teacher, const void* targets, const float* grad, i64 vocab, i64 rows, float tau,                \
        int targets_i64) {                                                                                                  \
        losses_backward<T, T>(logits, teacher, targets, grad, logits, vocab, rows, tau, targets_i64);                       \
    }
#define BACKWARD(U, NAME)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(1024) token_losses_backward_f32_##NAME(                                    \
        const float* logits, const float* teacher, const void* targets, const float* grad, U* out, i64 vocab, i64 rows,     \
        float tau, int targets_i64) {                                                                                       \
        losses_backward<float, U>(logits, teacher, targets, grad, out, vocab, rows, tau, targets_i64);                      \
    }

FORWARD(float, f32)
FORWARD(bf16, bf16)
FORWARD(f16, f16)
BACKWARD(bf16, bf16)
BACKWARD(f16, f16)
