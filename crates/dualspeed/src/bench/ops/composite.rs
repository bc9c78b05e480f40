//! Operations of more than one product or pass: losses, a decoder block, DivPrune, AdamW, the vision tower.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData, TensorPrimitive};
use dualspeed_model::{Dtype, LoraTarget, Needs, VisionTower, VitConfig};
use dualspeed_ops::{
    AdamWConfig, AdamWGuard, AdamWTensor, AttentionSpec, AutodiffBackend, Backend, BlockContext,
    BlockLinear, BlockParams, PerTarget,
};

use super::shapes::Shapes;
use super::timer::OpTimer;
use crate::bench::random_model::random_tower;

pub(super) fn losses<B: Backend>(
    timer: &mut OpTimer<'_, B>,
    shapes: &Shapes,
) -> anyhow::Result<()> {
    let (n, d, vocab) = (shapes.targets, shapes.d, shapes.vocab);
    let (hidden, teacher) = (timer.random([n, d]), timer.random([n, d]));
    let head = B::float_mul_scalar(timer.random([d, vocab]), 0.02.into());
    let ids: Vec<i32> = (0..n).map(|i| (i * 7919 % vocab) as i32).collect();
    let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n]), timer.device);
    let targets = targets.into_primitive();
    let grad = timer.random_as([n, 3], DType::F32);
    for (name, teacher) in [("ce", None), ("ce+kl", Some(teacher))] {
        let name = format!("lm_head+{name} {n}x{d}x{vocab} forward+backward");
        timer.time(&name, 0.0, || {
            let (h, w, t) = (hidden.clone(), head.clone(), targets.clone());
            let out = B::fused_token_losses(h, w, t, teacher.clone(), 1.0);
            let (h, w, t) = (hidden.clone(), head.clone(), targets.clone());
            let (teacher, needs) = (teacher.clone(), [true, false]);
            (out, B::fused_token_losses_backward(h, w, t, teacher, 1.0, grad.clone(), needs))
        })?;
    }
    Ok(())
}

pub(super) fn divprune<B: Backend>(
    timer: &mut OpTimer<'_, B>,
    shapes: &Shapes,
) -> anyhow::Result<()> {
    let (images, n, d) = (shapes.images, shapes.patches, shapes.d);
    let keep = n / 10;
    let features = timer.random([images, n, d]);
    timer.time(&format!("divprune {images}x{n}x{d} -> {keep}"), 0.0, || {
        B::fused_farthest_points(features.clone(), keep)
    })
}

/// A step on the adapters of the whole decoder, all linear layers.
pub(super) fn adamw<B: Backend>(timer: &mut OpTimer<'_, B>, shapes: &Shapes) -> anyhow::Result<()> {
    let r = shapes.rank;
    let pair = |target: &LoraTarget| {
        let [d_in, d_out] = shapes.layer(*target);
        [[d_in, r], [r, d_out]]
    };
    let layer: Vec<[usize; 2]> = LoraTarget::ALL.iter().flat_map(pair).collect();
    let tensors: Vec<[usize; 2]> = (0..shapes.layers).flat_map(|_| layer.clone()).collect();
    let config = AdamWConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_scale: 1.0,
        max_grad_norm: 1.0,
    };
    let f32s = |shape: &[usize; 2]| timer.random_as(*shape, DType::F32);
    let grads: Vec<FloatTensor<B>> = tensors.iter().map(f32s).collect();
    let mut state: Vec<[FloatTensor<B>; 3]> = tensors
        .iter()
        .map(|shape| {
            let v = f32s(shape);
            [f32s(shape), f32s(shape), B::float_mul(v.clone(), v)]
        })
        .collect();
    let numbers: usize = tensors.iter().map(|[rows, columns]| rows * columns).sum();
    let numbers = match numbers as f64 / 1e6 {
        millions if millions < 1.0 => format!("{:.0}k", millions * 1e3),
        millions => format!("{millions:.0}M"),
    };
    timer.time(&format!("adamw+clip, {} tensors, {numbers}", tensors.len()), 0.0, || {
        let tensors = std::mem::take(&mut state)
            .into_iter()
            .zip(&grads)
            .map(|([param, m, v], grad)| AdamWTensor::<B> {
                param,
                grad: grad.clone(),
                m,
                v,
                lr: 1e-5,
                updates: 10,
                undecided: false,
            })
            .collect();
        state = B::fused_adamw(tensors, AdamWGuard::default(), config).updated;
    })
}

/// One block of the decoder with adapters, frozen otherwise, as the training step runs it.
pub(super) fn block<B: AutodiffBackend>(
    timer: &mut OpTimer<'_, B::InnerBackend>,
    shapes: &Shapes,
) -> anyhow::Result<()> {
    let (device, dtype) = (timer.device, timer.dtype);
    let scaled = |shape: [usize; 2], dtype, trained| {
        let normal = Distribution::Normal(0.0, 0.02);
        let x = Tensor::<B, 2>::random(shape, normal, (device, dtype)).set_require_grad(trained);
        x.into_primitive().tensor()
    };
    let make = |target| {
        let [d_in, d_out] = shapes.layer(target);
        let (a, b) = ([d_in, shapes.rank], [shapes.rank, d_out]);
        BlockLinear {
            weight: scaled([d_in, d_out], dtype, false),
            bias: None,
            lora: Some((scaled(a, DType::F32, true), scaled(b, DType::F32, true))),
        }
    };
    let ones = || Tensor::<B, 1>::ones([shapes.d], (device, dtype)).into_primitive().tensor();
    let params = BlockParams {
        input_layernorm: ones(),
        post_attention_layernorm: ones(),
        q_norm: None,
        k_norm: None,
        linear: PerTarget::from_fn(make),
    };
    let weights: usize =
        LoraTarget::ALL.iter().map(|t| shapes.layer(*t).iter().product::<usize>()).sum();
    for (b, t, keep) in shapes.blocks {
        let wave = |shift: f64| {
            let angles = Distribution::Uniform(0.0, 6.0);
            let angles =
                Tensor::<B, 3>::random([1, t, shapes.head / 2], angles, (device, DType::F32));
            angles.add_scalar(shift).cos().into_primitive().tensor()
        };
        let ctx = BlockContext::<B> {
            batch: b,
            heads: shapes.heads,
            kv_heads: shapes.kv_heads,
            eps: 1e-5,
            cos: wave(0.0),
            sin: wave(1.5),
            attention: AttentionSpec::causal(),
            lora_scale: 2.0,
            dropout: None,
            rows: None,
            keep,
        };
        let normal = Distribution::Normal(0.0, 1.0);
        let x = Tensor::<B, 2>::random([b * t, shapes.d], normal, (device, dtype)).require_grad();
        let flops = 2.0 * (weights * b * t) as f64;
        let forward = || dualspeed_ops::decoder_block(x.clone(), params.clone(), &ctx, None);
        timer.time_apart(&format!("block b{b} t{t} lora {keep:?} forward"), flops, forward)?;
        timer.time_apart(
            &format!("block b{b} t{t} lora {keep:?} forward+backward"),
            2.0 * flops,
            || forward().sum().backward(),
        )?;
    }
    Ok(())
}

/// The tower up to the layer whose output the projector reads.
pub(super) fn tower<B: Backend>(
    timer: &mut OpTimer<'_, B>,
    shapes: &Shapes,
    vision: &VitConfig,
    dtype: Dtype,
) -> anyhow::Result<()> {
    let (images, side) = (shapes.images, vision.image_size);
    let name = match *vision == VitConfig::clip_vit_l_14_336() {
        true => format!("clip vit-l/14-336 forward b{images}"),
        false => format!(
            "clip vit d{}/{}-{side} forward b{images}",
            vision.hidden_size, vision.patch_size
        ),
    };
    let vit = random_tower::<B>(vision, dtype, timer.device);
    let pixels = timer.random_as([images, 3, side, side], DType::F32);
    let pixels = Tensor::<B, 4>::from_primitive(TensorPrimitive::Float(pixels));
    let (n, d, mlp) = (vision.num_patches(), vision.hidden_size, vision.intermediate_size);
    let layer = 2 * (n + 1) * (4 * d * d + 2 * d * mlp) + 4 * (n + 1) * (n + 1) * d;
    let patches = 2 * n * 3 * vision.patch_size * vision.patch_size * d;
    let flops = (images * (vision.selected_layers() * layer + patches)) as f64;
    timer.time_apart(&name, flops, || vit.features(pixels.clone(), &Needs::none()).hidden())
}
