// Flash attention (Dao 2023, arXiv 2307.08691) forward and backward on mma.sync, sm_80 upwards; T is bf16 or f16, accumulation
// f32. Compiled once per head dim: -D HEAD_DIM=64|80|96|128. Deterministic: dQ has a kernel of its own.
//
// Pointers q, k, v, o, grad (of o), dq, dk, dv must be multiples of 16 bytes and their strides multiples of 8 elements
// (else make a contiguous copy first); d is contiguous. Strides are in the order batch, head, position.
//
// struct Strides { long long b, h, s; };   // passed by value, 24 bytes
// struct Shape {                            // passed by value, 72 bytes, in this order
//   int b, hq, hkv, sq, sk;                 // packed: b = sequences, sq/sk = the longest sequence
//   int causal;                             // 1: query i sees keys up to sk - sq + i (of its own sequence when packed)
//   float scale;                            // of the scores, 1 / sqrt(d)
//   int reserved;                           // 0
//   const int* key_lengths;                 // [b] i32 device, leading keys that are real, or null
//   const int* cu_q; const int* cu_k;       // [b + 1] i32 device: packed sequences back to back in s (strides.b unused), or null
//   long long lse_b, lse_h;                 // strides of logsumexp and delta: hq * sq, sq; packed ([hq, total_q]): 0, total_q
// };
//
// attention_forward_T(const T* q, const T* k, const T* v, T* o, float* logsumexp,
//                     Strides q, Strides k, Strides v, Strides o, Shape shape)
//   logsumexp f32 contiguous, natural logarithm of the softmax denominator of the scaled scores; a query without a visible key
//   gets zeros and -1e30. grid (ceil(sq / FORWARD_ROWS), hq, b).
// attention_delta_T(const T* o, const T* grad, float* delta, Strides o, Strides grad, Shape shape)
//   delta = rowsum(o * grad), laid out as logsumexp; needed by both backward kernels. grid (ceil(sq / 8), hq, b), block 256.
// attention_backward_dkv_T(const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta,
//                          T* dk, T* dv, Strides q, Strides k, Strides v, Strides grad, Strides dk, Strides dv, Shape shape)
//   Both are always written ([b, hkv, sk, d]; grouped queries are summed). grid (ceil(sk / DKV_ROWS), hkv, b).
// attention_backward_dq_T(const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta,
//                         T* dq, Strides q, Strides k, Strides v, Strides grad, Strides dq, Shape shape)
//   grid (ceil(sq / DQ_ROWS), hq, b).
//
// Rows per block, threads and bytes of dynamic shared memory (raise CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) are in the
// module's constant `attention_config` (cuModuleGetGlobal), twelve ints:
//   { FORWARD_ROWS, forward threads, forward bytes, DKV_ROWS, dkv threads, dkv bytes, DQ_ROWS, dq threads, dq bytes, 0, 0, 0 }.
// On Hopper (sm_90a) with HEAD_DIM 64 or 128, attention_sm90.cu after this text gives faster kernels under the same names with
// the same arguments; attention_whole.cu has others for short sequences. -D PARTS_ONLY leaves the kernels of this file out.
//
// Key heads: query head h uses key head h / (hq / hkv). Grid y and z are at most 65535.

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef DKV_STAGES // 100 KiB of shared memory on these: one stage
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#define DKV_STAGES 1
#else
#define DKV_STAGES 2
#endif
#endif

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

constexpr int D = HEAD_DIM;
// An odd number of 16-byte columns per row: ldmatrix meets no bank twice.
constexpr int PITCH = D + 8;
constexpr int KEYS = 64; // rows of the tiles that are streamed
[[maybe_unused]] constexpr int FORWARD_WARPS = 4, FORWARD_ROWS = FORWARD_WARPS * 32;
[[maybe_unused]] constexpr int DKV_WARPS = 4, DKV_ROWS = DKV_WARPS * 16;
[[maybe_unused]] constexpr int DQ_WARPS = 4, DQ_ROWS = DQ_WARPS * 16;
[[maybe_unused]] constexpr int TILE = KEYS * PITCH * 2; // bytes
static_assert(DQ_ROWS <= KEYS, "Q and dO pass through the tiles' buffers");

#ifndef PARTS_ONLY
constexpr int FORWARD_BYTES = FORWARD_ROWS * PITCH * 2 + 2 * TILE;
constexpr int DKV_BYTES = 2 * DKV_ROWS * PITCH * 2 + DKV_STAGES * (2 * TILE + 2 * KEYS * 4);
constexpr int DQ_BYTES = 4 * TILE;

extern "C" {
__constant__ int attention_config[12] = {
    FORWARD_ROWS, FORWARD_WARPS * 32, FORWARD_BYTES, DKV_ROWS, DKV_WARPS * 32, DKV_BYTES,
    DQ_ROWS,      DQ_WARPS * 32,      DQ_BYTES,      0,        0,              0};
}
#endif

const float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack(float low, float high, bf16) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ __forceinline__ u32 pack(float low, float high, f16) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

#define MMA(T, NAME)                                                                                                        \
    __device__ __forceinline__ void mma(float(&c)[4], const u32(&a)[4], u32 b0, u32 b1, T) {                                \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "    \
            "{%0, %1, %2, %3};"                                                                                             \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                                \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                                \
    }
MMA(bf16, "bf16")
MMA(f16, "f16")

__device__ __forceinline__ u32 address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void ldsm(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void ldsm_t(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void copy16(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy4(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Rows first .. first + ROWS of a head into shared memory, zeros from `end` on.
template <int ROWS, int THREADS, class T>
__device__ __forceinline__ void load_tile(u32 to, const T* head, i64 stride, int first, int end) {
    constexpr int PARTS = D / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * PARTS; i += THREADS) {
        const int row = i / PARTS, part = i % PARTS;
        const bool valid = first + row < end;
        copy16(to + (row * PITCH + part * 8) * 2, head + i64(valid ? first + row : 0) * stride + part * 8, valid);
    }
}

// Per lane, in bytes: where ldmatrix finds a 16 x 16 block stored as [rows, columns] for A (or, transposed, for B stored as
// [k, n]), and for B stored as [n, k].
__device__ __forceinline__ u32 lane_a() { return ((threadIdx.x & 15) * PITCH + ((threadIdx.x >> 4) & 1) * 8) * 2; }
__device__ __forceinline__ u32 lane_b() {
    return (((threadIdx.x & 7) + ((threadIdx.x >> 4) & 1) * 8) * PITCH + ((threadIdx.x >> 3) & 1) * 8) * 2;
}

// c [16 M, 8 N] += A B^T over the head dim; A [16 M rows] and B [8 N rows] in shared memory, their lane offsets included.
template <class T, int M, int N>
__device__ __forceinline__ void product_nt(float (&c)[M][N][4], u32 a_at, u32 b_at) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) ldsm(a[m], a_at + m * 16 * PITCH * 2 + k * 32);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            ldsm(b, b_at + n * 8 * PITCH * 2 + k * 32);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(c[m][n], a[m], b[0], b[1], T());
                mma(c[m][n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

// The same with A in registers.
template <class T, int N>
__device__ __forceinline__ void product_nt(float (&c)[N][4], const u32 (&a)[D / 16][4], u32 b_at) {
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            ldsm(b, b_at + n * 8 * PITCH * 2 + k * 32);
            mma(c[n], a[k], b[0], b[1], T());
            mma(c[n + 1], a[k], b[2], b[3], T());
        }
}

// c [16 M, D] += P B: P [16 M, 8 K] are accumulators of an earlier product, B [8 K rows, D] in shared memory.
template <class T, int M, int K>
__device__ __forceinline__ void product_nn(float (&c)[M][D / 8][4], const float (&p)[M][K][4], u32 b_at) {
#pragma unroll
    for (int k = 0; k < K; k += 2) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m][0] = pack(p[m][k][0], p[m][k][1], T());
            a[m][1] = pack(p[m][k][2], p[m][k][3], T());
            a[m][2] = pack(p[m][k + 1][0], p[m][k + 1][1], T());
            a[m][3] = pack(p[m][k + 1][2], p[m][k + 1][3], T());
        }
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 b[4];
            ldsm_t(b, b_at + k * 8 * PITCH * 2 + n * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(c[m][n], a[m], b[0], b[1], T());
                mma(c[m][n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

// A warp's 16 M rows of results, through its own rows of shared memory, to rows first .. of a head.
template <class T, int M>
__device__ __forceinline__ void store_rows(
    const float (&c)[M][D / 8][4], char* own, T* head, i64 stride, int first, int end, const float (&scale)[M][2]) {
    const int lane = threadIdx.x & 31;
    __syncwarp(); // the warp has read these rows
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *reinterpret_cast<u32*>(own + ((m * 16 + half * 8 + lane / 4) * PITCH + n * 8 + (lane & 3) * 2) * 2) =
                    pack(c[m][n][half * 2] * scale[m][half], c[m][n][half * 2 + 1] * scale[m][half], T());
    __syncwarp();
#pragma unroll
    for (int i = lane; i < M * 16 * (D / 8); i += 32) {
        const int row = i / (D / 8), part = i % (D / 8);
        if (first + row < end)
            *reinterpret_cast<uint4*>(head + i64(first + row) * stride + part * 8) =
                *reinterpret_cast<const uint4*>(own + (row * PITCH + part * 8) * 2);
    }
}

// What a block works on.
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

template <class T>
__device__ __forceinline__ void forward(
    const T* q, const T* k, const T* v, T* o, float* logsumexp, const Strides& qs, const Strides& ks, const Strides& vs,
    const Strides& os, const Shape& shape) {
    extern __shared__ __align__(16) char memory[];
    constexpr int THREADS = FORWARD_WARPS * 32, M = 2, N = KEYS / 8;
    const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.hq / shape.hkv);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    // The longest rows first: they decide when the launch ends.
    const int first = (gridDim.x - 1 - blockIdx.x) * FORWARD_ROWS;
    if (first >= s.sq) return;
    q = head_of(q, qs, batch, head, s.q_at, shape.cu_q);
    k = head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k);
    v = head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k);
    o = head_of(o, os, batch, head, s.q_at, shape.cu_q);
    const int visible = shape.causal ? min(s.length, min(first + FORWARD_ROWS, s.sq) + s.offset) : s.length;
    const int tiles = visible > 0 ? (visible + KEYS - 1) / KEYS : 0;
    const int whole = shape.causal ? min(s.length, first + s.offset + 1) : s.length; // keys that every row sees

    const u32 q_to = address(memory), k_to = q_to + FORWARD_ROWS * PITCH * 2, v_to = k_to + TILE;
    const u32 q_at = q_to + warp * 32 * PITCH * 2 + lane_a(), k_at = k_to + lane_b(), v_at = v_to + lane_a();
    float out[M][D / 8][4], top[M][2], sum[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[m][n][i] = 0.0f;
        top[m][0] = top[m][1] = -INFINITY_F;
        sum[m][0] = sum[m][1] = 0.0f;
    }
    const float scale = shape.scale * LOG2E;
    const int row = first + warp * 32 + lane / 4; // + 16 m + 8 half

    load_tile<FORWARD_ROWS, THREADS>(q_to, q, qs.s, first, s.sq);
    if (tiles > 0) load_tile<KEYS, THREADS>(k_to, k, ks.s, 0, s.sk);
    commit();
    for (int tile = 0; tile < tiles; tile++) {
        wait<0>();
        __syncthreads(); // the keys are here, the last values are used up
        load_tile<KEYS, THREADS>(v_to, v, vs.s, tile * KEYS, s.sk);
        commit();
        float p[M][N][4] = {};
        product_nt<T, M, N>(p, q_at, k_at);
        if ((tile + 1) * KEYS > whole) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int end = s.length - tile * KEYS - (lane & 3) * 2;
                    if (shape.causal) end = min(end, row + m * 16 + half * 8 + s.offset + 1 - tile * KEYS - (lane & 3) * 2);
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        if (n * 8 >= end) p[m][n][half * 2] = -INFINITY_F;
                        if (n * 8 + 1 >= end) p[m][n][half * 2 + 1] = -INFINITY_F;
                    }
                }
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float max = top[m][half];
#pragma unroll
                for (int n = 0; n < N; n++) max = fmaxf(max, fmaxf(p[m][n][half * 2], p[m][n][half * 2 + 1]));
                max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
                max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
                const float base = max == -INFINITY_F ? 0.0f : max * scale;
                const float shrink = exp2_fast(top[m][half] * scale - base);
                top[m][half] = max;
                float total = sum[m][half] * shrink;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = half * 2; i < half * 2 + 2; i++) {
                        p[m][n][i] = exp2_fast(p[m][n][i] * scale - base);
                        total += p[m][n][i];
                    }
                sum[m][half] = total;
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    out[m][n][half * 2] *= shrink;
                    out[m][n][half * 2 + 1] *= shrink;
                }
            }
        wait<0>();
        __syncthreads(); // the values are here, the keys are used up
        if (tile + 1 < tiles) load_tile<KEYS, THREADS>(k_to, k, ks.s, (tile + 1) * KEYS, s.sk);
        commit();
        product_nn<T, M, N>(out, p, v_at);
    }
    wait<0>();
    float inverse[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            inverse[m][half] = total > 0.0f ? 1.0f / total : 0.0f;
            const int i = row + m * 16 + half * 8;
            if ((lane & 3) == 0 && i < s.sq)
                logsumexp[batch * shape.lse_b + head * shape.lse_h + s.q_at + i] =
                    total > 0.0f ? top[m][half] * shape.scale + log2f(total) * LN2 : -1e30f;
        }
    if (tiles == 0) __syncthreads(); // other warps' copies into these rows are over
    store_rows<T, M>(out, memory + warp * 32 * PITCH * 2, o, os.s, first + warp * 32, s.sq, inverse);
}

template <class T>
__device__ __forceinline__ void delta_rows(
    const T* o, const T* grad, float* delta, const Strides& os, const Strides& gs, const Shape& shape) {
    const int head = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x & 31;
    const Sequence s = sequence(shape, batch);
    const int i = blockIdx.x * 8 + (threadIdx.x >> 5);
    if (i >= s.sq) return;
    o = head_of(o, os, batch, head, s.q_at, shape.cu_q) + i * os.s;
    grad = head_of(grad, gs, batch, head, s.q_at, shape.cu_q) + i * gs.s;
    float total = 0.0f;
    if (lane < D / 8) {
        float a[8], b[8];
        load(o + lane * 8, a);
        load(grad + lane * 8, b);
#pragma unroll
        for (int n = 0; n < 8; n++) total += a[n] * b[n];
    }
    total = warp_sum(total);
    if (lane == 0) delta[batch * shape.lse_b + head * shape.lse_h + s.q_at + i] = total;
}

template <class T>
__device__ __forceinline__ void backward_dkv(
    const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dk, T* dv,
    const Strides& qs, const Strides& ks, const Strides& vs, const Strides& gs, const Strides& dks, const Strides& dvs,
    const Shape& shape) {
    extern __shared__ __align__(16) char memory[];
    constexpr int THREADS = DKV_WARPS * 32, N = KEYS / 8, STAGE = 2 * TILE + 2 * KEYS * 4;
    const int kv_head = blockIdx.y, batch = blockIdx.z, group = shape.hq / shape.hkv;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    const int first = blockIdx.x * DKV_ROWS; // the first keys are seen by the most queries
    if (first >= s.sk) return;
    k = head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k);
    v = head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k);
    dk = head_of(dk, dks, batch, kv_head, s.k_at, shape.cu_k);
    dv = head_of(dv, dvs, batch, kv_head, s.k_at, shape.cu_k);
    const int begin = shape.causal ? max(0, first - s.offset) / KEYS : 0; // the first tile of queries that sees a key
    const int per_head = first < s.length ? max(0, (s.sq + KEYS - 1) / KEYS - begin) : 0, rounds = per_head * group;

    const u32 k_to = address(memory), v_to = k_to + DKV_ROWS * PITCH * 2, stages = v_to + DKV_ROWS * PITCH * 2;
    const u32 k_at = k_to + warp * 16 * PITCH * 2 + lane_a(), v_at = v_to + warp * 16 * PITCH * 2 + lane_a();
    auto fetch = [&](int round) {
        const int head = kv_head * group + round / per_head, at = (begin + round % per_head) * KEYS;
        const u32 to = stages + (round % DKV_STAGES) * STAGE;
        load_tile<KEYS, THREADS>(to, head_of(q, qs, batch, head, s.q_at, shape.cu_q), qs.s, at, s.sq);
        load_tile<KEYS, THREADS>(to + TILE, head_of(grad, gs, batch, head, s.q_at, shape.cu_q), gs.s, at, s.sq);
        for (int i = threadIdx.x; i < 2 * KEYS; i += THREADS) {
            const int row = at + i % KEYS;
            const float* from = (i < KEYS ? logsumexp : delta) + batch * shape.lse_b + head * shape.lse_h + s.q_at;
            copy4(to + 2 * TILE + i * 4, from + (row < s.sq ? row : 0), row < s.sq);
        }
    };
    float grad_k[1][D / 8][4] = {}, grad_v[1][D / 8][4] = {};
    const float scale = shape.scale * LOG2E;
    const int row = first + warp * 16 + lane / 4; // + 8 half

    load_tile<DKV_ROWS, THREADS>(k_to, k, ks.s, first, s.sk);
    load_tile<DKV_ROWS, THREADS>(v_to, v, vs.s, first, s.sk);
    if (DKV_STAGES > 1 && rounds > 0) fetch(0);
    commit();
    for (int round = 0; round < rounds; round++) {
        if (DKV_STAGES == 1) {
            __syncthreads();
            fetch(round);
            commit();
        }
        wait<0>();
        __syncthreads(); // this stage is here, the other is used up
        if (DKV_STAGES > 1) {
            if (round + 1 < rounds) fetch(round + 1);
            commit();
        }
        const u32 stage = stages + (round % DKV_STAGES) * STAGE;
        const float* row_stats =
            reinterpret_cast<const float*>(memory + 2 * DKV_ROWS * PITCH * 2 + (round % DKV_STAGES) * STAGE + 2 * TILE) + (lane & 3) * 2;
        const int at = (begin + round % per_head) * KEYS;

        // Everything transposed: rows are keys, columns queries.
        float p[1][N][4] = {};
        product_nt<T, 1, N>(p, k_at, stage + lane_b());
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 lse = *reinterpret_cast<const float2*>(row_stats + n * 8);
            const float a = lse.x * LOG2E, b = lse.y * LOG2E;
            p[0][n][0] = exp2_fast(p[0][n][0] * scale - a);
            p[0][n][1] = exp2_fast(p[0][n][1] * scale - b);
            p[0][n][2] = exp2_fast(p[0][n][2] * scale - a);
            p[0][n][3] = exp2_fast(p[0][n][3] * scale - b);
        }
        if (first + DKV_ROWS > s.length || (shape.causal && first + DKV_ROWS > at + s.offset + 1)) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int key = row + half * 8;
                // Queries at or after `from` see the key. Queries past the end have gradient 0.
                const int from = key >= s.length ? 0x7fffffff : shape.causal ? key - s.offset - at - (lane & 3) * 2 : -KEYS;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    if (n * 8 < from) p[0][n][half * 2] = 0.0f;
                    if (n * 8 + 1 < from) p[0][n][half * 2 + 1] = 0.0f;
                }
            }
        }
        product_nn<T, 1, N>(grad_v, p, stage + TILE + lane_a());
        float ds[1][N][4] = {};
        product_nt<T, 1, N>(ds, v_at, stage + TILE + lane_b());
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 d = *reinterpret_cast<const float2*>(row_stats + KEYS + n * 8);
            ds[0][n][0] = p[0][n][0] * (ds[0][n][0] - d.x);
            ds[0][n][1] = p[0][n][1] * (ds[0][n][1] - d.y);
            ds[0][n][2] = p[0][n][2] * (ds[0][n][2] - d.x);
            ds[0][n][3] = p[0][n][3] * (ds[0][n][3] - d.y);
        }
        product_nn<T, 1, N>(grad_k, ds, stage + lane_a());
    }
    wait<0>();
    if (rounds == 0) __syncthreads();
    char* own = memory + warp * 16 * PITCH * 2;
    store_rows<T, 1>(grad_k, own, dk, dks.s, first + warp * 16, s.sk, {{shape.scale, shape.scale}});
    store_rows<T, 1>(grad_v, own + DKV_ROWS * PITCH * 2, dv, dvs.s, first + warp * 16, s.sk, {{1.0f, 1.0f}});
}

template <class T>
__device__ __forceinline__ void backward_dq(
    const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dq, const Strides& qs,
    const Strides& ks, const Strides& vs, const Strides& gs, const Strides& dqs, const Shape& shape) {
    extern __shared__ __align__(16) char memory[];
    constexpr int THREADS = DQ_WARPS * 32, N = KEYS / 8;
    const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.hq / shape.hkv);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    const int first = (gridDim.x - 1 - blockIdx.x) * DQ_ROWS;
    if (first >= s.sq) return;
    q = head_of(q, qs, batch, head, s.q_at, shape.cu_q);
    k = head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k);
    v = head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k);
    grad = head_of(grad, gs, batch, head, s.q_at, shape.cu_q);
    dq = head_of(dq, dqs, batch, head, s.q_at, shape.cu_q);
    const int visible = shape.causal ? min(s.length, min(first + DQ_ROWS, s.sq) + s.offset) : s.length;
    const int tiles = visible > 0 ? (visible + KEYS - 1) / KEYS : 0;
    const int whole = shape.causal ? min(s.length, first + s.offset + 1) : s.length;

    // Two stages of keys and values; Q and dO pass through the second one into registers.
    const u32 stages = address(memory), second = stages + 2 * TILE;
    load_tile<DQ_ROWS, THREADS>(second, q, qs.s, first, s.sq);
    load_tile<DQ_ROWS, THREADS>(second + TILE, grad, gs.s, first, s.sq);
    if (tiles > 0) {
        load_tile<KEYS, THREADS>(stages, k, ks.s, 0, s.sk);
        load_tile<KEYS, THREADS>(stages + TILE, v, vs.s, 0, s.sk);
    }
    commit();
    const int row = first + warp * 16 + lane / 4; // + 8 half
    float lse[2], d[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const i64 i = batch * shape.lse_b + head * shape.lse_h + s.q_at + row + half * 8;
        const bool valid = row + half * 8 < s.sq; // a row past the end has gradient 0
        lse[half] = valid ? logsumexp[i] * LOG2E : 0.0f;
        d[half] = valid ? delta[i] : 0.0f;
    }
    wait<0>();
    __syncthreads();
    u32 query[D / 16][4], gradient[D / 16][4];
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        ldsm(query[n], second + warp * 16 * PITCH * 2 + lane_a() + n * 32);
        ldsm(gradient[n], second + TILE + warp * 16 * PITCH * 2 + lane_a() + n * 32);
    }
    float grad_q[1][D / 8][4] = {};
    const float scale = shape.scale * LOG2E;
    for (int tile = 0; tile < tiles; tile++) {
        wait<0>();
        __syncthreads(); // this stage is here, the other is used up
        if (tile + 1 < tiles) {
            const u32 to = stages + ((tile + 1) & 1) * 2 * TILE;
            load_tile<KEYS, THREADS>(to, k, ks.s, (tile + 1) * KEYS, s.sk);
            load_tile<KEYS, THREADS>(to + TILE, v, vs.s, (tile + 1) * KEYS, s.sk);
        }
        commit();
        const u32 stage = stages + (tile & 1) * 2 * TILE;
        float p[N][4] = {}, ds[1][N][4] = {};
        product_nt<T, N>(p, query, stage + lane_b());
        product_nt<T, N>(ds[0], gradient, stage + TILE + lane_b());
        const bool partial = (tile + 1) * KEYS > whole;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int end = s.length - tile * KEYS - (lane & 3) * 2;
            if (shape.causal) end = min(end, row + half * 8 + s.offset + 1 - tile * KEYS - (lane & 3) * 2);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float weight = exp2_fast(p[n][half * 2 + i] * scale - lse[half]);
                    float& x = ds[0][n][half * 2 + i];
                    x = partial && n * 8 + i >= end ? 0.0f : weight * (x - d[half]);
                }
        }
        product_nn<T, 1, N>(grad_q, ds, stage + lane_a());
    }
    wait<0>();
    __syncthreads(); // every warp is done with the stages
    store_rows<T, 1>(
        grad_q, memory + warp * 16 * PITCH * 2, dq, dqs.s, first + warp * 16, s.sq, {{shape.scale, shape.scale}});
}

#ifndef PARTS_ONLY
#define KERNELS(T, NAME)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(FORWARD_WARPS * 32, 2) attention_forward_##NAME(                           \
        const T* q, const T* k, const T* v, T* o, float* logsumexp, Strides qs, Strides ks, Strides vs, Strides os,         \
        Shape shape) {                                                                                                      \
        forward<T>(q, k, v, o, logsumexp, qs, ks, vs, os, shape);                                                           \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) attention_delta_##NAME(                                               \
        const T* o, const T* grad, float* delta, Strides os, Strides gs, Shape shape) {                                     \
        delta_rows<T>(o, grad, delta, os, gs, shape);                                                                       \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(DKV_WARPS * 32, 2) attention_backward_dkv_##NAME(                          \
        const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dk, T* dv,        \
        Strides qs, Strides ks, Strides vs, Strides gs, Strides dks, Strides dvs, Shape shape) {                            \
        backward_dkv<T>(q, k, v, grad, logsumexp, delta, dk, dv, qs, ks, vs, gs, dks, dvs, shape);                          \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(DQ_WARPS * 32, 2) attention_backward_dq_##NAME(                            \
        const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dq, Strides qs,   \
        Strides ks, Strides vs, Strides gs, Strides dqs, Shape shape) {                                                     \
        backward_dq<T>(q, k, v, grad, logsumexp, delta, dq, qs, ks, vs, gs, dqs, shape);                                    \
    }

KERNELS(bf16, bf16)
KERNELS(f16, f16)
#endif
