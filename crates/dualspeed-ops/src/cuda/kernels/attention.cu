// Flash attention (Dao 2023, arXiv 2307.08691) forward and backward on mma.sync, sm_80 upwards; T is bf16 or f16, accumulation
// f32. Compiled once per head dim: -D HEAD_DIM=64|80|96|128. Deterministic: dQ has a kernel of its own.
//
// Pointers q, k, v, o, grad (of o), dq, dk, dv must be multiples of 16 bytes and their strides multiples of 8 elements
// (else make a contiguous copy first); d is contiguous. Strides are in the order batch, head, position.
//
// struct Strides { long long b, h, s; };   // passed by value, 24 bytes
// struct Shape {                            // passed by value, 64 bytes
//   int b, hq, hkv, sq, sk;                 // packed: b = sequences, sq/sk = the longest sequence
//   int causal;                             // 1: query i sees keys up to sk - sq + i (of its own sequence when packed)
//   float scale;                            // of the scores, 1 / sqrt(d)
//   int reserved;                           // 0
//   const int* key_lengths;                 // [b] i32 device, leading keys that are real, or null
//   const int* cu_q; const int* cu_k;       // [b + 1] i32 device: packed sequences back to back in s (strides.b unused), or null
//   long long lse_b;                        // logsumexp and delta: [b, hq, sq], lse_b = hq * sq, or packed [hq, total_q], lse_b = 0
// };
// Field order is the memory order; with lse_h below the struct ends: long long lse_h;  // sq, or total_q when packed  (72 bytes)
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
// Key heads: query head h uses key head h / (hq / hkv). Grid y and z are at most 65535.
