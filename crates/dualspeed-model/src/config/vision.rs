//! Configuration of the vision transformer: CLIP's and SigLIP's.

use serde::{Deserialize, Serialize};

use super::ModelConfigError;
use super::{VisionGeometry, divisible, nonzero};

/// Activation of the tower's MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    #[default]
    QuickGelu,
    /// The exact GELU.
    Gelu,
    /// GELU by its tanh approximation: SigLIP.
    GeluPytorchTanh,
}

/// Where vision transformers differ in structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitFamily {
    /// A class token, a norm before the blocks, patches without bias (Radford et al., arXiv 2103.00020).
    #[default]
    Clip,
    /// Patches only, with bias, and no norm before the blocks (Zhai et al., arXiv 2303.15343; SigLIP 2 of fixed size, arXiv
    /// 2502.14786).
    Siglip,
}

/// Which tokens of the selected hidden state the language model gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectFeature {
    /// Patches only.
    #[default]
    Patch,
    /// The class token, then the patches.
    ClsPatch,
}

/// A ViT: norms before attention and MLP, learned positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VitConfig {
    /// CLIP's structure or SigLIP's.
    pub family: VitFamily,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers in the weights; those after the selected one are not computed.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Width of the space shared with text; without it, and in SigLIP's family, there are no patch-text features.
    pub projection_dim: Option<usize>,
    /// Index into Hugging Face's `hidden_states` (0 = embeddings); negative counts from the end,
    /// so -2 is the input of the last layer.
    pub mm_vision_select_layer: i64,
    /// Which tokens are passed on.
    pub mm_vision_select_feature: SelectFeature,
}

impl Default for VitConfig {
    /// The quickstart's tower: 168 x 168 pixels, 144 patches.
    fn default() -> Self {
        Self {
            family: VitFamily::Clip,
            hidden_size: 128,
            intermediate_size: 512,
            num_hidden_layers: 5,
            num_attention_heads: 4,
            image_size: 168,
            patch_size: 14,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::QuickGelu,
            projection_dim: Some(64),
            mm_vision_select_layer: -2,
            mm_vision_select_feature: SelectFeature::Patch,
        }
    }
}

impl VitConfig {
    /// CLIP ViT-L/14 at 336 pixels, the tower of LLaVA-1.5.
    pub fn clip_vit_l_14_336() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            projection_dim: Some(768),
            ..Self::default()
        }
    }

    /// SigLIP SO400M/14 at 384 pixels: 729 tokens.
    pub fn siglip_so400m_14_384() -> Self {
        Self {
            family: VitFamily::Siglip,
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 14,
            layer_norm_eps: 1e-6,
            hidden_act: HiddenAct::GeluPytorchTanh,
            projection_dim: None,
            ..Self::default()
        }
    }

    /// Rows of a hidden state: patches, and the class token where there is one.
    pub fn num_positions(&self) -> usize {
        self.num_patches() + usize::from(self.family == VitFamily::Clip)
    }

    /// Patches along one side; pixels beyond the last whole patch are not seen.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches per image.
    pub fn num_patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Visual tokens per image before pruning: patches, and the class token if it is passed on.
    pub fn num_tokens(&self) -> usize {
        match self.mm_vision_select_feature {
            SelectFeature::Patch => self.num_patches(),
            SelectFeature::ClsPatch => self.num_patches() + 1,
        }
    }

    /// The sizes that the rest of the model goes by.
    pub fn geometry(&self) -> VisionGeometry {
        let (d, mlp) = (self.hidden_size as u64, self.intermediate_size as u64);
        let block = 4 * (d * d + d) + 2 * d * mlp + mlp + d + 4 * d;
        let patch = 3 * (self.patch_size * self.patch_size) as u64 * d;
        // Positions, the class token and two norms; or positions, the patches' bias and one norm.
        let norms = if self.family == VitFamily::Clip { 4 } else { 2 };
        let tables = (self.num_positions() as u64 + 1) * d + norms * d;
        let projection = self.projection_dim.unwrap_or(0) as u64 * d;
        VisionGeometry {
            image_size: self.image_size,
            grid: self.grid(),
            num_tokens: self.num_tokens(),
            hidden_size: self.hidden_size,
            normalisation: match self.family {
                VitFamily::Clip => None,
                VitFamily::Siglip => Some([[0.5; 3]; 2]),
            },
            num_parameters: self.num_hidden_layers as u64 * block + patch + tables + projection,
            working_set: self.num_positions() * (6 * self.hidden_size + 2 * self.intermediate_size),
        }
    }

    /// How many layers are run to reach the selected hidden state (validated to be 1 or more).
    pub fn selected_layers(&self) -> usize {
        let layers = self.num_hidden_layers as i64;
        let index = self.mm_vision_select_layer;
        let index = if index < 0 { layers + 1 + index } else { index };
        index.clamp(1, layers.max(1)) as usize
    }

    /// Checks that the tower can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        nonzero(&[
            ("vision.hidden_size", self.hidden_size),
            ("vision.intermediate_size", self.intermediate_size),
            ("vision.num_hidden_layers", self.num_hidden_layers),
            ("vision.num_attention_heads", self.num_attention_heads),
            ("vision.image_size", self.image_size),
            ("vision.patch_size", self.patch_size),
            ("vision.projection_dim", self.projection_dim.unwrap_or(1)),
        ])?;
        if self.patch_size > self.image_size {
            return Err(ModelConfigError::OutOfRange {
                field: "vision.patch_size",
                value: self.patch_size.to_string(),
                expected: format!("at most image_size, {}", self.image_size),
            });
        }
        if self.family == VitFamily::Siglip
            && self.mm_vision_select_feature == SelectFeature::ClsPatch
        {
            return Err(ModelConfigError::OutOfRange {
                field: "vision.mm_vision_select_feature",
                value: "cls_patch".into(),
                expected: "patch: SigLIP's towers have no class token".into(),
            });
        }
        divisible(
            ("vision.hidden_size", self.hidden_size),
            ("vision.num_attention_heads", self.num_attention_heads),
        )?;
        let layers = self.num_hidden_layers as i64;
        let select = self.mm_vision_select_layer;
        // hidden_states[0] is refused: no layer made it, so it has no attention to prune by.
        if (1..=layers).contains(&select) || (-layers..=-1).contains(&select) {
            Ok(())
        } else {
            Err(ModelConfigError::OutOfRange {
                field: "vision.mm_vision_select_layer",
                value: select.to_string(),
                expected: format!("1..={layers} or {}..=-1", -layers),
            })
        }
    }
}
