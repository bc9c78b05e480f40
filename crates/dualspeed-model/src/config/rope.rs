//! Rotary frequencies and their scaling for longer contexts.

use serde::{Deserialize, Serialize};

use super::ModelConfigError;

/// How rotary frequencies are stretched beyond the context a decoder was pretrained on; names as in Hugging Face's
/// `rope_scaling`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every frequency divided by `factor` (Chen et al., arXiv 2306.15595).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// The stretch of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context the decoder was pretrained on.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// A frequency, in radians per position, after scaling.
    pub fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let context = original_max_position_embeddings as f64;
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength > context / low_freq_factor {
                    frequency / factor
                } else if wavelength < context / high_freq_factor {
                    frequency
                } else {
                    let blend = (context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - blend) * frequency / factor + blend * frequency
                }
            }
        }
    }

    /// Checks that frequencies stay finite and positive.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        let wrong = |field, value: f64, expected: &str| ModelConfigError::OutOfRange {
            field,
            value: value.to_string(),
            expected: expected.into(),
        };
        let (Self::Linear { factor } | Self::Llama3 { factor, .. }) = *self;
        if !(factor >= 1.0 && factor.is_finite()) {
            return Err(wrong("text.rope_scaling.factor", factor, "a number of at least 1"));
        }
        if let Self::Llama3 {
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
            ..
        } = *self
        {
            if !(low_freq_factor > 0.0 && high_freq_factor > low_freq_factor) {
                let expected = "0 < low_freq_factor < high_freq_factor";
                return Err(wrong("text.rope_scaling.low_freq_factor", low_freq_factor, expected));
            }
            if original_max_position_embeddings == 0 {
                let field = "text.rope_scaling.original_max_position_embeddings";
                return Err(ModelConfigError::Zero { field });
            }
        }
        Ok(())
    }
}
