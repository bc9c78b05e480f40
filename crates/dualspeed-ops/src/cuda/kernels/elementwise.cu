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
//   BLOCK of the four: a multiple of 32, at most 512; best is ceil(d / (64 / sizeof(T))) rounded up to 32 (four 16-byte accesses
//   each), and twice as many for backward, which holds all that it reads in registers (two accesses each).
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
// cast_many_B(const Casts casts)   for B in bf16, f16: to[i] = from[i] for up to 16 f32 tensors of n[i] elements.
//   grid: x any, best the longest n / 8192; y = number of tensors; block 256.
//
// sum, y and dx of the norms must not overlap their inputs except where said.

// W elements at a time: 16-byte accesses where W > 1, which address and sizes must then allow.
template <class T, int W> __device__ __forceinline__ void get(const T* from, float (&to)[W]) {
    if constexpr (W == 1) to[0] = widen(from[0]);
    else
#pragma unroll
        for (int k = 0; k < W; k += Vec<T>::N) load(from + k, *reinterpret_cast<float(*)[Vec<T>::N]>(to + k));
}
template <class T, int W> __device__ __forceinline__ void put(T* to, const float (&from)[W]) {
    if constexpr (W == 1) narrow(from[0], to[0]);
    else
#pragma unroll
        for (int k = 0; k < W; k += Vec<T>::N) store(to + k, *reinterpret_cast<const float(*)[Vec<T>::N]>(from + k));
}
template <class T, int W> __device__ __forceinline__ void get_weight(const void* weight, int is_f32, i64 e, float (&to)[W]) {
    if (is_f32) get(static_cast<const float*>(weight) + e, to);
    else get(static_cast<const T*>(weight) + e, to);
}

// ---- Norms: a block per row. Where 16-byte accesses are possible and a thread has at most PARTS of them, they stay in registers
// (in T, which is exact); else PARTS is 0, elements come one at a time and are read again for every pass.

template <class T, int W> __device__ __forceinline__ void get_sum(const T* x, const T* residual, i64 at, float (&h)[W]) {
    get(x + at, h);
    if (residual) {
        float r[W];
        get(residual + at, r);
#pragma unroll
        for (int k = 0; k < W; k++) h[k] = rounded<T>(h[k] + r[k]);
    }
}

template <class T, int W> struct Part {
    T v[W];
    __device__ __forceinline__ void keep(const float (&from)[W]) {
#pragma unroll
        for (int k = 0; k < W; k++) narrow(from[k], v[k]);
    }
    __device__ __forceinline__ void give(float (&to)[W]) const {
#pragma unroll
        for (int k = 0; k < W; k++) to[k] = widen(v[k]);
    }
};

// Every part of a row that belongs to this thread: its number c and its first column e.
#define EACH_PART                                                                                                           \
    _Pragma("unroll") for (int c = 0; c < (PARTS > 0 ? PARTS : 1); c++)                                                     \
        for (i64 e = (threadIdx.x + i64(c) * blockDim.x) * W; e < d; e += PARTS > 0 ? d : i64(blockDim.x) * W)

template <class T, bool CENTRED, int W, int PARTS>
__device__ __forceinline__ void norm_forward(
    const T* x, const T* residual, const void* weight, const void* bias, T* sum, T* y, i64 rows, i64 d, float eps, int weight_f32) {
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const i64 at = row * d;
        Part<T, W> kept[PARTS + 1];
        float v[W], total[1] = {0.0f}, mean = 0.0f;
        if (PARTS > 0)
            EACH_PART { // all loads before the first use
                get_sum(x, residual, at + e, v);
                kept[c].keep(v);
            }
        EACH_PART {
            if (PARTS > 0) kept[c].give(v);
            else get_sum(x, residual, at + e, v);
            if (sum) put(sum + at + e, v);
#pragma unroll
            for (int k = 0; k < W; k++) total[0] += CENTRED ? v[k] : v[k] * v[k];
        }
        block_sum(total);
        if (CENTRED) {
            mean = total[0] / float(d);
            total[0] = 0.0f;
            EACH_PART {
                if (PARTS > 0) kept[c].give(v);
                else get_sum(x, residual, at + e, v);
#pragma unroll
                for (int k = 0; k < W; k++) total[0] += (v[k] - mean) * (v[k] - mean);
            }
            block_sum(total);
        }
        const float scale = 1.0f / sqrtf(total[0] / float(d) + eps);
        EACH_PART {
            float w[W], b[W];
            if (PARTS > 0) kept[c].give(v);
            else get_sum(x, residual, at + e, v);
            get_weight<T>(weight, weight_f32, e, w);
            if (CENTRED) get_weight<T>(bias, weight_f32, e, b);
#pragma unroll
            for (int k = 0; k < W; k++) v[k] = (v[k] - mean) * scale * w[k] + (CENTRED ? b[k] : 0.0f);
            put(y + at + e, v);
        }
    }
}

// Makes the compiler widen the values again after this point: in registers they take half the room, and more rows are in flight.
template <class T> __device__ __forceinline__ void stay_narrow(Vec<T>& x) {
    uint4& bits = reinterpret_cast<uint4&>(x);
    asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
}

// All that a row needs is on its way before the first use, PARTS accesses of 16 bytes of each operand for a thread.
template <class T, bool CENTRED, int PARTS>
__device__ __forceinline__ void norm_backward_parts(
    const T* x, const void* weight, const T* grad, const T* residual_grad, T* dx, float* mean_out, float* scale_out,
    i64 rows, i64 d, float eps, int weight_f32) {
    constexpr int N = Vec<T>::N;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        Vec<T> v[PARTS], u[PARTS], r[PARTS];
        float w[PARTS][N], mean = 0.0f;
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            const i64 e = (threadIdx.x + i64(c) * blockDim.x) * N;
            v[c] = u[c] = r[c] = Vec<T>{};
#pragma unroll
            for (int k = 0; k < N; k++) w[c][k] = 0.0f;
            if (e >= d) continue;
            v[c] = *reinterpret_cast<const Vec<T>*>(x + row * d + e);
            if (!dx) continue;
            u[c] = *reinterpret_cast<const Vec<T>*>(grad + row * d + e);
            if (residual_grad) r[c] = *reinterpret_cast<const Vec<T>*>(residual_grad + row * d + e);
            get_weight<T>(weight, weight_f32, e, w[c]);
        }
        if (CENTRED) {
            float total[1] = {0.0f};
#pragma unroll
            for (int c = 0; c < PARTS; c++)
#pragma unroll
                for (int k = 0; k < N; k++) total[0] += widen(v[c].v[k]);
            block_sum(total);
            mean = total[0] / float(d);
        }
        // centred^2; centred, 1 times the gradient of the normalised row, grad * weight
        float sums[CENTRED ? 3 : 2] = {};
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            if ((threadIdx.x + i64(c) * blockDim.x) * N >= d) continue;
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float centred = widen(v[c].v[k]) - mean, g = widen(u[c].v[k]) * w[c][k];
                sums[0] += centred * centred;
                sums[1] += centred * g;
                if (CENTRED) sums[2] += g;
            }
        }
        block_sum(sums);
        const float scale = 1.0f / sqrtf(sums[0] / float(d) + eps);
        if (threadIdx.x == 0) {
            if (mean_out) mean_out[row] = mean;
            if (scale_out) scale_out[row] = scale;
        }
        if (!dx) continue;
        const float along = scale * scale * sums[1] / float(d), shift = CENTRED ? sums[2] / float(d) : 0.0f;
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            const i64 e = (threadIdx.x + i64(c) * blockDim.x) * N;
            if (e >= d) continue;
            stay_narrow(v[c]);
            stay_narrow(u[c]);
            stay_narrow(r[c]);
            float y[N];
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float centred = widen(v[c].v[k]) - mean, g = widen(u[c].v[k]) * w[c][k];
                y[k] = (g - shift - centred * along) * scale + widen(r[c].v[k]);
            }
            store(dx + row * d + e, y);
        }
    }
}

// Rows of any width and alignment, read again for every pass.
template <class T, bool CENTRED>
__device__ __forceinline__ void norm_backward_any(
    const T* x, const void* weight, const T* grad, const T* residual_grad, T* dx, float* mean_out, float* scale_out,
    i64 rows, i64 d, float eps, int weight_f32) {
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const i64 at = row * d;
        float mean = 0.0f, w[1] = {0.0f};
        if (CENTRED) {
            float total[1] = {0.0f};
            for (i64 e = threadIdx.x; e < d; e += blockDim.x) total[0] += widen(x[at + e]);
            block_sum(total);
            mean = total[0] / float(d);
        }
        float sums[3] = {0.0f, 0.0f, 0.0f}; // as above
        for (i64 e = threadIdx.x; e < d; e += blockDim.x) {
            const float centred = widen(x[at + e]) - mean;
            sums[0] += centred * centred;
            if (dx) {
                get_weight<T>(weight, weight_f32, e, w);
                const float g = widen(grad[at + e]) * w[0];
                sums[1] += centred * g;
                sums[2] += g;
            }
        }
        block_sum(sums);
        const float scale = 1.0f / sqrtf(sums[0] / float(d) + eps);
        if (threadIdx.x == 0) {
            if (mean_out) mean_out[row] = mean;
            if (scale_out) scale_out[row] = scale;
        }
        if (!dx) continue;
        const float along = scale * scale * sums[1] / float(d), shift = CENTRED ? sums[2] / float(d) : 0.0f;
        for (i64 e = threadIdx.x; e < d; e += blockDim.x) {
            get_weight<T>(weight, weight_f32, e, w);
            const float centred = widen(x[at + e]) - mean, g = widen(grad[at + e]) * w[0];
            const float around = residual_grad ? widen(residual_grad[at + e]) : 0.0f;
            narrow((g - shift - centred * along) * scale + around, dx[at + e]);
        }
    }
}

// ---- Sums over rows, in two stages of fixed order.

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
    constexpr int W = Vec<C>::N > Vec<A>::N ? Vec<C>::N : Vec<A>::N;
    const i64 whole = aligned(x) && aligned(y) && aligned(out) ? n / W * W : 0; // elements in 16-byte accesses
    const i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    for (i64 e = thread * W; e < whole; e += threads * W) {
        float u[W], v[W] = {};
        get(x + e, u);
        if (y) get(y + e, v);
#pragma unroll
        for (int k = 0; k < W; k++) u[k] = f(u[k], v[k]);
        put(out + e, u);
    }
    for (i64 e = whole + thread; e < n; e += threads) narrow(f(widen(x[e]), y ? widen(y[e]) : 0.0f), out[e]);
}

template <class T, int W>
__device__ __forceinline__ void swiglu_forward(
    const T* gate, i64 gate_stride, const T* up, i64 up_stride, T* y, i64 rows, i64 d) {
    const i64 first = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * W, stride = i64(gridDim.x) * blockDim.x * W;
    for (i64 row = blockIdx.y; row < rows; row += gridDim.y)
        for (i64 e = first; e < d; e += stride) {
            float g[W], u[W];
            get(gate + row * gate_stride + e, g);
            get(up + row * up_stride + e, u);
#pragma unroll
            for (int k = 0; k < W; k++) u[k] *= g[k] * sigmoid(g[k]);
            put(y + row * d + e, u);
        }
}

template <class T, int W>
__device__ __forceinline__ void swiglu_backward(
    const T* gate, i64 gate_stride, const T* up, i64 up_stride, const T* grad, T* dgate, i64 dgate_stride, T* dup,
    i64 dup_stride, i64 rows, i64 d) {
    const i64 first = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * W, stride = i64(gridDim.x) * blockDim.x * W;
    for (i64 row = blockIdx.y; row < rows; row += gridDim.y)
        for (i64 e = first; e < d; e += stride) {
            float g[W], u[W], y[W];
            get(gate + row * gate_stride + e, g);
            get(up + row * up_stride + e, u);
            get(grad + row * d + e, y);
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float s = sigmoid(g[k]), silu = g[k] * s;
                const float dg = s * (1.0f + g[k] * (1.0f - s)) * u[k] * y[k];
                u[k] = silu * y[k];
                g[k] = dg;
            }
            if (dgate) put(dgate + row * dgate_stride + e, g);
            if (dup) put(dup + row * dup_stride + e, u);
        }
}

// ---- Rotary embedding: a block per position, its threads over parts of half a head and over heads.

template <class T, int W>
__device__ __forceinline__ void rope(
    const T* x, const float* cos, const float* sin, T* y, i64 b, i64 h, i64 s, i64 d, i64 x_b, i64 x_h, i64 x_s, i64 y_b, i64 y_h,
    i64 y_s, i64 cos_b, float direction) {
    const int half = int(d / 2), parts = half / W, wide = min(parts, int(blockDim.x)), lanes = blockDim.x / wide;
    const int lane = threadIdx.x / wide;
    if (lane >= lanes) return;
    for (u32 position = blockIdx.x; position < u32(b * s); position += gridDim.x) {
        const u32 batch = position / u32(s), i = position % u32(s);
        const float* c_row = cos + batch * cos_b + i64(i) * half;
        const float* s_row = sin + batch * cos_b + i64(i) * half;
        for (int e = threadIdx.x % wide * W; e < half; e += wide * W) {
            float c[W], sn[W];
            get(c_row + e, c);
            get(s_row + e, sn);
            const T* from = x + batch * x_b + i * x_s + e;
            T* to = y + batch * y_b + i * y_s + e;
#pragma unroll(W > 1 ? 4 : 1)
            for (int head = lane; head < int(h); head += lanes) {
                float left[W], right[W];
                get(from + head * x_h, left);
                get(from + head * x_h + half, right);
#pragma unroll
                for (int k = 0; k < W; k++) {
                    const float l = left[k], r = right[k], sine = sn[k] * direction;
                    left[k] = l * c[k] - r * sine;
                    right[k] = r * c[k] + l * sine;
                }
                put(to + head * y_h, left);
                put(to + head * y_h + half, right);
            }
        }
    }
}

// ---- Entry points: 16-byte accesses where everything allows them.

template <class T> __device__ __forceinline__ bool even(i64 n) { return n % Vec<T>::N == 0; }

#define FORWARD(T, CENTRED, D_OK, ...)                                                                                      \
    if (even<T>(d) && d <= i64(blockDim.x) * Vec<T>::N * 4 && D_OK) norm_forward<T, CENTRED, Vec<T>::N, 4>(__VA_ARGS__);    \
    else norm_forward<T, CENTRED, 1, 0>(__VA_ARGS__);
#define BACKWARD(T, CENTRED, D_OK, ...)                                                                                     \
    if (even<T>(d) && d <= i64(blockDim.x) * Vec<T>::N * 2 && D_OK) norm_backward_parts<T, CENTRED, 2>(__VA_ARGS__);        \
    else norm_backward_any<T, CENTRED>(__VA_ARGS__);

#define KERNELS(T, NAME)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(512) rms_norm_forward_##NAME(                                              \
        const T* x, const T* residual, const void* weight, T* sum, T* y, i64 rows, i64 d, float eps, int weight_f32) {      \
        const bool fits = aligned(x) && aligned(residual) && aligned(weight) && aligned(sum) && aligned(y);                 \
        FORWARD(T, false, fits, x, residual, weight, nullptr, sum, y, rows, d, eps, weight_f32)                             \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(512) layer_norm_forward_##NAME(                                            \
        const T* x, const T* residual, const void* weight, const void* bias, T* sum, T* y, i64 rows, i64 d, float eps,      \
        int weight_f32) {                                                                                                   \
        const bool fits =                                                                                                   \
            aligned(x) && aligned(residual) && aligned(weight) && aligned(bias) && aligned(sum) && aligned(y);              \
        FORWARD(T, true, fits, x, residual, weight, bias, sum, y, rows, d, eps, weight_f32)                                 \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(512) rms_norm_backward_##NAME(                                             \
        const T* x, const void* weight, const T* grad, const T* residual_grad, T* dx, float* scale, i64 rows, i64 d,        \
        float eps, int weight_f32) {                                                                                        \
        const bool fits = aligned(x) && aligned(weight) && aligned(grad) && aligned(residual_grad) && aligned(dx);          \
        BACKWARD(T, false, fits, x, weight, grad, residual_grad, dx, nullptr, scale, rows, d, eps, weight_f32)              \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(512) layer_norm_backward_##NAME(                                           \
        const T* x, const void* weight, const T* grad, const T* residual_grad, T* dx, float* mean, float* scale, i64 rows,  \
        i64 d, float eps, int weight_f32) {                                                                                 \
        const bool fits = aligned(x) && aligned(weight) && aligned(grad) && aligned(residual_grad) && aligned(dx);          \
        BACKWARD(T, true, fits, x, weight, grad, residual_grad, dx, mean, scale, rows, d, eps, weight_f32)                  \
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
        if (even<T>(d | gate_stride | up_stride) && aligned(gate) && aligned(up) && aligned(y))                             \
            swiglu_forward<T, Vec<T>::N>(gate, gate_stride, up, up_stride, y, rows, d);                                     \
        else swiglu_forward<T, 1>(gate, gate_stride, up, up_stride, y, rows, d);                                            \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) swiglu_backward_##NAME(                                               \
        const T* gate, i64 gate_stride, const T* up, i64 up_stride, const T* grad, T* dgate, i64 dgate_stride, T* dup,      \
        i64 dup_stride, i64 rows, i64 d) {                                                                                  \
        if (even<T>(d | gate_stride | up_stride | (dgate ? dgate_stride : 0) | (dup ? dup_stride : 0)) && aligned(gate) &&  \
            aligned(up) && aligned(grad) && aligned(dgate) && aligned(dup))                                                 \
            swiglu_backward<T, Vec<T>::N>(                                                                                  \
                gate, gate_stride, up, up_stride, grad, dgate, dgate_stride, dup, dup_stride, rows, d);                     \
        else                                                                                                                \
            swiglu_backward<T, 1>(gate, gate_stride, up, up_stride, grad, dgate, dgate_stride, dup, dup_stride, rows, d);   \
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
    extern "C" __global__ void __launch_bounds__(256) rope_##NAME(                                                          \
        const T* x, const float* cos, const float* sin, T* y, i64 b, i64 h, i64 s, i64 d, i64 x_b, i64 x_h, i64 x_s,        \
        i64 y_b, i64 y_h, i64 y_s, i64 cos_b, float direction) {                                                            \
        if (even<T>(d / 2) && even<T>(x_b | x_h | x_s | y_b | y_h | y_s) && cos_b % 4 == 0 && aligned(x) && aligned(y) &&   \
            aligned(cos) && aligned(sin))                                                                                   \
            rope<T, Vec<T>::N>(x, cos, sin, y, b, h, s, d, x_b, x_h, x_s, y_b, y_h, y_s, cos_b, direction);                 \
        else rope<T, 1>(x, cos, sin, y, b, h, s, d, x_b, x_h, x_s, y_b, y_h, y_s, cos_b, direction);                        \
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

struct Casts {
    const float* from[16];
    void* to[16];
    i64 n[16];
};

#define CAST_MANY(B, NAME)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) cast_many_##NAME(const Casts casts) {                                 \
        map(casts.from[blockIdx.y], static_cast<const float*>(nullptr), static_cast<B*>(casts.to[blockIdx.y]),              \
            casts.n[blockIdx.y], [](float v, float) { return v; });                                                         \
    }

CAST_MANY(bf16, bf16)
CAST_MANY(f16, f16)
