//! One training run from start, or checkpoint, to end: checks, wiring into Burn's
//! `SupervisedTraining`, outcome.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::AutodiffModule;
use burn_train::{Learner, SupervisedTraining, TrainingStrategy};
use dualspeed_data::ExampleSource;
use dualspeed_model::nn::params::trainable_parameters;
use dualspeed_model::{Llava, Needs, ParamInfo};
use dualspeed_ops::{AutodiffBackend, Backend};

use crate::checkpoint::{
    self, CheckpointState, Checkpoints, Contents, HostTensor, Loaded, run_and_step,
};
use crate::config::{TrainConfig, invalid};
use crate::dataloader::{TrainLoader, ValidLoader};
use crate::disk;
use crate::doors::Doors;
use crate::error::TrainError;
use crate::error_slot::ErrorSlot;
use crate::features::{FeatureCache, FeatureWork, configured};
use crate::loader::WindowPlan;
use crate::lock::RunLock;
use crate::memory::MemoryPlan;
use crate::metrics::{
    NoMetricLogger, Progress, ProgressBarRenderer, RunMetrics, StepMetric, TimeSplit, Totals,
    step_metrics,
};
use crate::mode::LaggedSchedule;
use crate::optim::{GroupedAdamW, HostMoments, Moments};
use crate::origins::Origins;
use crate::resume::{Resumed, first_sampler};
use crate::run_dir;
use crate::samples::{SampleCheck, sequence_limits};
use crate::state::import_trainables;
use crate::step::{DualSpeedModel, TrainRuntime, ValidRuntime};
use crate::strategy::{Begin, DualSpeedStrategy, Reached};

/// Everything a run needs. [`TrainJob::new`] fills in what is usual.
pub struct TrainJob<B: AutodiffBackend> {
    /// The config.
    pub config: TrainConfig,
    /// The model; the stage decides what of it is trained.
    pub model: Llava<B>,
    /// The training data.
    pub train: Arc<dyn ExampleSource>,
    /// The validation data, used when `validation.every` is set.
    pub valid: Option<Arc<dyn ExampleSource>>,
    /// Features of the training (and validation) images; without them `data.features` of the config decides.
    pub features: Option<Arc<FeatureCache>>,
    /// Features of the validation images, where they are cached apart.
    pub valid_features: Option<Arc<FeatureCache>>,
    /// Where config, metrics and checkpoints go.
    pub run_dir: PathBuf,
    /// Continue from the newest checkpoint of `run_dir`.
    pub resume: bool,
    /// Replace an earlier run in `run_dir`.
    pub overwrite: bool,
    /// What is shown.
    pub progress: Progress,
    /// Whether checkpoints are written; a benchmark needs none.
    pub save: bool,
    /// What the model's weights came from, by content; tokenizers and data are added to it.
    pub origins: Origins,
    /// Set it to end the run after the current micro-batch or step, with a checkpoint of the steps that are whole; reads that
    /// hang, validation and the computation of features are given up.
    pub interrupt: Arc<AtomicBool>,
    /// Is set once a step is done: until then there is nothing that ending the program at once would lose, and reads that hang
    /// may keep the run from looking at `interrupt`.
    pub begun: Arc<AtomicBool>,
    /// What the config may name.
    pub doors: Doors<B>,
}

impl<B: AutodiffBackend> TrainJob<B> {
    /// A fresh, silent run without validation, with what these crates bring themselves.
    pub fn new(
        config: TrainConfig,
        model: Llava<B>,
        train: Arc<dyn ExampleSource>,
        run_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            config,
            model,
            train,
            valid: None,
            features: None,
            valid_features: None,
            run_dir: run_dir.into(),
            resume: false,
            overwrite: false,
            progress: Progress::Silent,
            save: true,
            origins: Origins::default(),
            interrupt: Arc::new(AtomicBool::new(false)),
            begun: Arc::new(AtomicBool::new(false)),
            doors: Doors::default(),
        }
    }
}

/// What a run made.
pub struct TrainOutcome<B: AutodiffBackend> {
    /// The trained model.
    pub model: Llava<B::InnerBackend>,
    /// Optimiser steps done, those before a resume included.
    pub steps: u64,
    /// Seconds of training steps, those before a resume included.
    pub train_seconds: f64,
    /// Their parts.
    pub time: TimeSplit,
    /// All sums.
    pub totals: Totals,
    /// What a step was expected to need.
    pub memory: MemoryPlan,
    /// Whether the run ended early because it was told to; its checkpoint is written.
    pub interrupted: bool,
}

/// Trains.
///
/// # Errors
/// Bad config, a run directory in use or without room, a foreign or damaged checkpoint: nothing is written then, and an earlier
/// run in the directory is as it was. [`TrainError::Ended`] once a step is done: unreadable samples, too many steps in a row
/// that are skipped, a device that fails, a disk that is full. What was done is saved first where it can be, and says where.
pub fn train<B: AutodiffBackend>(job: TrainJob<B>) -> Result<TrainOutcome<B>, TrainError> {
    job.config.validate()?;
    // What is left to the stage is decided here, once: the run uses, records and compares what it wrote down.
    let config = job.config.effective();
    if job.train.is_empty() {
        return Err(TrainError::EmptySource { what: "train".into() });
    }
    // Before the run directory: a misspelt name must not cost an earlier run its place.
    let doors = &job.doors;
    let pruner = doors.pruners.build(&config.pruner())?;
    let spec = config.objective();
    let objective = doors.objectives.build(&spec.name, &spec)?;
    let valid_objective = doors.valid_objectives.build(&spec.name, &spec)?;
    let spec = config.schedule();
    let mut modes = LaggedSchedule::new(doors.schedules.build(&spec.name, &spec)?, config.mode.lag);
    let run_metrics = RunMetrics::build(&config.metrics, &doors.metrics)?;
    let checkpoints = Checkpoints::new(&job.run_dir, config.checkpoint.keep);
    let fingerprint = job.train.fingerprint();
    let origins = job.origins.with_tokenizers(&config)?;
    let samples_check = SampleCheck::new(&config, sequence_limits(&config, &*pruner));
    let valid_check = samples_check.clone().full_view();
    // Until the end: nobody else writes here.
    let _lock = RunLock::take(&job.run_dir)?;
    let mut resumed = if job.resume {
        Some(Resumed::open(&job.run_dir, &checkpoints, &config, &*job.train, &origins)?)
    } else {
        run_dir::check(&job.run_dir, job.overwrite)?;
        None
    };

    if config.train_vision_tower && (job.features.is_some() || job.valid_features.is_some()) {
        let problem = "features were given that a frozen tower made";
        let advice = "leave them out, or leave the tower frozen";
        return Err(invalid("train_vision_tower", true, problem, advice).into());
    }
    let mut llava = job.model.with_trainable(config.trainable())?.store_frozen()?;
    let device = llava.language_model.embed_tokens.weight.device();
    let params = trainable_parameters::<B, _>(&llava, "");
    if params.is_empty() {
        return Err(TrainError::NothingToTrain {
            stage: config.stage.name().into(),
            advice: "every parameter of the model is frozen; use stage single, or a model that is not wrapped".into(),
        });
    }
    // A parameter and its two moments, in f32.
    let checkpoint = params.iter().map(|param| 12 * param.shape.iter().product::<usize>() as u64);
    let checkpoint = if job.save { checkpoint.sum() } else { 0 };
    let keep = config.checkpoint.keep + config.checkpoint.keep_best;
    disk::probe(&job.run_dir, checkpoint, keep)?;
    let rates = config.group_rates();
    let optim = GroupedAdamW::<B>::new(config.adamw(), rates, config.optim.max_grad_norm, &params);
    let mut start = Reached::default();
    if let Some(Loaded { path, state, tensors, .. }) = resumed.as_mut().map(|it| &mut it.loaded) {
        let bad = |problem: String| TrainError::BadCheckpoint { path: path.clone(), problem };
        // Their memory is the run's from here on.
        let tensors = std::mem::take(tensors);
        llava = import_trainables(llava, &tensors).map_err(&bad)?;
        restore_optimiser(&optim, &params, state, tensors, &device).map_err(&bad)?;
        modes.restore(&state.schedule).map_err(&bad)?;
        start = Reached { step: state.step, totals: state.totals, interrupted: false };
    }

    // The same data within the same limits was checked when the run began.
    if !job.resume {
        let shown = job.progress == Progress::Bar;
        samples_check.whole("data.train", &*job.train, &job.interrupt, shown)?;
        if let Some(valid) = job.valid.as_ref().filter(|_| config.validation.every > 0) {
            valid_check.whole("data.valid", &**valid, &job.interrupt, shown)?;
        }
    }
    let samples = job
        .valid
        .as_ref()
        .map_or(0, |valid| config.validation.samples.unwrap_or(usize::MAX).min(valid.len()));
    let (mut features, mut valid_features, mut valid) =
        (job.features, job.valid_features, job.valid);
    if features.is_none() {
        // With the weights as they are stored for this run.
        let tower = llava.vision_tower.valid();
        let section = &config.data.features;
        let work = |needs, samples| FeatureWork {
            needs,
            batch: config.batch.size,
            samples,
            progress: job.progress == Progress::Bar,
            interrupt: Some(&*job.interrupt),
            on_error: config.data.on_error,
        };
        let needs = work(pruner.needs(), usize::MAX);
        features = configured(section, &*tower, &job.train, needs, &device)?.map(Arc::new);
        if let Some(source) = valid.as_ref().filter(|_| config.validation.every > 0)
            && valid_features.is_none()
        {
            let needs = work(Needs::none(), samples);
            valid_features = configured(section, &*tower, source, needs, &device)?.map(Arc::new);
            if let Some(cache) = &valid_features {
                valid = Some(cache.source());
            }
        }
    }
    // Examples without pixels are free to read; the cache has them when it was computed from this
    // data.
    let source = match &features {
        Some(cache) if cache.source().fingerprint() == fingerprint => cache.source(),
        _ => job.train.clone(),
    };
    let (sampler, begin) = match &resumed {
        Some(resumed) => (resumed.sampler(&*source, &config), None),
        None => {
            let (sampler, records) = first_sampler(&*job.train, &*source, &config);
            let origins = origins.with_data(&*job.train, valid.as_deref());
            let (dir, config, overwrite) = (job.run_dir.clone(), config.clone(), job.overwrite);
            let begin: Begin = Box::new(move || {
                run_dir::create(&dir, overwrite, &config, &origins)?;
                records.map_or(Ok(()), |records| records.write(&dir))
            });
            (sampler, Some(begin))
        }
    };
    let total_steps = config.total_steps(sampler.steps_per_epoch());
    // What loading and rounding the weights, and the tower, left behind.
    B::memory_cleanup(&device);
    let synced = B::sync(&device);
    synced.map_err(|e| TrainError::Device { what: "the weights", message: e.to_string() })?;
    let memory = MemoryPlan::new::<B>(&config, &*source, features.is_some(), &device)?;
    if memory.exceeds() {
        tracing::warn!("{memory}");
    }
    let errors = ErrorSlot::default();
    let inner_device = device.clone();
    let strategy_device = device.clone();
    let runtime = Arc::new(TrainRuntime {
        pruner,
        objective,
        config: config.clone(),
        features: features.clone(),
        recompute: memory.recompute,
        device,
        errors: errors.clone(),
    });
    let valid_runtime = Arc::new(ValidRuntime {
        objective: valid_objective,
        features: valid_features.or(features),
        device: inner_device,
        errors: errors.clone(),
    });
    let train_loader = TrainLoader {
        plan: WindowPlan {
            source,
            sampler: Arc::new(sampler),
            micro_batch: config.batch.size,
            samples: samples_check,
        },
        steps: start.step..total_steps,
        workers: config.data.worker_count(),
        stop: job.interrupt.clone(),
        runtime,
    };
    let valid_loader = ValidLoader {
        source: valid,
        range: 0..samples,
        batch: config.batch.size,
        samples: valid_check,
        stop: job.interrupt.clone(),
        runtime: valid_runtime,
    };
    let lr_schedule = config.lr_schedule(total_steps).starting_at(start.step);
    let learner = Learner::new(DualSpeedModel { llava }, optim.clone(), lr_schedule.clone());
    let label = format!("train {}", config.stage.name());
    let strategy = Arc::new(DualSpeedStrategy {
        config,
        // As the run began with it.
        data_fingerprint: resumed.map_or(fingerprint, |resumed| resumed.loaded.state.data),
        optim,
        params,
        rates,
        lr_schedule,
        modes: Mutex::new(modes),
        metrics: run_metrics.clone(),
        checkpoints,
        run_dir: job.run_dir.clone(),
        begin: Mutex::new(begin),
        device: strategy_device,
        save: job.save,
        start,
        total_steps,
        interrupt: job.interrupt,
        begun: job.begun,
        errors: errors.clone(),
        reached: Mutex::new(start),
    });
    let mut training =
        SupervisedTraining::new(&job.run_dir, Arc::new(train_loader), Arc::new(valid_loader))
            .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
            .with_application_logger(None)
            .with_metric_logger(NoMetricLogger);
    for metric in step_metrics().into_iter().chain(run_metrics.iter().cloned().map(StepMetric::new))
    {
        training = training.metric_train_numeric(metric);
    }
    if job.progress != Progress::Tui || cfg!(not(feature = "tui")) {
        let shown = job.progress != Progress::Silent;
        training = training.renderer(ProgressBarRenderer::new(total_steps, shown, &label));
    }
    let result = training.launch(learner);
    if let Some(error) = errors.take() {
        return Err(error);
    }
    let reached = *strategy.reached.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(TrainOutcome {
        model: result.model.llava,
        steps: reached.step,
        train_seconds: reached.totals.train_seconds,
        time: reached.totals.time,
        totals: reached.totals,
        memory,
        interrupted: reached.interrupted,
    })
}

/// Puts the moments of a checkpoint back, by path.
fn restore_optimiser<B: AutodiffBackend>(
    optim: &GroupedAdamW<B>,
    params: &[ParamInfo],
    state: &CheckpointState,
    mut tensors: std::collections::BTreeMap<String, HostTensor>,
    device: &B::Device,
) -> Result<(), String> {
    let by_path: HashMap<&str, &ParamInfo> =
        params.iter().map(|param| (param.path.as_str(), param)).collect();
    let mut optim_state = optim.state();
    for (path, updates) in &state.updates {
        let Some(param) = by_path.get(path.as_str()) else {
            return Err(format!("the model has no trainable parameter `{path}`"));
        };
        let mut take = |kind: &str| {
            let name = format!("optim.{kind}.{path}");
            let tensor = tensors.remove(&name).ok_or(format!("`{name}` is missing"))?;
            if tensor.shape != param.shape {
                return Err(format!(
                    "`{name}` has shape {:?}, expected {:?}",
                    tensor.shape, param.shape
                ));
            }
            Ok(tensor.values)
        };
        let host = HostMoments { updates: *updates, m: take("m")?, v: take("v")? };
        optim_state.moments.insert(param.id, Moments::from_host(host, optim.on_host(), device));
    }
    Ok(())
}

/// The model of a run directory, or of one checkpoint in it: `model` with the trainable parameters of the newest whole
/// checkpoint, or of that one, and its step.
///
/// # Errors
/// `NoCheckpoint`, `NoWholeCheckpoint`, `CheckpointFormat` when another version wrote it, or `BadCheckpoint` when it does not fit
/// the model, or the one that was asked for is damaged.
pub fn load_trained<B: Backend>(
    model: Llava<B>,
    dir: &Path,
) -> Result<(Llava<B>, u64), TrainError> {
    let (path, state, tensors) = match run_and_step(dir) {
        Some(_) => {
            let (state, tensors) = checkpoint::load(dir, Contents::Model)?;
            (dir.to_owned(), state, tensors)
        }
        None => {
            let latest = Checkpoints::new(dir, 1).load_latest(Contents::Model)?;
            (latest.path, latest.state, latest.tensors)
        }
    };
    let model = import_trainables(model, &tensors)
        .map_err(|problem| TrainError::BadCheckpoint { path, problem })?;
    Ok((model, state.step))
}
