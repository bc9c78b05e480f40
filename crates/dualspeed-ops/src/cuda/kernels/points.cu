// DivPrune (Alvar et al. 2025): max-min diverse picks for a whole batch; and greedy MAP of a determinantal point process
// (Chen et al. 2018, as CDPruner uses it).
//
// normalise_rows_T(const T* x, float* unit, long long rows, long long d)   T f32, bf16, f16
//   unit [rows, d] = x / max(|x|, 1e-12). grid `rows` (any), block 256. For f32 features: gram of `unit` in f32, then raw = 0 below.
//   bf16/f16 features need no such pass: one batched product with f32 output of the features themselves, then raw = 1.
// farthest_isolation(const float* gram, float* scale, float* isolation, int b, int n, int raw)
//   gram [b, n, n] f32 -> scale [b, n] f32: 1 (raw = 0) or max(sqrt(gram_ii), 1e-12) (raw = 1, gram of features as they are);
//   isolation [b, n] f32: cosine distance to the nearest other row (4 if n = 1). NaN counts as distance 0.
//   TWO launches: farthest_scale(const float* gram, float* scale, int b, int n, int raw) first, grid ceil(b * n / 256), block 256;
//   then this with grid (ceil(n / 8), b), block 256.
// farthest_picks(const float* gram, const float* scale, const float* isolation, void* picks, int b, int n, int keep, int out_i64)
//   picks [b, keep], i32 or i64, in pick order; lowest index wins ties. grid b; block: n rounded up to 32, at most 1024;
//   n <= 8192, 1 <= keep <= n. No dynamic shared memory.
// greedy_map(const float* kernel, float* scratch, void* picks, int b, int n, int keep, int out_i64)
//   kernel [b, n, n] f32 symmetric (L); scratch [b, keep, n] f32 (not initialised); picks as above: argmax of the marginal gain
//   d2 (first: diagonal), e = (L_j - sum_s c_sj c_s) / sqrt(max(d2_j, 1e-12)), d2 -= e^2, picked rows out; NaN gains count as lowest.
//   grid b; block as farthest_picks; dynamic shared memory keep * 4 bytes. n <= 8192.
