//! Text generation about pictures, in either view.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use super::context::{Inputs, StepContext, View, Wanted};
use super::llava::Llava;
use crate::error::ModelError;
use crate::language::{GenerateOptions, Generated, KvCache};
use crate::pruner::Pruner;

impl<B: Backend> Llava<B> {
    /// Continues a prompt, token by token: `inputs` holds one sample, `each` sees every token as it comes and may stop there.
    ///
    /// # Errors
    /// [`ModelError`] if prompt, images, view and options do not fit together.
    pub fn generate(
        &self,
        inputs: &Inputs<'_, B>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        options: &GenerateOptions,
        each: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        options.validate()?;
        let ctx = StepContext { wanted: Wanted::Last, ..StepContext::inference(options.seed) };
        let mut cache = KvCache::new(self.language_model.layers.len());
        let selection = self.select(inputs, view, pruner, &ctx)?;
        let prompt = self.run(inputs, selection.as_ref(), view, &ctx, Some(&mut cache))?;
        let (model, lora) = (&self.language_model, self.lora.as_ref());
        Ok(model.continue_from(prompt.hidden, cache, lora, options, each))
    }

    /// Logits at every position of one prompt, images in their places: `[s, vocab]`.
    ///
    /// # Errors
    /// As [`Llava::generate`].
    pub fn logits(
        &self,
        inputs: &Inputs<'_, B>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let ctx = StepContext { wanted: Wanted::All, ..StepContext::inference(0) };
        let prompt = self.forward(inputs, view, pruner, &ctx)?;
        Ok(dualspeed_ops::linear(prompt.hidden, self.lm_head_weight(), None))
    }
}
