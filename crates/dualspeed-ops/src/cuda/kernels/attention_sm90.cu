// Flash attention on Hopper's warpgroup products (sm_90a). Appended to attention.cu, compiled with -D PARTS_ONLY and -D HEAD_DIM=64
// or 128: the same entry points, arguments, grids and `attention_config` as stated there (rows, threads and bytes differ).
//
// A block has three warpgroups. The first copies tiles into a ring in shared memory (cp.async, 128-byte swizzle), the others own
// 64 rows each: of queries in the forward pass and dQ, of keys in dK/dV, where every product is transposed. The rows' operand
// and one tile give scores in registers; these, rounded, are the left operand of the second product.

#if HEAD_DIM != 64 && HEAD_DIM != 128
#error "attention_sm90.cu: HEAD_DIM must be 64 or 128"
#endif

typedef unsigned long long u64;

#define WGMMA_OF(T, NAME)                                                                                                   \
    __device__ __forceinline__ void wgmma_ss(float(&c)[8][4], u64 a, u64 b, int add, T) {                                   \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {"\
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                               \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                    \
                     "%32, %33, p, 1, 1, 0, 0; }"                                                                           \
                     : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]),                                          \
                       "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]),                                          \
                       "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),                                          \
                       "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]),                                          \
                       "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]),                                          \
                       "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),                                          \
                       "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),                                          \
                       "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])                                           \
                     : "l"(a), "l"(b), "r"(add));                                                                           \
    }                                                                                                                       \
    __device__ __forceinline__ void wgmma_rs(float(&c)[8][4], const u32(&a)[4], u64 b, int add, T) {                        \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {"\
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                               \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                    \
                     "{%32, %33, %34, %35}, %36, p, 1, 1, 1; }"                                                             \
                     : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]),                                          \
                       "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]),                                          \
                       "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),                                          \
                       "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]),                                          \
                       "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]),                                          \
                       "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),                                          \
                       "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),                                          \
                       "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])                                           \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                       \
    }                                                                                                                       \
    __device__ __forceinline__ void wgmma_ss(float(&c)[16][4], u64 a, u64 b, int add, T) {                                  \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {"\
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                               \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                     \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                     \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                    \
                     "%64, %65, p, 1, 1, 0, 0; }"                                                                           \
                     : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]),                                          \
                       "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]),                                          \
                       "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),                                          \
                       "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]),                                          \
                       "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]),                                          \
                       "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),                                          \
                       "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),                                          \
                       "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]),                                          \
                       "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]),                                          \
                       "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]),                                          \
                       "+f"(c[10][0]), "+f"(c[10][1]), "+f"(c[10][2]), "+f"(c[10][3]),                                      \
                       "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]),                                      \
                       "+f"(c[12][0]), "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]),                                      \
                       "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]),                                      \
                       "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]),                                      \
                       "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3])                                       \
                     : "l"(a), "l"(b), "r"(add));                                                                           \
    }                                                                                                                       \
    __device__ __forceinline__ void wgmma_rs(float(&c)[16][4], const u32(&a)[4], u64 b, int add, T) {                       \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {"\
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                               \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                     \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                     \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                    \
                     "{%64, %65, %66, %67}, %68, p, 1, 1, 1; }"                                                             \
                     : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]),                                          \
                       "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]),                                          \
                       "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),                                          \
                       "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]),                                          \
                       "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]),                                          \
                       "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),                                          \
                       "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),                                          \
                       "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]),                                          \
                       "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]),                                          \
                       "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]),                                          \
                       "+f"(c[10][0]), "+f"(c[10][1]), "+f"(c[10][2]), "+f"(c[10][3]),                                      \
                       "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]),                                      \
                       "+f"(c[12][0]), "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]),                                      \
                       "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]),                                      \
                       "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]),                                      \
                       "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3])                                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                       \
    }
WGMMA_OF(bf16, "bf16")
WGMMA_OF(f16, "f16")

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N groups are under way. The registers are named so that no use of them moves above the wait.
template <int N, int M> __device__ __forceinline__ void wgmma_wait(float (&c)[M][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[m][i])::"memory");
}
template <int M> __device__ __forceinline__ void settle(float (&c)[M][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[m][i])::"memory");
}

__device__ __forceinline__ void barrier_init(u32 at, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 at) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(at) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 at, u32 parity) {
    u32 done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(at), "r"(parity)
                     : "memory");
}

constexpr int ROWS = 128;     // per block, 64 per consumer
constexpr int SM90_THREADS = 384;
constexpr int FULL = D * 2;   // bytes per row
constexpr int WIDE = 128;     // keys per tile of the forward pass
constexpr int NARROW = 64;    // rows per tile of the backward passes
constexpr int RING = 4;       // tiles of keys and of values, taking turns
constexpr int STAGES = 4;     // pairs of tiles in the backward passes; with two in flight and one held back, fewer would not do
constexpr int PAIR = 2 * NARROW * FULL + 2 * NARROW * 4; // with logsumexp and delta
constexpr int PAIR_STEP = (PAIR + 1023) / 1024 * 1024;
constexpr int SM90_FORWARD_BYTES = 1024 + ROWS * FULL + RING * WIDE * FULL;
constexpr int SM90_BACKWARD_BYTES = 1024 + 2 * ROWS * FULL + STAGES * PAIR_STEP;

extern "C" {
__constant__ int attention_config[12] = {
    ROWS, SM90_THREADS, SM90_FORWARD_BYTES, ROWS, SM90_THREADS, SM90_BACKWARD_BYTES,
    ROWS, SM90_THREADS, SM90_BACKWARD_BYTES, 0, 0, 0};
}

// A tile of R rows lies as panels of 64 columns; in a panel a row is 128 bytes, its 16-byte parts swapped by row % 8.
template <int R> __device__ __forceinline__ u32 place(int row, int part) {
    return (part / 8) * R * 128 + row * 128 + ((part % 8) ^ (row & 7)) * 16;
}

// Rows first .. first + R of a head, zeros from `end` on; by the 128 threads of the producer.
template <int R, class T>
__device__ __forceinline__ void produce(u32 to, const T* head, i64 stride, int first, int end) {
    constexpr int PARTS = D / 8, STEP = 128 / PARTS; // STEP is a multiple of 8: the swizzle of a thread stays the same
    const int row = threadIdx.x / PARTS, part = threadIdx.x % PARTS;
    const T* from = head + i64(first + row) * stride + part * 8;
    to += place<R>(row, part);
#pragma unroll
    for (int j = 0; j < R; j += STEP) {
        const bool valid = first + row + j < end;
        copy16(to + j * 128, valid ? from : head, valid);
        from += STEP * stride;
    }
}

__device__ __forceinline__ u64 descriptor(u32 at, u32 leading, u32 stride) {
    return u64((at & 0x3ffff) >> 4) | u64(leading >> 4) << 16 | u64(stride >> 4) << 32 | u64(1) << 62;
}

// c [64, 8 N] = A B^T over the head dim: A 64 rows in a tile of RA rows, B a tile of 8 N rows.
template <class T, int RA, int N> __device__ __forceinline__ void multiply_nt(float (&c)[N][4], u32 a, u32 b) {
    constexpr int RB = 8 * N;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        wgmma_ss(
            c, descriptor(a + (k / 4) * RA * 128 + (k % 4) * 32, 16, 1024),
            descriptor(b + (k / 4) * RB * 128 + (k % 4) * 32, 16, 1024), k > 0, T());
}

// c [64, D] += P B: P [64, 8 K] rounded, B a tile of 8 K rows.
template <class T, int K> __device__ __forceinline__ void multiply_nn(float (&c)[D / 8][4], const u32 (&p)[K / 2][4], u32 b) {
#pragma unroll
    for (int k = 0; k < K / 2; k++) wgmma_rs(c, p[k], descriptor(b + k * 2048, 8 * K * 128, 1024), 1, T());
}

template <class T, int K> __device__ __forceinline__ void round_to(u32 (&to)[K / 2][4], const float (&p)[K][4]) {
#pragma unroll
    for (int k = 0; k < K; k += 2) {
        to[k / 2][0] = pack(p[k][0], p[k][1], T());
        to[k / 2][1] = pack(p[k][2], p[k][3], T());
        to[k / 2][2] = pack(p[k + 1][0], p[k + 1][1], T());
        to[k / 2][3] = pack(p[k + 1][2], p[k + 1][3], T());
    }
}

__device__ __forceinline__ float low(u32 x, bf16) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high(u32 x, bf16) { return __uint_as_float(x & 0xffff0000u); }
__device__ __forceinline__ float low(u32 x, f16) { return widen(f16{u16(x)}); }
__device__ __forceinline__ float high(u32 x, f16) { return widen(f16{u16(x >> 16)}); }

// A warp's 16 rows, from row `local` of a tile of ROWS rows that it alone still uses, to rows first + local .. of a head.
template <class T>
__device__ __forceinline__ void write_rows(
    const float (&c)[D / 8][4], char* tile, T* head, i64 stride, int local, int first, int end, float scale0, float scale1) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const int row = local + lane / 4;
        *reinterpret_cast<u32*>(tile + place<ROWS>(row, n) + (lane & 3) * 4) = pack(c[n][0] * scale0, c[n][1] * scale0, T());
        *reinterpret_cast<u32*>(tile + place<ROWS>(row + 8, n) + (lane & 3) * 4) = pack(c[n][2] * scale1, c[n][3] * scale1, T());
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * (D / 8); i += 32) {
        const int row = local + i / (D / 8), part = i % (D / 8);
        if (first + row < end)
            *reinterpret_cast<uint4*>(head + i64(first + row) * stride + part * 8) =
                *reinterpret_cast<const uint4*>(tile + place<ROWS>(row, part));
    }
}

// The ring's barriers: `full` completes when the producer's 128 threads have published a tile, `empty` when the consumers' 8
// warps have used it, `ready` for the rows' own operands.
struct Pipe {
    u32 full, empty, ready;
    int ring;

    __device__ __forceinline__ void wait_full(int t) const { barrier_wait(full + (t % ring) * 8, (t / ring) & 1); }
    __device__ __forceinline__ void wait_empty(int t) const {
        if (t >= ring) barrier_wait(empty + (t % ring) * 8, (t / ring - 1) & 1);
    }
    __device__ __forceinline__ void release(int t) const {
        if ((threadIdx.x & 31) == 0) barrier_arrive(empty + (t % ring) * 8);
    }
};

// The producer's loop over `count` tiles, two of them in flight; the rows' operands were committed before.
template <class F> __device__ __forceinline__ void produce_all(const Pipe& pipe, int count, F load) {
    auto publish = [&](u32 barrier) {
        // What this thread wrote becomes visible to the tensor cores before it arrives.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        barrier_arrive(barrier);
    };
    for (int t = 0; t < count + 2; t++) {
        if (t < count) {
            pipe.wait_empty(t);
            load(t);
        }
        commit();
        wait<2>();
        if (t == 1) publish(pipe.ready);
        else if (t >= 2) publish(pipe.full + ((t - 2) % pipe.ring) * 8);
    }
}

__device__ __forceinline__ char* align1024(char* p) { return p + ((1024 - (address(p) & 1023)) & 1023); }

__device__ __forceinline__ Pipe make_pipe(int ring) {
    __shared__ u64 barriers[2 * RING + 1];
    const u32 at = address(barriers);
    if (threadIdx.x == 0) {
        for (int i = 0; i < ring; i++) {
            barrier_init(at + i * 8, 128);
            barrier_init(at + (RING + i) * 8, 8);
        }
        barrier_init(at + 2 * RING * 8, 128);
    }
    __syncthreads();
    return {at, at + RING * 8, at + 2 * RING * 8, ring};
}

#define PRODUCER_REGISTERS() asm volatile("setmaxnreg.dec.sync.aligned.u32 24;")
#define CONSUMER_REGISTERS() asm volatile("setmaxnreg.inc.sync.aligned.u32 240;")

template <class T>
__device__ __forceinline__ void forward_sm90(
    const T* q, const T* k, const T* v, T* o, float* logsumexp, const Strides& qs, const Strides& ks, const Strides& vs,
    const Strides& os, const Shape& shape) {
    extern __shared__ __align__(16) char memory[];
    constexpr int N = WIDE / 8;
    const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.hq / shape.hkv);
    const Sequence s = sequence(shape, batch);
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    if (first >= s.sq) return;
    const int visible = shape.causal ? min(s.length, min(first + ROWS, s.sq) + s.offset) : s.length;
    const int tiles = visible > 0 ? (visible + WIDE - 1) / WIDE : 0;
    const Pipe pipe = make_pipe(RING);
    char* tiles_at = align1024(memory);
    const u32 q_at = address(tiles_at), ring_at = q_at + ROWS * FULL;

    if (threadIdx.x < 128) {
        PRODUCER_REGISTERS();
        q = head_of(q, qs, batch, head, s.q_at, shape.cu_q);
        k = head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k);
        v = head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k);
        produce<ROWS>(q_at, q, qs.s, first, s.sq);
        commit();
        produce_all(pipe, 2 * tiles, [&](int t) {
            const u32 to = ring_at + (t % RING) * WIDE * FULL;
            if (t & 1) produce<WIDE>(to, v, vs.s, (t / 2) * WIDE, s.sk);
            else produce<WIDE>(to, k, ks.s, (t / 2) * WIDE, s.sk);
        });
        wait<0>();
        return;
    }
    CONSUMER_REGISTERS();
    const int lane = threadIdx.x & 31, local = (threadIdx.x - 128) / 32 * 16, group = (threadIdx.x - 128) / 128;
    const int row = first + local + lane / 4; // + 8 half
    const int whole = shape.causal ? min(s.length, first + group * 64 + s.offset + 1) : s.length;
    const float scale = shape.scale * LOG2E;
    float out[D / 8][4] = {}, top[2] = {-INFINITY_F, -INFINITY_F}, sum[2] = {0.0f, 0.0f};
    barrier_wait(pipe.ready, 0);
    for (int tile = 0; tile < tiles; tile++) {
        float p[N][4];
        pipe.wait_full(2 * tile);
        settle(p);
        wgmma_fence();
        multiply_nt<T, ROWS, N>(p, q_at + group * 64 * 128, ring_at + (2 * tile % RING) * WIDE * FULL);
        wgmma_commit();
        wgmma_wait<0>(p);
        pipe.release(2 * tile);
        if ((tile + 1) * WIDE > whole) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int end = s.length - tile * WIDE - (lane & 3) * 2;
                if (shape.causal) end = min(end, row + half * 8 + s.offset + 1 - tile * WIDE - (lane & 3) * 2);
#pragma unroll
                for (int n = 0; n < N; n++) {
                    if (n * 8 >= end) p[n][half * 2] = -INFINITY_F;
                    if (n * 8 + 1 >= end) p[n][half * 2 + 1] = -INFINITY_F;
                }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float max = top[half];
#pragma unroll
            for (int n = 0; n < N; n++) max = fmaxf(max, fmaxf(p[n][half * 2], p[n][half * 2 + 1]));
            max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
            max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
            const float base = max == -INFINITY_F ? 0.0f : max * scale;
            const float shrink = exp2_fast(top[half] * scale - base);
            top[half] = max;
            float total = sum[half] * shrink;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    p[n][i] = exp2_fast(p[n][i] * scale - base);
                    total += p[n][i];
                }
            sum[half] = total;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                out[n][half * 2] *= shrink;
                out[n][half * 2 + 1] *= shrink;
            }
        }
        u32 weights[N / 2][4];
        round_to<T, N>(weights, p);
        pipe.wait_full(2 * tile + 1);
        settle(out);
        wgmma_fence();
        multiply_nn<T, N>(out, weights, ring_at + ((2 * tile + 1) % RING) * WIDE * FULL);
        wgmma_commit();
        // Keeping this product under way during the next softmax measured slower: the other warpgroup's products fill the gap.
        wgmma_wait<0>(out);
        pipe.release(2 * tile + 1);
    }
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        inverse[half] = total > 0.0f ? 1.0f / total : 0.0f;
        const int i = row + half * 8;
        if ((lane & 3) == 0 && i < s.sq)
            logsumexp[batch * shape.lse_b + head * shape.lse_h + s.q_at + i] =
                total > 0.0f ? top[half] * shape.scale + log2f(total) * LN2 : -1e30f;
    }
    // A warpgroup's products read all of its 64 rows of Q: all four warps are done with them after this.
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    o = head_of(o, os, batch, head, s.q_at, shape.cu_q);
    write_rows(out, tiles_at, o, os.s, local, first, s.sq, inverse[0], inverse[1]);
}

template <class T>
__device__ __forceinline__ void backward_dkv_sm90(
    const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dk, T* dv,
    const Strides& qs, const Strides& ks, const Strides& vs, const Strides& gs, const Strides& dks, const Strides& dvs,
    const Shape& shape) {
    extern __shared__ __align__(16) char memory[];
    constexpr int N = NARROW / 8;
    const int kv_head = blockIdx.y, batch = blockIdx.z, heads = shape.hq / shape.hkv;
    const Sequence s = sequence(shape, batch);
    const int first = blockIdx.x * ROWS;
    if (first >= s.sk) return;
    const int begin = shape.causal ? max(0, first - s.offset) / NARROW : 0;
    const int per_head = first < s.length ? max(0, (s.sq + NARROW - 1) / NARROW - begin) : 0, rounds = per_head * heads;
    const Pipe pipe = make_pipe(STAGES);
    char* base = align1024(memory);
    const u32 k_at = address(base), v_at = k_at + ROWS * FULL, ring_at = v_at + ROWS * FULL;

    if (threadIdx.x < 128) {
        PRODUCER_REGISTERS();
        produce<ROWS>(k_at, head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k), ks.s, first, s.sk);
        produce<ROWS>(v_at, head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k), vs.s, first, s.sk);
        commit();
        produce_all(pipe, rounds, [&](int t) {
            const int head = kv_head * heads + t / per_head, at = (begin + t % per_head) * NARROW;
            const u32 to = ring_at + (t % STAGES) * PAIR_STEP;
            produce<NARROW>(to, head_of(q, qs, batch, head, s.q_at, shape.cu_q), qs.s, at, s.sq);
            produce<NARROW>(to + NARROW * FULL, head_of(grad, gs, batch, head, s.q_at, shape.cu_q), gs.s, at, s.sq);
            const int row = at + threadIdx.x % NARROW;
            const float* from = (threadIdx.x < NARROW ? logsumexp : delta) + batch * shape.lse_b + head * shape.lse_h + s.q_at;
            copy4(to + 2 * NARROW * FULL + threadIdx.x * 4, from + (row < s.sq ? row : 0), row < s.sq);
        });
        wait<0>();
        return;
    }
    CONSUMER_REGISTERS();
    const int lane = threadIdx.x & 31, local = (threadIdx.x - 128) / 32 * 16, group = (threadIdx.x - 128) / 128;
    const int row = first + local + lane / 4; // + 8 half
    const float scale = shape.scale * LOG2E;
    float grad_k[D / 8][4] = {}, grad_v[D / 8][4] = {};
    barrier_wait(pipe.ready, 0);
    for (int round = 0; round < rounds; round++) {
        const u32 q_tile = ring_at + (round % STAGES) * PAIR_STEP, grad_tile = q_tile + NARROW * FULL;
        const float* stats = reinterpret_cast<const float*>(base + (grad_tile + NARROW * FULL - k_at)) + (lane & 3) * 2;
        const int at = (begin + round % per_head) * NARROW;
        float p[N][4], ds[N][4];
        pipe.wait_full(round);
        settle(p);
        settle(ds);
        wgmma_fence();
        multiply_nt<T, ROWS, N>(p, k_at + group * 64 * 128, q_tile);
        wgmma_commit();
        multiply_nt<T, ROWS, N>(ds, v_at + group * 64 * 128, grad_tile);
        wgmma_commit();
        wgmma_wait<1>(p);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 lse = *reinterpret_cast<const float2*>(stats + n * 8);
            const float a = lse.x * LOG2E, b = lse.y * LOG2E;
            p[n][0] = exp2_fast(p[n][0] * scale - a);
            p[n][1] = exp2_fast(p[n][1] * scale - b);
            p[n][2] = exp2_fast(p[n][2] * scale - a);
            p[n][3] = exp2_fast(p[n][3] * scale - b);
        }
        const int top = first + group * 64 + 64; // past this warpgroup's keys
        if (top > s.length || (shape.causal && top > at + s.offset + 1)) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int key = row + half * 8;
                // Queries at or after `from` see the key. Queries past the end have gradient 0.
                const int from = key >= s.length ? 0x7fffffff : shape.causal ? key - s.offset - at - (lane & 3) * 2 : -NARROW;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    if (n * 8 < from) p[n][half * 2] = 0.0f;
                    if (n * 8 + 1 < from) p[n][half * 2 + 1] = 0.0f;
                }
            }
        }
        u32 weights[N / 2][4];
        round_to<T, N>(weights, p);
        wgmma_wait<0>(ds);
        settle(grad_v);
        wgmma_fence();
        multiply_nn<T, N>(grad_v, weights, grad_tile);
        wgmma_commit();
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 d = *reinterpret_cast<const float2*>(stats + NARROW + n * 8);
            // The rounded weights: f32 ones would not fit in the registers.
            const u32 above = weights[n / 2][n % 2 * 2], below = weights[n / 2][n % 2 * 2 + 1];
            ds[n][0] = low(above, T()) * (ds[n][0] - d.x);
            ds[n][1] = high(above, T()) * (ds[n][1] - d.y);
            ds[n][2] = low(below, T()) * (ds[n][2] - d.x);
            ds[n][3] = high(below, T()) * (ds[n][3] - d.y);
        }
        u32 slopes[N / 2][4];
        round_to<T, N>(slopes, ds);
        settle(grad_k);
        wgmma_fence();
        multiply_nn<T, N>(grad_k, slopes, q_tile);
        wgmma_commit();
        wgmma_wait<0>(grad_v);
        settle(grad_k);
        pipe.release(round);
    }
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    dk = head_of(dk, dks, batch, kv_head, s.k_at, shape.cu_k);
    dv = head_of(dv, dvs, batch, kv_head, s.k_at, shape.cu_k);
    write_rows(grad_k, base, dk, dks.s, local, first, s.sk, shape.scale, shape.scale);
    write_rows(grad_v, base + ROWS * FULL, dv, dvs.s, local, first, s.sk, 1.0f, 1.0f);
}

template <class T>
__device__ __forceinline__ void backward_dq_sm90(
    const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dq, const Strides& qs,
    const Strides& ks, const Strides& vs, const Strides& gs, const Strides& dqs, const Shape& shape) {
    extern __shared__ __align__(16) char memory[];
    constexpr int N = NARROW / 8;
    const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / (shape.hq / shape.hkv);
    const Sequence s = sequence(shape, batch);
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    if (first >= s.sq) return;
    const int visible = shape.causal ? min(s.length, min(first + ROWS, s.sq) + s.offset) : s.length;
    const int tiles = visible > 0 ? (visible + NARROW - 1) / NARROW : 0;
    const Pipe pipe = make_pipe(STAGES);
    char* base = align1024(memory);
    const u32 q_at = address(base), grad_at = q_at + ROWS * FULL, ring_at = grad_at + ROWS * FULL;

    if (threadIdx.x < 128) {
        PRODUCER_REGISTERS();
        k = head_of(k, ks, batch, kv_head, s.k_at, shape.cu_k);
        v = head_of(v, vs, batch, kv_head, s.k_at, shape.cu_k);
        produce<ROWS>(q_at, head_of(q, qs, batch, head, s.q_at, shape.cu_q), qs.s, first, s.sq);
        produce<ROWS>(grad_at, head_of(grad, gs, batch, head, s.q_at, shape.cu_q), gs.s, first, s.sq);
        commit();
        produce_all(pipe, tiles, [&](int t) {
            const u32 to = ring_at + (t % STAGES) * PAIR_STEP;
            produce<NARROW>(to, k, ks.s, t * NARROW, s.sk);
            produce<NARROW>(to + NARROW * FULL, v, vs.s, t * NARROW, s.sk);
        });
        wait<0>();
        return;
    }
    CONSUMER_REGISTERS();
    const int lane = threadIdx.x & 31, local = (threadIdx.x - 128) / 32 * 16, group = (threadIdx.x - 128) / 128;
    const int row = first + local + lane / 4; // + 8 half
    const int whole = shape.causal ? min(s.length, first + group * 64 + s.offset + 1) : s.length;
    float lse[2], d[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const i64 i = batch * shape.lse_b + head * shape.lse_h + s.q_at + row + half * 8;
        const bool valid = row + half * 8 < s.sq; // a row past the end has gradient 0
        lse[half] = valid ? logsumexp[i] * LOG2E : 0.0f;
        d[half] = valid ? delta[i] : 0.0f;
    }
    const float scale = shape.scale * LOG2E;
    float grad_q[D / 8][4] = {}, p[N][4], ds[N][4];
    u32 slopes[N / 2][4];
    auto tile_of = [&](int tile) { return ring_at + (tile % STAGES) * PAIR_STEP; };
    auto scores = [&](int tile) {
        pipe.wait_full(tile);
        settle(p);
        settle(ds);
        wgmma_fence();
        multiply_nt<T, ROWS, N>(p, q_at + group * 64 * 128, tile_of(tile));
        multiply_nt<T, ROWS, N>(ds, grad_at + group * 64 * 128, tile_of(tile) + NARROW * FULL);
        wgmma_commit();
    };
    // Nothing is under way between rounds of the loop: the compiler would serialise every product.
    auto gradient = [&](int tile) {
        settle(grad_q);
        wgmma_fence();
        multiply_nn<T, N>(grad_q, slopes, tile_of(tile));
        wgmma_commit();
    };
    // ds becomes the gradients of the scores.
    auto finish = [&](int tile) {
        const bool partial = (tile + 1) * NARROW > whole;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                ds[n][i] = exp2_fast(p[n][i] * scale - lse[i / 2]) * (ds[n][i] - d[i / 2]);
        if (partial) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int end = s.length - tile * NARROW - (lane & 3) * 2;
                if (shape.causal) end = min(end, row + half * 8 + s.offset + 1 - tile * NARROW - (lane & 3) * 2);
#pragma unroll
                for (int n = 0; n < N; n++) {
                    if (n * 8 >= end) ds[n][half * 2] = 0.0f;
                    if (n * 8 + 1 >= end) ds[n][half * 2 + 1] = 0.0f;
                }
            }
        }
    };
    barrier_wait(pipe.ready, 0);
    if (tiles > 0) {
        scores(0);
        wgmma_wait<0>(p);
        settle(ds);
        finish(0);
        round_to<T, N>(slopes, ds);
        for (int tile = 0; tile + 1 < tiles; tile++) {
            scores(tile + 1);
            gradient(tile); // runs while the next tile's scores are finished
            wgmma_wait<1>(p);
            settle(ds);
            finish(tile + 1);
            wgmma_wait<0>(grad_q);
            pipe.release(tile);
            round_to<T, N>(slopes, ds);
        }
        gradient(tiles - 1);
        wgmma_wait<0>(grad_q);
    }
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    dq = head_of(dq, dqs, batch, head, s.q_at, shape.cu_q);
    write_rows(grad_q, base, dq, dqs.s, local, first, s.sq, shape.scale, shape.scale);
}

#define KERNELS(T, NAME)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(SM90_THREADS, 1) attention_forward_##NAME(                                 \
        const T* q, const T* k, const T* v, T* o, float* logsumexp, Strides qs, Strides ks, Strides vs, Strides os,         \
        Shape shape) {                                                                                                      \
        forward_sm90<T>(q, k, v, o, logsumexp, qs, ks, vs, os, shape);                                                      \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) attention_delta_##NAME(                                               \
        const T* o, const T* grad, float* delta, Strides os, Strides gs, Shape shape) {                                     \
        delta_rows<T>(o, grad, delta, os, gs, shape);                                                                       \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(SM90_THREADS, 1) attention_backward_dkv_##NAME(                            \
        const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dk, T* dv,        \
        Strides qs, Strides ks, Strides vs, Strides gs, Strides dks, Strides dvs, Shape shape) {                            \
        backward_dkv_sm90<T>(q, k, v, grad, logsumexp, delta, dk, dv, qs, ks, vs, gs, dks, dvs, shape);                     \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(SM90_THREADS, 1) attention_backward_dq_##NAME(                             \
        const T* q, const T* k, const T* v, const T* grad, const float* logsumexp, const float* delta, T* dq, Strides qs,   \
        Strides ks, Strides vs, Strides gs, Strides dqs, Shape shape) {                                                     \
        backward_dq_sm90<T>(q, k, v, grad, logsumexp, delta, dq, qs, ks, vs, gs, dqs, shape);                               \
    }

KERNELS(bf16, bf16)
KERNELS(f16, f16)
