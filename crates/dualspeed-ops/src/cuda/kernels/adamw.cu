// AdamW (Loshchilov & Hutter, as in PyTorch) over many tensors in one launch, with the clip of the global gradient norm on device.
//
// struct Tensor { float* param; const float* grad; float* m; float* v; long long n; float step_size; float keep; };  // 48 bytes
//   step_size = lr / (1 - beta1^t), keep = 1 - lr * weight_decay, per tensor.
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
//   param = keep * param - step_size * m / (sqrt(v) * root + eps), root = 1 / sqrt(1 - beta2^t). In place.
//   norm may be null: factor 1. grid = number of chunks, block 256.
