//! Models of published shapes with random weights made on the device.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Distribution, FloatDType, Tensor};
use clap::ValueEnum;
use dualspeed_model::init::Init;
use dualspeed_model::{Dtype, LlamaConfig, Llava, LlavaConfig, LoraConfig, Vit, VitConfig};
use dualspeed_ops::{AutodiffBackend, Backend};
use dualspeed_train::TrainConfig;
use dualspeed_train::stage::apply_stage;

/// Shapes of published models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Size {
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

impl Size {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }

    /// The model's configuration, with adapters of rank 128 (LLaVA-1.5's recipe; dropout 0.05).
    pub fn config(self, dtype: Dtype) -> LlavaConfig {
        let text = |d, layers, heads, kv, mlp| LlamaConfig {
            hidden_size: d,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: Some(kv),
            intermediate_size: mlp,
            ..LlamaConfig::vicuna_7b()
        };
        let base = LlavaConfig {
            lora: Some(LoraConfig::default()),
            max_length: None,
            dtype,
            ..LlavaConfig::llava_1_5_7b()
        };
        match self {
            Self::Tiny => LlavaConfig {
                vision: VitConfig { num_hidden_layers: 2, ..VitConfig::default() }.into(),
                text: LlamaConfig { vocab_size: 512, ..text(64, 2, 4, 2, 96) },
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

/// A model for `config` whose matrices are normal with standard deviation 0.02, drawn on the device in their final type.
///
/// # Errors
/// If the configuration cannot be built.
pub fn random<B: AutodiffBackend>(
    config: &TrainConfig,
    device: &B::Device,
) -> anyhow::Result<Llava<B>> {
    B::seed(device, config.seed);
    let model = apply_stage(config.model.init::<B>(device, config.seed)?, config)?;
    // Asking a parameter itself would draw its initial values, on the host.
    let trained = model.param_groups().into_iter().filter(|param| param.trainable);
    let trained = trained.map(|param| param.id).collect();
    Ok(model.map(&mut Draw { dtype: config.model.dtype, trained }))
}

/// A frozen tower with random weights like those of [`random`].
pub fn random_tower<B: Backend>(config: &VitConfig, dtype: Dtype, device: &B::Device) -> Vit<B> {
    B::seed(device, 0);
    let tower: Vit<B> = config.init(&Init::new(0, device).frozen());
    tower.map(&mut Draw { dtype, trained: HashSet::new() })
}

struct Draw {
    dtype: Dtype,
    trained: HashSet<ParamId>,
}

impl<B: Backend> ModuleMapper<B> for Draw {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (device, trained) = (param.lazy_device(), self.trained.contains(&param.id));
        // Norms and biases have the values they start with; they are small.
        if D == 1 {
            let dtype = if trained { FloatDType::F32 } else { self.dtype.float() };
            return param.map(|tensor| tensor.cast(dtype));
        }
        let normal = Distribution::Normal(0.0, 0.02);
        let drawn = Tensor::<B, D>::random(param.lazy_shape(), normal, &device);
        let drawn = match trained {
            true => drawn,
            false => drawn.cast(self.dtype.float()),
        };
        Param::initialized(param.id, drawn.set_require_grad(trained))
    }
}
