//! PruneSID: groups by principal components, duplicates removed within groups.

use burn::tensor::activation::sigmoid;
use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::eigen::eigenvectors;
use super::rows::{attention, cosines, first_argmax, in_parts, one_hot};
use super::topk::{ranks, top_indices};
use super::{Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};
use crate::vision::features::{CLS_ATTENTION, Needs};
use dualspeed_core::rng::{SplitMix, hash_str};

/// Tokens belong to the principal component of `sigmoid(H)^T` (hidden dimensions as samples, centred)
/// on which they load most, of `keep / 4` components. Within a group, in the order of class attention, a
/// token is a duplicate if its cosine with an earlier one that is none exceeds `keep / 32` times the
/// image's mean cosine. Every group keeps one token, the others in proportion to its non-duplicates,
/// those first.
///
/// Source: Fang et al., PruneSID, ICLR 2026, openreview i36E5Ezm0H (written from its description). Reads: hidden states,
/// class attention. Options: `threshold`, the factor on the mean cosine in place of `keep / 32`, as a
/// share in [0, 1]. Cost: two `n x n` products, four products with a `q = keep / 4`-wide basis. A `q x q` matrix
/// per image is read back, and one flag every few rounds of duplicate removal, which ends when nothing changes.
///
/// Departures: components by three rounds of orthogonal iteration from a fixed random start, and a `q x q` rotation to
/// the principal axes of what they span (the published code's randomised factorisation does as much work and draws
/// anew every time); a group may keep any number of tokens (published: at most `5 ceil(keep / 64)`); what
/// proportional budgets leave goes one each to the groups with most non-duplicates, then to non-duplicates and at last
/// to duplicates by attention; the class token is not kept. There is no official variant.
#[derive(Clone, Copy, Debug, Default)]
pub struct PruneSid {
    /// Factor on the mean cosine above which tokens are duplicates; by default `keep / 32`.
    pub threshold: Option<f64>,
    /// What one decision spans.
    pub scope: Scope,
}

/// Rounds of orthogonal iteration.
const ROUNDS: usize = 3;

impl PruneSid {
    /// From a specification; option `threshold`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["threshold"])?;
        spec.sane_only("its randomised factorisation is not reproducible")?;
        let threshold = match spec.options.contains_key("threshold") {
            true => Some(spec.share("threshold", 0.5)?),
            false => None,
        };
        Ok(Self { threshold, scope: spec.scope })
    }

    /// The start of the iteration for `n` tokens, `[n, q]`: a function of the sizes alone.
    pub fn sketch(n: usize, q: usize) -> Vec<f32> {
        let mut rng = SplitMix::new(&[hash_str("pruner.prunesid"), n as u64, q as u64]);
        (0..n * q).map(|_| rng.normal() as f32).collect()
    }

    /// The component each token belongs to, `[b, n]`, of `q`.
    fn groups<B: Backend>(hidden: Tensor<B, 3>, q: usize) -> Tensor<B, 2, Int> {
        let ([b, n, d], device) = (hidden.dims(), hidden.device());
        let samples = sigmoid(hidden); // [b, n, d]
        let centred = samples.clone() - samples.mean_dim(2);
        let gram = centred.clone().matmul(centred.swap_dims(1, 2)).div_scalar(d as f64);
        let start = TensorData::new(Self::sketch(n, q), [1, n, q]);
        let mut basis = Tensor::<B, 3>::from_data(start, &device).expand([b, n, q]);
        for _ in 0..ROUNDS {
            basis = orthonormal(gram.clone().matmul(basis));
        }
        // The iteration finds the span of the components long before it tells them apart.
        let inside = basis.clone().swap_dims(1, 2).matmul(gram.matmul(basis.clone())); // [b, q, q]
        let inside: Vec<f64> = inside.into_data().iter::<f64>().collect();
        let axes = inside.chunks(q * q).flat_map(|matrix| eigenvectors(matrix, q));
        let axes = TensorData::new(axes.map(|x| x as f32).collect(), [b, q, q]);
        let basis = basis.matmul(Tensor::from_data(axes, &device)); // [b, n, q]
        first_argmax(basis.abs()).reshape([b, n])
    }

    /// 1 for tokens that duplicate none before them: `order` holds attention ranks, `groups` the
    /// components; `[b, n]`.
    fn survivors<B: Backend>(
        similarity: Tensor<B, 3>,
        threshold: Tensor<B, 3>,
        order: Tensor<B, 2, Int>,
        groups: Tensor<B, 2, Int>,
    ) -> Tensor<B, 2> {
        let [b, n, _] = similarity.dims();
        let of = |x: &Tensor<B, 2, Int>, dim| x.clone().unsqueeze_dim::<3>(dim).expand([b, n, n]);
        let alike = similarity.greater(threshold.expand([b, n, n])).float();
        let same = of(&groups, 2).equal(of(&groups, 1)).float();
        let earlier = of(&order, 1).lower(of(&order, 2)).float();
        let conflicts = alike * same * earlier; // [b, n, earlier n]
        let mut alive = Tensor::<B, 2>::ones([b, n], (&conflicts.device(), conflicts.dtype()));
        // The first i tokens of a chain are settled after i rounds: n rounds settle everything.
        for round in 1..=n {
            let hits = conflicts.clone().matmul(alive.clone().unsqueeze_dim(2)).reshape([b, n]);
            let next = hits.lower_elem(0.5).float();
            let settled = round % 4 == 0 && {
                let changed = (next.clone() - alive).abs().sum();
                changed.into_data().iter::<f32>().all(|changed| changed == 0.0)
            };
            alive = next;
            if settled {
                break;
            }
        }
        alive
    }
}

impl PruneSid {
    /// `[b, n], [b, n, d] -> [b, keep]`.
    fn picks<B: Backend>(
        &self,
        attention: Tensor<B, 2>,
        hidden: Tensor<B, 3>,
        keep: usize,
    ) -> Tensor<B, 2, Int> {
        let order = ranks(attention); // [b, n]
        let [b, n] = order.dims();
        let q = (keep / 4).max(1);
        let groups = Self::groups(hidden.clone(), q);
        let similarity = cosines(hidden);
        let own: Vec<f32> = (0..n * n).map(|at| if at / n == at % n { 0.0 } else { 1.0 }).collect();
        let own = TensorData::new(own, [1, n, n]);
        let apart = similarity.clone() * Tensor::<B, 3>::from_data(own, &similarity.device());
        let pairs = (n * n.saturating_sub(1)).max(1) as f64;
        let factor = self.threshold.unwrap_or(keep as f64 / 32.0);
        let threshold = apart.sum_dim(2).sum_dim(1).mul_scalar(factor / pairs); // [b, 1, 1]
        let alive = Self::survivors(similarity, threshold, order.clone(), groups.clone());

        let member = one_hot::<B>(groups.clone(), q); // [b, n, q]
        let alive_of = alive.clone().unsqueeze_dim::<3>(1).matmul(member.clone()); // [b, 1, q]
        let alive_of = alive_of.reshape([b, q]);
        let filled = alive_of.clone().greater_elem(0.5).float();
        let spare = filled.clone().sum_dim(1).neg().add_scalar(keep as f64); // [b, 1]
        let share = alive_of.clone() / alive_of.clone().sum_dim(1).clamp_min(1.0);
        // A hair up, so that whole numbers are not rounded down.
        let floor = (share * spare.clone()).add_scalar(1e-4).floor();
        let left = spare - floor.clone().sum_dim(1);
        let more = ranks(alive_of).float().lower(left.expand([b, q])).float();
        let budgets = (floor + more) * filled.clone() + filled;
        // Rank among the survivors of the same group.
        let before = order.clone().unsqueeze_dim::<3>(1).lower(order.clone().unsqueeze_dim::<3>(2));
        let same = member.clone().matmul(member.clone().swap_dims(1, 2)); // [b, n, n]
        let within = (before.float() * same).matmul(alive.clone().unsqueeze_dim(2)); // [b, n, 1]
        let budgets = member.matmul(budgets.unsqueeze_dim(2)); // [b, n, 1]
        let inside = within.lower(budgets).float().reshape([b, n]) * alive.clone();
        let order =
            inside.mul_scalar(4.0 * n as f64) + alive.mul_scalar(2.0 * n as f64) - order.float();
        top_indices(order, keep)
    }
}

/// Orthonormal columns by Gram-Schmidt, done twice per column; a column in the span of those before
/// it becomes zero: `[b, n, q]`.
fn orthonormal<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let q = x.dims()[2];
    let norm = |v: &Tensor<B, 3>| (v.clone() * v.clone()).sum_dim(1).sqrt(); // [b, 1, 1]
    let mut basis: Option<Tensor<B, 3>> = None;
    for column in 0..q {
        let mut v = x.clone().narrow(2, column, 1); // [b, n, 1]
        let before = norm(&v);
        if let Some(basis) = &basis {
            for _ in 0..2 {
                v = v.clone() - basis.clone().matmul(basis.clone().swap_dims(1, 2).matmul(v));
            }
        }
        let after = norm(&v);
        let spanned = after.clone().lower_equal(before.mul_scalar(1e-5));
        let v = v / after.mask_fill(spanned, f32::MAX);
        basis = Some(match basis {
            Some(basis) => Tensor::cat(vec![basis, v], 2),
            None => v,
        });
    }
    basis.unwrap_or(x)
}

impl<B: Backend> Pruner<B> for PruneSid {
    fn name(&self) -> &str {
        "prunesid"
    }

    fn needs(&self) -> Needs {
        Needs::of([CLS_ATTENTION])
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let attention = attention(visual, "prunesid")?;
        let hidden = visual.features.hidden();
        Ok(Kept::Select(in_parts(attention, hidden, |a, h| self.picks(a, h, keep))))
    }
}
