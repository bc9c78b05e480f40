//! What a tower's features are a function of, apart from the image.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Element, Tensor};
use dualspeed_core::hash::hex;
use dualspeed_model::Tower;
use dualspeed_ops::Backend;
use sha2::{Digest, Sha256};

use crate::error::TrainError;

/// To be raised when towers compute something else than before.
const NUMERICS: u32 = 2;

/// Names a tower by what its features depend on: configuration (the selected layer among it), all weights with their
/// types, the type of pixels, and the backend, whose last bits are its own. 32 hexadecimal digits.
///
/// # Errors
/// [`TrainError::Device`] if the weights cannot be read back.
pub fn tower_fingerprint<B: Backend>(
    tower: &Tower<B>,
    device: &B::Device,
) -> Result<String, TrainError> {
    let unreadable = |message: String| TrainError::Device { what: "the vision tower", message };
    let config = serde_json::to_vec(&tower.config());
    let config = config.map_err(|error| unreadable(error.to_string()))?;
    let mut visitor = Weights { hash: Sha256::new(), error: None };
    let pixels = B::FloatElem::dtype();
    visitor.hash.update(format!("{NUMERICS} {} {pixels:?} ", B::name(device)));
    visitor.hash.update((config.len() as u64).to_le_bytes());
    visitor.hash.update(config);
    tower.visit(&mut visitor);
    match visitor.error {
        Some(message) => Err(unreadable(message)),
        None => Ok(hex(&visitor.hash.finalize()[..16])),
    }
}

struct Weights {
    hash: Sha256,
    error: Option<String>,
}

impl<B: Backend> ModuleVisitor<B> for Weights {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.error.is_some() {
            return;
        }
        match param.val().try_into_data() {
            Ok(data) => {
                self.hash.update(format!("{:?} {:?} ", data.shape, data.dtype));
                self.hash.update(data.as_bytes());
            }
            Err(error) => self.error = Some(error.to_string()),
        }
    }

    fn enter_module(&mut self, name: &str, _container: &str) {
        self.hash.update(name);
        self.hash.update("/");
    }
}
