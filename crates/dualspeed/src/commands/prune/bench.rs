//! Pruners against the clock, beside the tower that makes their input.

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use dualspeed_model::init::Init;
use dualspeed_model::rng::SplitMix;
use dualspeed_model::{
    Needs, PruneContext, PrunerSpec, QuestionTokens, Registry, TextFeatures, VisionFeatures,
    VisionTower, VisualTokens, Vit, VitConfig, select,
};
use dualspeed_ops::Backend;
use serde_json::{Value, json};

use super::specs;
use crate::cli::{Cli, PruneArgs};
use crate::quickstart::summary::plain_table;
use crate::tower;

/// Width of projected tokens and hidden states.
const WIDTH: usize = 512;
/// Share of the tokens that is kept where nothing else is said.
const KEEP: f64 = 0.1;
/// Tokens per image and images per batch of the first table.
const CELLS: [(usize, usize); 4] = [(576, 1), (576, 16), (2880, 1), (2880, 16)];
/// Tokens per image of the second table.
const SIZES: [usize; 4] = [144, 576, 1152, 2880];
/// Shares kept in the third table.
const SHARES: [f64; 4] = [0.05, 0.1, 0.25, 0.5];
/// A measurement ends after this many runs, or as many seconds.
const RUNS: usize = 5;
const SECONDS: f64 = 3.0;

struct Row {
    name: String,
    n: usize,
    batch: usize,
    keep: usize,
    seconds: Option<f64>,
}

pub(super) fn run<B: Backend>(
    cli: &Cli,
    args: &PruneArgs,
    registry: &Registry<B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let default = args.pruner.len() == 1 && args.pruner[0] == "divprune";
    let all = vec!["all".to_owned()];
    let specs = specs(if default { &all } else { &args.pruner }, registry)?;
    let mut rows = Vec::new();
    let mut bench = Bench { registry, device, rows: &mut rows, quiet: cli.quiet };
    for (n, batch) in CELLS {
        bench.cell(&specs, n, batch, keep_of(args, n, KEEP))?;
    }
    for n in SIZES {
        if !CELLS.contains(&(n, 1)) {
            bench.methods(&specs, n, 1, keep_of(args, n, KEEP))?;
        }
    }
    for share in SHARES {
        if share != KEEP {
            bench.methods(&specs, 576, 1, keep_of(args, 576, share))?;
        }
    }
    if args.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({ "what": row.name, "tokens": row.n, "batch": row.batch, "keep": row.keep,
                        "seconds": row.seconds })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", tables(&rows, args));
    }
    Ok(())
}

fn keep_of(args: &PruneArgs, n: usize, share: f64) -> usize {
    let fixed = args.keep.filter(|keep| *keep < n && share == KEEP);
    fixed.unwrap_or((n as f64 * share) as usize).max(1)
}

struct Bench<'a, B: Backend> {
    registry: &'a Registry<B>,
    device: &'a B::Device,
    rows: &'a mut Vec<Row>,
    quiet: bool,
}

impl<B: Backend> Bench<'_, B> {
    /// All methods, the tower, and the product of all pairs.
    fn cell(
        &mut self,
        specs: &[PrunerSpec],
        n: usize,
        batch: usize,
        keep: usize,
    ) -> anyhow::Result<()> {
        self.methods(specs, n, batch, keep)?;
        let unit = random::<B>([batch, n, WIDTH], 1, self.device);
        let product = || {
            for image in 0..batch {
                let x = unit.clone().narrow(0, image, 1).reshape([n, WIDTH]);
                let gram = dualspeed_ops::linear(x.clone(), x.transpose(), None);
                wait(gram.narrow(0, 0, 1).narrow(1, 0, 1));
            }
        };
        self.push("product of all pairs alone", n, batch, keep, Some(median(product)));
        let vision = VitConfig { image_size: 336, ..tower::config().vision };
        let tiles = batch * n / vision.num_patches();
        let vit: Vit<B> = vision.init(&Init::new(0, self.device));
        let pixels = random::<B>([tiles * 3, 336, 336], 2, self.device);
        let pixels = pixels.reshape([tiles, 3, 336, 336]);
        let forward = || {
            let features = vit.features(pixels.clone(), Needs::default());
            wait(features.hidden.narrow(0, 0, 1).narrow(1, 0, 1).reshape([1, WIDTH / 4]));
        };
        self.push("embedded tower at 336 px", n, batch, keep, Some(median(forward)));
        Ok(())
    }

    fn methods(
        &mut self,
        specs: &[PrunerSpec],
        n: usize,
        batch: usize,
        keep: usize,
    ) -> anyhow::Result<()> {
        let visual = visual::<B>(batch, n, self.device);
        let ctx = PruneContext {
            images: (0..batch).map(|image| (format!("image-{image}"), 0)).collect(),
            prompts: vec![String::new(); batch],
            ..Default::default()
        };
        for spec in specs {
            let pruner = self.registry.build(spec)?;
            if pruner.layer_drop(keep).is_some() {
                continue;
            }
            // Pooling cannot make every count.
            let seconds = select(&*pruner, &visual, keep, &ctx).is_ok().then(|| {
                median(|| {
                    if let Ok(kept) = select(&*pruner, &visual, keep, &ctx) {
                        wait(kept.tokens.narrow(0, 0, 1).narrow(1, 0, 1).reshape([1, WIDTH]));
                    }
                })
            });
            self.push(&spec.to_string(), n, batch, keep, seconds);
        }
        Ok(())
    }

    fn push(&mut self, name: &str, n: usize, batch: usize, keep: usize, seconds: Option<f64>) {
        if !self.quiet {
            eprintln!(
                "{name:<28} n = {n:<5} batch = {batch:<3} keep = {keep:<5} {}",
                show(seconds)
            );
        }
        self.rows.push(Row { name: name.to_owned(), n, batch, keep, seconds });
    }
}

/// Reads a value back, so that an asynchronous device has done its work.
fn wait<B: Backend>(x: Tensor<B, 2>) {
    let _ = x.into_data();
}

/// Median seconds of a few runs after one that is not counted.
fn median(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    run();
    let mut times = Vec::new();
    while times.is_empty() || (times.len() < RUNS && begin.elapsed().as_secs_f64() < SECONDS) {
        let clock = Instant::now();
        run();
        times.push(clock.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn random<B: Backend>(shape: [usize; 3], seed: u64, device: &B::Device) -> Tensor<B, 3> {
    let mut rng = SplitMix::new(&[seed]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Random visual tokens with everything a pruner may ask for.
fn visual<B: Backend>(batch: usize, n: usize, device: &B::Device) -> VisualTokens<B> {
    let random = |shape, seed| random::<B>(shape, seed, device);
    let unit = |x: Tensor<B, 3>| x.clone() / (x.clone() * x).sum_dim(2).sqrt();
    let features = VisionFeatures {
        cls_attention: Some(random([batch, 8, n], 11).abs()),
        keys: Some(random([batch, n, 64], 12)),
        patch_text: Some(unit(random([batch, n, 64], 13))),
        cls_hidden: Some(random([batch, 1, WIDTH], 14)),
        last_cls_attention: Some(random([batch, 1, n], 15).abs()),
        last_keys: Some(random([batch, n, WIDTH], 16)),
        hidden: random([batch, n, WIDTH], 17),
    };
    VisualTokens {
        text: Some(TextFeatures {
            vectors: unit(random([batch, 2, 64], 18)),
            lengths: vec![2; batch],
            inverted: false,
        }),
        question: Some(QuestionTokens {
            embeds: random([batch, 12, WIDTH], 19),
            lengths: vec![12; batch],
        }),
        ..VisualTokens::new(random([batch, n, WIDTH], 20), features)
    }
}

fn show(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| format!("{:.1} ms", 1e3 * seconds))
}

fn tables(rows: &[Row], args: &PruneArgs) -> String {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    let table = |title: &str, cells: &[(String, usize, usize, usize)]| {
        let header: Vec<String> =
            [title.to_owned()].into_iter().chain(cells.iter().map(|cell| cell.0.clone())).collect();
        let find = |name: &str, (_, n, batch, keep): &(String, usize, usize, usize)| {
            let same = |row: &&Row| (row.n, row.batch, row.keep) == (*n, *batch, *keep);
            rows.iter().find(|row| row.name == name && same(row)).and_then(|row| row.seconds)
        };
        let body: Vec<Vec<String>> = names
            .iter()
            .filter(|name| cells.iter().any(|cell| find(name, cell).is_some()))
            .map(|name| {
                let cells = cells.iter().map(|cell| show(find(name, cell)));
                [(*name).to_owned()].into_iter().chain(cells).collect()
            })
            .collect();
        format!("{}\n\n", plain_table(&header, &body))
    };
    let cells: Vec<_> = CELLS
        .iter()
        .map(|(n, batch)| (format!("{n} x {batch}"), *n, *batch, keep_of(args, *n, KEEP)))
        .collect();
    let sizes: Vec<_> =
        SIZES.iter().map(|n| (format!("n = {n}"), *n, 1, keep_of(args, *n, KEEP))).collect();
    let shares: Vec<_> = SHARES
        .iter()
        .map(|share| keep_of(args, 576, *share))
        .map(|keep| (format!("keep {keep}"), 576, 1, keep))
        .collect();
    format!(
        "{}{}{}",
        table(&format!("tokens x batch, d = {WIDTH}, 10 % kept"), &cells),
        table("one image, 10 % kept", &sizes),
        table("one image of 576 tokens", &shares)
    )
}
