//! Random conversations about random pictures.

use std::sync::Arc;

use dualspeed_core::rng::SplitMix;
use dualspeed_data::{
    DataError, Example, ExampleSource, HostImage, IGNORE_INDEX, IMAGE_TOKEN_INDEX, Modality, Tiling,
};

/// Random examples of one shape.
#[derive(Clone, Debug)]
pub struct SyntheticSource {
    /// Number of examples.
    pub samples: usize,
    /// Tiles per example. Without a tiling each is an image of its own to the tower, the pruner and the isolator
    /// (LLaVA-NeXT's `flat` layout for more than one).
    pub tiles: usize,
    /// How the tiles make one image (LLaVA-NeXT's `spatial_unpad`).
    pub tiling: Option<Tiling>,
    /// Text tokens per example.
    pub text: usize,
    /// Supervised text tokens per example, the last ones.
    pub supervised: usize,
    /// Size of the vocabulary: token ids are below it.
    pub vocab: usize,
    images: Vec<Arc<HostImage>>,
}

/// Different pictures; examples share them, which no part of a step notices.
const PICTURES: usize = 32;

impl SyntheticSource {
    /// Examples with pictures of `side` pixels.
    pub fn new(
        samples: usize,
        tiles: usize,
        text: usize,
        supervised: usize,
        vocab: usize,
        side: usize,
    ) -> Self {
        let picture = |key: usize| {
            let mut rng = SplitMix::new(&[key as u64, 77]);
            let pixels = (0..3 * side * side).map(|_| 4.0 * rng.uniform() as f32 - 2.0).collect();
            Arc::new(HostImage { key: key as u64, size: side, pixels })
        };
        let images = (0..PICTURES).map(picture).collect();
        Self { samples, tiles, tiling: None, text, supervised, vocab, images }
    }

    /// The same source with examples whose tiles make one image.
    pub fn tiled(mut self, tiling: Tiling) -> Self {
        self.tiles = tiling.tiles();
        self.tiling = Some(tiling);
        self
    }
}

impl ExampleSource for SyntheticSource {
    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, index: usize) -> Result<Example, DataError> {
        let mut rng = SplitMix::new(&[index as u64, 5]);
        let mut input_ids = vec![1];
        let images = if self.tiling.is_some() { 1 } else { self.tiles };
        input_ids.extend(std::iter::repeat_n(IMAGE_TOKEN_INDEX, images));
        input_ids.extend((1..self.text).map(|_| 3 + rng.below(self.vocab - 3) as i64));
        let mut labels = vec![IGNORE_INDEX; input_ids.len()];
        let from = input_ids.len() - self.supervised.min(self.text - 1);
        labels[from..].copy_from_slice(&input_ids[from..]);
        let image = |tile: usize| self.images[(index * self.tiles + tile) % PICTURES].clone();
        Ok(Example {
            id: format!("synthetic-{index}"),
            input_ids,
            labels,
            images: (0..self.tiles).map(image).collect(),
            tilings: self.tiling.iter().cloned().collect(),
            questions: Vec::new(),
            prompt: String::new(),
        })
    }

    fn modality(&self, _index: usize) -> Modality {
        Modality::Image
    }

    fn length_hint(&self, _index: usize) -> usize {
        self.text
    }

    fn fingerprint(&self) -> String {
        let tiled = if self.tiling.is_some() { "-tiled" } else { "" };
        let Self { samples, tiles, text, supervised, .. } = self;
        format!("synthetic-{samples}-{tiles}{tiled}-{text}-{supervised}")
    }
}
