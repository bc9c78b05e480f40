//! Where the pixels of a record's image are.

use std::path::{Path, PathBuf};

use base64::Engine;

use crate::error::RecordProblem;

/// Where the pixels of a record's image are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageSource {
    /// In a file, relative to the image folder.
    File(String),
    /// In the record, in Base64.
    Embedded(String),
}

impl ImageSource {
    /// Reads what an image is named by: a path, a `file:` or `data:` address.
    ///
    /// # Errors
    /// An empty name, or an address of another kind.
    pub fn named(name: &str) -> Result<Self, RecordProblem> {
        if name.trim().is_empty() {
            return Err(RecordProblem::Shape { reason: "the name of an image is empty".into() });
        }
        let scheme = name.split_once(':').map(|(scheme, rest)| (scheme.to_lowercase(), rest));
        match scheme {
            Some((scheme, rest)) if scheme == "data" => match rest.split_once(";base64,") {
                Some((_, data)) => Ok(Self::Embedded(data.to_owned())),
                None => {
                    let reason = "an image in a data: address must be in Base64".into();
                    Err(RecordProblem::Shape { reason })
                }
            },
            Some((scheme, rest)) if scheme == "file" => {
                let path = rest.strip_prefix("//localhost").or(rest.strip_prefix("//"));
                Ok(Self::File(percent_decoded(path.unwrap_or(rest))))
            }
            Some((scheme, rest)) if rest.starts_with("//") && scheme.len() > 1 => {
                Err(RecordProblem::RemoteImage { url: name.chars().take(200).collect() })
            }
            _ => Ok(Self::File(name.to_owned())),
        }
    }

    /// The file, if it is one.
    pub fn path(&self, image_root: &Path) -> Option<PathBuf> {
        match self {
            Self::File(name) => Some(image_root.join(name)),
            Self::Embedded(_) => None,
        }
    }
}

/// Decodes Base64 of image `index`; line breaks within it do not count.
pub(super) fn decode(index: usize, text: &str) -> Result<Vec<u8>, RecordProblem> {
    let packed: String;
    let text = match text.contains(char::is_whitespace) {
        true => {
            packed = text.split_whitespace().collect();
            &packed
        }
        false => text,
    };
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| RecordProblem::Base64 { index, reason: error.to_string() })
}

fn percent_decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) => {
                decoded.push(code);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        let file = |name: &str| ImageSource::File(name.into());
        assert_eq!(ImageSource::named("a b/c.png").unwrap(), file("a b/c.png"));
        assert_eq!(ImageSource::named("C:/a.png").unwrap(), file("C:/a.png"));
        assert_eq!(ImageSource::named("file:///data/a%20b.png").unwrap(), file("/data/a b.png"));
        let data = ImageSource::named("data:image/png;base64,AAEC").unwrap();
        assert_eq!(data, ImageSource::Embedded("AAEC".into()));
        assert_eq!(decode(0, "AA\nEC").unwrap(), [0, 1, 2]);
        assert!(matches!(decode(3, "?"), Err(RecordProblem::Base64 { index: 3, .. })));
        let remote = ImageSource::named("https://example.org/a.png");
        assert!(matches!(remote, Err(RecordProblem::RemoteImage { .. })));
        assert!(ImageSource::named(" ").is_err() && ImageSource::named("data:text,x").is_err());
    }
}
