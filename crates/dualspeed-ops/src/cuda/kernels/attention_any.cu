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
