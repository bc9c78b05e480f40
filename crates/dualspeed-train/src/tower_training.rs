//! Training a vision tower on scenes made on the fly: patches learn names and colours, the class
//! token what is there.
//!
//! No scene is seen twice: step `s` renders scenes `s * batch ..` of the training split. CPU
//! threads render ahead of the device.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::Tensor;
use dualspeed_core::rng::hash_step;
use dualspeed_data::{
    Colour, DataError, HostImage, SceneConfig, SceneSource, Split, patch_colours, patch_labels,
    render,
};
use dualspeed_model::nn::params::trainable_parameters;
use dualspeed_model::vision::pretraining::{
    TowerConfig as TowerShape, TowerLoss, TowerLossWeights, TowerModel, TowerTargets,
};
use dualspeed_model::{ModelError, Precision, VitConfig, store};
use dualspeed_ops::{AutodiffBackend, Backend, to_f32};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::features::pixel_values;
use crate::lr_schedule::{Decay, WarmupSchedule};
use crate::metrics::progress_bar;
use crate::optim::{AdamW, GroupRates, GroupedAdamW};

/// What a tower's seed is drawn for, among all that is drawn from (seed, step).
const TOWER_PURPOSE: u64 = 2;

/// How a tower is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TowerConfig {
    /// Seed of weights and scenes.
    pub seed: u64,
    /// The tower; it needs a `projection_dim`.
    pub vision: VitConfig,
    /// What the scenes look like; `seed`, `split` and `image_size` are set by the training.
    pub scenes: SceneConfig,
    /// Weights of the losses.
    pub losses: TowerLossWeights,
    /// Optimiser steps.
    pub steps: u64,
    /// Scenes per step.
    pub batch: usize,
    /// Peak learning rate of AdamW.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Share of the steps in which the rate rises linearly; a cosine follows.
    pub warmup_ratio: f64,
    /// Steps between progress reports; each reads a few numbers back from the device.
    pub report_every: u64,
    /// Scenes of the validation split that the result is measured on.
    pub valid_scenes: usize,
}

impl Default for TowerConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            vision: VitConfig::default(),
            scenes: SceneConfig::default(),
            losses: TowerLossWeights::default(),
            steps: 20_000,
            batch: 128,
            lr: 1e-3,
            weight_decay: 0.05,
            warmup_ratio: 0.05,
            report_every: 100,
            valid_scenes: 1024,
        }
    }
}

impl TowerConfig {
    /// Tower and heads for the classes of the scenes.
    pub fn shape(&self) -> TowerShape {
        TowerShape {
            vision: self.vision.clone(),
            num_classes: self.scenes.classes,
            num_colours: Colour::ALL.len(),
        }
    }

    fn scenes(&self, split: Split) -> SceneConfig {
        let image_size = self.vision.image_size;
        let seed = hash_step(self.seed, 0, TOWER_PURPOSE);
        SceneConfig { image_size, seed, split, text_only: false, ..self.scenes.clone() }
    }
}

/// How well a tower does; shares in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TowerReport {
    /// Optimiser steps done.
    pub step: u64,
    /// The weighted loss.
    pub loss: f64,
    /// Patches named rightly, ground included.
    pub patch_accuracy: f64,
    /// Patches of objects named rightly.
    pub object_accuracy: f64,
    /// Of the k classes that the class token finds likeliest in a picture of k classes, those that
    /// are in it.
    pub cls_accuracy: f64,
    /// Object patches whose nearest name in the shared space is the right one.
    pub text_accuracy: f64,
    /// Seconds since the start.
    pub seconds: f64,
}

/// A trained tower.
pub struct TowerOutcome<B: Backend> {
    /// Tower and heads.
    pub model: TowerModel<B>,
    /// Measured on validation scenes.
    pub valid: TowerReport,
}

/// Trains a tower, prints its progress, and saves tower and heads as 16-bit safetensors to `out`.
///
/// # Errors
/// Bad config, scenes that cannot be made, a loss that is not a number, a file that cannot be
/// written.
pub fn train_tower<B: AutodiffBackend>(
    config: &TowerConfig,
    device: &B::Device,
    out: Option<&Path>,
    progress: bool,
) -> Result<TowerOutcome<B::InnerBackend>, TrainError> {
    let begin = Instant::now();
    let mut model = config.shape().init::<B>(device, config.seed).map_err(ModelError::from)?;
    let params = trainable_parameters::<B, _>(&model, "");
    let rates = GroupRates::uniform(config.lr);
    let constants = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: config.weight_decay };
    let mut optim = GroupedAdamW::<B>::new(constants, rates, 1.0, &params);
    let warmup = (config.warmup_ratio * config.steps as f64).ceil() as u64;
    let schedule = WarmupSchedule::new(config.lr, warmup, config.steps, Decay::Cosine);
    let batches = render_ahead(config, config.scenes(Split::Train), config.steps)?;
    let bar = progress_bar(config.steps, progress, "tower");
    for step in 0..config.steps {
        let batch = batches.recv().map_err(|_| TrainError::Thread { what: "rendering" })?;
        let loss = batch.loss(&model, config, device);
        let grads = GradientsParams::from_grads(loss.total.backward(), &model);
        model = Optimizer::<TowerModel<B>, B>::step(&mut optim, schedule.at(step), model, grads);
        bar.inc(1);
        if config.report_every > 0 && (step + 1) % config.report_every == 0 {
            let [loss, patch, object] = scalars(&loss);
            if !loss.is_finite() {
                let samples = vec![format!("scenes {}..", step * config.batch as u64)];
                return Err(TrainError::NonFiniteLoss { step, value: loss, samples });
            }
            let (seconds, done) = (begin.elapsed().as_secs_f64(), step + 1);
            let line = format!(
                "step {done} loss {loss:.4} patches {:.1} % objects {:.1} % ({:.1} scenes/s)",
                100.0 * patch,
                100.0 * object,
                done as f64 * config.batch as f64 / seconds
            );
            match progress {
                // Nobody need hear it: what counts is the tower.
                true => bar.suspend(|| drop(writeln!(std::io::stdout(), "{line}"))),
                false => tracing::info!("{line}"),
            }
        }
    }
    bar.finish_and_clear();
    let model = model.valid();
    let mut valid = evaluate_tower(&model, config, device)?;
    valid.step = config.steps;
    valid.seconds = begin.elapsed().as_secs_f64();
    if let Some(out) = out {
        store::save_file(&model, out, Precision::Half)?;
    }
    Ok(TowerOutcome { model, valid })
}

/// Measures a tower on the first `valid_scenes` scenes of the validation split.
///
/// # Errors
/// Scenes that cannot be made.
pub fn evaluate_tower<B: Backend>(
    model: &TowerModel<B>,
    config: &TowerConfig,
    device: &B::Device,
) -> Result<TowerReport, TrainError> {
    let scenes = config.scenes(Split::Validation);
    let steps = config.valid_scenes.div_ceil(config.batch.max(1)) as u64;
    let batches = render_ahead(config, scenes, steps)?;
    let mut sum = TowerReport::default();
    for _ in 0..steps {
        let batch = batches.recv().map_err(|_| TrainError::Thread { what: "rendering" })?;
        let [loss, patch, object] = scalars(&batch.loss(model, config, device));
        let [cls, text] = batch.cls_and_text(model, config.scenes.classes, device);
        sum.loss += loss;
        sum.patch_accuracy += patch;
        sum.object_accuracy += object;
        sum.cls_accuracy += cls;
        sum.text_accuracy += text;
    }
    let mean = |value: f64| value / steps.max(1) as f64;
    Ok(TowerReport {
        loss: mean(sum.loss),
        patch_accuracy: mean(sum.patch_accuracy),
        object_accuracy: mean(sum.object_accuracy),
        cls_accuracy: mean(sum.cls_accuracy),
        text_accuracy: mean(sum.text_accuracy),
        ..sum
    })
}

/// Pictures with what their patches show.
struct TowerBatch {
    images: Vec<Arc<HostImage>>,
    names: Vec<Vec<usize>>,
    colours: Vec<Vec<usize>>,
}

/// Renders `steps` batches on all CPU threads, up to four ahead.
fn render_ahead(
    config: &TowerConfig,
    scenes: SceneConfig,
    steps: u64,
) -> Result<Receiver<TowerBatch>, DataError> {
    let (batch, patch) = (config.batch.max(1), config.vision.patch_size);
    let source = SceneSource::new(scenes, usize::MAX)?;
    let (sender, receiver) = sync_channel(4);
    std::thread::spawn(move || {
        for step in 0..steps as usize {
            let made: Vec<_> = (step * batch..(step + 1) * batch)
                .into_par_iter()
                .map(|index| {
                    let scene = source.scene(index);
                    let image = Arc::new(source.processor().process(&render(&scene)));
                    (image, patch_labels(&scene, patch), patch_colours(&scene, patch))
                })
                .collect();
            let mut images = Vec::with_capacity(batch);
            let (mut names, mut colours) = (Vec::with_capacity(batch), Vec::with_capacity(batch));
            for (image, name, colour) in made {
                images.push(image);
                names.push(name);
                colours.push(colour);
            }
            // The receiver is gone when training stopped.
            if sender.send(TowerBatch { images, names, colours }).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

impl TowerBatch {
    fn loss<B: Backend>(
        &self,
        model: &TowerModel<B>,
        config: &TowerConfig,
        device: &B::Device,
    ) -> TowerLoss<B> {
        let targets = TowerTargets::new(&self.names, &self.colours, config.scenes.classes, device);
        model.loss(pixel_values(&self.images, device), &targets, config.losses)
    }

    /// Class-token precision at k, and the share of object patches nearest to their name.
    fn cls_and_text<B: Backend>(
        &self,
        model: &TowerModel<B>,
        classes: usize,
        device: &B::Device,
    ) -> [f64; 2] {
        let hidden = model.vision.hidden(pixel_values(&self.images, device));
        let [images, s, d] = hidden.selected.dims();
        let last = model.vision.post_layernorm.forward(hidden.last);
        let cls = last.narrow(1, 0, 1).reshape([images, d]);
        let logits = to_f32(model.heads.cls_labels.forward(cls));
        let (mut found, mut present) = (0, 0);
        for (logits, names) in logits.chunks(classes).zip(&self.names) {
            let mut shown: Vec<usize> =
                names.iter().filter_map(|name| name.checked_sub(1)).collect();
            shown.sort_unstable();
            shown.dedup();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            found += order.iter().take(shown.len()).filter(|class| shown.contains(class)).count();
            present += shown.len();
        }
        let patches = hidden.selected.narrow(1, 1, s - 1).reshape([images * (s - 1), d]);
        let Some(patches) = model.vision.project::<2>(patches) else {
            return [share(found, present), 0.0];
        };
        let nearest: Tensor<B, 2, burn::tensor::Int> =
            patches.matmul(model.text_features().transpose()).argmax(1);
        let nearest = nearest.into_data().iter::<i64>().collect::<Vec<_>>();
        let wanted = self.names.iter().flatten().map(|name| name.checked_sub(1));
        let objects = nearest.iter().zip(wanted).filter_map(|(found, name)| Some((*found, name?)));
        let (right, all) = objects.fold((0, 0), |(right, all), (found, name)| {
            (right + usize::from(found == name as i64), all + 1)
        });
        [share(found, present), share(right, all)]
    }
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Loss, patch accuracy and object accuracy in one read-back.
fn scalars<B: Backend>(loss: &TowerLoss<B>) -> [f64; 3] {
    let parts = vec![
        loss.total.clone().detach(),
        loss.patch_accuracy.clone(),
        loss.object_accuracy.clone(),
    ];
    let values = to_f32(Tensor::cat(parts, 0));
    let at = |index: usize| values.get(index).copied().map_or(f64::NAN, f64::from);
    [at(0), at(1), at(2)]
}
