//! Checkpoints on disk: kept, replaced, damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::error::TrainError;

type Tensors = BTreeMap<String, HostTensor>;

fn example(step: u64) -> (CheckpointState, Tensors) {
    let state = CheckpointState {
        step,
        config: serde_json::json!({"seed": 1}),
        data: "data".into(),
        updates: BTreeMap::from([("a.weight".to_owned(), step)]),
        ..CheckpointState::default()
    };
    let tensor =
        HostTensor { shape: vec![1, 3], values: vec![1.0, f32::MIN_POSITIVE, step as f32] };
    let moments = HostTensor { shape: vec![3], values: vec![step as f32; 3] };
    let tensors = [("model.a.weight".to_owned(), tensor), ("optim.m.a.weight".to_owned(), moments)];
    (state, BTreeMap::from(tensors))
}

fn save(checkpoints: &Checkpoints, step: u64, best: &[u64]) {
    let (state, tensors) = example(step);
    checkpoints.save(&state, &tensors, best).unwrap();
}

fn latest(checkpoints: &Checkpoints) -> Result<Loaded, TrainError> {
    checkpoints.load_latest(Contents::All)
}

fn in_dir(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn round_trips_and_keeps_the_last_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 2);
    for step in [5, 10, 15] {
        save(&checkpoints, step, &[]);
    }
    assert_eq!(checkpoints.steps().unwrap(), [10, 15]);
    let loaded = latest(&checkpoints).unwrap();
    assert_eq!(loaded.path, checkpoints.path(15));
    assert_eq!((loaded.state, loaded.tensors), example(15));
    let model = checkpoints.load_latest(Contents::Model).unwrap();
    assert_eq!(model.tensors.keys().collect::<Vec<_>>(), ["model.a.weight"]);
    // The best stay, however old.
    for step in [20, 25, 30] {
        save(&checkpoints, step, &[10]);
    }
    assert_eq!(in_dir(dir.path()), ["step-00000010", "step-00000025", "step-00000030"]);
}

#[test]
fn equal_weights_have_equal_digests() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 9);
    let (state, mut tensors) = example(1);
    checkpoints.save(&state, &tensors, &[]).unwrap();
    tensors.get_mut("optim.m.a.weight").unwrap().values[0] = 7.0;
    checkpoints.save(&CheckpointState { step: 2, ..state.clone() }, &tensors, &[]).unwrap();
    tensors.get_mut("model.a.weight").unwrap().values[0] = 7.0;
    checkpoints.save(&CheckpointState { step: 3, ..state }, &tensors, &[]).unwrap();
    let digest = |step| model_digest(dir.path(), step).unwrap();
    assert_eq!(digest(1), digest(2));
    assert_ne!(digest(1), digest(3));
}

#[test]
fn what_a_crash_leaves_is_not_seen_and_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 2);
    for name in [".tmp-7", ".old-3", "step-9", "mine"] {
        fs::create_dir_all(dir.path().join("checkpoints").join(name)).unwrap();
    }
    let error = latest(&checkpoints).unwrap_err();
    assert!(matches!(error, TrainError::NoCheckpoint { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("--config") && message.contains("--overwrite"), "{message}");
    save(&checkpoints, 7, &[]);
    assert_eq!(checkpoints.steps().unwrap(), [7]);
    checkpoints.clean(&[]);
    assert_eq!(in_dir(dir.path()), ["mine", "step-00000007", "step-9"]);
    checkpoints.remove_all().unwrap();
    assert_eq!(in_dir(dir.path()), ["mine"]);
}

#[test]
fn a_failed_write_is_an_error_and_leaves_the_old_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 1);
    save(&checkpoints, 1, &[]);
    let bytes = fs::read(checkpoints.path(1).join(TENSORS)).unwrap();
    // A file where the directory must go, as if it could not be made.
    let blocked = Checkpoints::new(&checkpoints.path(1).join(TENSORS), 1);
    let (state, tensors) = example(2);
    assert!(matches!(blocked.save(&state, &tensors, &[]), Err(TrainError::Io { .. })));
    assert_eq!(fs::read(checkpoints.path(1).join(TENSORS)).unwrap(), bytes);
    assert_eq!(checkpoints.steps().unwrap(), [1]);
}

/// What format 1 had besides, and what it lacked, does not matter: the number decides.
#[test]
fn a_checkpoint_of_another_format_is_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 1);
    save(&checkpoints, 1, &[]);
    let path = checkpoints.path(1);
    fs::write(path.join(STATE), r#"{"format": 1, "step": 1, "isolator": {}}"#).unwrap();
    fs::remove_file(path.join(CHECKSUMS)).unwrap();
    let error = latest(&checkpoints).unwrap_err();
    assert!(matches!(error, TrainError::CheckpointFormat { found: 1, expected: FORMAT, .. }));
    let message = error.to_string();
    assert_eq!(check_format(dir.path()).unwrap_err().to_string(), message);
    assert!(check_format(&dir.path().join("no run")).is_ok());
    for words in ["step-00000001", "format 1", "reads 3", "train anew", "--overwrite"] {
        assert!(message.contains(words), "{message}");
    }
}

/// Flips one bit of a file; a negative offset is from its end.
fn flip(path: &Path, offset: isize) {
    let mut bytes = fs::read(path).unwrap();
    let at = if offset < 0 { bytes.len() as isize + offset } else { offset };
    bytes[at as usize] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_damage_falls_back_on_the_checkpoint_before() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 13] = [
        ("optim.m.a.weight", |dir| flip(&dir.join(TENSORS), -1)),
        ("model.a.weight", |dir| flip(&dir.join(TENSORS), -20)),
        (TENSORS, |dir| flip(&dir.join(TENSORS), 12)),
        (TENSORS, |dir| flip(&dir.join(TENSORS), 3)),
        (STATE, |dir| flip(&dir.join(STATE), -30)),
        (STATE, |dir| flip(&dir.join(STATE), 14)),
        (CHECKSUMS, |dir| flip(&dir.join(CHECKSUMS), 1)),
        ("empty", |dir| fs::write(dir.join(STATE), "").unwrap()),
        ("state.json is missing", |dir| fs::remove_file(dir.join(STATE)).unwrap()),
        ("trainable.safetensors is missing", |dir| fs::remove_file(dir.join(TENSORS)).unwrap()),
        ("checksums.json is missing", |dir| fs::remove_file(dir.join(CHECKSUMS)).unwrap()),
        (TENSORS, |dir| {
            let bytes = fs::read(dir.join(TENSORS)).unwrap();
            fs::write(dir.join(TENSORS), &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("state.json is missing", |dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir(dir).unwrap();
        }),
    ];
    for (number, (named, damage)) in damages.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 3);
        save(&checkpoints, 1, &[]);
        save(&checkpoints, 2, &[]);
        damage(&checkpoints.path(2));
        let Loaded { state, tensors, damaged, .. } = latest(&checkpoints).unwrap();
        assert_eq!((state, tensors), example(1), "damage {number}");
        assert_eq!(damaged, [checkpoints.path(2)]);
        assert!(check_format(dir.path()).is_ok());
        // It is out of the way of those that come.
        checkpoints.clean(&damaged);
        assert_eq!(in_dir(dir.path()), ["damaged-step-00000002", "step-00000001"]);
        save(&checkpoints, 2, &[]);
        assert_eq!(latest(&checkpoints).unwrap().state.step, 2);
        // With nothing to fall back on, it is named.
        damage(&checkpoints.path(2));
        fs::remove_dir_all(checkpoints.path(1)).unwrap();
        let error = latest(&checkpoints).unwrap_err();
        assert!(matches!(error, TrainError::NoWholeCheckpoint { .. }), "{error}");
        let message = error.to_string();
        for words in [named, "step-00000002", "--overwrite"] {
            assert!(message.contains(words), "damage {number}: no {words} in {message}");
        }
    }
}

#[test]
fn a_checkpoint_under_another_name_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 3);
    save(&checkpoints, 1, &[]);
    fs::create_dir(checkpoints.path(9)).unwrap();
    for name in [TENSORS, STATE, CHECKSUMS] {
        fs::copy(checkpoints.path(1).join(name), checkpoints.path(9).join(name)).unwrap();
    }
    let loaded = latest(&checkpoints).unwrap();
    assert_eq!((loaded.state.step, loaded.damaged), (1, vec![checkpoints.path(9)]));
}

#[cfg(unix)]
#[test]
fn an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 1);
    save(&checkpoints, 1, &[]);
    let allow = |mode| {
        fs::set_permissions(checkpoints.path(1), fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(0o500);
    if fs::write(checkpoints.path(1).join("probe"), "").is_ok() {
        // Root may do everything; a directory that is in use as something else it cannot remove either.
        return allow(0o700);
    }
    save(&checkpoints, 2, &[]);
    assert_eq!(latest(&checkpoints).unwrap().state.step, 2);
}

#[test]
fn a_checkpoint_knows_its_run() {
    let path = |text: &'static str| {
        run_and_step(Path::new(text)).map(|(run, step)| (run.to_str().unwrap(), step))
    };
    assert_eq!(path("a/b/checkpoints/step-00000012"), Some(("a/b", 12)));
    assert_eq!(path("checkpoints/step-00000012/"), Some((".", 12)));
    for other in
        ["a/b", "a/step-00000012", "a/checkpoints/step-12", "a/checkpoints/damaged-step-00000012"]
    {
        assert_eq!(path(other), None);
    }
}
