//! Pruners against the clock, beside the tower that makes their input.

use burn::tensor::{Tensor, TensorData};
use dualspeed_core::rng::SplitMix;
use dualspeed_model::vision::features::{
    CLS_ATTENTION, CLS_HIDDEN, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, PATCH_TEXT,
};
use dualspeed_model::{
    Dtype, LlavaConfig, Needs, PruneContext, PrunerSpec, QuestionTokens, Registry, TextFeatures,
    VisionFeatures, VisionTower, VisualTokens, VitConfig, select,
};
use dualspeed_ops::Backend;

use super::filter::Filter;
use super::model_size::ModelSize;
use super::random_model::random_tower;
use super::rows::{PruneRow, Row, Sink};
use super::suite::Suite;
use super::timing::{Timing, time_few_runs};
use crate::embedded_tower;

/// Share of the tokens that is kept by default.
pub const KEEP_RATIO: f64 = 0.1;
/// A measurement ends after this many runs, or as many seconds.
const RUNS: usize = 5;
const SECONDS: f64 = 3.0;

/// The shapes at which pruners are measured.
#[derive(Clone, Debug)]
pub struct PruneShapes {
    /// Width of projected tokens: the decoder's.
    pub width: usize,
    /// Width of the vision tower's hidden states.
    pub hidden: usize,
    /// Tokens per image and images per batch: all pruners at [`KEEP_RATIO`], the tower, the product of all pairs.
    pub cells: Vec<(usize, usize)>,
    /// Tokens of one image: all pruners at [`KEEP_RATIO`].
    pub sizes: Vec<usize>,
    /// Shares kept of one image of the first cell's tokens.
    pub shares: Vec<f64>,
    /// The count to keep instead of the share [`KEEP_RATIO`], where there are more tokens.
    pub keep: Option<usize>,
    /// The tower beside which they stand, and its name; an image is made of tiles of this tower.
    pub tower: (String, VitConfig),
}

impl PruneShapes {
    /// The shapes of `dualspeed prune --bench`: 576 and 2880 tokens in batches of 1 and 16, on a CPU's scale of width.
    pub fn standard() -> Self {
        let tower = VitConfig { image_size: 336, ..embedded_tower::config().vision };
        Self {
            width: 512,
            hidden: 512,
            cells: vec![(576, 1), (576, 16), (2880, 1), (2880, 16)],
            sizes: vec![144, 576, 1152, 2880],
            shares: vec![0.05, 0.1, 0.25, 0.5],
            keep: None,
            tower: ("embedded tower at 336 px".into(), tower),
        }
    }

    /// The shapes of a model, images of one tile and of several.
    pub fn of(size: ModelSize, config: &LlavaConfig) -> Self {
        let n = config.num_visual_tokens();
        let tiny = size == ModelSize::Tiny;
        let (batch, tiles) = if tiny { (2, 2) } else { (16, 5) };
        Self {
            width: config.text.hidden_size,
            hidden: config.vision.geometry().hidden_size,
            cells: vec![(n, 1), (n, batch), (tiles * n, 1), (tiles * n, batch)],
            sizes: Vec::new(),
            shares: if tiny { Vec::new() } else { vec![0.25] },
            keep: None,
            tower: ("tower".into(), size.vision()),
        }
    }

    /// How many of `n` tokens are kept where the share is `share`.
    pub fn keep_of(&self, n: usize, share: f64) -> usize {
        let fixed = self.keep.filter(|keep| *keep < n && share == KEEP_RATIO);
        fixed.unwrap_or((n as f64 * share) as usize).max(1)
    }
}

/// Times the pruners of `specs`, the tower and the product of all pairs at all shapes, where `filter` chooses them.
///
/// # Errors
/// A pruner that is not known, a filter that fits nothing, or whatever `sink` reports.
pub fn run<B: Backend>(
    registry: &Registry<B>,
    specs: &[PrunerSpec],
    shapes: &PruneShapes,
    filter: &Filter,
    device: &B::Device,
    sink: Sink<'_>,
) -> anyhow::Result<()> {
    let (rows, left_out) = (0, Vec::new());
    let mut bench = PruneBench { registry, specs, shapes, filter, device, sink, rows, left_out };
    for (n, batch) in &shapes.cells {
        bench.everything(*n, *batch)?;
    }
    for n in &shapes.sizes {
        if !shapes.cells.contains(&(*n, 1)) {
            bench.pruners(*n, 1, shapes.keep_of(*n, KEEP_RATIO))?;
        }
    }
    let n = shapes.cells.first().map_or(1, |cell| cell.0);
    for share in &shapes.shares {
        if *share != KEEP_RATIO {
            bench.pruners(n, 1, shapes.keep_of(n, *share))?;
        }
    }
    let known: Vec<&str> = bench.left_out.iter().map(String::as_str).collect();
    filter.ensure_some(bench.rows, Suite::Prune, &known)
}

struct PruneBench<'a, B: Backend> {
    registry: &'a Registry<B>,
    specs: &'a [PrunerSpec],
    shapes: &'a PruneShapes,
    filter: &'a Filter,
    device: &'a B::Device,
    sink: Sink<'a>,
    rows: usize,
    left_out: Vec<String>,
}

impl<B: Backend> PruneBench<'_, B> {
    /// Times all pruners, the tower, and the product of all pairs on `batch` images of `n` tokens.
    fn everything(&mut self, n: usize, batch: usize) -> anyhow::Result<()> {
        let keep = self.shapes.keep_of(n, KEEP_RATIO);
        self.pruners(n, batch, keep)?;
        let width = self.shapes.width;
        let unit = random::<B>([batch, n, width], 1, self.device);
        let product = || {
            for image in 0..batch {
                let x = unit.clone().narrow(0, image, 1).reshape([n, width]);
                let gram = dualspeed_ops::linear(x.clone(), x.transpose(), None);
                wait(gram.narrow(0, 0, 1).narrow(1, 0, 1));
            }
        };
        self.time("product of all pairs alone", n, batch, keep, || {
            Some(time_few_runs(RUNS, SECONDS, product))
        })?;
        let (name, vision) = &self.shapes.tower;
        let tiles = batch * n / vision.num_patches();
        let (side, width) = (vision.image_size, vision.hidden_size);
        let vit = random_tower::<B>(vision, Dtype::Float32, self.device);
        let pixels = random::<B>([tiles * 3, side, side], 2, self.device);
        let pixels = pixels.reshape([tiles, 3, side, side]);
        let forward = || {
            let features = vit.features(pixels.clone(), &Needs::none());
            wait(features.hidden().narrow(0, 0, 1).narrow(1, 0, 1).reshape([1, width]));
        };
        self.time(name, n, batch, keep, || Some(time_few_runs(RUNS, SECONDS, forward)))
    }

    /// Times all pruners on `batch` images of `n` tokens.
    fn pruners(&mut self, n: usize, batch: usize, keep: usize) -> anyhow::Result<()> {
        let visual = random_visual_tokens::<B>(batch, n, self.shapes, self.device);
        let ctx = PruneContext {
            images: (0..batch).map(|image| (format!("image-{image}"), 0)).collect(),
            prompts: vec![String::new(); batch],
            ..Default::default()
        };
        for spec in self.specs {
            let pruner = self.registry.build(spec)?;
            if pruner.layer_drop(keep).is_some() {
                continue;
            }
            // Pooling cannot make every count.
            self.time(&spec.to_string(), n, batch, keep, || {
                select(&*pruner, &visual, keep, &ctx).is_ok().then(|| {
                    time_few_runs(RUNS, SECONDS, || {
                        if let Ok(kept) = select(&*pruner, &visual, keep, &ctx) {
                            let tokens = kept.apply_to(visual.projected.clone());
                            let width = tokens.dims()[2];
                            wait(tokens.narrow(0, 0, 1).narrow(1, 0, 1).reshape([1, width]));
                        }
                    })
                })
            })?;
        }
        Ok(())
    }

    fn time(
        &mut self,
        pruner: &str,
        tokens: usize,
        batch: usize,
        keep: usize,
        run: impl FnOnce() -> Option<Timing>,
    ) -> anyhow::Result<()> {
        let width = self.shapes.width;
        let name = format!("prune {pruner} {batch}x{tokens}x{width} -> {keep}");
        if !self.filter.wants(&name) {
            self.left_out.push(name);
            return Ok(());
        }
        let timing = run();
        self.rows += 1;
        (self.sink)(Row::Prune(PruneRow {
            name,
            pruner: pruner.to_owned(),
            tokens,
            batch,
            keep,
            ms: timing.map(|timing| timing.ms),
            spread_ms: timing.map(|timing| timing.spread_ms),
        }))
    }
}

/// Reads a value back, so that an asynchronous device has done its work.
fn wait<B: Backend>(x: Tensor<B, 2>) {
    let _ = x.into_data();
}

/// Standard normal values, the same for the same seed.
fn random<B: Backend>(shape: [usize; 3], seed: u64, device: &B::Device) -> Tensor<B, 3> {
    let mut rng = SplitMix::new(&[seed]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Random visual tokens with everything a pruner may ask for.
fn random_visual_tokens<B: Backend>(
    batch: usize,
    n: usize,
    shapes: &PruneShapes,
    device: &B::Device,
) -> VisualTokens<B> {
    let (width, hidden) = (shapes.width, shapes.hidden);
    let random = |shape, seed| random::<B>(shape, seed, device);
    let unit = |x: Tensor<B, 3>| x.clone() / (x.clone() * x).sum_dim(2).sqrt();
    let features = VisionFeatures::new(random([batch, n, hidden], 17))
        .with(CLS_ATTENTION, random([batch, n, 8], 11).abs())
        .with(KEYS, random([batch, n, 64], 12))
        .with(PATCH_TEXT, unit(random([batch, n, 64], 13)))
        .with(CLS_HIDDEN, random([batch, 1, hidden], 14))
        .with(LAST_CLS_ATTENTION, random([batch, n, 1], 15).abs())
        .with(LAST_KEYS, random([batch, n, hidden], 16));
    VisualTokens {
        text: Some(TextFeatures {
            vectors: unit(random([batch, 2, 64], 18)),
            lengths: vec![2; batch],
            inverted: false,
        }),
        question: Some(QuestionTokens {
            embeds: random([batch, 12, width], 19),
            lengths: vec![12; batch],
        }),
        ..VisualTokens::new(random([batch, n, width], 20), features)
    }
}
