//! PruMerge and PruMerge+: attended tokens, each with its nearest neighbours added.

use burn::tensor::{Int, Tensor};
use dualspeed_ops::Backend;

use super::outliers::{outlier_counts, outlier_share};
use super::rows::{attention, constant, feature, marked, marks, one_hot, others, take, unit};
use super::topk::{ranks, top_indices};
use super::{
    Compat, Kept, PruneContext, PruneError, PruneStage, Pruner, PrunerSpec, Scope, VisualTokens,
};
use crate::vision::features::{CLS_ATTENTION, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, Needs};

/// The tokens with the most class attention; each adds the attention-weighted sum of its 32 nearest
/// tokens by key cosine; one more token stands for all that were not selected. PruMerge+ adds evenly
/// spaced tokens, three for each attended one.
///
/// Source: Shang et al., LLaVA-PruMerge, arXiv 2403.15388 (written from the description). Reads: class
/// attention and keys. Before the projector. Options: `adaptive` (false): the number of attended
/// tokens is that of the outliers of class attention (above `Q3 + 1.5 IQR`) instead of following
/// `keep`, which takes one read of the scores; `neighbours` (32). Cost: one product of keys, and
/// `s n` ranks. With a fixed `keep`, one token is the extra one and of the others a quarter ("+") or
/// all are attended ones. Selected tokens come in raster order, the extra one last.
///
/// Departures: attention and keys are those of the layer whose output is used, averaged over heads,
/// so that no further layer is computed; the extra token is the attention-weighted *mean*; outliers are
/// counted per image; "+" spaces its tokens evenly among those not attended. `compat = "official"`
/// uses full-width products of the tower's last layer, the plain weighted sum for the extra token,
/// is adaptive by default, and takes `int(share * n)` attended tokens, `share` that of outliers among all
/// scores of the batch: without an outlier the extra token is the only one. "+" takes every
/// `int(int(1 / share) / 3)`-th token besides, where it is not attended already; without an outlier, on which the
/// published code fails, one token is attended.
#[derive(Clone, Copy, Debug)]
pub struct PruMerge {
    /// Whether evenly spaced tokens are added.
    pub plus: bool,
    /// Whether the number of attended tokens follows the data.
    pub adaptive: bool,
    /// Neighbours that are added to each selected token.
    pub neighbours: usize,
    /// Which layer is read, how the extra token is weighted, how counts are made.
    pub compat: Compat,
    /// What one decision spans.
    pub scope: Scope,
}

impl PruMerge {
    /// From a specification; options `adaptive`, `neighbours`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec, plus: bool) -> Result<Self, PruneError> {
        spec.expect_options(&["adaptive", "neighbours"])?;
        let adaptive = spec.flag("adaptive", spec.compat == Compat::Official)?;
        let neighbours = spec.count("neighbours")?.unwrap_or(32);
        Ok(Self { plus, adaptive, neighbours, compat: spec.compat, scope: spec.scope })
    }

    fn known_as(&self) -> &'static str {
        if self.plus { "prumerge+" } else { "prumerge" }
    }

    /// Attention `[b, n]` and keys `[b, n, d]` of the layer that is read.
    fn guides<B: Backend>(
        &self,
        visual: &VisualTokens<B>,
    ) -> Result<(Tensor<B, 2>, Tensor<B, 3>), PruneError> {
        let name = self.known_as();
        Ok(match self.compat {
            Compat::Sane => (attention(visual, name)?, feature(visual, name, KEYS)?),
            Compat::Official => {
                let scores = feature(visual, name, LAST_CLS_ATTENTION)?;
                let [b, n, _] = scores.dims();
                (scores.reshape([b, n]), feature(visual, name, LAST_KEYS)?)
            }
        })
    }

    /// Attended and evenly spaced tokens where `keep` is given: with the extra token `keep` in all.
    fn fixed(&self, keep: usize) -> (usize, usize) {
        let selected = (keep - 1).max(1);
        match self.plus {
            true => (selected.div_ceil(4), selected - selected.div_ceil(4)),
            false => (selected, 0),
        }
    }

    /// `attended` tokens by attention and evenly spaced ones, ascending, `[b, attended + spaced]`.
    fn selected<B: Backend>(
        &self,
        scores: Tensor<B, 2>,
        attended: usize,
        spaced: usize,
    ) -> Tensor<B, 2, Int> {
        let ([b, n], device) = (scores.dims(), scores.device());
        let mut chosen = marks::<B>(top_indices(scores.clone(), attended), n);
        if spaced > 0 {
            let rest = others::<B>(top_indices(scores, attended), n); // [b, r]
            let r = n - attended;
            let places: Vec<usize> = (0..spaced).map(|i| (2 * i + 1) * r / (2 * spaced)).collect();
            let more = rest.gather(1, constant::<B>(b, &places, &device));
            chosen = chosen + marks::<B>(more, n);
        }
        marked(chosen, attended + spaced)
    }

    /// Weights of the new tokens: `selected` `[b, s]` -> `[b, s (+ 1), n]`, `s` 1 or more.
    fn weights<B: Backend>(
        &self,
        selected: Tensor<B, 2, Int>,
        scores: Tensor<B, 2>,
        keys: Tensor<B, 3>,
        extra: bool,
    ) -> Tensor<B, 3> {
        let ([b, n], s) = (scores.dims(), selected.dims()[1]);
        let keys = unit(keys);
        let own = one_hot::<B>(selected.clone(), n); // [b, s, n]
        let similarity = take(keys.clone(), selected.clone()).matmul(keys.swap_dims(1, 2));
        let apart = similarity - own.clone().mul_scalar(4.0); // never its own neighbour
        let neighbours = self.neighbours.min(n - 1) as i64;
        let near = ranks(apart.reshape([b * s, n])).lower_elem(neighbours).float();
        let wide = scores.clone().unsqueeze_dim::<3>(1).expand([b, s, n]);
        let tokens = near.reshape([b, s, n]) * wide + own;
        if !extra {
            return tokens;
        }
        let rest = scores * marks::<B>(selected, n).neg().add_scalar(1.0); // [b, n]
        let rest = match self.compat {
            Compat::Official => rest,
            Compat::Sane => rest.clone() / rest.sum_dim(1).clamp_min(1e-12),
        };
        Tensor::cat(vec![tokens, rest.unsqueeze_dim(1)], 1)
    }

    /// The published selection of one image's scores `[1, n]`: attended tokens, of "+" a grid over the others besides.
    fn published<B: Backend>(&self, scores: Tensor<B, 2>, share: f64) -> Vec<usize> {
        let n = scores.dims()[1];
        let share = if self.plus && share == 0.0 { 1.0 / n as f64 } else { share };
        // Cut as in Python: 3.9999999999999996 outliers of 729 are 3.
        let attended = ((n as f64 * share) as usize).min(n.saturating_sub(1));
        let mut chosen: Vec<usize> = match attended {
            0 => Vec::new(),
            _ => top_indices(scores, attended)
                .into_data()
                .iter::<i64>()
                .map(|index| index as usize)
                .collect(),
        };
        if self.plus {
            let step = (1.0 / share) as usize / 3;
            chosen.extend((0..n.saturating_sub(1)).step_by(step.max(1)));
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

impl<B: Backend> Pruner<B> for PruMerge {
    fn name(&self) -> &str {
        self.known_as()
    }

    fn needs(&self) -> Needs {
        match self.compat {
            Compat::Sane => Needs::of([CLS_ATTENTION, KEYS]),
            Compat::Official => Needs::of([LAST_CLS_ATTENTION, LAST_KEYS]),
        }
    }

    fn stage(&self) -> PruneStage {
        PruneStage::PreProjector
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
        let (scores, keys) = self.guides(visual)?;
        let ([b, n], device) = (scores.dims(), scores.device());
        if !self.adaptive {
            let (attended, spaced) = self.fixed(keep);
            let selected = self.selected(scores.clone(), attended, spaced);
            return Ok(Kept::Merge(self.weights(selected, scores, keys, keep > 1)));
        }
        let of = |image: usize| scores.clone().narrow(0, image, 1);
        let selected: Vec<Tensor<B, 2, Int>> = match self.compat {
            Compat::Official => {
                let share = outlier_share(scores.clone());
                let chosen = (0..b).map(|image| self.published(of(image), share));
                chosen.map(|chosen| constant::<B>(1, &chosen, &device)).collect()
            }
            Compat::Sane => {
                let counts = outlier_counts(scores.clone()).into_iter().enumerate();
                let selected = counts.map(|(image, attended)| {
                    let spaced = if self.plus { (3 * attended).min(n - attended) } else { 0 };
                    self.selected(of(image), attended, spaced)
                });
                selected.collect()
            }
        };
        let rows =
            selected.into_iter().enumerate().map(|(image, selected)| match selected.dims() {
                // Only the extra token, of all others.
                [_, 0] => of(image).unsqueeze_dim(1),
                _ => self.weights(selected, of(image), keys.clone().narrow(0, image, 1), true),
            });
        let rows: Vec<Tensor<B, 3>> = rows.collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.dims()[1]).collect();
        let most = lengths.iter().copied().max().unwrap_or(0);
        let padded = rows.into_iter().map(|row| {
            let missing = most - row.dims()[1];
            match missing {
                0 => row,
                _ => {
                    let zeros = Tensor::zeros([1, missing, n], (&device, row.dtype()));
                    Tensor::cat(vec![row, zeros], 1)
                }
            }
        });
        Ok(Kept::Ragged { weights: Tensor::cat(padded.collect(), 0), lengths })
    }
}
