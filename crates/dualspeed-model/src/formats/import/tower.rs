//! The vision tower of LLaVA's own layout: its directory names it, and may leave out its weights and always its sizes.

use std::path::{Path, PathBuf};

use super::config::{Architecture, read_config};
use super::error::ImportError;
use crate::config::{VisionConfig, VitConfig};

/// Where a model's directory says that its vision tower is.
pub(super) struct TowerName<'a> {
    /// The directory that says it.
    pub dir: &'a Path,
    /// What it says: a path, or a name on the hub.
    pub name: &'a str,
}

/// Finds directories by names that no file beside a checkpoint has: on the hub, in its cache.
pub type Find<'a> = dyn Fn(&str) -> Option<PathBuf> + 'a;

impl TowerName<'_> {
    /// The tower's directory here: relative to the model's, under the last part of its name or as `vision_tower` there, or as a path.
    pub fn beside(&self) -> Option<PathBuf> {
        let last = Path::new(self.name).file_name().unwrap_or_default();
        let beside = [self.dir.join(self.name), self.dir.join(last), self.dir.join("vision_tower")];
        let mut places = beside.into_iter().chain([PathBuf::from(self.name)]);
        places.find(|dir| {
            // The model's own directory is no tower's, whatever its name is.
            dir.join("config.json").is_file() && dir != self.dir
        })
    }

    /// The sizes of a tower that everybody knows by name.
    pub fn published(&self) -> Option<VitConfig> {
        let large = VitConfig::clip_vit_l_14_336();
        let base = VitConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            projection_dim: Some(512),
            ..large.clone()
        };
        Some(match self.name {
            "openai/clip-vit-large-patch14-336" => large,
            "openai/clip-vit-large-patch14" => VitConfig { image_size: 224, ..large },
            "openai/clip-vit-base-patch16" => VitConfig { patch_size: 16, ..base },
            "openai/clip-vit-base-patch32" => VitConfig { patch_size: 32, ..base },
            _ => return None,
        })
    }
}

/// Sizes of a vision tower, with what LLaVA selects of it.
pub(super) fn selected(tower: VitConfig, by: &VisionConfig) -> VisionConfig {
    VisionConfig::Vit(match by {
        VisionConfig::Vit(by) => VitConfig {
            mm_vision_select_layer: by.mm_vision_select_layer,
            mm_vision_select_feature: by.mm_vision_select_feature,
            ..tower
        },
        _ => tower,
    })
}

/// Sizes in a vision tower's own directory, with what LLaVA selects of it.
///
/// # Errors
/// [`ImportError`] if the directory is no CLIP's.
pub(super) fn tower_config(dir: &Path, by: &VisionConfig) -> Result<VisionConfig, ImportError> {
    let file = dir.join("config.json");
    match read_config(&file)?.architecture {
        Architecture::Clip(tower) => Ok(selected(tower, by)),
        _ => Err(ImportError::malformed(
            &file,
            "this is no vision tower; it must be a CLIP checkpoint",
        )),
    }
}
