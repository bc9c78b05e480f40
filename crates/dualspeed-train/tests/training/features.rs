//! Features of the frozen tower in a folder: the same run, computed once, whoever writes and whatever is damaged.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use dualspeed_data::{ExampleSource, ImageProcessor, SceneSource};
use dualspeed_model::vision::features::{CLS_ATTENTION, KEYS, PATCH_TEXT};
use dualspeed_model::{Dtype, Needs, Tower, VisionFeatures, VisionGeometry, VisionTower};
use dualspeed_train::config::CacheMode;
use dualspeed_train::features::tower_fingerprint;
use dualspeed_train::{
    FeatureCache, FeatureStore, TrainConfig, TrainError, TrainJob, VALIDATION_FILE, train,
};

use crate::support::{
    Inner, config, hooked, job, model, one_step, run, scene_config, scenes, timeless, weights,
};

fn needs() -> Needs {
    Needs::of([CLS_ATTENTION, KEYS])
}

fn tower(seed: u64) -> Tower<Inner> {
    model(&TrainConfig { seed, ..config() }).valid().vision_tower.into_inner()
}

fn open(root: &Path, tower: &Tower<Inner>, needs: Needs) -> FeatureStore {
    let fingerprint = tower_fingerprint(tower, &Default::default()).unwrap();
    FeatureStore::open(root, &fingerprint, needs).unwrap()
}

/// Four images at a time; shards of one batch each.
fn stored(
    root: &Path,
    tower: &Tower<Inner>,
    source: &Arc<dyn ExampleSource>,
    needs: Needs,
) -> FeatureCache {
    let store = open(root, tower, needs).with_shard_bytes(1);
    let device = Default::default();
    FeatureCache::compute_stored::<Inner, _>(tower, source, store, 4, &device, false).unwrap()
}

fn in_memory(tower: &Tower<Inner>, source: &Arc<dyn ExampleSource>) -> FeatureCache {
    let device = Default::default();
    FeatureCache::compute::<Inner, _>(tower, source, needs(), 4, &device, false).unwrap()
}

/// Every feature of every image of a source, by name.
fn values(cache: &FeatureCache, source: &dyn ExampleSource) -> Vec<(String, Vec<f32>)> {
    let images = (0..source.len()).flat_map(|index| source.get(index).unwrap().images);
    let images: Vec<_> = images.collect();
    let features = cache.features::<Inner>(&images, &needs(), &Default::default()).unwrap();
    let value = |x: &Tensor<Inner, 3>| x.to_data().iter::<f32>().collect();
    features.iter().map(|(name, x)| (name.to_owned(), value(x))).collect()
}

/// Files of a folder and of those in it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

#[test]
fn a_run_is_the_same_wherever_features_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let with = |cache, name: &str| {
        let mut config = config();
        config.pruning.pruner.name = "fastervlm".into();
        config.validation.every = 2;
        config.validation.samples = Some(5);
        config.data.features.cache = cache;
        config.data.features.dir = Some(dir.path().join("features"));
        let run_dir = dir.path().join(name);
        let mut job = job(config, &run_dir);
        job.valid = Some(scenes(8));
        let outcome = train(job).unwrap();
        let validation = std::fs::read_to_string(run_dir.join(VALIDATION_FILE)).unwrap();
        let losses: Vec<String> = validation
            .lines()
            .map(|line| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                format!("{} {}", record["ce"], record["accuracy"])
            })
            .collect();
        assert_eq!(losses.len(), 2);
        (timeless(&run_dir), losses, weights(&outcome.model))
    };
    let plain = with(CacheMode::None, "none");
    assert!(!dir.path().join("features").exists());
    assert!(plain == with(CacheMode::Memory, "memory"));
    assert!(!dir.path().join("features").exists());
    assert!(plain == with(CacheMode::Disk, "computed"));
    let shards = files(&dir.path().join("features"));
    assert!(!shards.is_empty());
    assert!(plain == with(CacheMode::Disk, "read"));
    assert_eq!(shards, files(&dir.path().join("features")));
}

#[test]
fn sixteen_bits_stay_sixteen_bits() {
    type Half = Autodiff<burn_flex::Flex>;
    let dir = tempfile::tempdir().unwrap();
    let with = |cache, dtype| {
        let mut config = config();
        config.model.dtype = dtype;
        config.data.features.cache = cache;
        config.data.features.dir = Some(dir.path().join("features"));
        let run_dir = dir.path().join(format!("{cache:?}-{dtype:?}"));
        let model = config.model.init::<Half>(&Default::default(), config.seed).unwrap();
        train(TrainJob::new(config, model, scenes(12), &run_dir)).unwrap();
        let bytes: u64 = files(dir.path())
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .filter(|path| path.starts_with(dir.path().join("features")))
            .map(|path| std::fs::metadata(path).unwrap().len())
            .sum();
        (timeless(&run_dir), bytes)
    };
    let (plain, nothing) = with(CacheMode::None, Dtype::BFloat16);
    let (half, half_bytes) = with(CacheMode::Disk, Dtype::BFloat16);
    assert_eq!((&half, nothing), (&plain, 0));
    // Another precision of the same weights is another tower: 12 images of 16 x 16 values, twice as wide.
    let (whole, bytes) = with(CacheMode::Disk, Dtype::Float32);
    assert_ne!(half, whole);
    assert!(half_bytes > 12 * 256 * 2 && bytes - half_bytes > 12 * 256 * 4, "{half_bytes} {bytes}");
}

#[test]
fn a_resumed_run_may_read_features_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (whole_dir, parts_dir) = (dir.path().join("whole"), dir.path().join("parts"));
    let whole = run(config(), &whole_dir);
    assert_eq!(train(one_step(job(config(), &parts_dir))).unwrap().steps, 1);
    let mut on_disk = config();
    on_disk.data.features.cache = CacheMode::Disk;
    on_disk.data.features.dir = Some(dir.path().join("features"));
    let mut second = job(on_disk, &parts_dir);
    second.resume = true;
    let second = train(second).unwrap();
    assert!(weights(&whole.model) == weights(&second.model));
    assert_eq!(timeless(&whole_dir), timeless(&parts_dir));
}

#[test]
fn an_interrupted_computation_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut on_disk = config();
    on_disk.data.features.cache = CacheMode::Disk;
    on_disk.data.features.dir = Some(dir.path().join("features"));
    let run_dir = dir.path().join("run");
    let interrupt = Arc::new(AtomicBool::new(false));
    let flag = interrupt.clone();
    // Up with the first picture.
    let train_set = hooked(move |_, _| {
        flag.store(true, Ordering::SeqCst);
        Ok(())
    });
    let first = TrainJob { interrupt, train: train_set, ..job(on_disk.clone(), &run_dir) };
    let error = train(first).err().unwrap();
    assert!(matches!(error, TrainError::FeaturesInterrupted { done: 4, of: 12 }), "{error:?}");
    assert_eq!(open(&dir.path().join("features"), &tower(3), Needs::default()).len(), 4);
    // Nothing stands in the way of the next attempt.
    assert_eq!(run(on_disk, &run_dir).steps, 4);
}

#[test]
fn what_is_there_is_not_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (tower, source) = (tower(3), scenes(10));
    let first = stored(dir.path(), &tower, &source, needs());
    assert_eq!((first.computed(), first.len(), files(dir.path()).len()), (10, 10, 3));
    assert_eq!(first.bytes(), 0);
    let again = stored(dir.path(), &tower, &source, needs());
    assert_eq!((again.computed(), again.len(), files(dir.path()).len()), (0, 10, 3));
    let expected = values(&in_memory(&tower, &source), &*source);
    assert_eq!(expected.len(), 3);
    assert!(values(&first, &*source) == expected && values(&again, &*source) == expected);
    // More images: only those are new.
    let more = scenes(13);
    let grown = stored(dir.path(), &tower, &more, needs());
    assert_eq!((grown.computed(), grown.len()), (3, 13));
    assert!(values(&grown, &*more) == values(&in_memory(&tower, &more), &*more));
}

#[test]
fn features_of_more_kinds_serve_fewer() {
    let dir = tempfile::tempdir().unwrap();
    // This tower shares no space with text: what it cannot make is not asked for again and again.
    let mut config = config();
    let mut vit = config.model.vision.vit().unwrap().clone();
    vit.projection_dim = None;
    config.model.vision = vit.into();
    let tower = model(&config).valid().vision_tower.into_inner();
    let source = scenes(4);
    let fewer = needs().without(KEYS);
    let more = needs() | Needs::of([PATCH_TEXT]);
    for (needs, computed) in
        [(&fewer, 4), (&needs(), 4), (&fewer, 0), (&more, 4), (&more, 0), (&needs(), 0)]
    {
        let cache = stored(dir.path(), &tower, &source, needs.clone());
        assert_eq!(cache.computed(), computed, "{needs:?}");
    }
}

#[test]
fn another_tower_or_preprocessing_is_computed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let source = scenes(4);
    let ours = tower(3);
    assert_eq!(stored(dir.path(), &ours, &source, needs()).computed(), 4);
    let retrained = tower(4);
    let theirs = stored(dir.path(), &retrained, &source, needs());
    assert_eq!(theirs.computed(), 4);
    assert!(values(&theirs, &*source) == values(&in_memory(&retrained, &source), &*source));

    // The same weights, another layer.
    let mut config = config();
    let mut vit = config.model.vision.vit().unwrap().clone();
    vit.mm_vision_select_layer = -1;
    config.model.vision = vit.into();
    let deeper = model(&config).valid().vision_tower.into_inner();
    assert!(weights(&deeper) == weights(&ours));
    assert_eq!(stored(dir.path(), &deeper, &source, needs()).computed(), 4);

    let processor = ImageProcessor { std: [0.5; 3], ..scene_config().processor() };
    let other = SceneSource::new(scene_config(), 4).unwrap().with_processor(processor);
    let other: Arc<dyn ExampleSource> = Arc::new(other);
    assert_eq!(stored(dir.path(), &ours, &other, needs()).computed(), 4);
    assert_eq!(stored(dir.path(), &ours, &source, needs()).computed(), 0);
}

#[test]
fn damaged_shards_are_left_out_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let (tower, source) = (tower(3), scenes(12));
    let expected = values(&stored(dir.path(), &tower, &source, needs()), &*source);
    let shards = files(dir.path());
    assert_eq!(shards.len(), 3);
    let whole: Vec<Vec<u8>> = shards.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let damages: [fn(&[u8]) -> Vec<u8>; 5] = [
        |bytes| bytes[..bytes.len() - 1].to_vec(),
        |bytes| bytes[..100].to_vec(),
        |_| Vec::new(),
        |bytes| [bytes, b"more"].concat(),
        // Another tower's, and another layout's: the header is text.
        |bytes| {
            let at = bytes.windows(9).position(|w| w == b"\"tower\":\"").unwrap() + 9;
            let mut bytes = bytes.to_vec();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            bytes
        },
    ];
    for damage in damages {
        std::fs::write(&shards[1], damage(&whole[1])).unwrap();
        assert_eq!(open(dir.path(), &tower, needs()).len(), 8);
        let mended = stored(dir.path(), &tower, &source, needs());
        assert_eq!((mended.computed(), mended.len()), (4, 12));
        assert!(values(&mended, &*source) == expected);
        // The same images in the same order make the same file.
        let now: Vec<Vec<u8>> = shards.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert_eq!(files(dir.path()), shards);
        assert!(open(dir.path(), &tower, needs()).len() == 12 && now[1].len() == whole[1].len());
    }
}

#[test]
fn concurrent_writers_and_readers_see_whole_shards() {
    let dir = tempfile::tempdir().unwrap();
    let source = scenes(24);
    let expected = values(&in_memory(&tower(3), &source), &*source);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (source, expected, dir) = (&source, &expected, dir.path());
                scope.spawn(move || {
                    let tower = tower(3);
                    if writer == 2 {
                        // The same images in other shards: the last of these has two.
                        assert_eq!(stored(dir, &tower, &scenes(10), needs()).len(), 10);
                    }
                    let cache = stored(dir, &tower, source, needs());
                    assert_eq!(cache.len(), 24);
                    assert!(values(&cache, &**source) == *expected);
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let tower = tower(3);
            let mut before = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                let now = open(dir.path(), &tower, needs()).len();
                assert!(now >= before && now.is_multiple_of(2), "{before} -> {now}");
                before = now;
            }
        });
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        reader.join().unwrap();
        assert!(ended.into_iter().all(|ended| ended.is_ok()));
    });
    assert!(files(dir.path()).iter().all(|path| path.extension().unwrap() == "safetensors"));
    assert_eq!(stored(dir.path(), &tower(3), &source, needs()).computed(), 0);
}

/// A tower under which the store's folder goes away at its third batch: to the writer, a disk that takes no more.
struct FillsTheDisk<'a> {
    tower: &'a Tower<Inner>,
    batches: Cell<usize>,
    dir: PathBuf,
}

impl VisionTower<Inner> for FillsTheDisk<'_> {
    fn geometry(&self) -> VisionGeometry {
        self.tower.geometry()
    }

    fn features(&self, pixel_values: Tensor<Inner, 4>, needs: &Needs) -> VisionFeatures<Inner> {
        self.batches.set(self.batches.get() + 1);
        if self.batches.get() == 3 {
            std::fs::rename(&self.dir, self.dir.with_extension("away")).unwrap();
        }
        self.tower.features(pixel_values, needs)
    }
}

#[test]
fn a_disk_that_takes_no_more_costs_nothing_that_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (tower, source) = (tower(3), scenes(12));
    let store = open(dir.path(), &tower, needs()).with_shard_bytes(1);
    let path = store.dir().to_owned();
    let full = FillsTheDisk { tower: &tower, batches: Cell::new(0), dir: path.clone() };
    let device = Default::default();
    let error = FeatureCache::compute_stored::<Inner, _>(&full, &source, store, 4, &device, false);
    let error = error.err().unwrap();
    assert!(matches!(error, TrainError::FeatureWrite { .. }), "{error:?}");
    assert!(error.to_string().contains("data.features.dir"), "{error}");
    std::fs::rename(path.with_extension("away"), &path).unwrap();
    assert_eq!(files(dir.path()).len(), 2);
    assert_eq!(stored(dir.path(), &tower, &source, needs()).computed(), 4);

    // In a run: before the run has a directory that another attempt would have to overwrite.
    let mut config = config();
    config.data.features.cache = CacheMode::Disk;
    config.data.features.dir = Some(files(dir.path())[0].join("features"));
    let run_dir = dir.path().join("run");
    let error = train(job(config, &run_dir)).err().unwrap();
    assert!(matches!(error, TrainError::Io { .. }), "{error:?}");
    assert!(!run_dir.exists());
}
