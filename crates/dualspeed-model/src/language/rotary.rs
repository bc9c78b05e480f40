//! Rotary tables: cosines and sines at positions of one or three axes.

use burn::tensor::{Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::config::DecoderConfig;
use crate::layout::Position;

/// Cosines and sines, each `[1 or batch, seq, d_head / 2]`.
#[derive(Clone, Debug)]
pub struct RotaryTables<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 3>,
    /// Sines.
    pub sin: Tensor<B, 3>,
}

impl<B: Backend> RotaryTables<B> {
    /// The tables that turn nothing, of the same shape.
    pub fn identity(&self) -> Self {
        Self { cos: self.cos.ones_like(), sin: self.sin.zeros_like() }
    }
}

impl DecoderConfig {
    /// The tables that layer `index` turns queries and keys with.
    pub(super) fn layer_tables<B: Backend>(
        &self,
        index: usize,
        rotary: &RotaryTables<B>,
    ) -> RotaryTables<B> {
        match self.nope_layers.contains(&index) {
            true => rotary.identity(),
            false => rotary.clone(),
        }
    }

    /// The axis (0 time, 1 row, 2 column) that each pair of a head turns with.
    fn rotary_axes(&self) -> Vec<usize> {
        match self.mrope_section {
            None => vec![0; self.head_size() / 2],
            Some(section) => {
                let axes = section.iter().enumerate();
                axes.flat_map(|(axis, pairs)| std::iter::repeat_n(axis, *pairs)).collect()
            }
        }
    }

    /// Rotary tables at `batch` rows of positions; angles are computed in f64.
    ///
    /// Source: Su et al., arXiv 2104.09864; with `mrope_section` Qwen2-VL's multimodal form, arXiv 2409.12191.
    pub fn rotary_tables<B: Backend>(
        &self,
        positions: &[Position],
        batch: usize,
        device: &B::Device,
    ) -> RotaryTables<B> {
        let (frequencies, axes) = (self.rope_frequencies(), self.rotary_axes());
        let (half, seq) = (frequencies.len(), positions.len() / batch.max(1));
        let angle =
            |position: &Position, pair: usize| position.0[axes[pair]] as f64 * frequencies[pair];
        let angles: Vec<f64> = positions
            .iter()
            .flat_map(|position| (0..half).map(move |pair| angle(position, pair)))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| f(*angle) as f32).collect();
            Tensor::from_data(TensorData::new(values, [batch, seq, half]), device)
        };
        RotaryTables { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Rotary tables of `seq` positions counted from `start`, the same for every sequence of a batch.
    pub fn counted_tables<B: Backend>(
        &self,
        start: Position,
        seq: usize,
        device: &B::Device,
    ) -> RotaryTables<B> {
        let positions: Vec<Position> = (0..seq).map(|at| start.advanced(at)).collect();
        self.rotary_tables(&positions, 1, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_ndarray::NdArray;

    type B = NdArray<f32>;

    fn values(x: Tensor<B, 3>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    #[test]
    fn three_axes_turn_their_own_pairs() {
        let one = DecoderConfig { hidden_size: 16, num_attention_heads: 1, ..Default::default() };
        let three = DecoderConfig { mrope_section: Some([2, 3, 3]), ..one.clone() };
        let device = Default::default();
        let position = Position([5, 2, 7]);
        let found = values(three.rotary_tables::<B>(&[position], 1, &device).cos);
        let axis = |axis: usize| {
            values(one.rotary_tables::<B>(&[Position::text(position.0[axis])], 1, &device).cos)
        };
        assert_eq!(found[..2], axis(0)[..2]);
        assert_eq!(found[2..5], axis(1)[2..5]);
        assert_eq!(found[5..], axis(2)[5..]);
        // Text has one position, so both kinds agree on it.
        let text = [Position::text(9)];
        let [a, b] = [&one, &three].map(|c| values(c.rotary_tables::<B>(&text, 1, &device).sin));
        assert_eq!(a, b);
    }
}
