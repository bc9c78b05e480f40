//! The cache of the hub's library: `models--ORG--NAME/refs/REVISION` holds a commit, `snapshots/COMMIT` its files.

use std::path::PathBuf;

use super::environment::HubEnvironment;
use super::name::RepoName;

/// The directory of a model's files in the cache; `None` if it was never downloaded.
pub fn snapshot(environment: &HubEnvironment, name: &RepoName) -> Option<PathBuf> {
    let dir = environment.cache.join(format!("models--{}", name.repo.replace('/', "--")));
    let snapshots = dir.join("snapshots");
    let commit = std::fs::read_to_string(dir.join("refs").join(&name.revision));
    let commit = match &commit {
        Ok(commit) => commit.trim(),
        // A commit needs no name.
        Err(_) => &name.revision,
    };
    Some(snapshots.join(commit)).filter(|dir| dir.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_and_commits() {
        let dir = tempfile::tempdir().unwrap();
        let environment = HubEnvironment {
            cache: dir.path().to_owned(),
            endpoint: String::new(),
            token: None,
            offline: true,
        };
        let model = dir.path().join("models--org--name");
        let files = model.join("snapshots/abc123");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::create_dir_all(model.join("refs/pr")).unwrap();
        std::fs::write(model.join("refs/main"), "abc123\n").unwrap();
        std::fs::write(model.join("refs/pr/1"), "gone").unwrap();
        let found = |text: &str| snapshot(&environment, &RepoName::parse(text).unwrap());
        assert_eq!(found("org/name"), Some(files.clone()));
        assert_eq!(found("org/name@abc123"), Some(files));
        assert_eq!(found("org/name@pr/1"), None);
        assert_eq!(found("org/other"), None);
    }
}
