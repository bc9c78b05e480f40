// AdamW (Loshchilov & Hutter, as in PyTorch) over many tensors in one launch, with the clip of the global gradient norm on device.
//
// struct Tensor { const float* from; float* to; const float* grad; float* m; float* v; long long n; float step_size; float keep; };
//   56 bytes. The parameter is read at `from` and written at `to`, which may be the same. step_size = lr / (1 - beta1^t),
//   keep = 1 - lr * weight_decay, per tensor.
// struct Chunk { int tensor; int index; };  // 8 bytes: elements index * CHUNK .. of that tensor, CHUNK = 8192
// Tables are device arrays; every tensor has ceil(n / 8192) chunks, in order.
//
// adamw_squares(const Tensor* tensors, const Chunk* chunks, float* partial)
//   partial [chunks]: sum of squared gradients per chunk. grid = number of chunks, block 256.
// adamw_norm(const float* partial, long long chunks, float scale, float max_norm, float* out)
//   out [2]: scale * norm (before clipping), and the factor for the gradients: scale * min(1, max_norm / (scale * norm + 1e-6)),
//   or scale when max_norm <= 0. f64 sums in a fixed order. grid 1, block 1024.
// adamw_step(const Tensor* tensors, const Chunk* chunks, const float* norm, float beta1, float beta2, float one_minus_beta1,
//            float one_minus_beta2, float eps, float root)
//   g = grad * norm[1]; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
//   param = keep * param - step_size * m / (sqrt(v) * root + eps), root = 1 / sqrt(1 - beta2^t). Moments in place.
//   norm may be null: factor 1. grid = number of chunks, block 256.

struct Tensor {
    const float* from;
    float* to;
    const float* grad;
    float* m;
    float* v;
    i64 n;
    float step_size, keep;
};
struct Chunk {
    int tensor, index;
};

const i64 CHUNK = 8192;

extern "C" __global__ void __launch_bounds__(256) adamw_squares(const Tensor* tensors, const Chunk* chunks, float* partial) {
    const Chunk chunk = chunks[blockIdx.x];
    const float* grad = tensors[chunk.tensor].grad;
    const i64 n = tensors[chunk.tensor].n, begin = chunk.index * CHUNK, end = begin + CHUNK < n ? begin + CHUNK : n;
    const bool vec = aligned(grad);
    float sum[1] = {0.0f};
    for (i64 e = begin + threadIdx.x * 4; e < end; e += 1024) {
        float g[4];
        if (vec && e + 4 <= end) load(grad + e, g);
        else
#pragma unroll
            for (int k = 0; k < 4; k++) g[k] = e + k < end ? grad[e + k] : 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++) sum[0] += g[k] * g[k];
    }
    block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
}

extern "C" __global__ void __launch_bounds__(1024)
    adamw_norm(const float* partial, i64 chunks, float scale, float max_norm, float* out) {
    __shared__ double parts[1024];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < chunks; i += blockDim.x) sum += partial[i];
    parts[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x != 0) return;
    const float norm = float(sqrt(parts[0])) * scale;
    float factor = scale;
    if (max_norm > 0.0f) {
        const float clip = max_norm / (norm + 1e-6f);
        factor *= clip > 1.0f ? 1.0f : clip; // NaN stays NaN
    }
    out[0] = norm;
    out[1] = factor;
}

extern "C" __global__ void __launch_bounds__(256) adamw_step(
    const Tensor* tensors, const Chunk* chunks, const float* norm, float beta1, float beta2, float one_minus_beta1,
    float one_minus_beta2, float eps, float root) {
    const Chunk chunk = chunks[blockIdx.x];
    const Tensor tensor = tensors[chunk.tensor];
    const i64 begin = chunk.index * CHUNK, end = begin + CHUNK < tensor.n ? begin + CHUNK : tensor.n;
    const float factor = norm ? norm[1] : 1.0f;
    const bool vec = aligned(tensor.from) && aligned(tensor.to) && aligned(tensor.grad) && aligned(tensor.m) && aligned(tensor.v);
    for (i64 e = begin + threadIdx.x * 4; e < end; e += 1024) {
        const bool whole = vec && e + 4 <= end;
        float p[4], g[4], m[4], v[4];
        if (whole) {
            load(tensor.from + e, p);
            load(tensor.grad + e, g);
            load(tensor.m + e, m);
            load(tensor.v + e, v);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const bool in = e + k < end;
                p[k] = in ? tensor.from[e + k] : 0.0f;
                g[k] = in ? tensor.grad[e + k] : 0.0f;
                m[k] = in ? tensor.m[e + k] : 0.0f;
                v[k] = in ? tensor.v[e + k] : 0.0f;
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float scaled = g[k] * factor;
            m[k] = beta1 * m[k] + one_minus_beta1 * scaled;
            v[k] = beta2 * v[k] + one_minus_beta2 * scaled * scaled;
            p[k] = tensor.keep * p[k] - tensor.step_size * m[k] / (sqrtf(v[k]) * root + eps);
        }
        if (whole) {
            store(tensor.to + e, p);
            store(tensor.m + e, m);
            store(tensor.v + e, v);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (e + k < end) {
                    tensor.to[e + k] = p[k];
                    tensor.m[e + k] = m[k];
                    tensor.v[e + k] = v[k];
                }
        }
    }
}
