//! An objective with a term on hidden states: the full view is drawn to the fast view's.

use dualspeed::burn::tensor::FloatDType;
use dualspeed::prelude::*;

/// DualSpeed's objective, and on slow steps `weight * (1 - cos(student, teacher))` between the hidden states of the full view
/// and the fast view at each token that both predict.
#[derive(Debug)]
pub struct ViewGap {
    dualspeed: DualSpeedObjective,
    weight: f64,
}

impl ViewGap {
    /// From a specification; option `weight` (1).
    pub fn new(spec: &ObjectiveSpec) -> Result<Self, MakerError> {
        spec.options.expect(&["weight"])?;
        let weight = spec.options.number("weight")?.unwrap_or(1.0);
        Ok(Self { dualspeed: DualSpeedObjective { lambda: spec.lambda, tau: spec.tau }, weight })
    }
}

impl<B: Backend> Objective<B> for ViewGap {
    fn name(&self) -> &str {
        "view_gap"
    }

    fn needs_teacher(&self) -> bool {
        true
    }

    fn losses(&self, inputs: &ObjectiveInputs<'_, B>) -> Result<Losses<B>, ModelError> {
        let mut losses = self.dualspeed.losses(inputs)?;
        if let Some(views) = inputs.matched_hidden()? {
            let [student, teacher] = views.map(|hidden| hidden.cast(FloatDType::F32)); // [m, d]
            let tokens = student.dims()[0];
            let dot = |a: &Tensor<B, 2>, b: &Tensor<B, 2>| (a.clone() * b.clone()).sum_dim(1);
            let lengths = (dot(&student, &student) * dot(&teacher, &teacher)).sqrt(); // [m, 1]
            let cosine = dot(&student, &teacher) / lengths.add_scalar(1e-6);
            let sum = cosine.mul_scalar(-1.0).add_scalar(1.0).sum(); // [1]
            let (name, weight) = ("view_gap".to_owned(), self.weight);
            losses.parts.push(LossPart { name, sum, tokens, weight });
        }
        Ok(losses)
    }
}
