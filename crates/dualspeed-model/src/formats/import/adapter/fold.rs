//! Adapters folded into the weights they are on, while those are read.
//!
//! A decoder's adapters stay adapters. Those on other layers (peft's `all-linear` and lists like `["q_proj", "v_proj"]` reach the
//! vision tower too) have no place here beside frozen weights, nor has DoRA's magnitude: they become part of the weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::super::error::ImportError;
use super::super::source::{TensorInfo, WeightSource};
use super::super::tensor::HostTensor;
use super::factors::{Factors, Pair};

/// Weights with adapters folded in: `W + s B A`, or `m / |W + s B A| (W + s B A)` with the norm of each row where there is a
/// magnitude `m` (DoRA, arXiv 2402.09353). What is folded is in 32 bits.
pub(in super::super) struct Folded {
    inner: Box<dyn WeightSource>,
    factors: Arc<Factors>,
    /// Modules to fold, by path.
    modules: BTreeMap<String, Pair>,
}

impl Folded {
    /// Folds the adapters of `modules`.
    ///
    /// # Errors
    /// [`ImportError::Tensor`] if there is no weight of a module, or of another shape.
    pub(super) fn new(
        inner: Box<dyn WeightSource>,
        factors: Arc<Factors>,
        modules: BTreeMap<String, Pair>,
    ) -> Result<Self, ImportError> {
        for (module, pair) in &modules {
            let wrong =
                |problem: String| ImportError::tensor(factors.source.path(), &pair.a, problem);
            let [d_in, d_out] = pair.widths;
            match inner.tensors().get(&format!("{module}.weight")) {
                None => return Err(wrong(format!("the base model has no layer {module}"))),
                Some(info) if info.shape != [d_out, d_in] => {
                    return Err(wrong(format!(
                        "it is for a layer of {d_in} to {d_out}, the base model's {module} is {:?}; is it of another base?",
                        info.shape
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(Self { inner, factors, modules })
    }

    fn fold(&self, pair: &Pair, weight: HostTensor) -> Result<HostTensor, ImportError> {
        let [d_in, d_out] = pair.widths;
        let (a, b) = (self.factors.read(&pair.a)?, self.factors.read(&pair.b)?);
        let magnitude = pair.magnitude.as_ref().map(|key| self.factors.read(key)).transpose()?;
        if let Some(magnitude) = &magnitude
            && magnitude.len() != d_out
        {
            let problem = format!("it has {} values for {d_out} rows", magnitude.len());
            let key = pair.magnitude.as_deref().unwrap_or_default();
            return Err(ImportError::tensor(self.factors.source.path(), key, problem));
        }
        let mut values = weight.to_f32();
        values.par_chunks_mut(d_in.max(1)).enumerate().for_each(|(row, weights)| {
            for (b, a) in b[row * pair.rank..][..pair.rank].iter().zip(a.chunks_exact(d_in)) {
                let factor = (f64::from(*b) * pair.scale) as f32;
                weights.iter_mut().zip(a).for_each(|(weight, a)| *weight += factor * a);
            }
            if let Some(magnitude) = &magnitude {
                let norm = weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                let scale = (f64::from(magnitude[row]) / norm.max(f64::MIN_POSITIVE)) as f32;
                weights.iter_mut().for_each(|weight| *weight *= scale);
            }
        });
        Ok(HostTensor::f32(weight.shape, values))
    }
}

impl WeightSource for Folded {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        self.inner.tensors()
    }

    fn read(&self, key: &str) -> Result<HostTensor, ImportError> {
        match key.strip_suffix(".weight").and_then(|module| self.modules.get(module)) {
            Some(pair) => self.fold(pair, self.inner.read(key)?),
            None => self.inner.read(key),
        }
    }

    fn read_transposed(&self, key: &str) -> Result<HostTensor, ImportError> {
        match key.strip_suffix(".weight").is_some_and(|module| self.modules.contains_key(module)) {
            true => Ok(self.read(key)?.transposed()),
            false => self.inner.read_transposed(key),
        }
    }
}
