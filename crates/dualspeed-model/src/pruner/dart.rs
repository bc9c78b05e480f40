//! DART: what duplicates the pivots least.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::rows::{marked, marks, required, take, unit};
use super::topk::{ranks, top_indices};
use super::{Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};
use crate::vision::features::{Needs, QUESTION};

/// Pivots are the image tokens and the question's tokens of largest L1 norm; image pivots are kept,
/// and each pivot in turn adds the tokens least similar to it (cosine) that are not kept yet, every
/// pivot as many, the first ones one more where that does not come out even.
///
/// Source: Wen et al., DART, arXiv 2502.11494 (written from the description). Reads: projected tokens,
/// the question's token embeddings. Options: `image_pivots` (4), `text_pivots` (4). Cost: `8 n`
/// cosines per image. A question shorter than `text_pivots` has as many pivots as tokens; without one,
/// the image's pivots do it alone.
///
/// Departures: norms and cosines are those of the decoder's *input*, not of the keys and hidden states of
/// its second layer, so that pruning happens before the decoder; exactly `keep` tokens stay (the
/// published count follows from a rounded quota per pivot); image pivots pick first, by norm, then the question's (the
/// published code walks a Python set of positions in the sequence, an order that changes with the length of the
/// prompt before the image). There is no official variant for these reasons.
#[derive(Clone, Copy, Debug)]
pub struct Dart {
    /// Pivots among the image's tokens, 1 or more.
    pub image_pivots: usize,
    /// Pivots among the question's tokens.
    pub text_pivots: usize,
    /// What one decision spans.
    pub scope: Scope,
}

impl Dart {
    /// From a specification; options `image_pivots`, `text_pivots`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["image_pivots", "text_pivots"])?;
        spec.sane_only(
            "it reads keys of the decoder's second layer, this one prunes before the decoder",
        )?;
        let image_pivots = spec.count("image_pivots")?.unwrap_or(4).max(1);
        let text_pivots = spec.count("text_pivots")?.unwrap_or(4);
        Ok(Self { image_pivots, text_pivots, scope: spec.scope })
    }
}

/// L1 norms of rows, `[b, n, d] -> [b, n]`.
fn norms<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    let [b, n, _] = x.dims();
    x.abs().sum_dim(2).reshape([b, n])
}

impl<B: Backend> Pruner<B> for Dart {
    fn name(&self) -> &str {
        "dart"
    }

    fn needs(&self) -> Needs {
        Needs::of([QUESTION])
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
        let question = required(&visual.question, "dart", QUESTION)?;
        let tokens = visual.projected.clone();
        let ([b, n, _], device) = (tokens.dims(), tokens.device());
        let own = self.image_pivots.min(keep);
        let image_pivots = top_indices(norms(tokens.clone()), own); // [b, own]
        let mut pivots = vec![take(tokens.clone(), image_pivots.clone())];
        let m = question.embeds.dims()[1];
        let most = self.text_pivots.min(m);
        if most > 0 {
            let there: Vec<f32> = question
                .lengths
                .iter()
                .flat_map(|length| (0..m).map(move |i| if i < *length { 0.0 } else { -1.0 }))
                .collect();
            let there = Tensor::<B, 2>::from_data(TensorData::new(there, [b, m]), &device);
            // Padding has norm 0; put it behind real tokens of norm 0.
            let text = top_indices(norms(question.embeds.clone()) + there, most);
            pivots.push(take(question.embeds, text));
        }
        let pivots = Tensor::cat(pivots, 1); // [b, own + most, d]
        let far = unit(pivots).matmul(unit(tokens).swap_dims(1, 2)).neg(); // [b, pivots, n]
        let mut chosen = marks::<B>(image_pivots, n); // [b, n]
        for pivot in 0..own + most {
            let quota: Vec<i64> = question
                .lengths
                .iter()
                .map(|length| {
                    let (count, left) = (own + (*length).min(most), keep - own);
                    let quota = left / count + usize::from(pivot < left % count);
                    if pivot < count { quota as i64 } else { 0 }
                })
                .collect();
            let quota = Tensor::<B, 2, Int>::from_data(TensorData::new(quota, [b, 1]), &device);
            // Cosines lie within -1 .. 1: what is chosen goes last.
            let scores = far.clone().narrow(1, pivot, 1).reshape([b, n]);
            let scores = scores - chosen.clone().mul_scalar(4.0);
            chosen = chosen + ranks(scores).lower(quota.expand([b, n])).float();
        }
        Ok(Kept::Select(marked(chosen, keep)))
    }
}
