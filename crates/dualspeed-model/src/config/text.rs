//! Configuration of the decoder and its low-rank adapters.

use dualspeed_ops::{PerTarget, Target as LoraTarget};
use serde::{Deserialize, Serialize};

use super::ModelConfigError;
use super::rope::RopeScaling;
use super::{divisible, nonzero};

/// A decoder: RMS norms, rotary positions, grouped-query attention, SwiGLU. The families differ in flags: Llama, Vicuna and Mistral
/// set none, Qwen2 sets `qkv_bias`, Qwen3 `qk_norm`, SmolLM3 `nope_layers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecoderConfig {
    /// Width.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads (grouped-query attention); as many as query heads by default.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; `hidden_size / num_attention_heads` by default.
    pub head_dim: Option<usize>,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// The longest sequence that the decoder was trained on, as its file says. Nothing here depends on it; exports say it again.
    pub max_position_embeddings: Option<usize>,
    /// Whether the query, key and value projections have biases (Qwen2).
    pub qkv_bias: bool,
    /// Whether queries and keys are normalised head by head before the rotation (Qwen3).
    pub qk_norm: bool,
    /// Pairs of a head that turn with time, row and column, in this order; left out, all turn with one position (Qwen2-VL's
    /// `mrope_section`).
    pub mrope_section: Option<[usize; 3]>,
    /// Layers, counted from 0, whose queries and keys do not turn with their position at all (SmolLM3, every fourth; Kazemnejad et
    /// al., arXiv 2305.19466).
    pub nope_layers: Vec<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of those frequencies for longer contexts.
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Standard deviation of every initial matrix (Hugging Face: 0.02). By default each matrix is
    /// scaled by its fan-in, and the residual branches' outputs by the depth, which suits small
    /// models trained from scratch.
    pub initializer_range: Option<f64>,
}

impl Default for DecoderConfig {
    /// The quickstart's decoder.
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: None,
            head_dim: None,
            intermediate_size: 352,
            vocab_size: 256,
            max_position_embeddings: None,
            qkv_bias: false,
            qk_norm: false,
            mrope_section: None,
            nope_layers: Vec::new(),
            rope_theta: 10_000.0,
            rope_scaling: None,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            initializer_range: None,
        }
    }
}

impl DecoderConfig {
    /// Vicuna-7B (Llama-2-7B).
    pub fn vicuna_7b() -> Self {
        Self {
            hidden_size: 4096,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            intermediate_size: 11_008,
            vocab_size: 32_000,
            tie_word_embeddings: false,
            initializer_range: Some(0.02),
            ..Self::default()
        }
    }

    /// Width of a head.
    pub fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Input and output width of every linear layer of a block.
    pub fn linear_widths(&self) -> PerTarget<[usize; 2]> {
        let (d, mlp) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_size();
        let kv = self.kv_heads() * self.head_size();
        PerTarget {
            q_proj: [d, q],
            k_proj: [d, kv],
            v_proj: [d, kv],
            o_proj: [q, d],
            gate_proj: [d, mlp],
            up_proj: [d, mlp],
            down_proj: [mlp, d],
        }
    }

    /// Rotary frequencies in radians per position, one for each pair of a head, scaling included.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let half = self.head_size() / 2;
        let plain = (0..half).map(|i| self.rope_theta.powf(-(i as f64) / half as f64));
        match &self.rope_scaling {
            Some(scaling) => plain.map(|frequency| scaling.apply(frequency)).collect(),
            None => plain.collect(),
        }
    }

    /// Checks that the decoder can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        nonzero(&[
            ("text.hidden_size", self.hidden_size),
            ("text.num_hidden_layers", self.num_hidden_layers),
            ("text.num_attention_heads", self.num_attention_heads),
            ("text.num_key_value_heads", self.kv_heads()),
            ("text.intermediate_size", self.intermediate_size),
            ("text.vocab_size", self.vocab_size),
            ("text.head_dim", self.head_size()),
        ])?;
        if self.head_dim.is_none() {
            divisible(
                ("text.hidden_size", self.hidden_size),
                ("text.num_attention_heads", self.num_attention_heads),
            )?;
        }
        divisible(
            ("text.num_attention_heads", self.num_attention_heads),
            ("text.num_key_value_heads", self.kv_heads()),
        )?;
        // Rotary embeddings turn pairs.
        divisible(("text.head_dim", self.head_size()), ("rotary pair", 2))?;
        if let Some(scaling) = &self.rope_scaling {
            scaling.validate()?;
        }
        if let Some(section) = self.mrope_section
            && section.iter().sum::<usize>() != self.head_size() / 2
        {
            return Err(ModelConfigError::OutOfRange {
                field: "text.mrope_section",
                value: format!("{section:?}"),
                expected: format!("three counts that add up to {} pairs", self.head_size() / 2),
            });
        }
        if let Some(layer) = self.nope_layers.iter().find(|layer| **layer >= self.num_hidden_layers)
        {
            return Err(ModelConfigError::OutOfRange {
                field: "text.nope_layers",
                value: layer.to_string(),
                expected: format!("layers 0 to {}", self.num_hidden_layers - 1),
            });
        }
        if self.rope_theta > 1.0 {
            Ok(())
        } else {
            Err(ModelConfigError::OutOfRange {
                field: "text.rope_theta",
                value: self.rope_theta.to_string(),
                expected: "a number above 1".into(),
            })
        }
    }
}

/// Low-rank adapters: `y = x W + (alpha / r) (dropout(x) A) B`.
///
/// Source: Hu et al., arXiv 2106.09685; defaults are those of LLaVA-1.5's LoRA recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale numerator.
    pub alpha: f64,
    /// Share of the adapter branch's inputs set to zero while training.
    pub dropout: f64,
    /// Whether the scale is `alpha / sqrt(r)` (rsLoRA, Kalajdzievski, arXiv 2312.03732), which lets it fall more slowly with the rank.
    pub use_rslora: bool,
    /// Which linear layers get an adapter.
    pub targets: Vec<LoraTarget>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = LoraTarget::ALL.to_vec();
        Self { r: 128, alpha: 256.0, dropout: 0.05, use_rslora: false, targets }
    }
}

impl LoraConfig {
    /// The factor of the adapter branch: `alpha / r`, or `alpha / sqrt(r)`.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// Checks that the adapters can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        nonzero(&[("lora.r", self.r), ("lora.targets", self.targets.len())])?;
        if (0.0..1.0).contains(&self.dropout) {
            Ok(())
        } else {
            Err(ModelConfigError::OutOfRange {
                field: "lora.dropout",
                value: self.dropout.to_string(),
                expected: "0 <= dropout < 1".into(),
            })
        }
    }
}
