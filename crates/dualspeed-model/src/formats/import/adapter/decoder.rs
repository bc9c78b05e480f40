//! A decoder's adapters as our model has them: one rank and one scale for all layers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::super::error::ImportError;
use super::super::source::{TensorInfo, WeightSource};
use super::super::tensor::HostTensor;
use super::factors::{Factors, Pair, decoder_target};
use crate::config::{DecoderConfig, LoraConfig};

/// The factors `lora.layers.N.q_proj.lora_a` `[r, in]` and `lora_b` `[out, r]` of every layer and target. Smaller ranks are filled
/// up with zeros, and so are layers without an adapter: their gradients are zero too, so they stay so. Where scales differ, they
/// are in `lora_b`.
pub(in super::super) struct DecoderFactors {
    factors: Arc<Factors>,
    infos: BTreeMap<String, TensorInfo>,
    places: BTreeMap<String, Option<Pair>>,
    config: LoraConfig,
}

impl DecoderFactors {
    /// Lays out the pairs of `modules` for a decoder.
    ///
    /// # Errors
    /// [`ImportError::Tensor`] if one is of a layer that the decoder has not, or of another shape.
    pub(super) fn new(
        factors: Arc<Factors>,
        modules: &BTreeMap<String, Pair>,
        config: &LoraConfig,
        decoder: &DecoderConfig,
    ) -> Result<Self, ImportError> {
        let widths = decoder.linear_widths();
        let mut places = BTreeMap::new();
        let mut infos = BTreeMap::new();
        for layer in 0..decoder.num_hidden_layers {
            for target in &config.targets {
                let path = format!("lora.layers.{layer}.{}", target.name());
                let [d_in, d_out] = *widths.get(*target);
                for (name, shape) in
                    [("lora_a", vec![config.r, d_in]), ("lora_b", vec![d_out, config.r])]
                {
                    let info = TensorInfo {
                        path: factors.source.path().to_owned(),
                        key: format!("{path}.{name}"),
                        shape,
                        dtype: "F32".into(),
                    };
                    infos.insert(info.key.clone(), info);
                }
                places.insert(path, None);
            }
        }
        for (module, pair) in modules {
            let Some((layer, target)) = decoder_target(module) else { continue };
            let wrong =
                |problem: String| ImportError::tensor(factors.source.path(), &pair.a, problem);
            let place = places.get_mut(&format!("lora.layers.{layer}.{}", target.name()));
            let place = place.ok_or_else(|| {
                wrong(format!(
                    "it is of layer {layer}, the decoder has {}",
                    decoder.num_hidden_layers
                ))
            })?;
            let expected = *widths.get(target);
            if pair.widths != expected {
                let ([d_in, d_out], [own_in, own_out]) = (pair.widths, expected);
                return Err(wrong(format!(
                    "it is for a layer of {d_in} to {d_out}, the decoder's is of {own_in} to {own_out}; is it of another base?"
                )));
            }
            *place = Some(pair.clone());
        }
        Ok(Self { factors, infos, places, config: config.clone() })
    }
}

impl WeightSource for DecoderFactors {
    fn path(&self) -> &Path {
        self.factors.source.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, key: &str) -> Result<HostTensor, ImportError> {
        let missing = || ImportError::tensor(self.path(), key, "there is no such factor");
        let info = self.infos.get(key).ok_or_else(missing)?;
        let (place, half) = key.rsplit_once('.').ok_or_else(missing)?;
        let mut values = vec![0.0; info.shape.iter().product()];
        let Some(Some(pair)) = self.places.get(place) else {
            return Ok(HostTensor::f32(info.shape.clone(), values));
        };
        let [d_in, _] = pair.widths;
        if half == "lora_a" {
            let own = self.factors.read(&pair.a)?;
            values[..pair.rank * d_in].copy_from_slice(&own);
        } else {
            let own = self.factors.read(&pair.b)?;
            let ratio = pair.scale / self.config.scale();
            // Exactly one where all scales are equal.
            let ratio = if (ratio - 1.0).abs() < 1e-12 { 1.0 } else { ratio };
            for (row, own) in
                values.chunks_exact_mut(self.config.r).zip(own.chunks_exact(pair.rank))
            {
                for (value, own) in row.iter_mut().zip(own) {
                    *value = (f64::from(*own) * ratio) as f32;
                }
            }
        }
        Ok(HostTensor::f32(info.shape.clone(), values))
    }
}
