//! What a record of a data set is known by, so that a change of the set can be told record by record.

use sha2::{Digest, Sha256};

/// Identifies one record: by name, and by content.
///
/// Two records of equal `digest` are the same: their position in the data set, the file they stand in, and how it is laid
/// out, do not matter. Pictures are known by their names, not by their pixels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordKey {
    /// The record's id; its number, from 0, where it has none.
    pub id: String,
    /// A hash of its content.
    pub digest: u64,
}

impl RecordKey {
    /// The key of record `index`, called `id`, with the given content: what becomes tokens and the names of pictures, in
    /// order. An id that is only the record's number is no content: it changes when a record before it is removed.
    pub fn new<'a>(index: usize, id: &'a str, content: impl IntoIterator<Item = &'a str>) -> Self {
        let named = if id == index.to_string() { "" } else { id };
        let mut hash = Sha256::new();
        for part in std::iter::once(named).chain(content) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let digest = digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        Self { id: id.to_owned(), digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_and_position_does_not() {
        let key = |index, id: &str, content: &[&str]| RecordKey::new(index, id, content.to_vec());
        assert_eq!(key(0, "a", &["x", "y"]), key(7, "a", &["x", "y"]));
        assert_eq!(key(3, "3", &["x"]).digest, key(2, "2", &["x"]).digest);
        for other in [key(0, "b", &["x", "y"]), key(0, "a", &["xy"]), key(0, "a", &["x", "z"])] {
            assert_ne!(key(0, "a", &["x", "y"]).digest, other.digest);
        }
    }
}
