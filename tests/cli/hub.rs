//! Models by name: from the hub's cache, and, in builds with the feature `hub`, from a server on this machine that serves the hub's routes.

use std::path::{Path, PathBuf};

use crate::support::{Bench, Ran};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn published(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/published-code/layouts").join(name)
}

/// The program with nothing of the hub in its environment but what is given.
fn run(bench: &Bench, environment: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = bench.command(args);
    for name in [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    // An endpoint that nobody serves, unless another is given.
    command.env("HF_HOME", bench.path("hf")).env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.envs(environment.iter().copied());
    Ran::of(command.output().unwrap())
}

/// Puts a directory into the cache, as the hub's library does.
fn cache(bench: &Bench, name: &str, files: &Path) {
    let model = bench.path("hf/hub").join(format!("models--{}", name.replace('/', "--")));
    let snapshot = model.join("snapshots").join(COMMIT);
    for dir in [&snapshot, &model.join("refs"), &model.join("blobs")] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(model.join("refs/main"), COMMIT).unwrap();
    for (index, entry) in std::fs::read_dir(files).unwrap().enumerate() {
        let path = entry.unwrap().path();
        let blob = model.join("blobs").join(format!("{index:040x}"));
        std::fs::copy(&path, &blob).unwrap();
        let link = snapshot.join(path.file_name().unwrap());
        #[cfg(unix)]
        std::os::unix::fs::symlink(&blob, link).unwrap();
        #[cfg(not(unix))]
        std::fs::copy(&blob, link).map(drop).unwrap();
    }
}

#[test]
fn the_cache_is_read_by_every_build() {
    let bench = Bench::new();
    cache(&bench, "lmsys/vicuna-tiny", &published("base"));
    cache(&bench, "openai/clip-tiny-84", &published("tower"));
    cache(&bench, "someone/dualspeed-lora", &published("c-lora"));
    let offline = [("HF_HUB_OFFLINE", "1")];
    let tower = ["--vision-tower", "openai/clip-tiny-84"];
    let language = ["inspect", "lmsys/vicuna-tiny", "--adapter", "someone/dualspeed-lora"];
    let printed = run(&bench, &offline, &[&language[..], &tower].concat()).ok();
    assert!(printed.contains("84 px, 36 tokens") && printed.contains("lora"), "{printed}");
    let commit = format!("lmsys/vicuna-tiny@{COMMIT}");
    run(&bench, &offline, &["inspect", &commit]).ok();
    // A path of that name comes first.
    std::fs::create_dir_all(bench.path("lmsys/vicuna-tiny")).unwrap();
    run(&bench, &offline, &["inspect", "lmsys/vicuna-tiny"]).refused(&["config.json"]);
    run(&bench, &offline, &["inspect", "lmsys/other"]).refused(&["lmsys/other", "cache", "hf/hub"]);
    run(&bench, &offline, &["inspect", "lmsys/vicuna-tiny@v2"]).refused(&["vicuna-tiny@v2"]);
    run(&bench, &offline, &["inspect", "./lmsys/other"]).refused(&["./lmsys/other is not there"]);
    // What adapters and configurations name is found there too.
    let own = bench.path("own");
    std::fs::create_dir_all(&own).unwrap();
    for entry in std::fs::read_dir(published("c-lora")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, own.join(path.file_name().unwrap())).unwrap();
    }
    for (name, from, to) in [
        ("adapter_config.json", "base/vicuna-leg", "lmsys/vicuna-small"),
        ("config.json", "base/clip-tiny-84", "openai/clip-tiny-84"),
    ] {
        let text = std::fs::read_to_string(own.join(name)).unwrap();
        std::fs::write(own.join(name), text.replace(from, to)).unwrap();
    }
    run(&bench, &offline, &["inspect", "own"]).refused(&["lmsys/vicuna-small", "--adapter"]);
    cache(&bench, "lmsys/vicuna-small", &published("base"));
    let printed = run(&bench, &offline, &["inspect", "own"]).ok();
    assert!(printed.contains("84 px, 36 tokens") && printed.contains("lora"), "{printed}");
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_downloads_says_how_to_get_them() {
    let bench = Bench::new();
    run(&bench, &[], &["inspect", "org/name"]).refused(&[
        "org/name",
        "hf download",
        "--features hub",
    ]);
}

#[cfg(feature = "hub")]
mod served {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A server of one repository, `org/tiny`, and of `org/gated`, which wants a token.
    #[derive(Clone)]
    struct Server {
        files: Arc<BTreeMap<String, Vec<u8>>>,
        commit: Arc<Mutex<String>>,
        /// Requests, as method and path.
        asked: Arc<Mutex<Vec<String>>>,
        port: u16,
    }

    impl Server {
        fn start(dir: &Path) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let read = |entry: std::io::Result<std::fs::DirEntry>| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, std::fs::read(&path).unwrap())
            };
            let mut files: BTreeMap<_, _> = std::fs::read_dir(dir).unwrap().map(read).collect();
            files.insert("README.md".into(), b"not fetched".to_vec());
            let server = Self {
                files: Arc::new(files),
                commit: Arc::new(Mutex::new(COMMIT.into())),
                asked: Arc::default(),
                port: listener.local_addr().unwrap().port(),
            };
            let own = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let own = own.clone();
                    std::thread::spawn(move || while own.answer(&stream) {});
                }
            });
            server
        }

        fn endpoint(&self) -> String {
            format!("http://127.0.0.1:{}", self.port)
        }

        fn asked(&self) -> usize {
            self.asked.lock().unwrap().len()
        }

        /// Answers one request; `false` when the connection is closed.
        fn answer(&self, stream: &TcpStream) -> bool {
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return false;
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            self.asked.lock().unwrap().push(path.clone());
            let mut headers = BTreeMap::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                match line.trim().split_once(':') {
                    Some((name, value)) => {
                        headers.insert(name.to_lowercase(), value.trim().to_owned());
                    }
                    None => break,
                }
            }
            let _ = reader.by_ref().take(0);
            let (status, own, body) = self.respond(&path, &headers);
            let own: String =
                own.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{own}\r\n", body.len());
            let mut stream = stream;
            stream.write_all(&[head.as_bytes(), &body].concat()).is_ok()
        }

        fn respond(
            &self,
            path: &str,
            headers: &BTreeMap<String, String>,
        ) -> (&'static str, Vec<(&'static str, String)>, Vec<u8>) {
            let commit = self.commit.lock().unwrap().clone();
            let refused = |status| (status, Vec::new(), b"{}".to_vec());
            if path.contains("org/gated")
                && headers.get("authorization").is_none_or(|auth| auth != "Bearer secret")
            {
                return refused("401 Unauthorized");
            }
            if let Some(rest) = path.strip_prefix("/api/models/") {
                let known =
                    ["org/tiny/revision/main", "org/gated/revision/main", "org/tiny/revision/v1"];
                if !known.contains(&rest) {
                    return refused("404 Not Found");
                }
                let siblings: Vec<String> =
                    self.files.keys().map(|name| format!("{{\"rfilename\": {name:?}}}")).collect();
                let body =
                    format!("{{\"sha\": {commit:?}, \"siblings\": [{}]}}", siblings.join(", "));
                return ("200 OK", Vec::new(), body.into_bytes());
            }
            let name = path.rsplit('/').next().unwrap_or_default();
            let Some(bytes) = self.files.get(name) else { return refused("404 Not Found") };
            let etag = format!("\"{name}-etag\"");
            // Large files are elsewhere.
            if name.ends_with(".safetensors") && path.contains("/resolve/") {
                let to = format!("{}/cdn/{name}", self.endpoint());
                let own =
                    vec![("Location", to), ("X-Repo-Commit", commit), ("X-Linked-Etag", etag)];
                return ("302 Found", own, Vec::new());
            }
            let range = headers.get("range").and_then(|range| range.strip_prefix("bytes="));
            let (from, to) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
            let from: usize = from.parse().unwrap_or(0);
            let to = to.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
            let range = format!("bytes {from}-{to}/{}", bytes.len());
            let own = vec![("Content-Range", range), ("X-Repo-Commit", commit), ("ETag", etag)];
            ("206 Partial Content", own, bytes[from..=to].to_vec())
        }
    }

    #[test]
    fn a_model_is_downloaded_once_and_then_found() {
        let bench = Bench::new();
        let server = Server::start(&published("base"));
        let endpoint = server.endpoint();
        let at = [("HF_ENDPOINT", &*endpoint)];
        let printed = run(&bench, &at, &["inspect", "org/tiny"]).ok();
        assert!(printed.contains("3 layers, width 64"), "{printed}");
        let snapshot = bench.path("hf/hub/models--org--tiny/snapshots").join(COMMIT);
        for name in ["config.json", "model.safetensors", "tokenizer.model"] {
            assert_eq!(std::fs::read(snapshot.join(name)).unwrap(), server.files[name], "{name}");
        }
        assert!(!snapshot.join("README.md").exists());
        assert!(bench.path("hf/hub/models--org--tiny/refs/main").is_file());
        // Again: one question, no file.
        let asked = server.asked();
        run(&bench, &at, &["inspect", "org/tiny"]).ok();
        assert_eq!(server.asked(), asked + 1);
        // Without the network, by name and by commit.
        run(
            &bench,
            &[("HF_ENDPOINT", &*endpoint), ("HF_HUB_OFFLINE", "1")],
            &["inspect", "org/tiny"],
        )
        .ok();
        assert_eq!(server.asked(), asked + 1);
        let gone = run(&bench, &[], &["inspect", "org/tiny"]);
        assert!(gone.stderr.contains("from the cache"), "{}", gone.stderr);
        gone.ok();
        // A new commit is fetched; the old one stays.
        *server.commit.lock().unwrap() = COMMIT.replace('0', "f");
        run(&bench, &at, &["inspect", "org/tiny"]).ok();
        assert!(snapshot.with_file_name(COMMIT.replace('0', "f")).join("config.json").is_file());
        run(&bench, &at, &["inspect", "org/tiny@v1"]).ok();
        assert!(bench.path("hf/hub/models--org--tiny/refs/v1").is_file());
    }

    #[test]
    fn refusals_say_what_to_do() {
        let bench = Bench::new();
        let server = Server::start(&published("base"));
        let endpoint = server.endpoint();
        let at = [("HF_ENDPOINT", &*endpoint)];
        run(&bench, &at, &["inspect", "org/none"]).refused(&["org/none", "no such model"]);
        run(&bench, &at, &["inspect", "org/tiny@v9"]).refused(&["org/tiny@v9", "revision"]);
        run(&bench, &at, &["inspect", "org/gated"]).refused(&["org/gated", "HF_TOKEN"]);
        run(
            &bench,
            &[("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", "secret")],
            &["inspect", "org/gated"],
        )
        .ok();
        run(&bench, &[], &["inspect", "org/tiny"]).refused(&["org/tiny", "cannot be reached"]);
    }

    #[test]
    fn training_starts_from_names() {
        let bench = Bench::new();
        let server = Server::start(&published("base"));
        let endpoint = server.endpoint();
        let at = [("HF_ENDPOINT", &*endpoint)];
        let tower = published("tower").display().to_string();
        let train = [
            "train",
            "--config",
            "tiny.toml",
            "--init-from",
            "org/tiny",
            "--vision-tower",
            &tower,
            "--out",
            "run",
            "--set",
            "steps=1",
        ];
        run(&bench, &at, &train).ok();
        let config = std::fs::read_to_string(bench.path("run/config.toml")).unwrap();
        assert!(config.contains(COMMIT), "the run does not name what it started from: {config}");
        // The run goes on without the hub.
        run(&bench, &[("HF_HUB_OFFLINE", "1")], &["eval", "--run", "run", "--limit", "2"]).ok();
    }
}
