// Norms, activations, rotary embedding, casts, column sums. T is f32, bf16 or f16. One kernel, one launch.
//
// rms_norm_forward_T(const T* x, const T* residual|null, const void* weight, T* sum|null, T* y,
//                    long long rows, long long d, float eps, int weight_f32)
//   h = x (+ residual, rounded to T and stored in `sum`); y = h / sqrt(mean(h^2) + eps) * weight.
//   All [rows, d]; weight [d], f32 if weight_f32 else T. grid: any, best `rows`; block: BLOCK below; no dynamic shared memory.
// rms_norm_backward_T(const T* x, const void* weight, const T* grad, const T* residual_grad|null, T* dx|null, float* scale|null,
//                     long long rows, long long d, float eps, int weight_f32)
//   dx [rows, d] (+ residual_grad, which may alias dx); scale [rows] = 1 / sqrt(mean(x^2) + eps), for column_sums. Launch as above.
// layer_norm_forward_T(const T* x, const T* residual|null, const void* weight, const void* bias, T* sum|null, T* y,
//                      long long rows, long long d, float eps, int weight_f32)
// layer_norm_backward_T(const T* x, const void* weight, const T* grad, const T* residual_grad|null, T* dx|null, float* mean|null,
//                       float* scale|null, long long rows, long long d, float eps, int weight_f32)
//   As above with the mean taken off first and the biased variance; weight_f32 goes for weight and bias.
//   BLOCK of the four: a multiple of 32, at most 512; best is ceil(d / (64 / sizeof(T))) rounded up to 32 (four 16-byte accesses each).
//
// column_sums_T(const T* grad, const T* x|null, const float* mean|null, const float* scale|null, float* dweight|null,
//               float* dbias|null, long long rows, long long d, long long rows_per_split)
//   dweight[s, j] = sum_i grad[i, j] (x[i, j] - mean[i]) scale[i], dbias[s, j] = sum_i grad[i, j] over the rows
//   s * rows_per_split .. of split s: [splits, d] each. x and scale are needed for dweight only; mean null: 0.
//   Also the gradient of a linear layer's bias. grid (ceil(d / 64), splits) with splits = ceil(rows / rows_per_split),
//   splits <= 65535; block 256; good: splits so that the grid has about 528 blocks.
// column_sums_finish_T(const float* partial, T* out, long long splits, long long d)
//   out [d] = sum over splits, in order. grid ceil(d / 256), block 256.
//
// swiglu_forward_T(const T* gate, long long gate_stride, const T* up, long long up_stride, T* y, long long rows, long long d)
//   y [rows, d] = silu(gate) * up; the strides are those between rows, so that both may be halves of one [rows, 2 d] tensor.
// swiglu_backward_T(const T* gate, long long gate_stride, const T* up, long long up_stride, const T* grad,
//                   T* dgate|null, long long dgate_stride, T* dup|null, long long dup_stride, long long rows, long long d)
//   dgate and dup may alias gate and up. grid (any, best ceil(d / (256 * 16 / sizeof(T))); any, best min(rows, 65535)), block 256.
//
// gelu_forward_T(const T* x, T* y, long long n)            gelu_backward_T(const T* x, const T* grad, T* dx, long long n)
// quick_gelu_forward_T(const T* x, T* y, long long n)      quick_gelu_backward_T(const T* x, const T* grad, T* dx, long long n)
//   Outputs may alias inputs. grid: any, best min(ceil(n / (256 * 16 / sizeof(T))), 8 * multiprocessors); block 256.
//
// rope_T(const T* x, const float* cos, const float* sin, T* y, long long b, long long h, long long s, long long d,
//        long long x_b, long long x_h, long long x_s, long long y_b, long long y_h, long long y_s,
//        long long cos_b, float direction)
//   x, y [b, h, s, d] with the given strides and d contiguous; cos, sin [1 or b, s, d / 2] f32 contiguous with cos_b the stride
//   between batch rows (0: shared). direction 1: forward, -1: backward. y may alias x (same strides). d even.
//   grid: any, best b * s (which must be below 2^32); block: a multiple of 32 up to 256, best h * d * sizeof(T) / 128 so rounded.
//
// cast_A_B(const A* x, B* y, long long n, float scale)   for A, B in f32, bf16, f16, equal pairs too: y = x * scale.
//   Launch as gelu.
//
// multiply_T(const T* x, const T* y, T* out, long long n)   out = x * y (dropout). Launch as gelu, out may alias.
//
// sum, y and dx of the norms must not overlap their inputs except where said.

// N elements from column e on of a row of d; zeros past its end. `vec`: 16-byte loads are possible (then d % N == 0).
template <class T, int N>
__device__ __forceinline__ void load_part(const T* row, i64 e, i64 d, bool vec, float (&to)[N]) {
    if (vec && e < d) {
#pragma unroll
        for (int k = 0; k < N; k += Vec<T>::N) load(row + e + k, *reinterpret_cast<float(*)[Vec<T>::N]>(to + k));
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) to[k] = e + k < d ? widen(row[e + k]) : 0.0f;
    }
}

template <class T, int N>
__device__ __forceinline__ void store_part(T* row, i64 e, i64 d, bool vec, const float (&from)[N]) {
    if (vec && e < d) {
#pragma unroll
        for (int k = 0; k < N; k += Vec<T>::N) store(row + e + k, *reinterpret_cast<const float(*)[Vec<T>::N]>(from + k));
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (e + k < d) narrow(from[k], row[e + k]);
    }
}

template <class T, int N>
__device__ __forceinline__ void load_weight(const void* weight, int is_f32, i64 e, i64 d, bool vec, float (&to)[N]) {
    if (is_f32) load_part(static_cast<const float*>(weight), e, d, vec, to);
    else load_part(static_cast<const T*>(weight), e, d, vec, to);
}

// ---- Norms: a block per row; the first CACHE parts of a thread stay in registers (in T, which is
// exact), the rest is read again. Without 16-byte accesses nothing is kept: that path is for odd sizes only.


template <class T, int N>
__device__ __forceinline__ void load_sum(const T* x, const T* residual, i64 at, i64 e, i64 d, bool vec, float (&h)[N]) {
    load_part(x + at, e, d, vec, h);
    if (residual) {
        float r[N];
        load_part(residual + at, e, d, vec, r);
#pragma unroll
        for (int k = 0; k < N; k++) h[k] = rounded<T>(h[k] + r[k]);
    }
}

template <class T> __device__ __forceinline__ Vec<T> packed(const float (&v)[Vec<T>::N]) {
    Vec<T> x;
#pragma unroll
    for (int k = 0; k < Vec<T>::N; k++) narrow(v[k], x.v[k]);
    return x;
}
template <class T> __device__ __forceinline__ void unpack(const Vec<T>& x, float (&v)[Vec<T>::N]) {
#pragma unroll
    for (int k = 0; k < Vec<T>::N; k++) v[k] = widen(x.v[k]);
}

template <class T, bool CENTRED, bool vec>
__device__ __forceinline__ void norm_forward(
    const T* x, const T* residual, const void* weight, const void* bias, T* sum, T* y, i64 rows, i64 d, float eps, int weight_f32) {
    constexpr int N = Vec<T>::N, CACHE = vec ? 4 : 0;
    const i64 stride = i64(blockDim.x) * N, first = i64(threadIdx.x) * N;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const i64 at = row * d;
        Vec<T> cache[CACHE + 1];
        float v[N], total[1] = {0.0f}, mean = 0.0f;
        auto part = [&](int c, i64 e) { // of h
            if (c < CACHE) unpack(cache[c], v);
            else load_sum(x, residual, at, e, d, vec, v);
        };
        auto every = [&](auto f) {
#pragma unroll
            for (int c = 0; c < CACHE; c++)
                if (first + c * stride < d) f(c, first + c * stride);
            for (i64 e = first + CACHE * stride; e < d; e += stride) f(CACHE, e);
        };
#pragma unroll
        for (int c = 0; c < CACHE; c++)
            if (first + c * stride < d) {
                load_sum(x, residual, at, first + c * stride, d, vec, v);
                cache[c] = packed<T>(v);
            }
        every([&](int c, i64 e) {
            part(c, e);
            if (sum) store_part(sum + at, e, d, vec, v);
#pragma unroll
            for (int k = 0; k < N; k++) total[0] += CENTRED ? v[k] : v[k] * v[k];
        });
        block_sum(total);
        if (CENTRED) {
            mean = total[0] / float(d);
            total[0] = 0.0f;
            every([&](int c, i64 e) {
                part(c, e);
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (e + k < d) total[0] += (v[k] - mean) * (v[k] - mean);
            });
            block_sum(total);
        }
        const float scale = 1.0f / sqrtf(total[0] / float(d) + eps);
        every([&](int c, i64 e) {
            float w[N], b[N];
            part(c, e);
            load_weight<T>(weight, weight_f32, e, d, vec, w);
            if (CENTRED) load_weight<T>(bias, weight_f32, e, d, vec, b);
#pragma unroll
            for (int k = 0; k < N; k++) v[k] = (v[k] - mean) * scale * w[k] + (CENTRED ? b[k] : 0.0f);
            store_part(y + at, e, d, vec, v);
        });
    }
}

template <class T, bool CENTRED, bool vec>
__device__ __forceinline__ void norm_backward(
    const T* x, const void* weight, const T* grad, const T* residual_grad, T* dx, float* mean_out, float* scale_out,
    i64 rows, i64 d, float eps, int weight_f32) {
    constexpr int N = Vec<T>::N, CACHE = vec ? 4 : 0;
    const i64 stride = i64(blockDim.x) * N, first = i64(threadIdx.x) * N;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const i64 at = row * d;
        Vec<T> cached_x[CACHE + 1], cached_grad[CACHE + 1];
        float v[N], u[N], mean = 0.0f;
        auto part_x = [&](int c, i64 e) {
            if (c < CACHE) unpack(cached_x[c], v);
            else load_part(x + at, e, d, vec, v);
        };
        auto part_grad = [&](int c, i64 e) { // the gradient of the normalised row: grad * weight
            if (c < CACHE) unpack(cached_grad[c], u);
            else load_part(grad + at, e, d, vec, u);
            float w[N];
            load_weight<T>(weight, weight_f32, e, d, vec, w);
#pragma unroll
            for (int k = 0; k < N; k++) u[k] *= w[k];
        };
        auto every = [&](auto f) {
#pragma unroll
            for (int c = 0; c < CACHE; c++)
                if (first + c * stride < d) f(c, first + c * stride);
            for (i64 e = first + CACHE * stride; e < d; e += stride) f(CACHE, e);
        };
#pragma unroll
        for (int c = 0; c < CACHE; c++)
            if (first + c * stride < d) {
                load_part(x + at, first + c * stride, d, vec, v);
                cached_x[c] = packed<T>(v);
                if (dx) {
                    load_part(grad + at, first + c * stride, d, vec, u);
                    cached_grad[c] = packed<T>(u);
                }
            }
        if (CENTRED) {
            float total[1] = {0.0f};
            every([&](int c, i64 e) {
                part_x(c, e);
#pragma unroll
                for (int k = 0; k < N; k++) total[0] += v[k];
            });
            block_sum(total);
            mean = total[0] / float(d);
        }
        float sums[3] = {0.0f, 0.0f, 0.0f}; // centred^2, centred * grad, grad
        every([&](int c, i64 e) {
            part_x(c, e);
            if (dx) part_grad(c, e);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float centred = e + k < d ? v[k] - mean : 0.0f;
                sums[0] += centred * centred;
                if (dx) {
                    sums[1] += centred * u[k];
                    sums[2] += u[k];
                }
            }
        });
        block_sum(sums);
        const float scale = 1.0f / sqrtf(sums[0] / float(d) + eps);
        if (threadIdx.x == 0) {
            if (mean_out) mean_out[row] = mean;
            if (scale_out) scale_out[row] = scale;
        }
        if (!dx) continue;
        const float along = scale * scale * sums[1] / float(d), shift = CENTRED ? sums[2] / float(d) : 0.0f;
        every([&](int c, i64 e) {
            float r[N];
            part_x(c, e);
            part_grad(c, e);
            if (residual_grad) load_part(residual_grad + at, e, d, vec, r);
#pragma unroll
            for (int k = 0; k < N; k++) {
                v[k] = (u[k] - shift - (v[k] - mean) * along) * scale;
                if (residual_grad) v[k] += r[k];
            }
            store_part(dx + at, e, d, vec, v);
        });
    }
}

// ---- Sums over rows, in two stages of fixed order.

template <class T>
__device__ __forceinline__ void column_sums(
    const T* grad, const T* x, const float* mean, const float* scale, float* dweight, float* dbias, i64 rows, i64 d, i64 per_split) {
    constexpr int N = Vec<T>::N, LANES = 64 / N, DEPTH = 256 / LANES;
    __shared__ float parts[2][DEPTH][64 + 4];
    const int lane = threadIdx.x % LANES, depth = threadIdx.x / LANES;
    const i64 e = i64(blockIdx.x) * 64 + lane * N;
    const bool vec = d % N == 0 && aligned(grad) && aligned(x);
    const i64 begin = blockIdx.y * per_split, end = begin + per_split < rows ? begin + per_split : rows;
    float w[N], b[N];
#pragma unroll
    for (int k = 0; k < N; k++) w[k] = b[k] = 0.0f;
    for (i64 i = begin + depth; i < end; i += DEPTH) {
        float g[N];
        load_part(grad + i * d, e, d, vec, g);
#pragma unroll
        for (int k = 0; k < N; k++) b[k] += g[k];
        if (dweight) {
            float v[N];
            load_part(x + i * d, e, d, vec, v);
            const float m = mean ? mean[i] : 0.0f, s = scale[i];
#pragma unroll
            for (int k = 0; k < N; k++) w[k] += g[k] * ((v[k] - m) * s);
        }
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        parts[0][depth][lane * N + k] = w[k];
        parts[1][depth][lane * N + k] = b[k];
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        const int which = threadIdx.x / 64, column = threadIdx.x % 64;
        const i64 j = i64(blockIdx.x) * 64 + column;
        float* out = which ? dbias : dweight;
        if (out && j < d) {
            float total = 0.0f;
            for (int i = 0; i < DEPTH; i++) total += parts[which][i][column];
            out[blockIdx.y * d + j] = total;
        }
    }
}

template <class T> __device__ __forceinline__ void column_sums_finish(const float* partial, T* out, i64 splits, i64 d) {
    const i64 j = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (j >= d) return;
    float total = 0.0f;
    for (i64 s = 0; s < splits; s++) total += partial[s * d + j];
    narrow(total, out[j]);
}

// ---- Activations.

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float phi(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

struct Gelu {
    static __device__ __forceinline__ float value(float x) { return x * phi(x); }
    static __device__ __forceinline__ float slope(float x) {
        return phi(x) + x * 0.39894228040143268f * expf(-0.5f * x * x);
    }
};
struct QuickGelu {
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(1.702f * x); }
    static __device__ __forceinline__ float slope(float x) {
        const float s = sigmoid(1.702f * x);
        return s + 1.702f * x * s * (1.0f - s);
    }
};

// out = f(x, y) elementwise; y may be null.
template <class A, class B, class C, class F>
__device__ __forceinline__ void map(const A* x, const B* y, C* out, i64 n, F f) {
    constexpr int N = Vec<C>::N > Vec<A>::N ? Vec<C>::N : Vec<A>::N;
    const bool vec = aligned(x) && aligned(y) && aligned(out);
    const i64 stride = i64(gridDim.x) * blockDim.x * N;
    for (i64 e = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * N; e < n; e += stride) {
        const bool whole = vec && e + N <= n;
        float u[N], v[N];
        load_part(x, e, n, whole, u);
        if (y) load_part(y, e, n, whole, v);
#pragma unroll
        for (int k = 0; k < N; k++) u[k] = f(u[k], y ? v[k] : 0.0f);
        store_part(out, e, n, whole, u);
    }
}

template <class T>
__device__ __forceinline__ void swiglu_forward(
    const T* gate, i64 gate_stride, const T* up, i64 up_stride, T* y, i64 rows, i64 d) {
    constexpr int N = Vec<T>::N;
    const bool vec = d % N == 0 && gate_stride % N == 0 && up_stride % N == 0 && aligned(gate) && aligned(up) && aligned(y);
    const i64 first = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * N, stride = i64(gridDim.x) * blockDim.x * N;
    for (i64 row = blockIdx.y; row < rows; row += gridDim.y)
        for (i64 e = first; e < d; e += stride) {
            float g[N], u[N];
            load_part(gate + row * gate_stride, e, d, vec, g);
            load_part(up + row * up_stride, e, d, vec, u);
#pragma unroll
            for (int k = 0; k < N; k++) u[k] *= g[k] * sigmoid(g[k]);
            store_part(y + row * d, e, d, vec, u);
        }
}

template <class T>
__device__ __forceinline__ void swiglu_backward(
    const T* gate, i64 gate_stride, const T* up, i64 up_stride, const T* grad, T* dgate, i64 dgate_stride, T* dup,
    i64 dup_stride, i64 rows, i64 d) {
    constexpr int N = Vec<T>::N;
    const bool vec = d % N == 0 && gate_stride % N == 0 && up_stride % N == 0 && aligned(gate) && aligned(up) &&
                     aligned(grad) && (!dgate || (aligned(dgate) && dgate_stride % N == 0)) &&
                     (!dup || (aligned(dup) && dup_stride % N == 0));
    const i64 first = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * N, stride = i64(gridDim.x) * blockDim.x * N;
    for (i64 row = blockIdx.y; row < rows; row += gridDim.y)
        for (i64 e = first; e < d; e += stride) {
            float g[N], u[N], y[N];
            load_part(gate + row * gate_stride, e, d, vec, g);
            load_part(up + row * up_stride, e, d, vec, u);
            load_part(grad + row * d, e, d, vec, y);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float s = sigmoid(g[k]), silu = g[k] * s;
                const float dg = s * (1.0f + g[k] * (1.0f - s)) * u[k] * y[k];
                u[k] = silu * y[k];
                g[k] = dg;
            }
            if (dgate) store_part(dgate + row * dgate_stride, e, d, vec, g);
            if (dup) store_part(dup + row * dup_stride, e, d, vec, u);
        }
}

// ---- Rotary embedding: a block per position, its threads over parts of half a head and over heads.

template <class T>
__device__ __forceinline__ void rope(
    const T* x, const float* cos, const float* sin, T* y, i64 b, i64 h, i64 s, i64 d, i64 x_b, i64 x_h, i64 x_s, i64 y_b, i64 y_h,
    i64 y_s, i64 cos_b, float direction) {
    constexpr int N = Vec<T>::N;
    const i64 half = d / 2;
    const bool vec = half % N == 0 && aligned(x) && aligned(y) && aligned(cos) && aligned(sin) && cos_b % 4 == 0 &&
                     ((x_b | x_h | x_s | y_b | y_h | y_s) & (N - 1)) == 0;
    const int parts = int((half + N - 1) / N), wide = min(parts, int(blockDim.x)), lanes = blockDim.x / wide;
    const int lane = threadIdx.x / wide;
    if (lane >= lanes) return;
    for (u32 position = blockIdx.x; position < u32(b * s); position += gridDim.x) {
        const u32 batch = position / u32(s), i = position % u32(s);
        const float* c_row = cos + batch * cos_b + i * half;
        const float* s_row = sin + batch * cos_b + i * half;
        for (int part = threadIdx.x % wide; part < parts; part += wide) {
            const i64 e = i64(part) * N;
            float c[N], sn[N];
            load_part(c_row, e, half, vec, c);
            load_part(s_row, e, half, vec, sn);
            const T* from = x + batch * x_b + i * x_s;
            T* to = y + batch * y_b + i * y_s;
#pragma unroll 4
            for (int head = lane; head < int(h); head += lanes) {
                float left[N], right[N];
                load_part(from + head * x_h, e, half, vec, left);
                load_part(from + head * x_h + half, e, half, vec, right);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    const float l = left[k], r = right[k], sine = sn[k] * direction;
                    left[k] = l * c[k] - r * sine;
                    right[k] = r * c[k] + l * sine;
                }
                store_part(to + head * y_h, e, half, vec, left);
                store_part(to + head * y_h + half, e, half, vec, right);
            }
        }
    }
}

// ---- Entry points.

#define NORM_FORWARD(T, CENTRED, BIAS)                                                                                      \
    if (d % Vec<T>::N == 0 && aligned(x) && aligned(residual) && aligned(weight) && aligned(BIAS) && aligned(sum) &&        \
        aligned(y))                                                                                                         \
        norm_forward<T, CENTRED, true>(x, residual, weight, BIAS, sum, y, rows, d, eps, weight_f32);                        \
    else norm_forward<T, CENTRED, false>(x, residual, weight, BIAS, sum, y, rows, d, eps, weight_f32);
#define NORM_BACKWARD(T, CENTRED, MEAN)                                                                                     \
    if (d % Vec<T>::N == 0 && aligned(x) && aligned(weight) && aligned(grad) && aligned(residual_grad) && aligned(dx))      \
        norm_backward<T, CENTRED, true>(x, weight, grad, residual_grad, dx, MEAN, scale, rows, d, eps, weight_f32);         \
    else norm_backward<T, CENTRED, false>(x, weight, grad, residual_grad, dx, MEAN, scale, rows, d, eps, weight_f32);

#define KERNELS(T, NAME)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(512) rms_norm_forward_##NAME(                                              \
        const T* x, const T* residual, const void* weight, T* sum, T* y, i64 rows, i64 d, float eps, int weight_f32) {      \
        NORM_FORWARD(T, false, nullptr)                                                                                     \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(512) layer_norm_forward_##NAME(                                            \
        const T* x, const T* residual, const void* weight, const void* bias, T* sum, T* y, i64 rows, i64 d, float eps,      \
        int weight_f32) {                                                                                                   \
        NORM_FORWARD(T, true, bias)                                                                                         \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(512) rms_norm_backward_##NAME(                                             \
        const T* x, const void* weight, const T* grad, const T* residual_grad, T* dx, float* scale, i64 rows, i64 d,        \
        float eps, int weight_f32) {                                                                                        \
        NORM_BACKWARD(T, false, nullptr)                                                                                    \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(512) layer_norm_backward_##NAME(                                           \
        const T* x, const void* weight, const T* grad, const T* residual_grad, T* dx, float* mean, float* scale, i64 rows,  \
        i64 d, float eps, int weight_f32) {                                                                                 \
        NORM_BACKWARD(T, true, mean)                                                                                        \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) column_sums_##NAME(                                                   \
        const T* grad, const T* x, const float* mean, const float* scale, float* dweight, float* dbias, i64 rows, i64 d,    \
        i64 rows_per_split) {                                                                                               \
        column_sums<T>(grad, x, mean, scale, dweight, dbias, rows, d, rows_per_split);                                      \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) column_sums_finish_##NAME(                                            \
        const float* partial, T* out, i64 splits, i64 d) {                                                                  \
        column_sums_finish<T>(partial, out, splits, d);                                                                     \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) swiglu_forward_##NAME(                                                \
        const T* gate, i64 gate_stride, const T* up, i64 up_stride, T* y, i64 rows, i64 d) {                                \
        swiglu_forward<T>(gate, gate_stride, up, up_stride, y, rows, d);                                                    \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) swiglu_backward_##NAME(                                               \
        const T* gate, i64 gate_stride, const T* up, i64 up_stride, const T* grad, T* dgate, i64 dgate_stride, T* dup,      \
        i64 dup_stride, i64 rows, i64 d) {                                                                                  \
        swiglu_backward<T>(gate, gate_stride, up, up_stride, grad, dgate, dgate_stride, dup, dup_stride, rows, d);          \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) gelu_forward_##NAME(const T* x, T* y, i64 n) {                        \
        map(x, static_cast<const T*>(nullptr), y, n, [](float v, float) { return Gelu::value(v); });                        \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) gelu_backward_##NAME(const T* x, const T* grad, T* dx, i64 n) {       \
        map(x, grad, dx, n, [](float v, float g) { return g * Gelu::slope(v); });                                           \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) quick_gelu_forward_##NAME(const T* x, T* y, i64 n) {                  \
        map(x, static_cast<const T*>(nullptr), y, n, [](float v, float) { return QuickGelu::value(v); });                   \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) quick_gelu_backward_##NAME(const T* x, const T* grad, T* dx, i64 n) { \
        map(x, grad, dx, n, [](float v, float g) { return g * QuickGelu::slope(v); });                                      \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) multiply_##NAME(const T* x, const T* y, T* out, i64 n) {              \
        map(x, y, out, n, [](float u, float v) { return u * v; });                                                          \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) rope_##NAME(                                                          \
        const T* x, const float* cos, const float* sin, T* y, i64 b, i64 h, i64 s, i64 d, i64 x_b, i64 x_h, i64 x_s,        \
        i64 y_b, i64 y_h, i64 y_s, i64 cos_b, float direction) {                                                            \
        rope<T>(x, cos, sin, y, b, h, s, d, x_b, x_h, x_s, y_b, y_h, y_s, cos_b, direction);                                \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
KERNELS(f16, f16)

#define CAST(A, B, NAME)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) cast_##NAME(const A* x, B* y, i64 n, float scale) {                   \
        map(x, static_cast<const A*>(nullptr), y, n, [scale](float v, float) { return v * scale; });                        \
    }

CAST(float, float, f32_f32)
CAST(float, bf16, f32_bf16)
CAST(float, f16, f32_f16)
CAST(bf16, float, bf16_f32)
CAST(bf16, bf16, bf16_bf16)
CAST(bf16, f16, bf16_f16)
CAST(f16, float, f16_f32)
CAST(f16, bf16, f16_bf16)
CAST(f16, f16, f16_f16)
