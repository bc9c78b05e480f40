//! The records that a run began with, in its directory: what a resumed run compares its data set with.
//!
//! The order of samples is drawn over the records that the run began with, by their numbers. A data set from which records
//! were removed, or in which some were corrected, gives the same order as before when every record keeps its number; so the
//! directory holds the key of each, and a resumed run looks up where it stands now.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use dualspeed_core::files;
use dualspeed_core::hash::hex;
use dualspeed_data::{ExampleSource, Modality, RecordKey};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use crate::run_files::RECORDS_FILE;

/// How many records messages name.
const SHOWN: usize = 10;

/// The records that a run began with, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Records {
    keys: Vec<RecordKey>,
    /// What the sampler read of them.
    pub(crate) shapes: Vec<(Modality, usize)>,
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
struct Header {
    records: usize,
    /// Of the lines after this one.
    sha256: String,
}

/// Where the records of a run stand in its data set now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moved {
    /// The place of every record; `None` for those removed. Empty when all stand where they did.
    pub(crate) places: Vec<Option<usize>>,
    /// Ids of records that are gone.
    pub(crate) removed: Vec<String>,
    /// Ids of records whose content is another.
    pub(crate) corrected: Vec<String>,
    /// Ids of records that the run did not begin with.
    pub(crate) added: Vec<String>,
}

impl Records {
    /// The records of a source, if it tells them.
    pub(crate) fn of(source: &dyn ExampleSource, shapes: &[(Modality, usize)]) -> Option<Self> {
        Some(Self { keys: keys(source)?, shapes: shapes.to_vec() })
    }

    /// Writes them into a run directory.
    ///
    /// # Errors
    /// `TrainError::Io`.
    pub(crate) fn write(&self, run_dir: &Path) -> Result<(), TrainError> {
        let path = run_dir.join(RECORDS_FILE);
        let mut lines = String::new();
        for (RecordKey { id, digest }, (modality, length)) in self.keys.iter().zip(&self.shapes) {
            let line =
                (id, format!("{digest:016x}"), u8::from(*modality == Modality::Image), length);
            lines += &json(&path, &line)?;
            lines.push('\n');
        }
        let sha256 = hex(&Sha256::digest(&lines));
        let header = json(&path, &Header { records: self.keys.len(), sha256 })?;
        files::write_atomic(&path, format!("{header}\n{lines}").as_bytes())
            .map_err(TrainError::io("write", &path))
    }

    /// Reads them from a run directory; `None` where there are none, or what there is was damaged, which is a warning.
    ///
    /// # Errors
    /// `TrainError::Io` when the file cannot be read.
    pub(crate) fn read(run_dir: &Path) -> Result<Option<Self>, TrainError> {
        let path = run_dir.join(RECORDS_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TrainError::io("read", &path)(error)),
        };
        let records = Self::parse(&bytes);
        if records.is_none() {
            tracing::warn!(
                "{} is damaged: the data set is compared as a whole, and no change of it is accepted",
                path.display()
            );
        }
        Ok(records)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (header, lines) = text.split_once('\n')?;
        let Header { records, sha256 } = serde_json::from_str(header).ok()?;
        if hex(&Sha256::digest(lines)) != sha256 {
            return None;
        }
        let (mut keys, mut shapes) = (Vec::with_capacity(records), Vec::with_capacity(records));
        for line in lines.lines() {
            let (id, digest, image, length): (String, String, u8, usize) =
                serde_json::from_str(line).ok()?;
            keys.push(RecordKey { id, digest: u64::from_str_radix(&digest, 16).ok()? });
            shapes.push((if image == 1 { Modality::Image } else { Modality::Text }, length));
        }
        (keys.len() == records).then_some(Self { keys, shapes })
    }

    /// Looks up where the records stand in `source` now; `None` if it does not tell its records.
    pub(crate) fn moved(&self, source: &dyn ExampleSource) -> Option<Moved> {
        let now = keys(source)?;
        if now.len() == self.keys.len()
            && now.iter().zip(&self.keys).all(|(now, before)| now.digest == before.digest)
        {
            return Some(Moved::default());
        }
        // By content first; what is left over by id.
        let mut by_digest: HashMap<u64, VecDeque<usize>> = HashMap::new();
        for (index, key) in now.iter().enumerate() {
            by_digest.entry(key.digest).or_default().push_back(index);
        }
        let mut places: Vec<Option<usize>> = self
            .keys
            .iter()
            .map(|key| by_digest.get_mut(&key.digest).and_then(VecDeque::pop_front))
            .collect();
        let mut unknown: Vec<usize> = by_digest.into_values().flatten().collect();
        unknown.sort_unstable();
        let mut by_id: HashMap<&str, VecDeque<usize>> = HashMap::new();
        for index in &unknown {
            by_id.entry(&now[*index].id).or_default().push_back(*index);
        }
        let mut moved = Moved::default();
        for (key, place) in self.keys.iter().zip(&mut places) {
            if place.is_some() {
                continue;
            }
            *place = by_id.get_mut(&*key.id).and_then(VecDeque::pop_front);
            let list = if place.is_some() { &mut moved.corrected } else { &mut moved.removed };
            list.push(key.id.clone());
        }
        let mut added: Vec<usize> = by_id.into_values().flatten().collect();
        added.sort_unstable();
        moved.added = added.into_iter().map(|index| now[index].id.clone()).collect();
        moved.places = places;
        Some(moved)
    }
}

impl Moved {
    /// Says why a run cannot go on with this data set, if it cannot; `revised` are the ids of records whose change is
    /// meant.
    pub(crate) fn refusal(&self, revised: &[String]) -> Option<String> {
        if !self.added.is_empty() {
            return Some(format!(
                "data.train has {} that the run did not begin with: the order of samples is drawn over the records it began \
                 with, so others need a run of their own",
                named(&self.added, "record")
            ));
        }
        let changed = || self.removed.iter().chain(&self.corrected);
        let unlisted: Vec<String> = changed().filter(|id| !revised.contains(id)).cloned().collect();
        if unlisted.is_empty() {
            return None;
        }
        let list: Vec<String> =
            revised.iter().chain(changed()).map(|id| format!("{id:?}")).collect();
        let advice = match list.len() <= SHOWN {
            true => format!("--set 'data.revised=[{}]'", list.join(", ")),
            false => "data.revised in the config".into(),
        };
        Some(format!(
            "data.train is not what the run began with: {}; if that is meant, list them in {advice}",
            self.summary()
        ))
    }

    /// What was removed and corrected, in words.
    pub(crate) fn summary(&self) -> String {
        let parts = [(&self.removed, "removed"), (&self.corrected, "corrected")];
        let parts = parts.iter().filter(|(ids, _)| !ids.is_empty());
        let parts: Vec<String> =
            parts.map(|(ids, what)| format!("{} {what}", named(ids, "record"))).collect();
        match parts.is_empty() {
            true => "the same records in another order".into(),
            false => parts.join(", "),
        }
    }

    /// Whether every record stands where it did.
    pub(crate) fn is_nothing(&self) -> bool {
        self.places.is_empty()
    }
}

/// The keys of all records, if a source tells them.
fn keys(source: &dyn ExampleSource) -> Option<Vec<RecordKey>> {
    (0..source.len()).into_par_iter().map(|index| source.record(index)).collect()
}

fn named(ids: &[String], what: &str) -> String {
    let shown = ids.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if ids.len() > SHOWN { ", .." } else { "" };
    let plural = if ids.len() == 1 { "" } else { "s" };
    format!("{} {what}{plural} ({shown}{more})", ids.len())
}

fn json(path: &Path, value: &impl Serialize) -> Result<String, TrainError> {
    serde_json::to_string(value)
        .map_err(|error| TrainError::io("write", path)(std::io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use dualspeed_data::{DataError, Example};

    use super::*;

    /// Records of one word each.
    struct Words(Vec<(&'static str, &'static str)>);

    impl ExampleSource for Words {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn get(&self, index: usize) -> Result<Example, DataError> {
            Err(DataError::OutOfRange { index, len: 0 })
        }
        fn modality(&self, _index: usize) -> Modality {
            Modality::Text
        }
        fn length_hint(&self, index: usize) -> usize {
            self.0[index].1.len()
        }
        fn fingerprint(&self) -> String {
            "words".into()
        }
        fn record(&self, index: usize) -> Option<RecordKey> {
            let (id, word) = self.0[index];
            Some(RecordKey::new(index, id, [word]))
        }
    }

    fn records() -> Records {
        let source = Words(vec![("a", "one"), ("b", "two"), ("c", "three"), ("d", "two")]);
        let shapes =
            [(Modality::Image, 3), (Modality::Text, 3), (Modality::Text, 5), (Modality::Image, 1)];
        Records::of(&source, &shapes).unwrap()
    }

    #[test]
    fn records_are_read_as_written_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Records::read(dir.path()).unwrap(), None);
        records().write(dir.path()).unwrap();
        assert_eq!(Records::read(dir.path()).unwrap(), Some(records()));
        let path = dir.path().join(RECORDS_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(",5]", ",6]")).unwrap();
        assert_eq!(Records::read(dir.path()).unwrap(), None);
    }

    #[test]
    fn every_change_is_told_by_id() {
        let moved =
            |now: &[(&'static str, &'static str)]| records().moved(&Words(now.to_vec())).unwrap();
        let whole = [("a", "one"), ("b", "two"), ("c", "three"), ("d", "two")];
        assert!(moved(&whole).is_nothing());

        let turned = moved(&[whole[3], whole[2], whole[1], whole[0]]);
        assert_eq!(turned.places, [Some(3), Some(2), Some(1), Some(0)]);
        assert_eq!(turned.refusal(&[]), None);

        let removed = moved(&[whole[0], whole[2], whole[3]]);
        assert_eq!(removed.places, [Some(0), None, Some(1), Some(2)]);
        let refusal = removed.refusal(&[]).unwrap();
        assert!(
            refusal.contains("1 record (b) removed") && refusal.contains("data.revised=[\"b\"]")
        );
        assert_eq!(removed.refusal(&["b".into(), "x".into()]), None);

        let corrected = moved(&[whole[0], whole[1], ("c", "drei"), whole[3]]);
        assert_eq!(corrected.places, [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(
            (&corrected.corrected[..], &corrected.removed[..]),
            (&["c".to_owned()][..], &[][..])
        );
        assert!(corrected.refusal(&["b".into()]).unwrap().contains("corrected"));

        let added = moved(&[whole[0], whole[1], whole[2], whole[3], ("e", "five")]);
        assert!(added.refusal(&["e".into()]).unwrap().contains("1 record (e)"));
    }
}
