//! Text generation: one token after another, with a key-value cache.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_core::rng::{SplitMix, hash_str};
use dualspeed_ops::Backend;

use super::cache::KvCache;
use super::decoder::{Decoder, DecoderOptions};
use crate::error::ModelError;
use crate::layout::LayoutError;
use crate::nn::lora::Lora;

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
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            temperature: 0.0,
            top_p: 1.0,
            eos_token_ids: Vec::new(),
            seed: 0,
        }
    }
}

impl GenerateOptions {
    /// Checks that the options make sense.
    ///
    /// # Errors
    /// [`ModelError::Generate`] names the first that does not.
    pub fn validate(&self) -> Result<(), ModelError> {
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

impl<B: Backend> Decoder<B> {
    /// Continues a prompt of text; `each` sees every token as it comes and may stop there.
    ///
    /// # Errors
    /// [`ModelError`] if the prompt is empty, an id is not in the vocabulary, or the options make no sense.
    pub fn generate(
        &self,
        input_ids: &[i64],
        options: &GenerateOptions,
        each: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        options.validate()?;
        let inputs_embeds = self.prompt(input_ids)?; // [1, s, d]
        let mut cache = KvCache::new(self.layers.len());
        let wanted = [input_ids.len() - 1];
        let inputs = DecoderOptions {
            wanted: Some(&wanted),
            cache: Some(&mut cache),
            ..DecoderOptions::default()
        };
        let hidden = self.forward(inputs_embeds, inputs); // [1, d]
        Ok(self.continue_from(hidden, cache, None, options, each))
    }

    /// Logits at every position of a text, `[s, vocab]`.
    ///
    /// # Errors
    /// [`ModelError`] if the text is empty or an id is not in the vocabulary.
    pub fn logits(&self, input_ids: &[i64]) -> Result<Tensor<B, 2>, ModelError> {
        let hidden = self.forward(self.prompt(input_ids)?, DecoderOptions::default()); // [s, d]
        Ok(dualspeed_ops::linear(hidden, self.lm_head_weight(), None))
    }

    /// `[1, s, d]`.
    fn prompt(&self, input_ids: &[i64]) -> Result<Tensor<B, 3>, ModelError> {
        let vocab = self.config.vocab_size;
        if input_ids.is_empty() {
            return Err(LayoutError::Empty.into());
        }
        let outside = |id: &i64| !(0..vocab as i64).contains(id);
        if let Some(position) = input_ids.iter().position(outside) {
            let id = input_ids[position];
            return Err(LayoutError::TokenId { sample: 0, position, id, vocab }.into());
        }
        let ids = TensorData::new(input_ids.to_vec(), [input_ids.len()]);
        let ids = Tensor::<B, 1, Int>::from_data(ids, &self.embed_tokens.weight.device());
        Ok(self.embed(ids).unsqueeze::<3>())
    }

    /// Continues after a prompt: `hidden` `[1, d]` is the final-norm output at its last position, `cache` holds the prompt. One token
    /// after another; `each` sees every token as it comes and may stop there.
    pub fn continue_from(
        &self,
        mut hidden: Tensor<B, 2>,
        mut cache: KvCache<B>,
        lora: Option<&Lora<B>>,
        options: &GenerateOptions,
        each: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Generated {
        let device = hidden.device();
        let head = self.lm_head_weight(); // [d, vocab]
        let mut rng = SplitMix::new(&[options.seed, hash_str("generate")]);
        let mut generated = Generated::default();
        while generated.ids.len() < options.max_new_tokens {
            let logits = dualspeed_ops::linear(hidden.clone(), head.clone(), None); // [1, vocab]
            let logits = dualspeed_ops::to_f32(logits);
            let next = pick(&logits, options, &mut rng);
            let id = next as i64;
            if options.eos_token_ids.contains(&id) {
                generated.finished = true;
                break;
            }
            generated.ids.push(id);
            generated.log_probs.push(log_prob(&logits, next));
            if each(id).is_break() || generated.ids.len() == options.max_new_tokens {
                break;
            }
            let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(vec![id], [1]), &device);
            let inputs_embeds = self.embed(ids).unsqueeze::<3>(); // [1, 1, d]
            let inputs =
                DecoderOptions { lora, cache: Some(&mut cache), ..DecoderOptions::default() };
            hidden = self.forward(inputs_embeds, inputs); // [1, d]
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
