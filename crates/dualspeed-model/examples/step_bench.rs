//! Training steps at the shapes of LLaVA-1.5-7B on one GPU, random weights, one JSON object per line:
//! `cargo run --release -p dualspeed-model --features cuda --example step_bench -- [NAME] [--recompute N]`.
//! `benches/torch_reference.py` does the same work in PyTorch under the same names, `benches/compare.py` joins the two.
//!
//! A step is projector, decoder, loss, backward and AdamW with the global-norm clip. Frozen weights are bf16, trained
//! ones, their gradients and moments f32. `tower` and `prune` are the vision tower's forward and DivPrune by themselves;
//! `whole` rows run them inside the step.

use std::collections::HashMap;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::{AutodiffBackend, Backend as _};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData, TensorPrimitive};
use burn_autodiff::Autodiff;
use dualspeed_model::init::Init;
use dualspeed_model::lora::Lora;
use dualspeed_model::{
    Llama, LlamaConfig, LoraConfig, MlpProjector, Needs, Part, PassOptions, ProjectorType,
    VisionTower, Vit, VitConfig,
};
use dualspeed_ops::cuda::{Cuda, CudaDevice};
use dualspeed_ops::{AdamWConfig, AdamWTensor, Backend};

type B = Cuda<f32, i32>;
type A = Autodiff<B>;
type Primitive = FloatTensor<B>;

/// Parameters of the decoder, as the 4N count takes them.
const PARAMETERS: f64 = 6.74e9;

/// One row of the table.
struct Row {
    name: &'static str,
    batch: usize,
    visual: usize,
    text: usize,
    lora: bool,
    /// Blocks that are computed again in the backward pass.
    recompute: usize,
    /// Tower and pruning from this many tokens inside the step.
    tower: Option<usize>,
}

const ROWS: [Row; 8] = [
    row("stage 1 full b32 576+32", 32, 576, 32, false, 16, None),
    row("stage 1 fast b32 61+32", 32, 61, 32, false, 0, None),
    row("stage 2 full b16 576+192", 16, 576, 192, true, 22, None),
    row("stage 2 fast b16 61+192", 16, 61, 192, true, 0, None),
    row("next full b4 2880+192", 4, 2880, 192, true, 22, None),
    row("next fast b4 305+192", 4, 305, 192, true, 0, None),
    row("whole stage 2 full b16 576+192", 16, 576, 192, true, 22, Some(576)),
    row("whole stage 2 fast b16 61+192", 16, 57, 192, true, 0, Some(576)),
];

const fn row(
    name: &'static str,
    batch: usize,
    visual: usize,
    text: usize,
    lora: bool,
    recompute: usize,
    tower: Option<usize>,
) -> Row {
    Row { name, batch, visual, text, lora, recompute, tower }
}

struct Model {
    vit: Vit<A>,
    projector: MlpProjector<A>,
    llama: Llama<A>,
    lora: Lora<A>,
    moments: HashMap<ParamId, (Primitive, Primitive)>,
    updates: u64,
}

fn device() -> CudaDevice {
    CudaDevice::default()
}

fn sync() {
    if let Err(error) = B::sync(&device()) {
        eprintln!("{error}");
    }
}

fn random<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<A, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), (&device(), dtype))
}

impl Model {
    fn new() -> Self {
        let device = device();
        let frozen = Init::<A>::new(1, &device).frozen().stored_in(DType::BF16).synthetic();
        let trained = Init::<A>::new(2, &device).stored_in(DType::F32).synthetic();
        let text = LlamaConfig::vicuna_7b();
        let config = LoraConfig { r: 128, alpha: 256.0, dropout: 0.0, ..LoraConfig::default() };
        let kind = ProjectorType::Mlp2xGelu;
        Self {
            vit: VitConfig::clip_vit_l_14_336().init(&frozen.at("vision_tower")),
            projector: MlpProjector::init(&trained.at("mm_projector"), kind, 1024, 4096),
            lora: Lora::init(&trained.at("lora"), &config, &text),
            llama: text.init(&frozen.at("model")),
            moments: HashMap::new(),
            updates: 0,
        }
    }

    /// One training step; returns the loss where it is.
    fn step(&mut self, row: &Row, batch: &Batch) -> Tensor<B, 1> {
        let features = match (&batch.pixels, row.tower) {
            (Some(pixels), Some(_)) => {
                self.vit.features(pixels.clone(), Needs::default()).hidden // [b, n, 1024]
            }
            _ => batch.features.clone(),
        };
        let mut visual = self.projector.forward(features); // [b, n, d]
        let [b, n, d] = visual.dims();
        if n > row.visual {
            let picks = dualspeed_ops::farthest_points(visual.clone().inner(), row.visual);
            let (picks, _) = picks.sort_with_indices(1);
            let picks = Tensor::<A, 2, Int>::from_inner(picks).reshape([b, row.visual, 1]);
            visual = visual.gather(1, picks.expand([b, row.visual, d]));
        }
        let text = self.llama.embed(batch.ids.clone()).reshape([b, row.text, d]);
        let embeds = Tensor::cat(vec![visual, text], 1); // [b, visual + text, d]
        let length = embeds.dims()[1];
        // Every text token is supervised, by the position before it.
        let rows: Vec<usize> = (0..b)
            .flat_map(|i| (0..row.text).map(move |j| i * length + length - row.text + j - 1))
            .collect();
        let count = rows.len() as f64;
        let options = PassOptions {
            rows: &rows,
            lora: row.lora.then_some(&self.lora),
            dropout: None,
            recompute: row.recompute,
            embeddings_trained: true,
        };
        let head = self.llama.lm_head_weight();
        let mut found: HashMap<ParamId, Primitive> = HashMap::new();
        let loss = self.llama.forward_backward(
            embeds,
            &options,
            |hidden| {
                let losses =
                    dualspeed_ops::token_losses(hidden, head, batch.ids.clone(), None, 1.0);
                losses.slice([0..rows.len(), 0..1]).sum().div_scalar(count)
            },
            |part, grads| {
                let mut collector = Collector { grads: &grads, found: &mut found };
                match part {
                    Part::Block(layer) if row.lora => {
                        self.lora.layers[layer].visit(&mut collector);
                    }
                    Part::Block(_) => {}
                    Part::Tail if row.lora => {
                        for layer in row.recompute..32 {
                            self.lora.layers[layer].visit(&mut collector);
                        }
                        self.projector.visit(&mut collector);
                    }
                    Part::Tail | Part::Embeddings => self.projector.visit(&mut collector),
                }
            },
        );
        self.update(found);
        loss
    }

    fn update(&mut self, grads: HashMap<ParamId, Primitive>) {
        self.updates += 1;
        let mut takers = Values { found: Vec::new() };
        self.lora.visit(&mut takers);
        self.projector.visit(&mut takers);
        let (mut ids, mut tensors) = (Vec::new(), Vec::new());
        let mut grads = grads;
        for (id, param) in takers.found {
            let Some(grad) = grads.remove(&id) else { continue };
            let (m, v) = self.moments.remove(&id).unwrap_or_else(|| {
                let zeros = || B::float_mul_scalar(param.clone(), 0.0.into());
                (zeros(), zeros())
            });
            ids.push(id);
            tensors.push(AdamWTensor { param, grad, m, v, lr: 1e-5, updates: self.updates });
        }
        let config = AdamWConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_scale: 1.0,
            max_grad_norm: 1.0,
        };
        let mut updated = HashMap::new();
        for (id, [param, m, v]) in ids.into_iter().zip(B::fused_adamw(tensors, config).updated) {
            self.moments.insert(id, (m, v));
            updated.insert(id, param);
        }
        let mut setter = Setter { updated };
        self.lora = self.lora.clone().map(&mut setter);
        self.projector = self.projector.clone().map(&mut setter);
    }
}

/// Gradients of the parameters of a module.
struct Collector<'a> {
    grads: &'a <A as AutodiffBackend>::Gradients,
    found: &'a mut HashMap<ParamId, Primitive>,
}

impl ModuleVisitor<A> for Collector<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        if let Some(grad) = param.val().grad(self.grads) {
            self.found.insert(param.id, grad.into_primitive().tensor());
        }
    }
}

/// Values of the parameters of a module.
struct Values {
    found: Vec<(ParamId, Primitive)>,
}

impl ModuleVisitor<A> for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        self.found.push((param.id, param.val().inner().into_primitive().tensor()));
    }
}

struct Setter {
    updated: HashMap<ParamId, Primitive>,
}

impl ModuleMapper<A> for Setter {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
        match self.updated.remove(&param.id) {
            Some(value) => param.map(|_| {
                let value = Tensor::<B, D>::from_primitive(TensorPrimitive::Float(value));
                Tensor::from_inner(value).require_grad()
            }),
            None => param,
        }
    }
}

struct Batch {
    features: Tensor<A, 3>,
    pixels: Option<Tensor<A, 4>>,
    ids: Tensor<A, 1, Int>,
}

impl Batch {
    fn new(row: &Row) -> Self {
        let count = row.batch * row.text;
        let ids: Vec<i32> = (0..count as i32).map(|i| i * 7919 % 32_000).collect();
        Self {
            features: random([row.batch, row.visual, 1024], DType::BF16),
            pixels: row.tower.map(|_| random([row.batch, 3, 336, 336], DType::BF16)),
            ids: Tensor::from_data(TensorData::new(ids, [count]), &device()),
        }
    }
}

/// Median milliseconds, and those of the first call.
fn time(calls: usize, mut call: impl FnMut()) -> (f64, f64, f64) {
    let mut once = || {
        let start = Instant::now();
        call();
        sync();
        start.elapsed().as_secs_f64() * 1e3
    };
    let first = once();
    once();
    let mut times: Vec<f64> = (0..calls).map(|_| once()).collect();
    times.sort_by(f64::total_cmp);
    (times[calls / 2], times[calls - 1] - times[0], first)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1)?.parse::<usize>().ok()
    };
    let filter = args.first().filter(|arg| !arg.starts_with("--")).cloned().unwrap_or_default();
    let calls = value("--calls").unwrap_or(7);
    let start = Instant::now();
    let mut model = Model::new();
    let mut values = Values { found: Vec::new() };
    model.llama.visit(&mut values);
    drop(values);
    sync();
    eprintln!("weights made in {:.1} s", start.elapsed().as_secs_f64());
    if "tower b16".contains(&filter) {
        let pixels = random([16, 3, 336, 336], DType::BF16);
        let (ms, spread, first) = time(calls, || {
            let _ = model.vit.features(pixels.clone(), Needs::default());
        });
        println!(
            "{{\"name\": \"tower b16\", \"ms\": {ms:.3}, \"spread\": {spread:.3}, \"first_ms\": {first:.0}}}"
        );
    }
    for mut row in ROWS {
        if !row.name.contains(&filter) {
            continue;
        }
        row.recompute = value("--recompute").unwrap_or(row.recompute);
        let batch = Batch::new(&row);
        let mut losses = Vec::new();
        let (ms, spread, first) = time(calls, || losses.push(model.step(&row, &batch)));
        let losses: Vec<f32> =
            losses.into_iter().flat_map(|loss| loss.into_data().iter::<f32>().collect::<Vec<_>>()).collect();
        let tokens = (row.batch * (row.visual + row.text)) as f64;
        let (samples, rate) = (row.batch as f64 / ms * 1e3, 4.0 * PARAMETERS * tokens / ms / 1e9);
        println!(
            "{{\"name\": \"{}\", \"samples_per_s\": {samples:.2}, \"ms\": {ms:.1}, \"spread\": {spread:.1}, \"first_ms\": {first:.0}, \"tflops\": {rate:.0}, \"recompute\": {}, \"loss\": [{}, {}]}}",
            row.name,
            row.recompute,
            losses.first().copied().unwrap_or(f32::NAN),
            losses.last().copied().unwrap_or(f32::NAN),
        );
    }
}
