//! Where every record of a file lies, and what is wrong with those that cannot be used. The file is read once, piece by
//! piece; records are checked in parallel and forgotten again.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::image::ImageSource;
use super::record::{self, Notes, Record};
use super::scan::{ScanError, Scanner, Span};
use super::value::Value;
use crate::error::{DataError, RecordProblem};
use crate::picture::{ImageLoading, check_image_file};
use crate::source::FileNotes;

/// Bytes that are read at once.
const PIECE: usize = 16 << 20;

/// Where image files are, and which of them may be read.
type Images<'a> = (&'a Path, &'a ImageLoading);

/// One record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub span: Span,
    /// Of its content, id included.
    pub digest: u64,
    /// Where its id ends in [`Index::ids`]; it begins where that of the record before ends. Empty of a record without.
    pub id_end: u64,
    /// Bytes of all text; three times as many where it is not all ASCII, as tokenizers may write such text out.
    pub bytes: u32,
    pub words: u32,
    pub turns: u16,
    pub images: u16,
    /// Whether it cannot be used.
    pub is_bad: bool,
}

/// A file of records.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub entries: Vec<Entry>,
    /// The ids of all records, one after another.
    pub ids: String,
    pub notes: FileNotes,
    /// What is wrong with records, in their order, and at last with the file as a whole.
    pub problems: Vec<Problem>,
}

/// A record that cannot be used, or (`record` is `None`) a file that cannot be read to its end.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub record: Option<usize>,
    pub error: std::sync::Arc<DataError>,
}

impl Index {
    /// Reads a file, checks every record, and looks for its image files under `image_root`.
    ///
    /// # Errors
    /// If the file cannot be read, or is no list of records at all.
    pub fn open(path: &Path, image_root: &Path, loading: &ImageLoading) -> Result<Self, DataError> {
        let read = |source| DataError::Read { path: path.to_path_buf(), source };
        let mut file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.is_dir() {
            return Err(read(std::io::ErrorKind::IsADirectory.into()));
        }
        let mut index = Self::default();
        let mut scanner = Scanner::new();
        let (mut buffer, mut base, mut spans) = (Vec::new(), 0, Vec::new());
        let file_error = |error: ScanError| DataError::Json {
            path: path.to_path_buf(),
            line: error.line,
            column: error.column,
            reason: error.reason,
        };
        loop {
            let before = buffer.len();
            let count = file.by_ref().take(PIECE as u64).read_to_end(&mut buffer).map_err(read)?;
            if base == 0 && before == 0 && buffer.starts_with(b"\xef\xbb\xbf") {
                buffer[..3].fill(b' ');
            }
            let scanned = match count {
                0 => scanner.finish(&mut spans),
                _ => scanner.feed(&buffer[before..], &mut spans),
            };
            index.add(path, (image_root, loading), &buffer, base, &spans);
            spans.clear();
            if let Err(error) = scanned {
                let error = file_error(error).into();
                index.problems.push(Problem { record: None, error });
                break;
            }
            if scanner.is_lines() && index.is_no_list() {
                break;
            }
            if count == 0 {
                break;
            }
            let done = (scanner.unfinished() - base) as usize;
            buffer.drain(..done);
            base += done as u64;
        }
        Ok(index)
    }

    /// The id of a record; its number where it has none.
    pub fn id(&self, record: usize) -> String {
        let end = |record: usize| self.entries.get(record).map_or(0, |entry| entry.id_end as usize);
        let start = record.checked_sub(1).map_or(0, end);
        match self.ids.get(start..end(record)) {
            Some(id) if !id.is_empty() => id.to_owned(),
            _ => record.to_string(),
        }
    }

    /// Whether the first lines say that the file is one JSON value over many lines; one error then stands for all.
    fn is_no_list(&mut self) -> bool {
        let broken = self.entries.iter().take(2).filter(|entry| entry.is_bad).count() == 2;
        let unfinished = |problem: &Problem| match &*problem.error {
            DataError::Json { reason, .. } => reason.starts_with("EOF"),
            _ => false,
        };
        let whole = broken && self.problems.first().is_some_and(unfinished);
        if whole {
            self.problems.truncate(1);
            self.entries.truncate(1);
        }
        whole
    }

    /// Checks records whose bytes are in `buffer`, which begins at `base` in the file.
    fn add(&mut self, path: &Path, images: Images<'_>, buffer: &[u8], base: u64, spans: &[Span]) {
        let first = self.entries.len();
        let checked: Vec<_> = spans
            .par_iter()
            .map(|span| {
                let from = (span.offset - base) as usize;
                check(&buffer[from..from + span.length], *span, images)
            })
            .collect();
        for (at, (span, checked)) in spans.iter().zip(checked).enumerate() {
            let Checked { mut entry, id, notes, problem } = checked;
            self.ids += id.as_deref().unwrap_or_default();
            entry.id_end = self.ids.len() as u64;
            self.entries.push(entry);
            add_notes(&mut self.notes, notes);
            if let Some(problem) = problem {
                let error = record_error(path, *span, first + at, id, problem).into();
                self.problems.push(Problem { record: Some(first + at), error });
            }
        }
    }
}

fn add_notes(all: &mut FileNotes, notes: Notes) {
    for key in notes.unread {
        *all.unread_keys.entry(key).or_default() += 1;
    }
    for (role, turns) in notes.roles {
        *all.roles.entry(role).or_default() += turns;
    }
    all.begin_with_answer += usize::from(notes.begins_with_answer);
}

/// What was seen of one record.
struct Checked {
    entry: Entry,
    id: Option<String>,
    notes: Notes,
    problem: Option<RecordProblem>,
}

fn check(bytes: &[u8], span: Span, images: Images<'_>) -> Checked {
    let entry =
        Entry { span, digest: 0, id_end: 0, bytes: 0, words: 0, turns: 0, images: 0, is_bad: true };
    let record = match parse(bytes, span) {
        Ok(record) => record,
        Err((id, problem)) => {
            // So that its repair can be told.
            let entry = Entry { digest: digest_of(bytes), ..entry };
            return Checked { entry, id, notes: Notes::default(), problem: Some(problem) };
        }
    };
    let missing = record.images.iter().find_map(|image| find_image(image, images).err());
    let entry = Entry {
        digest: record.digest(true),
        bytes: u32::try_from(record.bytes()).unwrap_or(u32::MAX),
        words: u32::try_from(record.words()).unwrap_or(u32::MAX),
        turns: u16::try_from(record.conversation.turns.len()).unwrap_or(u16::MAX),
        images: u16::try_from(record.images.len()).unwrap_or(u16::MAX),
        is_bad: missing.is_some(),
        ..entry
    };
    Checked { entry, id: record.id, notes: record.notes, problem: missing }
}

fn digest_of(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest[..8].iter().fold(0, |digest, &byte| (digest << 8) | u64::from(byte))
}

/// Looks at an image file without opening it.
fn find_image(image: &ImageSource, (root, loading): Images<'_>) -> Result<(), RecordProblem> {
    match image.path(root) {
        Some(path) => Ok(check_image_file(&path, loading)?),
        None => Ok(()),
    }
}

/// Reads one record.
///
/// # Errors
/// What is wrong with it, and its id as far as it can be told.
pub(super) fn parse(bytes: &[u8], span: Span) -> Result<Record, (Option<String>, RecordProblem)> {
    let place = |line: usize, column: usize| {
        (span.line + line - 1, if line == 1 { span.column + column - 1 } else { column })
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let lines = before.iter().filter(|&&byte| byte == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|&&byte| byte != b'\n').count();
        let (line, column) = place(lines + 1, column);
        let reason = "the file is not UTF-8 here".to_owned();
        (None, RecordProblem::Json { line, column, reason })
    })?;
    let value: Value<'_> = serde_json::from_str(text).map_err(|error| {
        let (line, column) = place(error.line().max(1), error.column().max(1));
        let message = error.to_string();
        // Without its own "at line 1 column 7", which would be of the record, not of the file.
        let reason = message.split(" at line ").next().unwrap_or_default().to_owned();
        (None, RecordProblem::Json { line, column, reason })
    })?;
    record::read(&value)
}

/// The error of a record of the file `path`.
pub(super) fn record_error(
    path: &Path,
    span: Span,
    record: usize,
    id: Option<String>,
    problem: RecordProblem,
) -> DataError {
    let path: PathBuf = path.to_path_buf();
    match problem {
        RecordProblem::Json { line, column, reason } => {
            DataError::Json { path, line, column, reason }
        }
        problem => DataError::Record {
            path,
            line: span.line,
            record,
            id: id.unwrap_or_else(|| record.to_string()),
            problem: Box::new(problem),
        },
    }
}
