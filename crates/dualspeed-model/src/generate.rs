//! Text generation with a key-value cache, in either view.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::anyres::TileLayout;
use crate::error::ModelError;
use crate::forward::{StepContext, View};
use crate::llama::{KvCache, Llama, LlamaOptions};
use crate::llava::Llava;
use crate::lora::Lora;
use crate::pruner::{DropPlan, Pruner, VisualTokens};
use crate::rng::{SplitMix, hash_str};
use crate::splice::{IGNORE_INDEX, SpliceError, TextBatch};

/// How text is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// 0 is greedy; otherwise logits are divided by this and sampled.
    pub temperature: f64,
    /// Sample among the most likely tokens that together reach this probability (1: all).
    pub top_p: f64,
    /// Tokens that end the text; they are not returned.
    pub eos_token_ids: Vec<i64>,
    /// Seed of the sampling.
    pub seed: u64,
    /// How the tiles of the prompt's images lie; empty where each is one tile.
    pub layouts: Vec<TileLayout>,
    /// The question, for text-guided pruners.
    pub prompt: String,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            temperature: 0.0,
            top_p: 1.0,
            eos_token_ids: Vec::new(),
            seed: 0,
            layouts: Vec::new(),
            prompt: String::new(),
        }
    }
}

impl GenerateOptions {
    fn validate(&self) -> Result<(), ModelError> {
        let wrong = |field, value: f64, expected| {
            Err(ModelError::Generate { field, value: value.to_string(), expected })
        };
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return wrong("temperature", self.temperature, "a number of at least 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", self.top_p, "0 < top_p <= 1");
        }
        Ok(())
    }
}

/// What was generated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// New token ids, without the end token.
    pub ids: Vec<i64>,
    /// Log-probability of each under the model, whatever the temperature.
    pub log_probs: Vec<f64>,
    /// Whether the model ended the text itself.
    pub finished: bool,
}

impl<B: Backend> Llava<B> {
    /// Continues one prompt; `visual` holds its images in order.
    ///
    /// Returns the new token ids without the end token.
    ///
    /// # Errors
    /// [`ModelError`] if prompt, images, view and options do not fit together.
    pub fn generate(
        &self,
        input_ids: &[i64],
        visual: Option<&VisualTokens<B>>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        options: &GenerateOptions,
    ) -> Result<Vec<i64>, ModelError> {
        let each = &mut |_| ControlFlow::Continue(());
        Ok(self.generate_each(input_ids, visual, view, pruner, options, each)?.ids)
    }

    /// [`Llava::generate`], token by token: `each` sees every token as it comes and may stop there.
    ///
    /// # Errors
    /// As [`Llava::generate`].
    pub fn generate_each(
        &self,
        input_ids: &[i64],
        visual: Option<&VisualTokens<B>>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        options: &GenerateOptions,
        each: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        options.validate()?;
        let prompt = self.prompt(input_ids, visual, view, pruner, options)?;
        Ok(self.language_model.decode(prompt, self.lora.as_ref(), options, each))
    }

    /// Logits at every position of one prompt (that is left at its end), images spliced in: `[s, vocab]`.
    ///
    /// # Errors
    /// As [`Llava::generate`].
    pub fn logits(
        &self,
        input_ids: &[i64],
        visual: Option<&VisualTokens<B>>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        layouts: &[TileLayout],
    ) -> Result<Tensor<B, 2>, ModelError> {
        let options = GenerateOptions { layouts: layouts.to_vec(), ..GenerateOptions::default() };
        let Prompt { inputs_embeds, positions, drop } =
            self.prompt(input_ids, visual, view, pruner, &options)?;
        let options = LlamaOptions {
            lora: self.lora.as_ref(),
            positions: positions.as_deref(),
            drop,
            ..LlamaOptions::default()
        };
        let hidden = self.language_model.forward(inputs_embeds, options); // [s, d]
        Ok(dualspeed_ops::linear(hidden, self.lm_head_weight(), None))
    }

    /// A prompt's embeddings, without padding.
    fn prompt(
        &self,
        input_ids: &[i64],
        visual: Option<&VisualTokens<B>>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        options: &GenerateOptions,
    ) -> Result<Prompt<B>, ModelError> {
        let (ids, labels) = ([input_ids.to_vec()], [vec![IGNORE_INDEX; input_ids.len()]]);
        let batch = TextBatch { input_ids: &ids, labels: &labels };
        let ctx = StepContext::inference(options.seed, vec!["prompt".to_owned()])
            .with_layouts(options.layouts.clone())
            .with_prompts(vec![options.prompt.clone()]);
        let kept = self.prune(batch, visual, view, pruner, &ctx)?;
        // Never cut: an answer to half a prompt would look like an answer.
        let plan = self.plan(batch, kept.as_ref(), view, None, &options.layouts)?;
        let inputs_embeds = self.splice(&plan, kept.as_ref(), view)?; // [1, s, d]
        // Padding after the prompt must not enter the cache.
        let (length, drop) = (plan.lengths[0], kept.and_then(|kept| kept.drop_plan(&plan)));
        let positions = plan.positions.map(|mut positions| {
            positions.truncate(length);
            positions
        });
        Ok(Prompt { inputs_embeds: inputs_embeds.narrow(1, 0, length), positions, drop })
    }
}

/// What a decoder continues.
struct Prompt<B: Backend> {
    /// `[1, s, d]`.
    inputs_embeds: Tensor<B, 3>,
    /// Rotary positions, where they are not `0..s`.
    positions: Option<Vec<usize>>,
    /// Visual tokens to drop on the way.
    drop: Option<DropPlan>,
}

impl<B: Backend> Llama<B> {
    /// Continues a prompt of text; `each` sees every token as it comes and may stop there.
    ///
    /// # Errors
    /// [`ModelError`] if the prompt is empty, an id is not in the vocabulary, or the options make no sense.
    pub fn generate_each(
        &self,
        input_ids: &[i64],
        options: &GenerateOptions,
        each: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        options.validate()?;
        let inputs_embeds = self.prompt(input_ids)?;
        Ok(self.decode(Prompt { inputs_embeds, positions: None, drop: None }, None, options, each))
    }

    /// Logits at every position of a text, `[s, vocab]`.
    ///
    /// # Errors
    /// [`ModelError`] if the text is empty or an id is not in the vocabulary.
    pub fn logits(&self, input_ids: &[i64]) -> Result<Tensor<B, 2>, ModelError> {
        let hidden = self.forward(self.prompt(input_ids)?, LlamaOptions::default()); // [s, d]
        Ok(dualspeed_ops::linear(hidden, self.lm_head_weight(), None))
    }

    /// `[1, s, d]`.
    fn prompt(&self, input_ids: &[i64]) -> Result<Tensor<B, 3>, ModelError> {
        let vocab = self.config.vocab_size;
        if input_ids.is_empty() {
            return Err(SpliceError::Empty.into());
        }
        let outside = |id: &i64| !(0..vocab as i64).contains(id);
        if let Some(position) = input_ids.iter().position(outside) {
            let id = input_ids[position];
            return Err(SpliceError::TokenId { sample: 0, position, id, vocab }.into());
        }
        let ids = TensorData::new(input_ids.to_vec(), [input_ids.len()]);
        let ids = Tensor::<B, 1, Int>::from_data(ids, &self.embed_tokens.weight.device());
        Ok(self.embed(ids).unsqueeze::<3>())
    }

    /// The loop: one token after another, earlier keys and values from the cache.
    fn decode(
        &self,
        prompt: Prompt<B>,
        lora: Option<&Lora<B>>,
        options: &GenerateOptions,
        each: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Generated {
        let Prompt { mut inputs_embeds, mut positions, mut drop } = prompt;
        let device = inputs_embeds.device();
        let head = self.lm_head_weight(); // [d, vocab]
        let mut cache = KvCache::new(self.layers.len());
        let mut rng = SplitMix::new(&[options.seed, hash_str("generate")]);
        let mut generated = Generated::default();
        while generated.ids.len() < options.max_new_tokens {
            let last = inputs_embeds.dims()[1] - 1;
            let options_llama = LlamaOptions {
                rows: Some(&[last]),
                lora,
                cache: Some(&mut cache),
                positions: positions.as_deref(),
                drop: drop.take(),
                ..LlamaOptions::default()
            };
            let hidden = self.forward(inputs_embeds, options_llama); // [1, d]
            let logits = dualspeed_ops::linear(hidden, head.clone(), None); // [1, vocab]
            let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
            let next = pick(&logits, options, &mut rng);
            let id = next as i64;
            if options.eos_token_ids.contains(&id) {
                generated.finished = true;
                break;
            }
            generated.ids.push(id);
            generated.log_probs.push(log_prob(&logits, next));
            if each(id).is_break() {
                break;
            }
            let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(vec![id], [1]), &device);
            inputs_embeds = self.embed(ids).unsqueeze::<3>(); // [1, 1, d]
            positions = positions.and_then(|all| Some(vec![all.last()? + 1]));
        }
        generated
    }
}

/// `log softmax(logits)[index]`.
fn log_prob(logits: &[f32], index: usize) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: &f32| f64::from(*logit - highest);
    let sum: f64 = logits.iter().map(|logit| above(logit).exp()).sum();
    logits.get(index).map_or(f64::NEG_INFINITY, above) - sum.ln()
}

/// Picks a token: the largest logit (lowest index of equals), or a sample.
fn pick(logits: &[f32], options: &GenerateOptions, rng: &mut SplitMix) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Stable, so equal logits stay in index order; NaN counts as smallest.
    let key = |i: usize| if logits[i].is_nan() { f32::NEG_INFINITY } else { logits[i] };
    if options.temperature == 0.0 {
        return order
            .into_iter()
            .reduce(|best, i| if key(i) > key(best) { i } else { best })
            .unwrap_or(0);
    }
    order.sort_by(|a, b| key(*b).total_cmp(&key(*a)));
    let highest = order.first().map_or(0.0, |i| f64::from(key(*i)));
    let weight = |i: &usize| ((f64::from(key(*i)) - highest) / options.temperature).exp();
    let total: f64 = order.iter().map(weight).sum();
    let mut nucleus = 0.0;
    let mut size = 0;
    for i in &order {
        nucleus += weight(i);
        size += 1;
        if nucleus >= options.top_p * total {
            break;
        }
    }
    let mut draw = rng.uniform() * nucleus;
    for i in &order[..size] {
        draw -= weight(i);
        if draw < 0.0 {
            return *i;
        }
    }
    order.first().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits() {
        let options = GenerateOptions::default();
        assert_eq!(pick(&[0.0, 2.0, f32::NAN, 2.0], &options, &mut SplitMix::new(&[])), 1);
    }

    #[test]
    fn sampling_follows_the_probabilities_and_top_p_cuts_the_tail() {
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let mut rng = SplitMix::new(&[3]);
        let mut counts = [0usize; 3];
        let all = GenerateOptions { temperature: 1.0, ..GenerateOptions::default() };
        (0..10_000).for_each(|_| counts[pick(&logits, &all, &mut rng)] += 1);
        assert!((counts[0] as f64 / 1e4 - 0.6).abs() < 0.02, "{counts:?}");
        assert!((counts[2] as f64 / 1e4 - 0.1).abs() < 0.02, "{counts:?}");
        let nucleus = GenerateOptions { top_p: 0.7, ..all };
        let mut counts = [0usize; 3];
        (0..10_000).for_each(|_| counts[pick(&logits, &nucleus, &mut rng)] += 1);
        assert_eq!(counts[2], 0);
        assert!((counts[0] as f64 / 1e4 - 2.0 / 3.0).abs() < 0.02, "{counts:?}");
    }
}
