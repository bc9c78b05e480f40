//! Text generation with a key-value cache, in either view.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::error::ModelError;
use crate::forward::{StepContext, View};
use crate::llama::{KvCache, LlamaOptions};
use crate::llava::Llava;
use crate::pruner::{Pruner, VisualTokens};
use crate::rng::{SplitMix, hash_str};
use crate::splice::{IGNORE_INDEX, TextBatch};

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
        options.validate()?;
        let (ids, labels) = ([input_ids.to_vec()], [vec![IGNORE_INDEX; input_ids.len()]]);
        let batch = TextBatch { input_ids: &ids, labels: &labels };
        let ctx = StepContext::inference(options.seed, vec!["prompt".to_owned()])
            .with_prompts(vec![options.prompt.clone()]);
        let kept = self.prune(batch, visual, view, pruner, &ctx)?;
        // Never cut: an answer to half a prompt would look like an answer.
        let plan = self.plan(batch, kept.as_ref(), view, None)?;
        let mut inputs_embeds = self.splice(&plan, kept.as_ref(), view)?; // [1, s, d]
        let mut last = plan.lengths[0] - 1;
        // Padding after the prompt must not enter the cache.
        inputs_embeds = inputs_embeds.narrow(1, 0, last + 1);
        let device = inputs_embeds.device();
        let head = self.lm_head_weight(); // [d, vocab]
        let mut cache = KvCache::new(self.language_model.layers.len());
        let mut rng = SplitMix::new(&[options.seed, hash_str("generate")]);
        let mut generated = Vec::new();
        let mut drop = kept.as_ref().and_then(|kept| kept.drop_plan(&plan));
        while generated.len() < options.max_new_tokens {
            let options_llama = LlamaOptions {
                rows: Some(&[last]),
                lora: self.lora.as_ref(),
                dropout: None,
                cache: Some(&mut cache),
                drop: drop.take(),
            };
            let hidden = self.language_model.forward(inputs_embeds, options_llama); // [1, d]
            let logits = dualspeed_ops::linear(hidden, head.clone(), None); // [1, vocab]
            let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
            let next = pick(&logits, options, &mut rng) as i64;
            if options.eos_token_ids.contains(&next) {
                break;
            }
            generated.push(next);
            let id = Tensor::<B, 1, Int>::from_data(TensorData::new(vec![next], [1]), &device);
            inputs_embeds = self.language_model.embed(id).unsqueeze::<3>(); // [1, 1, d]
            last = 0;
        }
        Ok(generated)
    }
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
