//! Which vision tower a model has.

use dualspeed_core::Options;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::ModelConfigError;
use super::geometry::VisionGeometry;
use super::vision::VitConfig;

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
    /// A tower of another crate, by any other name.
    Custom(CustomVisionConfig),
}

/// EfficientNet-Lite0: all but the size of its input is fixed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EfficientNetConfig {
    /// Side of the square input in pixels, a multiple of 16.
    pub image_size: usize,
}

/// A vision tower that another crate registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomVisionConfig {
    /// The name it is registered by.
    pub kind: String,
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Tokens along one side.
    pub grid: usize,
    /// Width of the features.
    pub hidden_size: usize,
    /// Mean and standard deviation of pixels between 0 and 1, for red, green and blue; left out: CLIP's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalisation: Option<[[f32; 3]; 2]>,
    /// Whatever else the tower reads.
    #[serde(default)]
    pub options: Options,
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

impl From<CustomVisionConfig> for VisionConfig {
    fn from(config: CustomVisionConfig) -> Self {
        Self::Custom(config)
    }
}

impl VisionConfig {
    /// Its name in configurations.
    pub fn kind(&self) -> &str {
        match self {
            Self::Vit(_) => CLIP_VIT,
            Self::EfficientNet(_) => EFFICIENTNET_LITE0,
            Self::Custom(config) => &config.kind,
        }
    }

    /// The sizes that the rest of the model goes by.
    pub fn geometry(&self) -> VisionGeometry {
        match self {
            Self::Vit(config) => config.geometry(),
            Self::EfficientNet(config) => config.geometry(),
            Self::Custom(config) => config.geometry(),
        }
    }

    /// Checks that the tower can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        match self {
            Self::Vit(config) => config.validate(),
            Self::EfficientNet(config) => config.validate(),
            Self::Custom(config) => config.validate(),
        }
    }

    /// CLIP's transformer, if it is one: for what only it has (its text half, tower training).
    pub fn vit(&self) -> Option<&VitConfig> {
        match self {
            Self::Vit(config) => Some(config),
            _ => None,
        }
    }
}

impl EfficientNetConfig {
    /// Pixels along a side of a token.
    pub const STRIDE: usize = 16;
    /// Width of the features.
    pub const HIDDEN_SIZE: usize = 112;
    /// Numbers in the parameters up to the tokens, batch norms folded in.
    pub const NUM_PARAMETERS: u64 = 692_688;

    /// The sizes that the rest of the model goes by.
    pub fn geometry(&self) -> VisionGeometry {
        let (grid, half) = (self.image_size / Self::STRIDE, self.image_size / 2);
        VisionGeometry {
            image_size: self.image_size,
            grid,
            num_tokens: grid * grid,
            hidden_size: Self::HIDDEN_SIZE,
            normalisation: Some([[127.0 / 255.0; 3], [128.0 / 255.0; 3]]),
            num_parameters: Self::NUM_PARAMETERS,
            // Block 1's expanded maps before and after its depthwise convolution, and its input.
            working_set: (2 * 6 + 1) * 16 * half * half,
        }
    }

    /// Checks that the tower can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] if the side is 0 or no multiple of 16.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        super::nonzero(&[("vision.image_size", self.image_size)])?;
        super::divisible(
            ("vision.image_size", self.image_size),
            ("the 16 pixels of a token", Self::STRIDE),
        )
    }
}

impl CustomVisionConfig {
    /// The sizes that the rest of the model goes by; what the tower costs is not known.
    pub fn geometry(&self) -> VisionGeometry {
        VisionGeometry {
            image_size: self.image_size,
            grid: self.grid,
            num_tokens: self.grid * self.grid,
            hidden_size: self.hidden_size,
            normalisation: self.normalisation,
            num_parameters: 0,
            working_set: 0,
        }
    }

    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the field that is 0.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        super::nonzero(&[
            ("vision.image_size", self.image_size),
            ("vision.grid", self.grid),
            ("vision.hidden_size", self.hidden_size),
        ])
    }
}

impl Serialize for VisionConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Tagged<'a, T> {
            kind: &'a str,
            #[serde(flatten)]
            config: &'a T,
        }
        match self {
            Self::Vit(config) => Tagged { kind: CLIP_VIT, config }.serialize(serializer),
            Self::EfficientNet(config) => {
                Tagged { kind: EFFICIENTNET_LITE0, config }.serialize(serializer)
            }
            Self::Custom(config) => config.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for VisionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::<String, Value>::deserialize(deserializer)?;
        let kind = fields.remove("kind");
        let read = match kind.as_ref().map_or(Some(CLIP_VIT), Value::as_str) {
            Some(CLIP_VIT) => VitConfig::deserialize(Value::Object(fields)).map(Self::Vit),
            Some(EFFICIENTNET_LITE0) => {
                EfficientNetConfig::deserialize(Value::Object(fields)).map(Self::EfficientNet)
            }
            Some(name) => {
                let name = name.to_owned();
                fields.insert("kind".to_owned(), Value::String(name.clone()));
                CustomVisionConfig::deserialize(Value::Object(fields)).map(Self::Custom).map_err(
                    |error| {
                        // Most likely a misspelt name: what is wrong with the fields comes second.
                        let problem = error.to_string().replace("unknown field", "there is no");
                        serde_json::Error::custom(format!(
                            "vision tower `{name}` is neither {CLIP_VIT} nor {EFFICIENTNET_LITE0}, and as a tower of \
                             another crate it does not fit: {problem}"
                        ))
                    },
                )
            }
            None => return Err(D::Error::custom("vision.kind must be a name")),
        };
        read.map_err(D::Error::custom)
    }
}
