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
//   BLOCK of the four: a multiple of 32, at most 1024; best is ceil(d / (16 / sizeof(T))) rounded up to 32, at most 512.
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
//   grid: any, best b * s (at most 2^31 - 1); block: a multiple of 32 up to 256, best min(256, h * d / 16 rounded up to 32).
//
// cast_A_B(const A* x, B* y, long long n, float scale)   for A, B in f32, bf16, f16, equal pairs too: y = x * scale.
//   Launch as gelu.
