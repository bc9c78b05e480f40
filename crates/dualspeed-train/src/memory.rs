//! What a run will need, before it starts, and what it recomputes to fit.

use std::fmt;

use dualspeed_data::{ExampleSource, OnError};
use dualspeed_model::Recompute;
use dualspeed_model::memory::{MemoryEstimate, Workload, estimate};
use dualspeed_ops::{Backend, Keep};

use crate::config::{RecomputeMode, TrainConfig};
use crate::error::TrainError;

/// How many samples, spread over the data, are looked at for the longest.
const LOOKED_AT: usize = 64;

const GIB: f64 = (1u64 << 30) as f64;

/// The memory of a training step.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// What a step is expected to take.
    pub estimate: MemoryEstimate,
    /// Bytes there are, where that is known.
    pub available: Option<u64>,
    /// What the decoder's blocks compute again.
    pub recompute: Option<Recompute>,
    /// What each block keeps at the expected length.
    pub blocks: Vec<Keep>,
    /// The longest of some samples, visual tokens included, padded.
    pub length: usize,
}

impl MemoryPlan {
    /// Plans the steps of `config` on `source`; `cached` says that the tower does not run in them.
    ///
    /// # Errors
    /// An unreadable sample.
    pub fn new<B: Backend>(
        config: &TrainConfig,
        source: &dyn ExampleSource,
        cached: bool,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let n = config.model.num_visual_tokens();
        let mut longest = 1;
        let looked_at = source.len().min(LOOKED_AT);
        for index in 0..looked_at {
            let example = match source.outline(index * source.len() / looked_at) {
                Ok(example) => example,
                Err(_) if config.data.on_error == OnError::Skip => continue,
                Err(error) => return Err(error.into()),
            };
            let text = example.input_ids.len().saturating_sub(example.image_count());
            longest = longest.max(text + example.visual_tokens(n));
        }
        let length = longest
            .next_multiple_of(config.model.pad_to_multiple.max(1))
            .min(config.model.max_length.unwrap_or(usize::MAX));
        let workload = Workload {
            batch: config.batch.size,
            length,
            images: if cached { 0 } else { config.batch.size },
            trainable: config.trainable(),
            frozen_bytes: config.model.dtype.bytes(),
            activation_bytes: config.model.dtype.bytes(),
        };
        let budget = config.memory.budget_gib.map(|gib| (gib * GIB) as u64);
        let available = budget.or_else(|| B::memory(device).map(|memory| memory.free));
        let recompute = match config.memory.recompute {
            RecomputeMode::Off => None,
            RecomputeMode::Products => Some(Recompute::Same(Keep::Products)),
            RecomputeMode::Attention => Some(Recompute::Same(Keep::Attention)),
            RecomputeMode::Input => Some(Recompute::Same(Keep::Input)),
            RecomputeMode::Auto => available.map(|bytes| {
                let fixed = estimate(&config.model, &workload, Some(Recompute::Within(0)));
                // A tenth is left for what is not counted: losses, workspaces, fragments.
                let left = (bytes / 10 * 9).saturating_sub(fixed.frozen + fixed.trained);
                Recompute::Within(left)
            }),
        };
        let rows = workload.batch * workload.length;
        let blocks = recompute.unwrap_or(Recompute::Same(Keep::All)).blocks(
            &config.model,
            rows,
            workload.activation_bytes,
        );
        let estimate = estimate(&config.model, &workload, recompute);
        Ok(Self { estimate, available, recompute, blocks, length })
    }

    /// Whether the estimate is above what there is.
    pub fn exceeds(&self) -> bool {
        self.available.is_some_and(|bytes| self.estimate.total() > bytes)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| match bytes as f64 / GIB {
            gib if gib < 1.0 => format!("{:.0} MiB", gib * 1024.0),
            gib => format!("{gib:.1} GiB"),
        };
        let MemoryEstimate { frozen, trained, blocks, working } = self.estimate;
        write!(f, "a step needs about {}", size(self.estimate.total()))?;
        if let Some(available) = self.available {
            write!(f, " of {}", size(available))?;
        }
        let [frozen, trained, blocks, working] = [frozen, trained, blocks, working].map(size);
        write!(
            f,
            " (frozen weights {frozen}, trained {trained}, kept activations {blocks}, working set {working}) \
             at {} tokens a sample",
            self.length
        )?;
        let again = self.blocks.iter().filter(|keep| **keep < Keep::Products).count();
        match again {
            0 => Ok(()),
            _ => write!(f, "; {again} of {} blocks computed twice", self.blocks.len()),
        }?;
        if self.exceeds() {
            let advice = "lower batch.size (and raise batch.accumulation), or model.max_length";
            write!(f, "; it may not fit: set memory.recompute = \"input\", {advice}")?;
        }
        Ok(())
    }
}
