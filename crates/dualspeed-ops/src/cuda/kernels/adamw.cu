// AdamW (Loshchilov & Hutter, as in PyTorch) over many tensors in one launch, with the clip of the global gradient norm on device.
//
// struct Tensor { const float* from; float* to; const float* grad; float* m; float* v; long long n; float step_size,
//                 earlier_step_size, keep, padding; };
//   64 bytes. The parameter is read at `from` and written at `to`, which may be the same. step_size = lr / (1 - beta1^t),
//   earlier_step_size = lr / (1 - beta1^(t - 1)) where the update before is undecided, keep = 1 - lr * weight_decay, per tensor.
// struct Chunk { int tensor; int index; };  // 8 bytes: elements index * CHUNK .. of that tensor, CHUNK = 8192
// Tables are device arrays; every tensor has ceil(n / 8192) chunks, in order.
//
// adamw_squares(const Tensor* tensors, const Chunk* chunks, float* partial)
//   partial [chunks]: sum of squared gradients per chunk. grid = number of chunks, block 256.
// adamw_norm(const float* partial, long long chunks, float scale, float max_norm, const float* losses, long long count,
//            float* norm, float* factor, float* applied)
//   norm [1]: scale * norm (before clipping). factor [1], for the gradients: scale * min(1, max_norm / (scale * norm + 1e-6)),
//   or scale when max_norm <= 0. applied [1]: 1 if the norm and all of losses [count] (or null) are finite, else 0.
//   f64 sums in a fixed order. grid 1, block 1024.
// adamw_probe(const Tensor* tensors, const Chunk* chunks, Step step, float* applied)
//   Sets applied to 0 where adamw_step would write anything that is not finite. grid = number of chunks, block 256.
// adamw_step(const Tensor* tensors, const Chunk* chunks, Step step, const float* applied)
//   g = grad * factor; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
//   param = keep * param - step_size * m / (sqrt(v) * root + eps), root = 1 / sqrt(1 - beta2^t). Moments in place.
//   Where applied is 0, only `to` becomes what `from` is. grid = number of chunks, block 256.
// struct Step { const float* factor; const float* before; float beta1, beta2, one_minus_beta1, one_minus_beta2, eps, root,
//               earlier_root, padding; };
//   48 bytes, by value. Where before is not null and 0 (the update before was skipped), the corrections are the earlier ones.

struct Tensor {
    const float* from;
    float* to;
    const float* grad;
    float* m;
    float* v;
    i64 n;
    float step_size, earlier_step_size, keep, padding;
};
struct Chunk {
    int tensor, index;
};
struct Step {
    const float* factor;
    const float* before;
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps, root, earlier_root, padding;
};

// Bit by bit, whatever the compiler assumes of floats.
__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

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
    adamw_norm(const float* partial, i64 chunks, float scale, float max_norm, const float* losses, i64 count, float* norm,
               float* factor, float* applied) {
    __shared__ double parts[1024];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < chunks; i += blockDim.x) sum += partial[i];
    parts[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x != 0) return;
    const float length = float(sqrt(parts[0])) * scale;
    float by = scale;
    if (max_norm > 0.0f) {
        const float clip = max_norm / (length + 1e-6f);
        by *= clip > 1.0f ? 1.0f : clip; // NaN stays NaN
    }
    bool all = is_finite(length);
    for (i64 i = 0; losses && i < count; i++) all = all && is_finite(losses[i]);
    *norm = length;
    *factor = by;
    *applied = all ? 1.0f : 0.0f;
}

// One chunk of one tensor, as a thread sees it.
struct Part {
    Tensor tensor;
    i64 begin, end;
    float factor, step_size, root;
    bool vec;
};

__device__ __forceinline__ Part part(const Tensor* tensors, const Chunk* chunks, const Step& step) {
    const Chunk chunk = chunks[blockIdx.x];
    Part p;
    p.tensor = tensors[chunk.tensor];
    p.begin = chunk.index * CHUNK;
    p.end = p.begin + CHUNK < p.tensor.n ? p.begin + CHUNK : p.tensor.n;
    p.factor = *step.factor;
    const bool earlier = step.before && *step.before == 0.0f;
    p.step_size = earlier ? p.tensor.earlier_step_size : p.tensor.step_size;
    p.root = earlier ? step.earlier_root : step.root;
    p.vec = aligned(p.tensor.from) && aligned(p.tensor.to) && aligned(p.tensor.grad) && aligned(p.tensor.m) && aligned(p.tensor.v);
    return p;
}

// Four elements from `e` on, updated.
__device__ __forceinline__ void updated(const Part& part, const Step& step, i64 e, float (&p)[4], float (&m)[4], float (&v)[4]) {
    const Tensor& tensor = part.tensor;
    float g[4];
    if (part.vec && e + 4 <= part.end) {
        load(tensor.from + e, p);
        load(tensor.grad + e, g);
        load(tensor.m + e, m);
        load(tensor.v + e, v);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const bool in = e + k < part.end;
            p[k] = in ? tensor.from[e + k] : 0.0f;
            g[k] = in ? tensor.grad[e + k] : 0.0f;
            m[k] = in ? tensor.m[e + k] : 0.0f;
            v[k] = in ? tensor.v[e + k] : 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float scaled = g[k] * part.factor;
        m[k] = step.beta1 * m[k] + step.one_minus_beta1 * scaled;
        v[k] = step.beta2 * v[k] + step.one_minus_beta2 * scaled * scaled;
        p[k] = tensor.keep * p[k] - part.step_size * m[k] / (sqrtf(v[k]) * part.root + step.eps);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_probe(const Tensor* tensors, const Chunk* chunks, const Step step, float* applied) {
    const Part here = part(tensors, chunks, step);
    bool all = true;
    for (i64 e = here.begin + threadIdx.x * 4; e < here.end; e += 1024) {
        float p[4], m[4], v[4];
        updated(here, step, e, p, m, v);
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (e + k < here.end) all = all && is_finite(p[k]) && is_finite(m[k]) && is_finite(v[k]);
    }
    // Whoever writes writes the same.
    if (!all) *applied = 0.0f;
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_step(const Tensor* tensors, const Chunk* chunks, const Step step, const float* applied) {
    const Part here = part(tensors, chunks, step);
    const Tensor& tensor = here.tensor;
    if (*applied == 0.0f) {
        if (tensor.from == tensor.to) return;
        for (i64 e = here.begin + threadIdx.x; e < here.end; e += blockDim.x) tensor.to[e] = tensor.from[e];
        return;
    }
    for (i64 e = here.begin + threadIdx.x * 4; e < here.end; e += 1024) {
        float p[4], m[4], v[4];
        updated(here, step, e, p, m, v);
        if (here.vec && e + 4 <= here.end) {
            store(tensor.to + e, p);
            store(tensor.m + e, m);
            store(tensor.v + e, v);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (e + k < here.end) {
                    tensor.to[e + k] = p[k];
                    tensor.m[e + k] = m[k];
                    tensor.v[e + k] = v[k];
                }
        }
    }
}
