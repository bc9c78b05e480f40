//! Pruners on given features, for checking against any other implementation.

use std::path::Path;

use anyhow::Context;
use burn::tensor::{Tensor, TensorData};
use dualspeed_model::vision::features::{
    CLS_ATTENTION, CLS_HIDDEN, HIDDEN, LAST_CLS_ATTENTION, QUESTION, TEXT,
};
use dualspeed_model::{
    PruneContext, Pruner, QuestionTokens, Registry, TextFeatures, Tiles, VisionFeatures,
    VisualTokens, select,
};
use dualspeed_ops::Backend;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::PruneArgs;
use crate::commands::pruner_specs::parse_pruner_specs;
use crate::output::print_line;

/// Runs the pruners of `--pruner` on the features in the safetensors file `path`, and prints what they keep.
pub(super) fn run<B: Backend>(
    args: &PruneArgs,
    path: &Path,
    registry: &Registry<B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let keep = args.keep.context("give --keep")?;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file =
        FeaturesFile::open(&bytes).with_context(|| format!("cannot use {}", path.display()))?;
    let visual = file.visual_tokens::<B>(device)?;
    let tiles = visual.features.len();
    let images = visual.tiles.as_ref().map_or(tiles, |tiles| tiles.per_image.len());
    let ctx = PruneContext {
        seed: args.seed,
        images: (0..images).map(|image| (format!("image-{image}"), 0)).collect(),
        prompts: vec![args.prompt.clone(); images],
        verify: true,
        ..Default::default()
    };
    let mut report = Map::new();
    for spec in parse_pruner_specs(&args.pruner, registry)? {
        let pruner = registry.build(&spec)?;
        let kept = prune(&*pruner, &visual, keep, &ctx);
        let kept = kept.with_context(|| format!("pruner {spec}"))?;
        if !args.json {
            print_line(format_args!("{spec}: {kept}"))?;
        }
        report.insert(spec.to_string(), kept);
    }
    if args.json {
        print_line(serde_json::to_string_pretty(&Value::Object(report))?)?;
    }
    Ok(())
}

/// Kept indices per image, or the merged tokens where there are none.
fn prune<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> anyhow::Result<Value> {
    let kept = select(pruner, visual, keep, ctx)?;
    let n = visual.features.num_tokens();
    kept.verify(pruner.name(), n)?;
    if let Some(indices) = kept.kept(n) {
        return Ok(json!({ "indices": indices }));
    }
    let before_projector = kept.is_before_projector();
    let tokens = match before_projector {
        true => kept.apply_to_features(&visual.features),
        false => kept.apply_to(visual.projected.clone()),
    };
    let [_, most, d] = tokens.dims();
    let values: Vec<f32> = tokens.into_data().iter::<f32>().collect();
    let images = values.chunks(most * d).zip(kept.lengths());
    let images: Vec<Vec<&[f32]>> =
        images.map(|(image, length)| image.chunks(d).take(*length).collect()).collect();
    Ok(json!({ "merged": images, "before_projector": before_projector }))
}

/// What in a file of features is none of a vision tower's.
const NOT_FEATURES: [&str; 6] = ["projected", HIDDEN, TEXT, QUESTION, "valid", "tiles_per_image"];

/// A safetensors file of visual features.
struct FeaturesFile<'a> {
    tensors: SafeTensors<'a>,
    plain_text: bool,
}

impl<'a> FeaturesFile<'a> {
    fn open(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let plain_text = metadata.get("text_space").is_some_and(|space| space == "plain");
        Ok(Self { tensors: SafeTensors::deserialize(bytes)?, plain_text })
    }

    /// Values and shape of a tensor, whatever its dtype.
    fn values(&self, name: &str) -> anyhow::Result<Option<(Vec<f32>, Vec<usize>)>> {
        let Ok(view) = self.tensors.tensor(name) else { return Ok(None) };
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => decode(data, f32::from_le_bytes),
            Dtype::F64 => decode(data, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::F16 => decode(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => decode(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::I64 => decode(data, |bytes| i64::from_le_bytes(bytes) as f32),
            Dtype::I32 => decode(data, |bytes| i32::from_le_bytes(bytes) as f32),
            Dtype::U8 | Dtype::BOOL => data.iter().map(|byte| f32::from(*byte)).collect(),
            other => anyhow::bail!("{name} is {other:?}; store it as a 32-bit float"),
        };
        Ok(Some((values, view.shape().to_vec())))
    }

    /// A tensor of three dimensions, or of two with the middle one missing.
    fn tensor<B: Backend>(
        &self,
        name: &str,
        device: &B::Device,
    ) -> anyhow::Result<Option<Tensor<B, 3>>> {
        let Some((values, shape)) = self.values(name)? else { return Ok(None) };
        let shape = match shape[..] {
            [a, b, c] => [a, b, c],
            [a, c] => [a, 1, c],
            _ => anyhow::bail!("{name} has shape {shape:?}, expected [images, .., ..]"),
        };
        Ok(Some(Tensor::from_data(TensorData::new(values, shape), device)))
    }

    /// The tokens and features of the file, `[rows, n, ..]`.
    fn visual_tokens<B: Backend>(&self, device: &B::Device) -> anyhow::Result<VisualTokens<B>> {
        let get = |name| self.tensor::<B>(name, device);
        let (projected, hidden) = match (get("projected")?, get("hidden")?) {
            (Some(projected), Some(hidden)) => (projected, hidden),
            (Some(one), None) | (None, Some(one)) => (one.clone(), one),
            (None, None) => anyhow::bail!("there is neither `projected` nor `hidden`"),
        };
        let [rows, n, _] = projected.dims();
        let mut features = VisionFeatures::new(hidden);
        for name in self.tensors.names().into_iter().filter(|name| !NOT_FEATURES.contains(name)) {
            let Some(feature) = get(name)? else { continue };
            let dims = feature.dims();
            // In files, as in transformers' outputs, attention has its heads before its tokens.
            let feature = match name {
                CLS_ATTENTION | LAST_CLS_ATTENTION => feature.swap_dims(1, 2),
                _ => feature,
            };
            let [images, tokens, _] = feature.dims();
            anyhow::ensure!(
                images == rows && (tokens == n || tokens == 1 && name == CLS_HIDDEN),
                "{name} has shape {dims:?}, but there are {rows} rows of {n} tokens"
            );
            features = features.with(name, feature);
        }
        let tiles = self.tiles(rows, n)?;
        let images = tiles.as_ref().map_or(rows, |tiles| tiles.per_image.len());
        let of_images = |name: &str, x: &Option<Tensor<B, 3>>| match x {
            Some(x) if x.dims()[0] != images => {
                Err(anyhow::anyhow!("{name} has {} rows for {images} images", x.dims()[0]))
            }
            _ => Ok(()),
        };
        let (text, question) = (get("text")?, get("question")?);
        of_images("text", &text)?;
        of_images("question", &question)?;
        Ok(VisualTokens {
            tiles,
            text: text.map(|vectors| TextFeatures {
                lengths: vec![vectors.dims()[1]; images],
                inverted: !self.plain_text,
                vectors,
            }),
            question: question
                .map(|embeds| QuestionTokens { lengths: vec![embeds.dims()[1]; images], embeds }),
            ..VisualTokens::new(projected, features)
        })
    }

    /// From `valid` `[rows, n]` and `tiles_per_image` `[images]`, where one of them is there.
    fn tiles(&self, rows: usize, n: usize) -> anyhow::Result<Option<Tiles>> {
        let (valid, per_image) = (self.values("valid")?, self.values("tiles_per_image")?);
        if valid.is_none() && per_image.is_none() {
            return Ok(None);
        }
        if let Some((_, shape)) = &valid {
            anyhow::ensure!(shape[..] == [rows, n], "valid has shape {shape:?}, not [{rows}, {n}]");
        }
        let valid = valid.map(|(values, _)| {
            values.chunks(n.max(1)).map(|row| row.iter().map(|v| *v != 0.0).collect()).collect()
        });
        let per_image = match per_image {
            Some((counts, _)) => counts.into_iter().map(|count| count as usize).collect(),
            None => vec![1; rows],
        };
        Ok(Some(Tiles { per_image, valid }))
    }
}

/// Little-endian numbers of `N` bytes.
fn decode<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
}
