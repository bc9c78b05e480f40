//! Rotary scaling as llama.cpp keeps it: metadata for the linear kind, a tensor of factors for Llama 3's.

use super::{Gguf, MetaValue};
use crate::config::{DecoderConfig, RopeScaling};
use crate::formats::import::error::ImportError;

/// What every frequency is divided by, `[d_head / 2]`.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// How far factors may lie from what a rule gives.
const TOLERANCE: f64 = 1e-4;

impl Gguf {
    /// The scaling of a decoder that has none yet in `config`.
    ///
    /// # Errors
    /// [`ImportError`] names the kind that is not known, or the factors that follow no known rule.
    pub(super) fn rope_scaling(
        &self,
        config: &DecoderConfig,
    ) -> Result<Option<RopeScaling>, ImportError> {
        let (kind, factor) = (self.key("rope.scaling.type"), self.key("rope.scaling.factor"));
        let stated = match self.text(&kind) {
            None => self.number(&self.key("rope.scale_linear"))?, // Files before 2024.
            Some("none") => None,
            Some("linear") => match self.number(&factor)? {
                Some(factor) => Some(factor),
                None => return Err(self.refuse(&factor, "absent", "linear scaling needs it")),
            },
            Some(other) => {
                let problem = "known are none and linear, and Llama 3's as the tensor rope_freqs";
                return Err(self.refuse(&kind, other, problem));
            }
        };
        let linear = stated.filter(|factor| *factor != 1.0);
        let linear = linear.map(|factor| RopeScaling::Linear { factor });
        let Some(at) = self.header.tensors.iter().position(|listed| listed.name == FACTORS) else {
            return Ok(linear);
        };
        let wrong = |problem: String| ImportError::tensor(&self.path, FACTORS, problem);
        let tensor = self.decode(at).map_err(wrong)?.to_f32();
        let factors: Vec<f64> = tensor.into_iter().map(f64::from).collect();
        let frequencies = config.rope_frequencies();
        if factors.len() != frequencies.len() || !factors.iter().all(|f| *f > 0.0 && f.is_finite())
        {
            let half = frequencies.len();
            return Err(wrong(format!(
                "it must hold {half} positive numbers, half a head's width"
            )));
        }
        if factors.iter().all(|factor| (factor - 1.0).abs() < TOLERANCE) {
            return Ok(linear);
        }
        let context = match self.get(&self.key("rope.scaling.original_context_length")) {
            Some(MetaValue::Int(context)) => usize::try_from(*context).unwrap_or(8192),
            _ => 8192,
        };
        let found = llama3(&frequencies, &factors, context).filter(|_| linear.is_none());
        found.map(Some).ok_or_else(|| {
            wrong("these factors are not Llama 3's, and no other kind is read from GGUF".into())
        })
    }
}

/// Llama 3's rule with the numbers that give these factors; `context` is tried where they do not tell.
///
/// Between the two wavelengths `context / high` and `context / low` the kept share of a frequency rises with a straight
/// line over `1 / wavelength`, so that two frequencies there give both; only the ratios to `low` matter, which is 1.
fn llama3(frequencies: &[f64], factors: &[f64], context: usize) -> Option<RopeScaling> {
    let factor = factors.iter().copied().fold(1.0, f64::max);
    let rounds = |f: f64, to: f64| (f - to).abs() < TOLERANCE * to;
    let blended: Vec<[f64; 2]> = frequencies
        .iter()
        .zip(factors)
        .filter(|(_, f)| !rounds(**f, 1.0) && !rounds(**f, factor))
        .map(|(frequency, f)| {
            let kept = (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor);
            [frequency / std::f64::consts::TAU, kept]
        })
        .collect();
    let derived = match (blended.first(), blended.last()) {
        (Some([x0, y0]), Some([x1, y1])) if blended.len() > 1 => {
            let slope = (y0 - y1) / (x0 - x1); // context / (high - low)
            let offset = slope * x0 - y0; // low / (high - low)
            Some(((slope / offset).round(), 1.0 + 1.0 / offset))
        }
        _ => None,
    };
    [derived, Some((context as f64, 4.0))].into_iter().flatten().find_map(|(context, high)| {
        // Rounded in the file to 32 bits; published values have few digits.
        let high = (high * 1e3).round() / 1e3;
        if !(1.0..=1e9).contains(&context)
            || high.partial_cmp(&1.0) != Some(std::cmp::Ordering::Greater)
        {
            return None;
        }
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: high,
            original_max_position_embeddings: context as usize,
        };
        let fits = |(frequency, f): (&f64, &f64)| rounds(scaling.apply(*frequency), frequency / f);
        frequencies.iter().zip(factors).all(fits).then_some(scaling)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(half: usize, theta: f64) -> Vec<f64> {
        (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect()
    }

    #[test]
    fn published_scalings_are_found_again() {
        for (half, factor, low, high, context) in [
            (64, 8.0, 1.0, 4.0, 8192),  // Llama 3.1
            (32, 32.0, 1.0, 4.0, 8192), // Llama 3.2 1B
            (64, 4.0, 2.0, 9.0, 4096),
            (4, 8.0, 1.0, 4.0, 8192), // Too few frequencies to tell: the usual ones are tried.
        ] {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            };
            let frequencies = frequencies(half, 500_000.0);
            let factors: Vec<f64> =
                frequencies.iter().map(|f| f64::from((f / scaling.apply(*f)) as f32)).collect();
            let found = llama3(&frequencies, &factors, 8192).unwrap();
            for frequency in &frequencies {
                let (a, b) = (found.apply(*frequency), scaling.apply(*frequency));
                assert!((a / b - 1.0).abs() < 1e-4, "{found:?} for {scaling:?}");
            }
        }
        // YaRN's and LongRoPE's factors follow no such line.
        let odd: Vec<f64> = (0..64).map(|i| 1.0 + 0.1 * f64::from(i * i % 17)).collect();
        assert!(llama3(&frequencies(64, 500_000.0), &odd, 8192).is_none());
    }
}
