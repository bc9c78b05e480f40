//! Published models by their size.

use clap::ValueEnum;
use dualspeed_model::{DecoderConfig, Dtype, LlavaConfig, LoraConfig, VitConfig};

/// The size of a published model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelSize {
    /// A few thousand parameters: checks the harness.
    Tiny,
    /// SmolLM2-135M's decoder with CLIP ViT-L/14-336.
    #[value(name = "135m")]
    Small,
    /// TinyLlama-1.1B's decoder with CLIP ViT-L/14-336.
    #[value(name = "1.1b")]
    Medium,
    /// LLaVA-1.5-7B.
    #[value(name = "7b")]
    Llava7b,
    /// LLaVA-1.5-13B.
    #[value(name = "13b")]
    Llava13b,
}

impl ModelSize {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }

    /// The configuration of its vision tower: CLIP's, whatever the size.
    pub fn vision(self) -> VitConfig {
        match self {
            Self::Tiny => VitConfig { num_hidden_layers: 2, ..VitConfig::default() },
            _ => VitConfig::clip_vit_l_14_336(),
        }
    }

    /// The configuration of a LLaVA model of this size, with adapters of rank 128 (LLaVA-1.5's recipe; dropout 0.05).
    pub fn config(self, dtype: Dtype) -> LlavaConfig {
        let text = |d, layers, heads, kv, mlp| DecoderConfig {
            hidden_size: d,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: Some(kv),
            intermediate_size: mlp,
            ..DecoderConfig::vicuna_7b()
        };
        let base = LlavaConfig {
            vision: self.vision().into(),
            lora: Some(LoraConfig::default()),
            max_length: None,
            dtype,
            ..LlavaConfig::llava_1_5_7b()
        };
        match self {
            Self::Tiny => LlavaConfig {
                text: DecoderConfig { vocab_size: 512, ..text(64, 2, 4, 2, 96) },
                lora: Some(LoraConfig { r: 4, ..LoraConfig::default() }),
                pad_to_multiple: 8,
                ..base
            },
            Self::Small => LlavaConfig { text: text(576, 30, 9, 3, 1536), ..base },
            Self::Medium => LlavaConfig { text: text(2048, 22, 32, 4, 5632), ..base },
            Self::Llava7b => base,
            Self::Llava13b => LlavaConfig { text: text(5120, 40, 40, 40, 13_824), ..base },
        }
    }
}
