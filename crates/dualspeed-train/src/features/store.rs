//! A folder of tower features that runs share: append-only shards, mapped into memory.
//!
//! `DIR/TOWER/NAME.safetensors`: one folder per tower (see [`tower_fingerprint`](super::tower_fingerprint)), one file per
//! shard, each with an index of its own. Images go by [`HostImage::key`](dualspeed_data::HostImage), the hash of pixels
//! and normalisation as the tower sees them; a data set of one's own has to make them so too. Nothing is locked: a shard is written under a temporary name and renamed when
//! it is on disk, so a reader sees all of it or nothing, and two processes that make the same images write the same rows.
//! Shards that are cut short, of another format or of another tower are left out with a warning that names the file; their
//! images are computed again. What a shard's rows hold is not checked: reading it all would cost what mapping saves.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dualspeed_core::files;
use dualspeed_core::hash::hex;
use dualspeed_model::Needs;
use dualspeed_model::vision::features::HIDDEN;
use sha2::{Digest, Sha256};

use super::rows::{Layout, Rows};
use super::shard::{self, Shard, ShardError};
use crate::error::TrainError;

const EXTENSION: &str = "safetensors";
const TEMPORARY: &str = ".tmp-";
/// A temporary file this old belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Bytes of features that are kept in memory before they are written.
const SHARD_BYTES: usize = 256 << 20;

/// The features of one tower that lie in a folder.
#[derive(Debug)]
pub struct FeatureStore {
    dir: PathBuf,
    tower: String,
    needs: Needs,
    shard_bytes: usize,
    shards: Vec<Arc<Shard>>,
    layouts: BTreeMap<String, Layout>,
    index: HashMap<u64, (usize, usize)>,
}

impl FeatureStore {
    /// Reads the indexes of all shards under `root` of the tower with this fingerprint that have the features `needs`
    /// names; the folder is made if it is not there.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be made or listed, or a shard cannot be opened. A damaged or foreign shard
    /// is no error, see the module.
    pub fn open(root: &Path, tower: &str, needs: Needs) -> Result<Self, TrainError> {
        let dir = root.join(tower);
        fs::create_dir_all(&dir).map_err(TrainError::io("create", &dir))?;
        let mut store = Self {
            dir,
            tower: tower.to_owned(),
            needs,
            shard_bytes: SHARD_BYTES,
            shards: Vec::new(),
            layouts: BTreeMap::new(),
            index: HashMap::new(),
        };
        let mut paths = Vec::new();
        for entry in fs::read_dir(&store.dir).map_err(TrainError::io("list", &store.dir))? {
            let path = entry.map_err(TrainError::io("list", &store.dir))?.path();
            if is_abandoned(&path) {
                // Someone else may be doing the same.
                let _ = fs::remove_file(&path);
            } else if path.extension().is_some_and(|extension| extension == EXTENSION) {
                paths.push(path);
            }
        }
        // The order of a folder is the file system's; rows are the same wherever they lie.
        paths.sort_unstable();
        for path in paths {
            match Shard::open(&path, tower) {
                Ok(shard) => match store.register(Arc::new(shard)) {
                    Ok(()) => {}
                    Err(problem) => store.left_out(&path, &problem),
                },
                Err(ShardError::Damaged(problem)) => store.left_out(&path, &problem),
                // Removed since the folder was listed.
                Err(ShardError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(ShardError::Io(error)) => return Err(TrainError::io("open", path)(error)),
            }
        }
        Ok(store)
    }

    /// The same store with shards of about this many bytes of features: what is lost when a process is killed, and what
    /// stays in memory while features are computed.
    pub fn with_shard_bytes(mut self, bytes: usize) -> Self {
        self.shard_bytes = bytes;
        self
    }

    /// The folder of this tower's shards.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The features beyond the hidden state that every image here has.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    pub(crate) fn is_full(&self, rows: &Rows) -> bool {
        rows.bytes() >= self.shard_bytes
    }

    pub(crate) fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    /// Shard and row of an image.
    pub(crate) fn find(&self, key: u64) -> Option<(usize, usize)> {
        self.index.get(&key).copied()
    }

    /// Writes a shard and maps it; its rows lie in the order of `rows`.
    pub(crate) fn append(&mut self, rows: &Rows) -> Result<Arc<Shard>, TrainError> {
        let path = self.dir.join(self.name(rows));
        let ours = |shard: &Shard| shard.keys() == rows.keys;
        // Another process was faster: its rows are ours.
        let there = Shard::open(&path, &self.tower).ok().filter(ours);
        let shard = match there {
            Some(shard) => shard,
            None => {
                // Made when the store was opened: of a disk that went away, nothing is written in its place.
                let gone = |source| TrainError::FeatureWrite { path: path.clone(), source };
                fs::metadata(&self.dir).map_err(gone)?;
                let needs = asked(&self.needs);
                shard::write(&path, &self.temporary(), &self.tower, &needs, rows)
                    .map_err(|error| refused(&path, error))?;
                files::sync_dir(&self.dir).map_err(TrainError::io("sync", &self.dir))?;
                Shard::open(&path, &self.tower).map_err(|error| refused(&path, error))?
            }
        };
        let shard = Arc::new(shard);
        self.register(shard.clone()).map_err(|problem| self.contradiction(&problem))?;
        Ok(shard)
    }

    /// Adds a shard's images to the index, if it has the features that are needed.
    fn register(&mut self, shard: Arc<Shard>) -> Result<(), String> {
        if !shard.serves(&asked(&self.needs)) {
            return Ok(());
        }
        for (name, layout) in shard.layouts() {
            if let Some(known) = self.layouts.get(name).filter(|known| *known != layout) {
                return Err(format!("`{name}` is {layout:?}, in other shards {known:?}"));
            }
        }
        if !shard.layouts().contains_key(HIDDEN) {
            return Err("it has no `hidden`".into());
        }
        self.layouts.extend(shard.layouts().iter().map(|(name, layout)| (name.clone(), *layout)));
        for (row, key) in shard.keys().iter().enumerate() {
            self.index.entry(*key).or_insert((self.shards.len(), row));
        }
        self.shards.push(shard);
        Ok(())
    }

    /// A function of what a shard holds, so that processes at the same work write one file.
    fn name(&self, rows: &Rows) -> String {
        let mut hash = Sha256::new();
        hash.update(asked(&self.needs).join(","));
        for key in &rows.keys {
            hash.update(key.to_le_bytes());
        }
        format!("{}.{EXTENSION}", hex(&hash.finalize()[..12]))
    }

    /// A name that no other process or thread has.
    fn temporary(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        self.dir.join(format!("{TEMPORARY}{}-{count}-{now}", std::process::id()))
    }

    fn left_out(&self, path: &Path, problem: &str) {
        tracing::warn!(
            "the features in {} cannot be used: {problem}; its images are computed again, delete the file if \
             this is said of it again",
            path.display()
        );
    }

    fn contradiction(&self, problem: &str) -> TrainError {
        TrainError::FeatureStore {
            path: self.dir.clone(),
            problem: format!("a shard does not fit the others: {problem}"),
            advice: "delete the folder".into(),
        }
    }
}

/// Names of the features that a tower is asked for beyond the hidden state.
fn asked(needs: &Needs) -> Vec<String> {
    needs.of_tower().names().filter(|name| *name != HIDDEN).map(str::to_owned).collect()
}

fn is_abandoned(path: &Path) -> bool {
    let temporary = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with(TEMPORARY));
    let age = || fs::metadata(path).ok()?.modified().ok()?.elapsed().ok();
    temporary && age().is_some_and(|age| age > ABANDONED)
}

fn refused(path: &Path, error: ShardError) -> TrainError {
    match error {
        ShardError::Io(source) => TrainError::FeatureWrite { path: path.to_owned(), source },
        ShardError::Damaged(problem) => TrainError::FeatureStore {
            path: path.to_owned(),
            problem,
            advice: "set data.features.cache = \"memory\"".into(),
        },
    }
}
