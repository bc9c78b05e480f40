//! Which vision tower a model has.

use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::vision::VitConfig;
use crate::efficientnet;
use crate::error::ConfigError;

/// The name of [`VisionConfig::Vit`] in configurations; left out, it is meant.
pub const CLIP_VIT: &str = "clip_vit";
/// The name of [`VisionConfig::EfficientNet`] in configurations, `config.json` included.
pub const EFFICIENTNET_LITE0: &str = "efficientnet_lite0";

/// The vision tower of a model: in a configuration `kind` says which, the fields beside it are that kind's.
#[derive(Clone, Debug, PartialEq)]
pub enum VisionConfig {
    /// CLIP's transformer, `clip_vit`.
    Vit(VitConfig),
    /// The convolutional network EfficientNet-Lite0, `efficientnet_lite0`.
    EfficientNet(EfficientNetConfig),
}

/// EfficientNet-Lite0: all but the size of its input is fixed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EfficientNetConfig {
    /// Side of the square input in pixels, a multiple of 16.
    pub image_size: usize,
}

impl Default for EfficientNetConfig {
    /// 576 tokens, as many as LLaVA-1.5 has.
    fn default() -> Self {
        Self { image_size: 384 }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self::Vit(VitConfig::default())
    }
}

impl From<VitConfig> for VisionConfig {
    fn from(config: VitConfig) -> Self {
        Self::Vit(config)
    }
}

impl From<EfficientNetConfig> for VisionConfig {
    fn from(config: EfficientNetConfig) -> Self {
        Self::EfficientNet(config)
    }
}

impl VisionConfig {
    /// Its name in configurations.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vit(_) => CLIP_VIT,
            Self::EfficientNet(_) => EFFICIENTNET_LITE0,
        }
    }

    /// The transformer's configuration, if it is one.
    pub fn vit(&self) -> Option<&VitConfig> {
        match self {
            Self::Vit(config) => Some(config),
            Self::EfficientNet(_) => None,
        }
    }

    /// As [`Self::vit`], to change it.
    pub fn vit_mut(&mut self) -> Option<&mut VitConfig> {
        match self {
            Self::Vit(config) => Some(config),
            Self::EfficientNet(_) => None,
        }
    }

    /// Width of its features.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Vit(config) => config.hidden_size,
            Self::EfficientNet(_) => efficientnet::HIDDEN,
        }
    }

    /// Side of the square input, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(config) => config.image_size,
            Self::EfficientNet(config) => config.image_size,
        }
    }

    /// Patches along one side.
    pub fn grid(&self) -> usize {
        match self {
            Self::Vit(config) => config.grid(),
            Self::EfficientNet(config) => config.image_size / efficientnet::STRIDE,
        }
    }

    /// Patches per image.
    pub fn num_patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Visual tokens per image before pruning: the patches, and a class token if there is one and it is passed on.
    pub fn num_tokens(&self) -> usize {
        match self {
            Self::Vit(config) => config.num_tokens(),
            Self::EfficientNet(_) => self.num_patches(),
        }
    }

    /// What is taken off pixels between 0 and 1, and what they are then divided by, for red, green and blue; `None` is
    /// CLIP's.
    pub fn normalisation(&self) -> Option<[[f32; 3]; 2]> {
        match self {
            Self::Vit(_) => None,
            Self::EfficientNet(_) => Some([efficientnet::MEAN, efficientnet::STD]),
        }
    }

    /// Checks that the tower can be built.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Vit(config) => config.validate(),
            Self::EfficientNet(config) => config.validate(),
        }
    }
}

impl EfficientNetConfig {
    /// Checks that the tower can be built.
    ///
    /// # Errors
    /// [`ConfigError`] if the side is 0 or no multiple of 16.
    pub fn validate(&self) -> Result<(), ConfigError> {
        super::nonzero(&[("vision.image_size", self.image_size)])?;
        super::divisible(
            ("vision.image_size", self.image_size),
            ("the 16 pixels of a token", efficientnet::STRIDE),
        )
    }
}

impl Serialize for VisionConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            // Without `kind`: configurations from before there was another still read the same.
            Self::Vit(config) => config.serialize(serializer),
            Self::EfficientNet(config) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("kind", self.kind())?;
                map.serialize_entry("image_size", &config.image_size)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for VisionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::<String, Value>::deserialize(deserializer)?;
        let kind = fields.remove("kind");
        let fields = Value::Object(fields);
        match kind.as_ref().map_or(Some(CLIP_VIT), Value::as_str) {
            Some(CLIP_VIT) => VitConfig::deserialize(fields).map(Self::Vit),
            Some(EFFICIENTNET_LITE0) => {
                EfficientNetConfig::deserialize(fields).map(Self::EfficientNet)
            }
            _ => {
                let kind = kind.unwrap_or_default();
                let problem =
                    format!("vision.kind = {kind}: known are {CLIP_VIT} and {EFFICIENTNET_LITE0}");
                return Err(D::Error::custom(problem));
            }
        }
        .map_err(D::Error::custom)
    }
}
