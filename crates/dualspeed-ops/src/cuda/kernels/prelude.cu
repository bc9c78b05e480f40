// Shared by all kernels: the source handed to NVRTC is this text, then that of one other file. No headers are needed.
//
// Conventions of every kernel:
//  - Names end in the dtype they work on: `_f32`, `_bf16`, `_f16` (`T` in the signatures).
//  - Sizes and strides are in elements, `long long`; tensors are contiguous unless a stride is a parameter.
//  - A pointer marked `|null` may be null: that input is absent, that output is not wanted.
//  - Any base address that is a multiple of the element size works unless a file says otherwise; 16-byte accesses are
//    used where addresses and sizes allow them.
//  - Statistics and sums are in f32. No kernel uses floating-point atomics: results do not change between runs.
//  - Grids may be smaller than stated where a kernel says "any grid".
//  - Empty tensors must not be launched.
