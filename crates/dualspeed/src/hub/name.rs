//! Names on the hub.

use std::fmt;

/// `org/name`, or `org/name@revision` with a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    /// `org/name`.
    pub repo: String,
    /// The branch, tag or commit; `main` if none is given.
    pub revision: String,
}

impl RepoName {
    /// Reads a name; `None` for what is none of the hub's: paths that begin with a dot or a slash, or have more than two parts.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = repo.split_once('/')?;
        let part = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            part.chars().all(plain) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        let whole = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
            !part.is_empty()
                && part.chars().all(plain)
                && !part.contains("..")
                && !part.starts_with('/')
        };
        (part(org) && part(name) && whole(revision))
            .then(|| Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.revision {
            "main" => f.write_str(&self.repo),
            revision => write!(f, "{}@{revision}", self.repo),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        let name = RepoName::parse("llava-hf/llava-1.5-7b-hf").unwrap();
        assert_eq!((&*name.repo, &*name.revision), ("llava-hf/llava-1.5-7b-hf", "main"));
        let name = RepoName::parse("org/name@refs/pr/3").unwrap();
        assert_eq!((&*name.repo, &*name.revision), ("org/name", "refs/pr/3"));
        assert_eq!(name.to_string(), "org/name@refs/pr/3");
        for path in
            ["name", "./a/b", "../b", "/a/b", "a/b/c", "a/", "org/name@", "org/name@../x", ".a/b"]
        {
            assert_eq!(RepoName::parse(path), None, "{path}");
        }
    }
}
