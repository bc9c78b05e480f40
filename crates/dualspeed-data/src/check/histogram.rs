//! Counts of whole numbers in bins of equal width.

use serde::{Deserialize, Serialize};

/// Counts of whole numbers in bins of equal width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// The numbers in all.
    pub count: usize,
    /// The smallest.
    pub min: usize,
    /// Their mean; 0 of none.
    pub mean: f64,
    /// Half of them are at most this.
    pub median: usize,
    /// 99 of 100 are at most this.
    pub p99: usize,
    /// The largest.
    pub max: usize,
    /// Numbers of one bin: bin `i` is `start + i * width .. start + (i + 1) * width`.
    pub width: usize,
    /// The first number of the first bin.
    pub start: usize,
    /// How many are in each bin.
    pub bins: Vec<usize>,
}

/// Bins at most.
const BINS: usize = 40;

impl Histogram {
    /// Counts `values` in at most 40 bins, whose width is 1, 2 or 5 times a power of ten.
    pub fn new(mut values: Vec<usize>) -> Self {
        values.sort_unstable();
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let width = width(max - min + 1);
        let start = min / width * width;
        let mut bins = vec![0; (max - start) / width + 1];
        for value in &values {
            bins[(value - start) / width] += 1;
        }
        let at = |share: usize| values[(values.len() * share).div_ceil(100).max(1) - 1];
        let count = values.len();
        let mean = values.iter().map(|value| *value as f64).sum::<f64>() / count as f64;
        Self { count, min, mean, median: at(50), p99: at(99), max, width, start, bins }
    }

    /// Bins with the first number of each.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        self.bins.iter().enumerate().map(|(at, count)| (self.start + at * self.width, *count))
    }
}

fn width(span: usize) -> usize {
    let mut power = 1;
    loop {
        for step in [1, 2, 5] {
            // One bin more, as the first one begins at a multiple of the width.
            if span.div_ceil(step * power) < BINS {
                return step * power;
            }
        }
        power *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_its_bin() {
        let values: Vec<usize> = (0..1000).map(|i| 37 + i * i % 977).collect();
        let histogram = Histogram::new(values.clone());
        assert!(histogram.bins.len() <= BINS && histogram.width == 50);
        assert_eq!(histogram.bins.iter().sum::<usize>(), 1000);
        for (from, count) in histogram.iter() {
            let within = |value: &&usize| (from..from + histogram.width).contains(*value);
            assert_eq!(values.iter().filter(within).count(), count);
        }
        let few = Histogram::new(vec![3, 1, 2, 2]);
        assert_eq!((few.width, few.start, few.bins), (1, 1, vec![1, 2, 1]));
        assert_eq!((few.median, few.p99, few.mean), (2, 3, 2.0));
        assert_eq!(Histogram::new(Vec::new()), Histogram::default());
        assert_eq!(Histogram::new(vec![7]).bins, [1]);
    }
}
