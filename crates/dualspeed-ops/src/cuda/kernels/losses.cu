// Cross entropy, distillation and accuracy of a chunk of rows from its logits. T is the dtype of the logits: f32, bf16 or f16.
// One block per row; block 512 (any multiple of 32 up to 1024 works); no dynamic shared memory.
//
// token_losses_forward_T(const T* logits, const T* teacher|null, const void* targets, float* out,
//                        long long vocab, long long rows, float tau, int targets_i64)
//   logits, teacher [rows, vocab]; targets [rows], i64 or i32; out [rows, 3] f32: cross entropy, tau^2 KL(teacher || student) at
//   temperature tau (0 without a teacher), 1 where the target is the first arg max. grid `rows` (any).
//   A target outside 0..vocab yields NaN.
// token_losses_backward_T(T* logits, const T* teacher|null, const void* targets, const float* grad,
//                         long long vocab, long long rows, float tau, int targets_i64)
//   Overwrites logits with their gradient, from grad [rows, 3] f32 (last column unused). grid `rows` (any).
// token_losses_backward_f32_U(const float* logits, const float* teacher|null, const void* targets, const float* grad, U* out,
//                             long long vocab, long long rows, float tau, int targets_i64)    for U bf16, f16
//   The same from f32 logits into `out` [rows, vocab] of U, for the products that follow.
