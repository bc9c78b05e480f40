//! Every example once per epoch, purely in (seed, step).

use dualspeed_data::{
    BatchSampler, DataError, Example, ExampleSource, Grouping, MemorySource, Modality, collate,
};

/// `n` examples of which every third is text, of scattered lengths.
struct Mixed(usize);

impl ExampleSource for Mixed {
    fn len(&self) -> usize {
        self.0
    }
    fn get(&self, index: usize) -> Result<Example, DataError> {
        let (input_ids, labels) = (vec![7; index + 1], vec![7; index + 1]);
        let (id, prompt) = (index.to_string(), String::new());
        let (images, tilings, questions) = (vec![], vec![], vec![]);
        Ok(Example { id, input_ids, labels, images, tilings, questions, prompt })
    }
    fn modality(&self, index: usize) -> Modality {
        if index.is_multiple_of(3) { Modality::Text } else { Modality::Image }
    }
    fn length_hint(&self, index: usize) -> usize {
        index * 7919 % 1000
    }
    fn fingerprint(&self) -> String {
        format!("mixed-{}", self.0)
    }
}

const GROUPINGS: [Grouping; 2] = [Grouping::Shuffled, Grouping::ModalityAndLength];

#[test]
fn an_epoch_is_a_permutation_and_epochs_differ() {
    for grouping in GROUPINGS {
        for (n, batch) in [(103, 8), (16, 4), (5, 8), (1, 1), (3000, 7)] {
            let sampler = BatchSampler::new(&Mixed(n), batch, 3, grouping);
            let steps = sampler.steps_per_epoch();
            let epoch = |e: u64| (e * steps..(e + 1) * steps).map(|step| sampler.indices(step));
            for e in [0, 5] {
                let mut seen: Vec<_> = epoch(e).flatten().collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..n).collect::<Vec<_>>(), "{grouping:?} {n} {batch}");
                assert!(epoch(e).all(|indices| !indices.is_empty() && indices.len() <= batch));
                let short = epoch(e).filter(|indices| indices.len() < batch).count();
                assert!(short <= if grouping == Grouping::Shuffled { 1 } else { 2 });
            }
            if n > 16 {
                assert!(!epoch(0).eq(epoch(1)), "epochs are reshuffled");
            }
        }
    }
}

#[test]
fn any_step_in_any_order_by_anyone() {
    for grouping in GROUPINGS {
        let new = |seed| BatchSampler::new(&Mixed(100), 8, seed, grouping);
        let forwards: Vec<_> = (0..40).map(|step| new(1).indices(step)).collect();
        let sampler = new(1);
        for step in (0..40).rev() {
            assert_eq!(sampler.indices(step), forwards[step as usize]);
        }
        assert_ne!(new(2).indices(0), forwards[0]);
    }
}

#[test]
fn groups_are_of_one_modality_and_similar_length() {
    let source = Mixed(6000);
    let spread = |grouping| {
        let sampler = BatchSampler::new(&source, 10, 0, grouping);
        let mut total = 0;
        for step in 0..sampler.steps_per_epoch() {
            let indices = sampler.indices(step);
            if grouping == Grouping::ModalityAndLength {
                let first = source.modality(indices[0]);
                assert!(indices.iter().all(|&index| source.modality(index) == first));
            }
            let lengths = indices.iter().map(|&index| source.length_hint(index));
            total += lengths.clone().max().unwrap() - lengths.min().unwrap();
        }
        total as f64 / sampler.steps_per_epoch() as f64
    };
    let (grouped, shuffled) = (spread(Grouping::ModalityAndLength), spread(Grouping::Shuffled));
    assert!(grouped * 10.0 < shuffled, "{grouped} against {shuffled}");
    // Not all long batches first: the order of batches is shuffled too.
    let sampler = BatchSampler::new(&source, 10, 0, Grouping::ModalityAndLength);
    let lengths: Vec<_> =
        (0..50).map(|step| source.length_hint(sampler.indices(step)[0])).collect();
    assert!(!lengths.is_sorted_by(|a, b| a >= b));
}

#[test]
fn edges_and_collation() {
    let empty = BatchSampler::new(&Mixed(0), 8, 0, Grouping::Shuffled);
    assert_eq!((empty.steps_per_epoch(), empty.indices(3)), (0, vec![]));
    assert_eq!(BatchSampler::new(&Mixed(4), 0, 0, Grouping::Shuffled).steps_per_epoch(), 4);

    let memory = MemorySource::collect(&Mixed(5), true).unwrap();
    let batch = collate(vec![memory.get(4).unwrap(), memory.get(1).unwrap()]);
    assert_eq!(batch.sample_ids, ["4", "1"]);
    assert_eq!(batch.input_ids, [vec![7; 5], vec![7; 2]]);
    assert!(matches!(memory.get(5), Err(DataError::OutOfRange { index: 5, len: 5 })));
}

/// Examples that moved or were removed leave the order of the others as it was.
#[test]
fn the_order_survives_a_removal() {
    for grouping in GROUPINGS {
        let (n, gone) = (50, [7, 20]);
        let whole = BatchSampler::new(&Mixed(n), 4, 3, grouping);
        let shapes = BatchSampler::shapes(&Mixed(n), grouping);
        let place = |index: usize| {
            let before = gone.iter().filter(|gone| **gone < index).count();
            (!gone.contains(&index)).then(|| index - before)
        };
        let places: Vec<Option<usize>> = (0..n).map(place).collect();
        let moved = BatchSampler::of_shapes(shapes, 4, 3, grouping).with_places(places);
        assert_eq!(moved.steps_per_epoch(), whole.steps_per_epoch());
        for step in 0..3 * whole.steps_per_epoch() {
            let expected: Vec<usize> = whole.indices(step).into_iter().filter_map(place).collect();
            assert_eq!(moved.indices(step), expected, "step {step}");
        }
        // A batch of which nothing is left: the next one, which may be of the next epoch's beginning.
        let one =
            BatchSampler::of_shapes(BatchSampler::shapes(&Mixed(3), grouping), 1, 3, grouping);
        let before: Vec<Vec<usize>> = (0..3).map(|step| one.indices(step)).collect();
        let places = (0..3).map(|index| (vec![index] != before[2]).then_some(index)).collect();
        let moved = one.with_places(places);
        assert_eq!(moved.indices(2), before[0]);
        assert_eq!(moved.indices(1), before[1]);
    }
}
