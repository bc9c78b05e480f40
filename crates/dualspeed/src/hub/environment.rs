//! What the environment says about the hub, as its Python library reads it.

use std::env;
use std::path::PathBuf;

/// Where the hub is, where its cache is, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubEnvironment {
    /// The directory of `models--ORG--NAME`: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, which is `huggingface` in the user's cache.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or what is in the file `HF_TOKEN_PATH` (`token` in `HF_HOME`).
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: nothing is downloaded.
    pub offline: bool,
}

impl HubEnvironment {
    /// Reads the environment of this process.
    pub fn read() -> Self {
        Self::of(&|name| env::var_os(name).and_then(|value| value.into_string().ok()))
    }

    fn of(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let home = path("HF_HOME").unwrap_or_else(|| {
            let user = path("HOME").or_else(|| path("USERPROFILE")).unwrap_or_default();
            path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache")).join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| std::fs::read_to_string(token_file).ok());
        let yes = |name: &str| {
            set(name).is_some_and(|value| {
                matches!(&*value.trim().to_ascii_lowercase(), "1" | "true" | "yes" | "on")
            })
        };
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(&str, &str)]) -> HubEnvironment {
        HubEnvironment::of(&|name| {
            values.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_caches_place_and_the_switches() {
        let plain = of(&[("HOME", "/home/u")]);
        assert_eq!(plain.cache, PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!((&*plain.endpoint, plain.offline), ("https://huggingface.co", false));
        let xdg = of(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/c")]);
        assert_eq!(xdg.cache, PathBuf::from("/c/huggingface/hub"));
        let home = of(&[
            ("HF_HOME", "/hf"),
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!(
            (home.cache, &*home.endpoint, home.offline),
            ("/hf/hub".into(), "http://127.0.0.1:9", true)
        );
        let cache = of(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/x"), ("HF_TOKEN", " abc\n")]);
        assert_eq!((cache.cache, cache.token.as_deref()), ("/x".into(), Some("abc")));
        assert!(!of(&[("HF_HUB_OFFLINE", "0")]).offline);
    }
}
