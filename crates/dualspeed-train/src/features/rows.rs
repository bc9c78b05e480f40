//! Rows of features in memory, image after image.

use std::collections::BTreeMap;

use burn::tensor::DType;
use dualspeed_model::VisionFeatures;
use dualspeed_ops::Backend;

/// Shape and type of one image's rows of one kind of feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub shape: [usize; 2],
    pub dtype: DType,
}

impl Layout {
    /// Bytes of one image.
    pub fn bytes(&self) -> usize {
        self.shape[0] * self.shape[1] * self.dtype.size()
    }
}

/// One kind of feature of several images.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub layout: Layout,
    pub bytes: Vec<u8>,
}

/// All features of several images, in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    /// The images, in the order of the rows.
    pub keys: Vec<u64>,
    /// By the features' names.
    pub kinds: BTreeMap<String, Kind>,
}

impl Rows {
    /// Adds what a tower made of the images `keys`.
    pub fn push<B: Backend>(
        &mut self,
        keys: impl Iterator<Item = u64>,
        features: &VisionFeatures<B>,
    ) {
        self.keys.extend(keys);
        for (name, feature) in features.iter() {
            let [_, rows, width] = feature.dims();
            let data = feature.clone().into_data();
            let layout = Layout { shape: [rows, width], dtype: data.dtype };
            let kind = self
                .kinds
                .entry(name.to_owned())
                .or_insert_with(|| Kind { layout, bytes: Vec::new() });
            kind.bytes.extend_from_slice(data.as_bytes());
        }
    }

    /// Bytes of all kinds.
    pub fn bytes(&self) -> usize {
        self.kinds.values().map(|kind| kind.bytes.len()).sum()
    }
}
