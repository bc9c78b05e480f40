//! Checksums of a checkpoint: of its state, and of every tensor.
//!
//! They are in a file of their own, `checksums.json`, so that a flipped bit in the state is found as well as one in a
//! tensor. A tensor's checksum is of its bytes, and its shape stands beside it: a header that was damaged is found too.

use std::collections::{BTreeMap, BTreeSet};

use dualspeed_core::hash::hex;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::tensor::HostTensor;

/// What the tensors of the model are called by, as against those of the optimiser.
pub(crate) const MODEL_PREFIX: &str = "model.";

/// What the files of a checkpoint must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checksums {
    /// The SHA-256 of `state.json`, in hexadecimal digits.
    #[serde(rename = "state.json")]
    state: String,
    /// Those of the tensors, by name.
    tensors: BTreeMap<String, TensorChecksum>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorChecksum {
    shape: Vec<usize>,
    sha256: String,
}

impl TensorChecksum {
    fn of(tensor: &HostTensor) -> Self {
        Self { shape: tensor.shape.clone(), sha256: sha256(&tensor.bytes()) }
    }
}

impl Checksums {
    /// The checksums of a state as it is written, and of tensors.
    pub(super) fn of(state: &[u8], tensors: &BTreeMap<String, HostTensor>) -> Self {
        let tensors = tensors
            .par_iter()
            .map(|(name, tensor)| (name.clone(), TensorChecksum::of(tensor)))
            .collect();
        Self { state: sha256(state), tensors }
    }

    /// Says what is wrong with a state as it was read.
    pub(super) fn check_state(&self, state: &[u8]) -> Result<(), String> {
        match sha256(state) == self.state {
            true => Ok(()),
            false => Err("its bytes are not those that were written (SHA-256)".into()),
        }
    }

    /// Says what is wrong with tensors as they were read: those of the model alone, or all.
    pub(super) fn check_tensors(
        &self,
        tensors: &BTreeMap<String, HostTensor>,
        model_only: bool,
    ) -> Result<(), String> {
        let wanted = |name: &str| !model_only || name.starts_with(MODEL_PREFIX);
        let expected: BTreeSet<&String> = self.tensors.keys().filter(|name| wanted(name)).collect();
        let found: BTreeSet<&String> = tensors.keys().collect();
        if let Some(name) = expected.symmetric_difference(&found).next() {
            let problem = if expected.contains(name) { "is missing" } else { "was not written" };
            return Err(format!("`{name}` {problem}"));
        }
        let damaged = tensors.par_iter().find_map_first(|(name, tensor)| {
            let expected = self.tensors.get(name)?;
            if expected.shape != tensor.shape {
                let (was, is) = (&expected.shape, &tensor.shape);
                return Some(format!("`{name}` has shape {is:?}, written was {was:?}"));
            }
            let same = expected.sha256 == sha256(&tensor.bytes());
            (!same).then(|| format!("the values of `{name}` are not those written (SHA-256)"))
        });
        damaged.map_or(Ok(()), Err)
    }

    /// Identifies the model's part: two checkpoints of equal weights have equal ones.
    pub(super) fn model(&self) -> String {
        let mut hash = Sha256::new();
        for (name, TensorChecksum { shape, sha256 }) in &self.tensors {
            if name.starts_with(MODEL_PREFIX) {
                hash.update(format!("{name} {shape:?} {sha256}\n"));
            }
        }
        hex(&hash.finalize())
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
