//! The training loop, as a strategy of Burn's `SupervisedTraining`.
//!
//! Burn's own strategies step the learning rate per micro-batch, sum accumulated gradients and drop
//! the last partial window. Here a step is a window: one mode, one learning rate, one update by the
//! mean gradient over all supervised tokens of the window, one read-back of a few scalars, one
//! record. A GPU is given a step before the numbers of the one before have come back, so it does not
//! wait for the host in between.
//!
//! | module | concept |
//! |---|---|
//! | `run` | the loop over steps |
//! | `record` | what a step reports |
//! | `keep` | checkpoints, also after an error, and validation |

mod keep;
mod record;
mod run;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use burn_train::{
    Learner, LearningComponentsMarker, SupervisedLearningStrategy,
    SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, ValidLoader,
};
use dualspeed_model::ParamInfo;
use dualspeed_ops::AutodiffBackend;

use self::run::Run;
use crate::checkpoint::Checkpoints;
use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::error_slot::ErrorSlot;
use crate::lr_schedule::WarmupSchedule;
use crate::metrics::{RunMetrics, Totals};
use crate::mode::LaggedSchedule;
use crate::optim::{GroupRates, GroupedAdamW};
use crate::step::DualSpeedModel;

/// The types of a DualSpeed training in Burn's terms.
pub type Components<B> =
    LearningComponentsMarker<B, WarmupSchedule, DualSpeedModel<B>, GroupedAdamW<B>>;

/// Makes a run directory a run's: an earlier run in it makes room.
pub(crate) type Begin = Box<dyn FnOnce() -> Result<(), TrainError> + Send>;

/// How far a run came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reached {
    pub(crate) step: u64,
    pub(crate) totals: Totals,
    pub(crate) interrupted: bool,
}

/// DualSpeed's training loop for `TrainingStrategy::Custom`.
pub struct DualSpeedStrategy<B: AutodiffBackend> {
    pub(crate) config: TrainConfig,
    pub(crate) data_fingerprint: String,
    pub(crate) optim: GroupedAdamW<B>,
    /// The parameters that take gradients.
    pub(crate) params: Vec<ParamInfo>,
    pub(crate) rates: GroupRates,
    pub(crate) lr_schedule: WarmupSchedule,
    pub(crate) modes: Mutex<LaggedSchedule>,
    pub(crate) metrics: RunMetrics,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) run_dir: PathBuf,
    /// Makes the run directory this run's, once its first step is done; `None` where it is already.
    pub(crate) begin: Mutex<Option<Begin>>,
    pub(crate) device: B::Device,
    pub(crate) save: bool,
    pub(crate) start: Reached,
    pub(crate) total_steps: u64,
    pub(crate) interrupt: Arc<AtomicBool>,
    /// Set once a step is done.
    pub(crate) begun: Arc<AtomicBool>,
    pub(crate) errors: ErrorSlot,
    pub(crate) reached: Mutex<Reached>,
}

impl<B: AutodiffBackend> SupervisedLearningStrategy<Components<B>> for DualSpeedStrategy<B> {
    fn fit(
        &self,
        components: TrainingComponents<Components<B>>,
        learner: Learner<Components<B>>,
        train: TrainLoader<Components<B>>,
        valid: ValidLoader<Components<B>>,
        _starting_epoch: usize,
    ) -> (DualSpeedModel<B>, SupervisedTrainingEventProcessor<Components<B>>) {
        let mut processor = components.event_processor;
        // The loop takes the model out of the Learner, whose own optimiser step has no room for the count to divide by.
        let model = learner.model();
        drop(learner);
        let modes = &mut self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = Run::new(self, model, modes, &valid, &mut processor, &components.interrupter);
        let mut batches = train.iter();
        let steps = catch_unwind(AssertUnwindSafe(|| run.steps(&mut *batches)));
        let steps = steps.unwrap_or_else(|panic| Err(TrainError::from_panic(&*panic)));
        if let Err(error) = steps {
            self.errors.set(run.rescue(error));
        }
        let model = run.into_model();
        (model, processor)
    }
}
