//! The vision tower against a naive restatement; its training heads; its weights on disk.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use dualspeed_model::config::SelectFeature;
use dualspeed_model::nn::{LayerNorm, Linear};
use dualspeed_model::vision::features::{
    CLS_ATTENTION, CLS_HIDDEN, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, PATCH_TEXT,
};
use dualspeed_model::vision::pretraining::{
    TowerConfig, TowerLossWeights, TowerModel, TowerTargets,
};
use dualspeed_model::{ClipVit, ModelError, Needs, Precision, VisionFeatures, VisionTower, store};

use crate::support::{A, B, assert_close, config, device, random, values};

/// A feature that was asked for.
fn named(features: &VisionFeatures<B>, name: &str) -> Tensor<B, 3> {
    features.get(name).unwrap_or_else(|| panic!("no {name}"))
}

fn linear(layer: &Linear<B>, x: &Tensor<B, 2>) -> Tensor<B, 2> {
    let y = x.clone().matmul(layer.weight.val());
    match &layer.bias {
        Some(bias) => y + bias.val().unsqueeze(),
        None => y,
    }
}

fn norm(layer: &LayerNorm<B>, x: &Tensor<B, 2>) -> Tensor<B, 2> {
    let centred = x.clone() - x.clone().mean_dim(1);
    let variance = centred.clone().powf_scalar(2.0).mean_dim(1);
    centred / (variance + layer.eps).sqrt() * layer.weight.val().unsqueeze()
        + layer.bias.val().unsqueeze()
}

/// One image through the first `layers` blocks with whole attention maps, and the last block's
/// maps `[heads, s, s]` and keys `[heads, s, d]`.
fn naive(
    vit: &ClipVit<B>,
    image: Tensor<B, 3>,
    layers: usize,
) -> (Tensor<B, 2>, Tensor<B, 3>, Tensor<B, 3>) {
    let (p, grid) = (vit.config.patch_size, vit.config.grid());
    let d = vit.config.hidden_size;
    let kernel = vit.embeddings.patch_embedding.weight.val();
    let mut rows = vec![vit.embeddings.class_embedding.as_ref().unwrap().val().reshape([1, d])];
    for y in 0..grid {
        for x in 0..grid {
            let patch = image.clone().slice([0..3, y * p..(y + 1) * p, x * p..(x + 1) * p]);
            let product = kernel.clone() * patch.unsqueeze::<4>();
            rows.push(product.reshape([d, 3 * p * p]).sum_dim(1).reshape([1, d]));
        }
    }
    let x = Tensor::cat(rows, 0) + vit.embeddings.position_embedding.weight.val();
    let mut x = norm(vit.pre_layrnorm.as_ref().unwrap(), &x);
    let s = x.dims()[0];
    let heads = vit.config.num_attention_heads;
    let (mut maps, mut keys) = (Tensor::zeros([1, 1, 1], &device::<B>()), None);
    for layer in &vit.encoder.layers[..layers] {
        let normed = norm(&layer.layer_norm1, &x);
        let split = |y: Tensor<B, 2>| y.reshape([s, heads, d / heads]).swap_dims(0, 1);
        let [q, k, v] = [&layer.self_attn.q_proj, &layer.self_attn.k_proj, &layer.self_attn.v_proj]
            .map(|projection| split(linear(projection, &normed)));
        maps = softmax(q.matmul(k.clone().swap_dims(1, 2)) / ((d / heads) as f64).sqrt(), 2);
        let mixed = maps.clone().matmul(v).swap_dims(0, 1).reshape([s, d]);
        x = x + linear(&layer.self_attn.out_proj, &mixed);
        let up = linear(&layer.mlp.fc1, &norm(&layer.layer_norm2, &x));
        let up = up.clone() * burn::tensor::activation::sigmoid(up * 1.702);
        x = x + linear(&layer.mlp.fc2, &up);
        keys = Some(k);
    }
    (x, maps, keys.unwrap())
}

#[test]
fn features_equal_a_naive_tower_with_whole_attention_maps() {
    let needs = Needs::of([CLS_ATTENTION, KEYS, PATCH_TEXT]);
    for (select, layers) in [(-2, 2), (-1, 3), (1, 1)] {
        for feature in [SelectFeature::Patch, SelectFeature::ClsPatch] {
            let mut config = config().vision.vit().unwrap().clone();
            config.mm_vision_select_layer = select;
            config.mm_vision_select_feature = feature;
            let model: TowerModel<B> =
                TowerConfig { vision: config, num_classes: 3, num_colours: 2 }
                    .init(&device::<B>(), 3)
                    .unwrap();
            let vit = &model.vision;
            let pixels = random::<B, 4>([2, 3, 16, 16], 8);
            let features = vit.features(pixels.clone(), &needs);
            let first = usize::from(feature == SelectFeature::Patch);
            let n = 17 - first;
            assert_eq!(features.hidden().dims(), [2, n, 16]);
            assert_eq!(named(&features, CLS_ATTENTION).dims(), [2, n, 2]);
            for image in 0..2 {
                let one = pixels.clone().narrow(0, image, 1).squeeze_dim(0);
                let (hidden, maps, keys) = naive(vit, one, layers);
                let own = |x: Tensor<B, 3>| values(&x.narrow(0, image, 1));
                let hidden = hidden.narrow(0, first, n);
                assert_close(&own(features.hidden()), &values(&hidden), 1e-4);
                let row = maps.narrow(1, 0, 1).narrow(2, first, n); // [heads, 1, n]
                let row = row.permute([1, 2, 0]); // [1, n, heads]
                assert_close(&own(named(&features, CLS_ATTENTION)), &values(&row), 1e-5);
                let mean = keys.mean_dim(0).narrow(1, first, n);
                assert_close(&own(named(&features, KEYS)), &values(&mean), 1e-4);
                let projected = linear(
                    vit.visual_projection.as_ref().unwrap(),
                    &norm(&vit.post_layernorm, &hidden),
                );
                let length = projected.clone().powf_scalar(2.0).sum_dim(1).sqrt();
                let unit = projected / length;
                assert_close(&own(named(&features, PATCH_TEXT)), &values(&unit), 1e-4);
            }
            let plain = vit.features(pixels.clone(), &Needs::none());
            assert_eq!(plain.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["hidden"]);
            assert_eq!(plain.missing(&needs), Some(CLS_ATTENTION.into()));
            assert_eq!(features.missing(&needs), None);
            assert_eq!(values(&plain.hidden()), values(&features.hidden()));
        }
    }
}

fn tower_config() -> TowerConfig {
    TowerConfig { vision: config().vision.vit().unwrap().clone(), num_classes: 3, num_colours: 2 }
}

#[test]
fn a_few_steps_of_descent_lower_every_loss() {
    use burn::optim::{GradientsParams, Optimizer, SgdConfig};
    let mut model: TowerModel<A> = tower_config().init(&device::<A>(), 3).unwrap();
    let names: Vec<Vec<usize>> =
        (0..4).map(|i| (0..16).map(|p| (p / 4 + i) % 4).collect()).collect();
    let colours: Vec<Vec<usize>> =
        (0..4).map(|i| (0..16).map(|p| (p / 4 + i) % 3).collect()).collect();
    let targets = TowerTargets::new(&names, &colours, 3, &device::<A>());
    let pixels = random::<A, 4>([4, 3, 16, 16], 2);
    let mut optimiser = SgdConfig::new().init();
    let weights = TowerLossWeights::default();
    let first = model.loss(pixels.clone(), &targets, weights);
    for _ in 0..40 {
        let grads = model.loss(pixels.clone(), &targets, weights).total.backward();
        let grads = GradientsParams::from_grads(grads, &model);
        model = optimiser.step(0.05, model, grads);
    }
    let last = model.loss(pixels, &targets, weights);
    for (name, first, last) in [
        ("patch_name", first.patch_name, last.patch_name),
        ("patch_colour", first.patch_colour, last.patch_colour),
        ("cls", first.cls, last.cls),
        ("text", first.text, last.text),
    ] {
        assert!(values(&last)[0] < values(&first)[0], "{name}: {first} -> {last}");
    }
    assert!(values(&last.patch_accuracy)[0] > values(&first.patch_accuracy)[0]);
}

#[test]
fn weights_survive_the_disk_in_both_precisions() {
    let model: TowerModel<B> = tower_config().init(&device::<B>(), 3).unwrap();
    let other = || -> TowerModel<B> { tower_config().init(&device::<B>(), 4).unwrap() };
    let pixels = random::<B, 4>([1, 3, 16, 16], 8);
    let hidden = |model: &TowerModel<B>| {
        values(&model.vision.features(pixels.clone(), &Needs::none()).hidden())
    };
    let bytes = store::to_bytes::<B, _>(&model, Precision::Full).unwrap();
    let loaded = store::from_bytes::<B, _>(other(), &bytes, "test").unwrap();
    assert_eq!(hidden(&loaded), hidden(&model));
    assert_ne!(hidden(&other()), hidden(&model));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tower.safetensors");
    store::save_file::<B, _>(&model, &path, Precision::Half).unwrap();
    let size = std::fs::metadata(&path).unwrap().len() as usize;
    assert!(size < bytes.len() * 6 / 10, "{size} of {}", bytes.len());
    assert!(size >= 2 * model.num_params());
    let loaded: TowerModel<B> = store::load_file(other(), &path).unwrap();
    assert_close(&hidden(&loaded), &hidden(&model), 2e-2);

    let error = store::from_bytes::<B, _>(model.vision.clone(), &bytes, "tower").unwrap_err();
    assert!(matches!(error, ModelError::Weights { .. }), "{error}");
    let cut = &bytes[..bytes.len() / 2];
    assert!(store::from_bytes::<B, _>(other(), cut, "cut").is_err());
    assert!(store::from_bytes::<B, _>(other(), b"", "empty").is_err());
}

/// What PruMerge's published variant reads: the class token's attention and the keys of the last layer,
/// heads not split; and the class token where it is asked for. Whatever layer is selected.
#[test]
fn the_last_layer_is_shown_whatever_is_selected() {
    let needs = Needs::of([CLS_HIDDEN, LAST_CLS_ATTENTION, LAST_KEYS]);
    for (select, layers) in [(-2, 2), (-1, 3), (1, 1)] {
        let mut config = config().vision.vit().unwrap().clone();
        config.mm_vision_select_layer = select;
        let model: TowerModel<B> = TowerConfig { vision: config, num_classes: 3, num_colours: 2 }
            .init(&device::<B>(), 3)
            .unwrap();
        let vit = &model.vision;
        let pixels = random::<B, 4>([1, 3, 16, 16], 8);
        let features = vit.features(pixels.clone(), &needs);
        let one: Tensor<B, 3> = pixels.squeeze_dim(0);
        let class = naive(vit, one.clone(), layers).0.narrow(0, 0, 1);
        assert_close(&values(&named(&features, CLS_HIDDEN)), &values(&class), 1e-4);

        let last = &vit.encoder.layers[2];
        let normed = norm(&last.layer_norm1, &naive(vit, one, 2).0);
        let q = linear(&last.self_attn.q_proj, &normed).narrow(0, 0, 1);
        let k = linear(&last.self_attn.k_proj, &normed); // [17, 16]
        let row = softmax(q.matmul(k.clone().transpose()) / 4.0, 1).narrow(1, 1, 16);
        assert_close(&values(&named(&features, LAST_CLS_ATTENTION)), &values(&row), 1e-5);
        assert_close(&values(&named(&features, LAST_KEYS)), &values(&k.narrow(0, 1, 16)), 1e-4);
    }
}
