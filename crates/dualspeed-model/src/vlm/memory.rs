//! Memory of a training step: an estimate beforehand, and what the decoder's blocks recompute to fit.

use dualspeed_ops::Keep;
use serde::{Deserialize, Serialize};

use super::groups::Trainable;
use crate::config::{DecoderConfig, LlavaConfig, LoraConfig, LoraTarget, ProjectorType};

/// What the backward pass of the decoder computes again instead of keeping it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// The same for every block.
    Same(Keep),
    /// As little as fits: what the blocks keep and one block's backward pass may take this many bytes.
    Within(u64),
}

impl Recompute {
    /// What each block keeps for `rows` positions (batch times padded length) of `element` bytes a number.
    pub fn blocks(&self, config: &LlavaConfig, rows: usize, element: usize) -> Vec<Keep> {
        let layers = config.text.num_hidden_layers;
        match *self {
            Self::Same(keep) => vec![keep; layers],
            Self::Within(budget) => fit(config, rows, element, budget),
        }
    }
}

/// Bytes that the backward pass of one block finds ready, for `rows` positions of `element` bytes a number.
pub fn block_bytes(
    text: &DecoderConfig,
    lora: Option<&LoraConfig>,
    keep: Keep,
    rows: usize,
    element: usize,
) -> u64 {
    let (d, mlp) = (text.hidden_size, text.intermediate_size);
    let q = text.num_attention_heads * text.head_size();
    let kv = text.kv_heads() * text.head_size();
    let rank = lora.map_or(0, |lora| lora.r);
    let mut numbers = d;
    let mut statistics = 0;
    if keep >= Keep::Attention {
        numbers += 2 * q + 2 * kv + d + 4 * rank;
        if text.qk_norm {
            // Before the norm as well as after it.
            numbers += q + kv;
        }
        statistics += text.num_attention_heads;
    }
    if keep >= Keep::Products {
        numbers += 2 * mlp + 2 * rank;
    }
    if keep >= Keep::Activations {
        numbers += 2 * d + mlp + rank;
    }
    if keep >= Keep::All
        && let Some(lora) = lora.filter(|lora| lora.dropout > 0.0)
    {
        let inputs = lora.targets.iter().map(|target| match target {
            LoraTarget::OProj => q,
            LoraTarget::DownProj => mlp,
            _ => d,
        });
        numbers += inputs.sum::<usize>();
    }
    // The softmax statistics are f32 whatever the activations are.
    rows as u64 * (numbers * element + statistics * 4) as u64
}

/// A block's backward pass holds all of its activations and about as many gradients.
fn working(all: u64) -> u64 {
    2 * all
}

/// The plan of least recomputation within `budget` bytes; all from the input if even that does not fit.
fn fit(config: &LlavaConfig, rows: usize, element: usize, budget: u64) -> Vec<Keep> {
    let bytes = |keep: Keep| block_bytes(&config.text, config.lora.as_ref(), keep, rows, element);
    let budget = budget.saturating_sub(working(bytes(Keep::Activations)));
    let mut plan = vec![Keep::Input; config.text.num_hidden_layers];
    let mut used = bytes(Keep::Input) * plan.len() as u64;
    // A byte saves about as much in the attention half as in the MLP half, so whole blocks go first and a half fills the rest.
    // From the last block on: its activations live shortest.
    for (from, to) in [
        (Keep::Input, Keep::Products),
        (Keep::Input, Keep::Attention),
        (Keep::Products, Keep::Activations),
        (Keep::Activations, Keep::All),
    ] {
        let more = bytes(to) - bytes(from);
        for keep in plan.iter_mut().rev().filter(|keep| **keep == from) {
            if used + more > budget {
                break;
            }
            used += more;
            *keep = to;
        }
    }
    plan
}

/// What a training step works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Samples in a micro-batch.
    pub batch: usize,
    /// Padded length of a sample, visual tokens included.
    pub length: usize,
    /// Images in a micro-batch whose tower runs in the step; 0 with cached features.
    pub images: usize,
    /// What is trained.
    pub trainable: Trainable,
    /// Bytes of a frozen weight: 2 in half precision.
    pub frozen_bytes: usize,
    /// Bytes of an activation.
    pub activation_bytes: usize,
}

/// Bytes of a training step, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Frozen weights.
    pub frozen: u64,
    /// Trained weights in f32, their gradients and the optimiser's two moments.
    pub trained: u64,
    /// What the blocks keep.
    pub blocks: u64,
    /// The largest working set beside that: one block in its backward pass, or the vision tower.
    pub working: u64,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.frozen + self.trained + self.blocks + self.working
    }
}

/// Numbers in the vision tower, projector, isolator, decoder, adapters.
pub fn parameters(config: &LlavaConfig) -> [u64; 5] {
    let (text, d) = (&config.text, config.text.hidden_size as u64);
    let (layers, head) = (text.num_hidden_layers as u64, text.head_size() as u64);
    let tables = if text.tie_word_embeddings { 1 } else { 2 } * text.vocab_size as u64 * d;
    let widths = text.linear_widths();
    let matrices: u64 = widths.iter().map(|(_, [d_in, d_out])| (d_in * d_out) as u64).sum();
    let [q, k, v] = [widths.q_proj, widths.k_proj, widths.v_proj].map(|[_, d_out]| d_out as u64);
    let biases = if text.qkv_bias { q + k + v } else { 0 };
    let norms = 2 * d + if text.qk_norm { 2 * head } else { 0 };
    let decoder = layers * (matrices + biases + norms) + tables + d;
    let adapters = config.lora.as_ref().map_or(0, |lora| {
        let sides = lora.targets.iter().map(|target| widths.get(*target).iter().sum::<usize>());
        layers * lora.r as u64 * sides.sum::<usize>() as u64
    });
    let vision = config.vision.geometry();
    let d_v = vision.hidden_size as u64;
    let projector = match &config.mm_projector_type {
        ProjectorType::Mlp2xGelu => d_v * d + d + d * d + d,
        ProjectorType::Linear => d_v * d + d,
        // About what a linear layer of that width takes; the crate that brings it knows better.
        ProjectorType::Custom(custom) => d_v * (custom.merge * custom.merge) as u64 * d + d,
    };
    [vision.num_parameters, projector, config.isolator_length as u64 * d, decoder, adapters]
}

/// Estimates a training step.
pub fn estimate(
    config: &LlavaConfig,
    workload: &Workload,
    recompute: Option<Recompute>,
) -> MemoryEstimate {
    let Workload { batch, length, images, trainable, frozen_bytes, activation_bytes } = *workload;
    let rows = batch * length;
    let [tower, projector, isolator, decoder, adapters] = parameters(config);
    let parts = [
        (tower, trainable.vision_tower),
        (projector, trainable.projector),
        (isolator, trainable.isolator),
        (decoder, trainable.language_model),
        (adapters, trainable.lora),
    ];
    let of = |trained: bool| {
        parts.iter().filter(|part| part.1 == trained).map(|part| part.0).sum::<u64>()
    };
    let bytes =
        |keep: Keep| block_bytes(&config.text, config.lora.as_ref(), keep, rows, activation_bytes);
    let blocks =
        recompute.unwrap_or(Recompute::Same(Keep::All)).blocks(config, rows, activation_bytes);
    let block_working = working(bytes(Keep::Activations));
    let per_image = config.vision.geometry().working_set;
    let tower_working = (images * per_image * activation_bytes) as u64;
    MemoryEstimate {
        frozen: of(false) * frozen_bytes as u64,
        trained: of(true) * 16,
        blocks: blocks.into_iter().map(bytes).sum(),
        working: block_working.max(tower_working),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn seven_b() -> (LlavaConfig, Workload) {
        let config =
            LlavaConfig { lora: Some(LoraConfig::default()), ..LlavaConfig::llava_1_5_7b() };
        let workload = Workload {
            batch: 16,
            length: 768,
            images: 16,
            trainable: Trainable::finetune_lora(),
            frozen_bytes: 2,
            activation_bytes: 2,
        };
        (config, workload)
    }

    #[test]
    fn llava_7b_has_the_published_sizes() {
        let (config, _) = seven_b();
        let [tower, projector, isolator, decoder, adapters] = parameters(&config);
        assert_eq!(decoder, 6_738_415_616);
        assert_eq!(projector, 1024 * 4096 + 4096 + 4096 * 4096 + 4096);
        assert_eq!(isolator, 4 * 4096);
        // r 128 on all seven layers of 32 blocks.
        assert_eq!(adapters, 32 * 128 * (4 * 8192 + 3 * (4096 + 11_008)));
        // CLIP ViT-L/14-336 has 303.5 M parameters in its vision tower, and a 768 x 1024 projection.
        assert!((tower as f64 - 304.3e6).abs() < 1e6, "{tower}");
    }

    #[test]
    fn a_budget_is_kept_and_used() {
        let (config, workload) = seven_b();
        let rows = workload.batch * workload.length;
        let bytes = |plan: &[Keep]| -> u64 {
            plan.iter().map(|k| block_bytes(&config.text, config.lora.as_ref(), *k, rows, 2)).sum()
        };
        let mut last = 0;
        for gib in [4, 8, 16, 24, 32, 64] {
            let plan = Recompute::Within(gib * GIB).blocks(&config, rows, 2);
            let used = bytes(&plan);
            assert!(used <= gib * GIB && used >= last, "{gib}: {used}");
            last = used;
        }
        let plan = Recompute::Within(64 * GIB).blocks(&config, rows, 2);
        assert!(plan.iter().all(|keep| *keep >= Keep::Activations), "{plan:?}");
        let plan = Recompute::Within(128 * GIB).blocks(&config, rows, 2);
        assert_eq!(plan, vec![Keep::All; 32]);
        assert_eq!(Recompute::Within(0).blocks(&config, rows, 2), vec![Keep::Input; 32]);
        let plan = Recompute::Within(16 * GIB).blocks(&config, rows, 2);
        assert!(plan.contains(&Keep::Input) && plan.contains(&Keep::Products), "{plan:?}");
    }

    #[test]
    fn less_kept_is_less_needed() {
        let (config, workload) = seven_b();
        let total = |recompute| estimate(&config, &workload, recompute).total();
        let all = total(None);
        let input = total(Some(Recompute::Same(Keep::Input)));
        assert!(all > 60 * GIB && (18 * GIB..25 * GIB).contains(&input), "{all} {input}");
    }
}
