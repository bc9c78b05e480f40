// Attention without tensor cores: any head dim up to 256, T f32, bf16 or f16, any alignment. For f32 tests and for head dims that
// attention.cu has not. Same structs, same semantics as attention.cu (struct Strides, struct Shape: see there), with the head
// dim as the last argument.
//
// attention_any_forward_T(const T* q, const T* k, const T* v, T* o, float* logsumexp,
//                         Strides q, Strides k, Strides v, Strides o, Shape shape, int d)
//   grid (ceil(sq / 8), hq, b), block 256, no dynamic shared memory.
// attention_any_delta_T(const T* o, const T* grad, float* delta, Strides o, Strides grad, Shape shape, int d)
//   grid (ceil(sq / 8), hq, b), block 256.
// attention_any_backward_dkv_T(const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta,
//                              T* dk, T* dv, Strides q, Strides k, Strides v, Strides grad, Strides dk, Strides dv,
//                              Shape shape, int d)
//   grid (ceil(sk / 8), hkv, b), block 256.
// attention_any_backward_dq_T(const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta,
//                             T* dq, Strides q, Strides k, Strides v, Strides grad, Strides dq, Shape shape, int d)
//   grid (ceil(sq / 8), hq, b), block 256.

struct Strides {
    i64 b, h, s;
};
struct Shape {
    int b, hq, hkv, sq, sk, causal;
    float scale;
    int reserved;
    const int* key_lengths;
    const int* cu_q;
    const int* cu_k;
    i64 lse_b, lse_h;
};

// A warp works on one row; a lane owns columns lane + 32 c, and one row of 32 on the other side at a time.
const int COLUMNS = 8, MAX_DIM = 32 * COLUMNS, WARPS = 8;

struct Sequence {
    int sq, sk, length, offset; // queries, keys, real keys, position of query 0
    i64 q_at, k_at;             // where it starts when packed
};

__device__ __forceinline__ Sequence sequence(const Shape& shape, int batch) {
    Sequence s = {shape.sq, shape.sk, 0, 0, 0, 0};
    if (shape.cu_q) {
        s.q_at = shape.cu_q[batch];
        s.sq = shape.cu_q[batch + 1] - int(s.q_at);
    }
    if (shape.cu_k) {
        s.k_at = shape.cu_k[batch];
        s.sk = shape.cu_k[batch + 1] - int(s.k_at);
    }
    s.length = shape.key_lengths ? min(shape.key_lengths[batch], s.sk) : s.sk;
    s.offset = s.sk - s.sq;
    return s;
}

template <class T>
__device__ __forceinline__ T* head_of(T* base, const Strides& strides, int batch, int head, i64 at, bool packed) {
    return base + (packed ? at * strides.s : batch * strides.b) + head * strides.h;
}

template <class T> __device__ __forceinline__ void load_row(const T* from, int d, float (&to)[COLUMNS]) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int j = (threadIdx.x & 31) + 32 * c;
        to[c] = j < d ? widen(from[j]) : 0.0f;
    }
}

template <class T> __device__ __forceinline__ void store_row(T* to, int d, const float (&from)[COLUMNS], float scale) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int j = (threadIdx.x & 31) + 32 * c;
        if (j < d) narrow(from[c] * scale, to[j]);
    }
}

// out += weight * row.
template <class T> __device__ __forceinline__ void add_row(float (&out)[COLUMNS], float weight, const T* row, int d) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int j = (threadIdx.x & 31) + 32 * c;
        if (j < d) out[c] += weight * widen(row[j]);
    }
}

template <class T> __device__ __forceinline__ float dot(const float* a, const T* b, int d) {
    float total = 0.0f;
    for (int j = 0; j < d; j++) total += a[j] * widen(b[j]);
    return total;
}

template <class T> __device__ __forceinline__ void keep_row(const T* from, int d, float* to) {
    __syncwarp();
    for (int j = threadIdx.x & 31; j < d; j += 32) to[j] = widen(from[j]);
    __syncwarp();
}

template <class T>
__device__ __forceinline__ void forward(
    const T* q, const T* k, const T* v, T* o, float* logsumexp, const Strides& qs, const Strides& ks, const Strides& vs,
    const Strides& os, const Shape& shape, int d) {
    __shared__ float rows[WARPS][MAX_DIM];
    const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.hq / shape.hkv);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    const int i = blockIdx.x * WARPS + warp;
    if (i >= s.sq) return;
    k = head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k);
    v = head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k);
    keep_row(head_of(q, qs, batch, head, s.q_at, shape.cu_q) + i * qs.s, d, rows[warp]);
    const int end = shape.causal ? min(s.length, s.offset + i + 1) : s.length;
    float out[COLUMNS] = {}, top = -INFINITY_F, sum = 0.0f;
    for (int first = 0; first < end; first += 32) {
        const int j = first + lane;
        const float score = j < end ? shape.scale * dot(rows[warp], k + j * ks.s, d) : -INFINITY_F;
        const float max = fmaxf(top, warp_max(score)), shrink = expf(top - max), p = j < end ? expf(score - max) : 0.0f;
        top = max;
        sum = sum * shrink + p;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) out[c] *= shrink;
        for (int n = 0; n < 32 && first + n < end; n++) add_row(out, __shfl_sync(~0u, p, n), v + (first + n) * vs.s, d);
    }
    sum = warp_sum(sum);
    store_row(head_of(o, os, batch, head, s.q_at, shape.cu_q) + i * os.s, d, out, sum > 0.0f ? 1.0f / sum : 0.0f);
    if (lane == 0)
        logsumexp[batch * shape.lse_b + head * shape.lse_h + s.q_at + i] = sum > 0.0f ? top + logf(sum) : -1e30f;
}

template <class T>
__device__ __forceinline__ void delta_rows(
    const T* o, const T* grad, float* delta, const Strides& os, const Strides& gs, const Shape& shape, int d) {
    const int head = blockIdx.y, batch = blockIdx.z;
    const Sequence s = sequence(shape, batch);
    const int i = blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (i >= s.sq) return;
    float a[COLUMNS], b[COLUMNS], total = 0.0f;
    load_row(head_of(o, os, batch, head, s.q_at, shape.cu_q) + i * os.s, d, a);
    load_row(head_of(grad, gs, batch, head, s.q_at, shape.cu_q) + i * gs.s, d, b);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) total += a[c] * b[c];
    total = warp_sum(total);
    if ((threadIdx.x & 31) == 0) delta[batch * shape.lse_b + head * shape.lse_h + s.q_at + i] = total;
}

template <class T>
__device__ __forceinline__ void backward_dq(
    const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dq, const Strides& qs,
    const Strides& ks, const Strides& vs, const Strides& gs, const Strides& dqs, const Shape& shape, int d) {
    __shared__ float rows[2][WARPS][MAX_DIM];
    const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.hq / shape.hkv);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    const int i = blockIdx.x * WARPS + warp;
    if (i >= s.sq) return;
    k = head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k);
    v = head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k);
    keep_row(head_of(q, qs, batch, head, s.q_at, shape.cu_q) + i * qs.s, d, rows[0][warp]);
    keep_row(head_of(grad, gs, batch, head, s.q_at, shape.cu_q) + i * gs.s, d, rows[1][warp]);
    const i64 at = batch * shape.lse_b + head * shape.lse_h + s.q_at + i;
    const int end = shape.causal ? min(s.length, s.offset + i + 1) : s.length;
    float out[COLUMNS] = {};
    for (int first = 0; first < end; first += 32) {
        const int j = first + lane;
        float ds = 0.0f;
        if (j < end) {
            const float p = expf(shape.scale * dot(rows[0][warp], k + j * ks.s, d) - logsumexp[at]);
            ds = p * (dot(rows[1][warp], v + j * vs.s, d) - delta[at]);
        }
        for (int n = 0; n < 32 && first + n < end; n++) add_row(out, __shfl_sync(~0u, ds, n), k + (first + n) * ks.s, d);
    }
    store_row(head_of(dq, dqs, batch, head, s.q_at, shape.cu_q) + i * dqs.s, d, out, shape.scale);
}

template <class T>
__device__ __forceinline__ void backward_dkv(
    const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dk, T* dv,
    const Strides& qs, const Strides& ks, const Strides& vs, const Strides& gs, const Strides& dks, const Strides& dvs,
    const Shape& shape, int d) {
    __shared__ float rows[2][WARPS][MAX_DIM];
    const int kv_head = blockIdx.y, batch = blockIdx.z, group = shape.hq / shape.hkv;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    const int j = blockIdx.x * WARPS + warp;
    if (j >= s.sk) return;
    keep_row(head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k) + j * ks.s, d, rows[0][warp]);
    keep_row(head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k) + j * vs.s, d, rows[1][warp]);
    float grad_k[COLUMNS] = {}, grad_v[COLUMNS] = {};
    const int begin = j >= s.length ? s.sq : shape.causal ? max(0, j - s.offset) : 0; // the first query that sees the key
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const T* query = head_of(q, qs, batch, head, s.q_at, shape.cu_q);
        const T* gradient = head_of(grad, gs, batch, head, s.q_at, shape.cu_q);
        const i64 at = batch * shape.lse_b + head * shape.lse_h + s.q_at;
        for (int first = begin; first < s.sq; first += 32) {
            const int i = first + lane;
            float p = 0.0f, ds = 0.0f;
            if (i < s.sq) {
                p = expf(shape.scale * dot(rows[0][warp], query + i * qs.s, d) - logsumexp[at + i]);
                ds = p * (dot(rows[1][warp], gradient + i * gs.s, d) - delta[at + i]);
            }
            for (int n = 0; n < 32 && first + n < s.sq; n++) {
                add_row(grad_k, __shfl_sync(~0u, ds, n), query + (first + n) * qs.s, d);
                add_row(grad_v, __shfl_sync(~0u, p, n), gradient + (first + n) * gs.s, d);
            }
        }
    }
    store_row(head_of(dk, dks, batch, kv_head, s.k_at, shape.cu_k) + j * dks.s, d, grad_k, shape.scale);
    store_row(head_of(dv, dvs, batch, kv_head, s.k_at, shape.cu_k) + j * dvs.s, d, grad_v, 1.0f);
}

#define KERNELS(T, NAME)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) attention_any_forward_##NAME(                                         \
        const T* q, const T* k, const T* v, T* o, float* logsumexp, Strides qs, Strides ks, Strides vs, Strides os,         \
        Shape shape, int d) {                                                                                               \
        forward<T>(q, k, v, o, logsumexp, qs, ks, vs, os, shape, d);                                                        \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) attention_any_delta_##NAME(                                           \
        const T* o, const T* grad, float* delta, Strides os, Strides gs, Shape shape, int d) {                              \
        delta_rows<T>(o, grad, delta, os, gs, shape, d);                                                                    \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) attention_any_backward_dkv_##NAME(                                    \
        const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dk, T* dv,        \
        Strides qs, Strides ks, Strides vs, Strides gs, Strides dks, Strides dvs, Shape shape, int d) {                     \
        backward_dkv<T>(q, k, v, grad, logsumexp, delta, dk, dv, qs, ks, vs, gs, dks, dvs, shape, d);                       \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) attention_any_backward_dq_##NAME(                                     \
        const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dq, Strides qs,   \
        Strides ks, Strides vs, Strides gs, Strides dqs, Shape shape, int d) {                                              \
        backward_dq<T>(q, k, v, grad, logsumexp, delta, dq, qs, ks, vs, gs, dqs, shape, d);                                 \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
KERNELS(f16, f16)
