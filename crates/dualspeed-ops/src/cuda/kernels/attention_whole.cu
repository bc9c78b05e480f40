// Attention of short sequences: a block has all of a head in shared memory, rotates queries and keys there if asked to, and one
// kernel does the whole backward pass. Appended to attention.cu, compiled with -D PARTS_ONLY; structs, pointers and strides as
// there. For hq == hkv and sq == sk <= ROWS; ROWS is 64, 96 or 128, at most HEAD_DIM.
//
// struct Rotary {                         // passed by value, 24 bytes
//   const float* cos; const float* sin;   // [1 or b, s, HEAD_DIM / 2] contiguous, multiples of 16 bytes, or null: no rotation
//   long long b;                          // stride between batch rows (0: shared; packed: unused)
// };
//
// attention_whole_forward_ROWS_T(const T* q, const T* k, const T* v, T* o, float* logsumexp,
//                                Strides q, Strides k, Strides v, Strides o, Shape shape, Rotary rotary)
// attention_whole_backward_ROWS_T(const T* q, const T* k, const T* v, const T* o, const T* grad, const float* logsumexp,
//                                 T* dq, T* dk, T* dv, Strides q, Strides k, Strides v, Strides o, Strides grad,
//                                 Strides dq, Strides dk, Strides dv, Shape shape, Rotary rotary)
//   q and k as they were before the rotation, and so dq and dk. grid (1, hq, b), block 2 ROWS, dynamic shared memory 3 (forward)
//   or 4 (backward) * ROWS * (HEAD_DIM + 8) * 2 + 8 * ROWS bytes.

struct Rotary {
    const float* cos;
    const float* sin;
    i64 b;
};

__device__ __forceinline__ void rotate(float (&left)[8], float (&right)[8], const float* cos, const float* sin, float direction) {
#pragma unroll
    for (int part = 0; part < 8; part += 4) {
        float c[4], s[4];
        load(cos + part, c);
        load(sin + part, s);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float l = left[part + n], r = right[part + n], sine = s[n] * direction;
            left[part + n] = l * c[n] - r * sine;
            right[part + n] = r * c[n] + l * sine;
        }
    }
}

// The first `rows` rows of two tiles, in place.
template <class T, int THREADS>
__device__ __forceinline__ void rotate_tiles(char* one, char* other, const float* cos, const float* sin, int rows) {
    constexpr int PARTS = D / 16;
    for (int i = threadIdx.x; i < rows * PARTS; i += THREADS) {
        const int row = i / PARTS, part = i % PARTS;
        const i64 angle = i64(row) * (D / 2) + part * 8;
#pragma unroll
        for (int which = 0; which < 2; which++) {
            T* at = reinterpret_cast<T*>((which ? other : one) + (row * PITCH + part * 8) * 2);
            float left[8], right[8];
            load(at, left);
            load(at + D / 2, right);
            rotate(left, right, cos + angle, sin + angle, 1.0f);
            store(at, left);
            store(at + D / 2, right);
        }
    }
}

// `store_rows` of 16 rows, turned back if there is a table.
template <class T>
__device__ __forceinline__ void store_rotated(
    const float (&c)[1][D / 8][4], char* own, T* head, i64 stride, int first, int end, float scale, const float* cos,
    const float* sin) {
    if (!cos) {
        store_rows<T, 1>(c, own, head, stride, first, end, {{scale, scale}});
        return;
    }
    store_rows<T, 1>(c, own, head, stride, first, first, {{scale, scale}}); // to shared memory only
    constexpr int PARTS = D / 16;
    for (int i = threadIdx.x & 31; i < 16 * PARTS; i += 32) {
        const int row = i / PARTS, part = i % PARTS;
        if (first + row >= end) continue;
        const T* at = reinterpret_cast<const T*>(own + (row * PITCH + part * 8) * 2);
        const i64 angle = i64(first + row) * (D / 2) + part * 8;
        float left[8], right[8];
        load(at, left);
        load(at + D / 2, right);
        rotate(left, right, cos + angle, sin + angle, -1.0f);
        T* to = head + i64(first + row) * stride + part * 8;
        store(to, left);
        store(to + D / 2, right);
    }
}

// Blocks that a multiprocessor of Hopper is to hold, which decides about registers.
__device__ constexpr int whole_blocks(int rows, int tiles) {
    return rows > 96 ? 1 : 224 * 1024 / (tiles * rows * PITCH * 2 + 8 * rows) >= 3 ? 3 : 2;
}

// A warp owns 16 queries.
template <class T, int ROWS>
__device__ __forceinline__ void whole_forward(
    const T* q, const T* k, const T* v, T* o, float* logsumexp, const Strides& qs, const Strides& ks, const Strides& vs,
    const Strides& os, const Shape& shape, const Rotary& rotary) {
    extern __shared__ __align__(16) char memory[];
    constexpr int THREADS = ROWS * 2, N = ROWS / 8, SIZE = ROWS * PITCH * 2;
    const int head = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    if (s.sq <= 0) return;
    const u32 q_to = address(memory), k_to = q_to + SIZE, v_to = k_to + SIZE;
    load_tile<ROWS, THREADS>(q_to, head_of(q, qs, batch, head, s.q_at, shape.cu_q), qs.s, 0, s.sq);
    load_tile<ROWS, THREADS>(k_to, head_of(k, ks, batch, head, s.k_at, shape.cu_k), ks.s, 0, s.sk);
    commit();
    load_tile<ROWS, THREADS>(v_to, head_of(v, vs, batch, head, s.k_at, shape.cu_k), vs.s, 0, s.sk);
    commit();
    wait<1>();
    __syncthreads();
    if (rotary.cos) {
        const i64 table = shape.cu_q ? s.q_at * (D / 2) : batch * rotary.b;
        rotate_tiles<T, THREADS>(memory, memory + SIZE, rotary.cos + table, rotary.sin + table, s.sq);
        __syncthreads();
    }
    // Tiles of 16 keys that a row of this warp sees.
    const int last = min(shape.causal ? warp + 1 : ROWS / 16, (s.length + 15) / 16);
    float p[N][4];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) p[n][i] = 0.0f;
    const u32 own = q_to + warp * 16 * PITCH * 2 + lane_a();
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        u32 a[4];
        ldsm(a, own + step * 32);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            if (n / 2 >= last) continue;
            u32 b[4];
            ldsm(b, k_to + lane_b() + n * 8 * PITCH * 2 + step * 32);
            mma(p[n], a, b[0], b[1], T());
            mma(p[n + 1], a, b[2], b[3], T());
        }
    }
    const float scale = shape.scale * LOG2E;
    float inverse[1][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = warp * 16 + half * 8 + lane / 4;
        const int end = (shape.causal ? min(s.length, row + 1) : s.length) - (lane & 3) * 2;
        float top = -INFINITY_F, total = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float& x = p[n][half * 2 + i];
                if (n * 8 + i >= end) x = -INFINITY_F;
                top = fmaxf(top, x);
            }
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float base = top == -INFINITY_F ? 0.0f : top * scale;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float& x = p[n][half * 2 + i];
                x = exp2_fast(x * scale - base);
                total += x;
            }
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        inverse[0][half] = total > 0.0f ? 1.0f / total : 0.0f;
        if ((lane & 3) == 0 && row < s.sq)
            logsumexp[batch * shape.lse_b + head * shape.lse_h + s.q_at + row] =
                total > 0.0f ? top * shape.scale + log2f(total) * LN2 : -1e30f;
    }
    wait<0>();
    __syncthreads();
    float out[1][D / 8][4] = {};
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        if (n / 2 >= last) continue;
        const u32 a[4] = {pack(p[n][0], p[n][1], T()), pack(p[n][2], p[n][3], T()),
                          pack(p[n + 1][0], p[n + 1][1], T()), pack(p[n + 1][2], p[n + 1][3], T())};
#pragma unroll
        for (int e = 0; e < D / 8; e += 2) {
            u32 b[4];
            ldsm_t(b, v_to + lane_a() + n * 8 * PITCH * 2 + e * 16);
            mma(out[0][e], a, b[0], b[1], T());
            mma(out[0][e + 1], a, b[2], b[3], T());
        }
    }
    o = head_of(o, os, batch, head, s.q_at, shape.cu_q);
    store_rows<T, 1>(out, memory + warp * 16 * PITCH * 2, o, os.s, warp * 16, s.sq, inverse);
}

// c [16, D] += A B: A are the 16-column tiles begin .. end of a warp's rows, packed; B in shared memory, its rows those columns.
template <class T, int N>
__device__ __forceinline__ void whole_product(float (&c)[1][D / 8][4], const u32 (&a)[N / 2][4], u32 b_at, int begin) {
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
        if (n < begin) continue;
#pragma unroll
        for (int e = 0; e < D / 8; e += 2) {
            u32 b[4];
            ldsm_t(b, b_at + n * 16 * PITCH * 2 + e * 16);
            mma(c[0][e], a[n], b[0], b[1], T());
            mma(c[0][e + 1], a[n], b[2], b[3], T());
        }
    }
}

// A warp owns 16 keys, with everything transposed, and at last 16 queries.
template <class T, int ROWS>
__device__ __forceinline__ void whole_backward(
    const T* q, const T* k, const T* v, const T* o, const T* grad, const float* logsumexp, T* dq, T* dk, T* dv,
    const Strides& qs, const Strides& ks, const Strides& vs, const Strides& os, const Strides& gs, const Strides& dqs,
    const Strides& dks, const Strides& dvs, const Shape& shape, const Rotary& rotary) {
    extern __shared__ __align__(16) char memory[];
    constexpr int THREADS = ROWS * 2, N = ROWS / 8, SIZE = ROWS * PITCH * 2;
    const int head = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const Sequence s = sequence(shape, batch);
    if (s.sq <= 0) return;
    const u32 q_to = address(memory), g_to = q_to + SIZE, k_to = g_to + SIZE, v_to = k_to + SIZE;
    float* row_lse = reinterpret_cast<float*>(memory + 4 * SIZE);
    float* row_delta = row_lse + ROWS;
    load_tile<ROWS, THREADS>(q_to, head_of(q, qs, batch, head, s.q_at, shape.cu_q), qs.s, 0, s.sq);
    load_tile<ROWS, THREADS>(k_to, head_of(k, ks, batch, head, s.k_at, shape.cu_k), ks.s, 0, s.sk);
    load_tile<ROWS, THREADS>(g_to, head_of(grad, gs, batch, head, s.q_at, shape.cu_q), gs.s, 0, s.sq);
    load_tile<ROWS, THREADS>(v_to, head_of(v, vs, batch, head, s.k_at, shape.cu_k), vs.s, 0, s.sk);
    commit();
    const i64 table = shape.cu_q ? s.q_at * (D / 2) : batch * rotary.b;
    const float* cos = rotary.cos ? rotary.cos + table : nullptr;
    const float* sin = rotary.cos ? rotary.sin + table : nullptr;
    { // Two lanes for a row: sum of o times its gradient.
        const int row = warp * 16 + lane / 2, half = lane & 1;
        uint4 output[D / 16];
        const T* from = head_of(o, os, batch, head, s.q_at, shape.cu_q) + i64(row) * os.s + half * (D / 2);
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            output[i] = row < s.sq ? reinterpret_cast<const uint4*>(from)[i] : uint4{0, 0, 0, 0};
        if (half == 0)
            row_lse[row] = row < s.sq ? logsumexp[batch * shape.lse_b + head * shape.lse_h + s.q_at + row] * LOG2E : 0.0f;
        wait<0>();
        __syncthreads();
        const T* there = reinterpret_cast<const T*>(memory + SIZE + row * PITCH * 2) + half * (D / 2);
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            float a[8], b[8];
            load(reinterpret_cast<const T*>(&output[i]), a);
            load(there + i * 8, b);
#pragma unroll
            for (int n = 0; n < 8; n++) total += a[n] * b[n];
        }
        total += __shfl_xor_sync(~0u, total, 1);
        if (half == 0) row_delta[row] = total;
        if (cos) rotate_tiles<T, THREADS>(memory, memory + 2 * SIZE, cos, sin, s.sq);
        __syncthreads();
    }
    // Tiles of 16 queries that see a key of this warp.
    const int begin = shape.causal ? warp : 0;
    u32 weights[N / 2][4], slopes[N / 2][4];
    {
        float p[N][4], ds[N][4];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] = ds[n][i] = 0.0f;
        const u32 own = warp * 16 * PITCH * 2 + lane_a();
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            u32 key[4], value[4];
            ldsm(key, k_to + own + step * 32);
            ldsm(value, v_to + own + step * 32);
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                if (n / 2 < begin) continue;
                u32 b[4], g[4];
                ldsm(b, q_to + lane_b() + n * 8 * PITCH * 2 + step * 32);
                ldsm(g, g_to + lane_b() + n * 8 * PITCH * 2 + step * 32);
                mma(p[n], key, b[0], b[1], T());
                mma(p[n + 1], key, b[2], b[3], T());
                mma(ds[n], value, g[0], g[1], T());
                mma(ds[n + 1], value, g[2], g[3], T());
            }
        }
        const float scale = shape.scale * LOG2E;
        const int key = warp * 16 + lane / 4; // + 8 half
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int query = n * 8 + (lane & 3) * 2;
            const float2 lse = *reinterpret_cast<const float2*>(row_lse + query);
            const float2 d = *reinterpret_cast<const float2*>(row_delta + query);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = key + i / 2 * 8, by = query + i % 2;
                const bool seen = at < s.length && (!shape.causal || at <= by);
                const float weight = seen ? exp2_fast(p[n][i] * scale - (i % 2 ? lse.y : lse.x)) : 0.0f;
                p[n][i] = weight;
                ds[n][i] = seen ? weight * (ds[n][i] - (i % 2 ? d.y : d.x)) : 0.0f;
            }
            weights[n / 2][n % 2 * 2] = pack(p[n][0], p[n][1], T());
            weights[n / 2][n % 2 * 2 + 1] = pack(p[n][2], p[n][3], T());
            slopes[n / 2][n % 2 * 2] = pack(ds[n][0], ds[n][1], T());
            slopes[n / 2][n % 2 * 2 + 1] = pack(ds[n][2], ds[n][3], T());
        }
    }
    char* own = memory + 3 * SIZE + warp * 16 * PITCH * 2; // of the values: only this warp reads them
    {
        float out[1][D / 8][4] = {};
        whole_product<T, N>(out, weights, g_to + lane_a(), begin);
        store_rows<T, 1>(
            out, own, head_of(dv, dvs, batch, head, s.k_at, shape.cu_k), dvs.s, warp * 16, s.sk, {{1.0f, 1.0f}});
    }
    {
        float out[1][D / 8][4] = {};
        whole_product<T, N>(out, slopes, q_to + lane_a(), begin);
        store_rotated<T>(
            out, own, head_of(dk, dks, batch, head, s.k_at, shape.cu_k), dks.s, warp * 16, s.sk, shape.scale, cos, sin);
    }
    // The gradients of the scores, rows are keys, where the values were.
    __syncwarp();
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *reinterpret_cast<u32*>(own + ((half * 8 + lane / 4) * PITCH + n * 8 + (lane & 3) * 2) * 2) =
                slopes[n / 2][n % 2 * 2 + half];
    __syncthreads(); // also: nobody reads queries any more
    float out[1][D / 8][4] = {};
    const int last = min(shape.causal ? warp + 1 : ROWS / 16, (s.length + 15) / 16);
    for (int tile = 0; tile < last; tile++) {
        u32 a[4];
        ldsm_t(a, v_to + tile * 16 * PITCH * 2 + lane_b() + warp * 32);
#pragma unroll
        for (int e = 0; e < D / 8; e += 2) {
            u32 b[4];
            ldsm_t(b, k_to + lane_a() + tile * 16 * PITCH * 2 + e * 16);
            mma(out[0][e], a, b[0], b[1], T());
            mma(out[0][e + 1], a, b[2], b[3], T());
        }
    }
    store_rotated<T>(
        out, memory + warp * 16 * PITCH * 2, head_of(dq, dqs, batch, head, s.q_at, shape.cu_q), dqs.s, warp * 16, s.sq,
        shape.scale, cos, sin);
}

#define WHOLE(ROWS, T, NAME)                                                                                                \
    extern "C" __global__ void __launch_bounds__(ROWS * 2, whole_blocks(ROWS, 3)) attention_whole_forward_##ROWS##_##NAME(  \
        const T* q, const T* k, const T* v, T* o, float* logsumexp, Strides qs, Strides ks, Strides vs, Strides os,         \
        Shape shape, Rotary rotary) {                                                                                       \
        whole_forward<T, ROWS>(q, k, v, o, logsumexp, qs, ks, vs, os, shape, rotary);                                       \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(ROWS * 2, whole_blocks(ROWS, 4)) attention_whole_backward_##ROWS##_##NAME( \
        const T* q, const T* k, const T* v, const T* o, const T* grad, const float* logsumexp, T* dq, T* dk, T* dv,         \
        Strides qs, Strides ks, Strides vs, Strides os, Strides gs, Strides dqs, Strides dks, Strides dvs, Shape shape,     \
        Rotary rotary) {                                                                                                    \
        whole_backward<T, ROWS>(                                                                                            \
            q, k, v, o, grad, logsumexp, dq, dk, dv, qs, ks, vs, os, gs, dqs, dks, dvs, shape, rotary);                     \
    }

WHOLE(64, bf16, bf16)
WHOLE(64, f16, f16)
#if HEAD_DIM >= 96
WHOLE(96, bf16, bf16)
WHOLE(96, f16, f16)
#endif
#if HEAD_DIM >= 128
WHOLE(128, bf16, bf16)
WHOLE(128, f16, f16)
#endif
