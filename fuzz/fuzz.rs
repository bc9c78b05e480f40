//! Mutation fuzzing of everything that reads foreign files, with a stable compiler (cargo-fuzz, with a nightly one, is in
//! `fuzz_targets`): an input whose outcome (the error, numbers left out) is new is kept and mutated further, which stands in
//! for coverage.
//!
//!     tar -C fuzz -xf fuzz/corpus.tar.xz
//!     cargo run --release --manifest-path fuzz/Cargo.toml --bin driver -- TARGET [--seconds 600] [--seed 0]
//!
//! TARGET is gguf, pickle, safetensors, index or conversation. The corpus is in `fuzz/corpus/TARGET` once it is unpacked; a
//! crash is written to `fuzz/crashes/TARGET` and ends the program with exit code 1.

#[path = "subject.rs"]
mod subject;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dualspeed_core::rng::SplitMix;
use {dualspeed_data as data, dualspeed_model as model};

use subject::Subject;

/// Inputs longer than this only make runs slow.
const LONGEST: usize = 1 << 17;
/// Bytes of kept inputs at most.
const LARGEST_CORPUS: usize = 400_000;

/// Numbers at which parsers break.
const INTERESTING: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// Tokens that mutations put in.
fn dictionary(target: &str) -> &'static [&'static [u8]] {
    match target {
        "gguf" => &[
            b"GGUF",
            b"general.alignment",
            b"llama.block_count",
            b"token_embd.weight",
            b"blk.0.attn_q.weight",
        ],
        "pickle" => &[
            b"(",
            b")",
            b"]",
            b"}",
            b"t",
            b"R",
            b"b",
            b"u",
            b"s",
            b"Q",
            b".",
            b"h\x00",
            b"q\x00",
            b"\x85",
            b"\x86",
            b"\x87",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch\nFloatStorage\n",
            b"ccollections\nOrderedDict\n",
            b"cos\nsystem\n",
        ],
        "safetensors" => &[
            b"\"dtype\"",
            b"\"F32\"",
            b"\"BF16\"",
            b"\"I4\"",
            b"\"shape\"",
            b"\"data_offsets\"",
            b"__metadata__",
            b"[0,4]",
        ],
        "index" => {
            &[b"\"weight_map\"", b"../", b"/etc/passwd", b"\\\\", b"null", b"{}", b".safetensors\""]
        }
        _ => &[
            b"\"conversations\"",
            b"\"from\"",
            b"\"human\"",
            b"\"gpt\"",
            b"<image>",
            b"\"image\"",
            b"\"id\"",
            b"null",
            b"[]",
            b"\\ud800",
            b"1e999",
            b"\n",
        ],
    }
}

/// An outcome without what differs from input to input: numbers, and everything between the first and the last quote.
fn signature(outcome: &str) -> String {
    let quote = |c: char| matches!(c, '"' | '`' | '\'');
    let head = outcome.split(quote).next().unwrap_or_default();
    let tail = outcome.rsplit(quote).next().filter(|tail| tail.len() < outcome.len());
    let words =
        |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).take(100).collect::<String>();
    format!("{}..{}", words(head), words(tail.unwrap_or_default()))
}

fn mutate(input: &mut Vec<u8>, other: &[u8], dictionary: &[&[u8]], rng: &mut SplitMix) {
    let below = |rng: &mut SplitMix, n: usize| (rng.next_u64() % n.max(1) as u64) as usize;
    for _ in 0..1 + below(rng, 4) {
        let at = below(rng, input.len() + 1);
        match below(rng, 9) {
            0 if at < input.len() => input[at] ^= 1 << below(rng, 8),
            1 if at < input.len() => input[at] = below(rng, 256) as u8,
            2 => {
                let width = [1, 2, 4, 8][below(rng, 4)];
                let bytes = INTERESTING[below(rng, INTERESTING.len())].to_le_bytes();
                if at + width <= input.len() {
                    input[at..at + width].copy_from_slice(&bytes[..width]);
                }
            }
            3 => {
                let end = (at + 1 + below(rng, 16)).min(input.len());
                input.drain(at.min(end)..end);
            }
            4 => {
                let end = (at + 1 + below(rng, 64)).min(input.len());
                let piece = input[at.min(end)..end].to_vec();
                let to = below(rng, input.len() + 1);
                input.splice(to..to, piece);
            }
            5 => {
                let token = dictionary[below(rng, dictionary.len())];
                input.splice(at..at, token.iter().copied());
            }
            6 => input.truncate(at),
            7 if !other.is_empty() => {
                let start = below(rng, other.len());
                let end = (start + 1 + below(rng, 256)).min(other.len());
                input.splice(at..at, other[start..end].iter().copied());
            }
            _ => {
                let token = dictionary[below(rng, dictionary.len())];
                let end = (at + token.len()).min(input.len());
                input.splice(at.min(end)..end, token.iter().copied());
            }
        }
    }
    input.truncate(LONGEST);
}

fn corpus(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut inputs = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            inputs.insert(path.clone(), std::fs::read(&path)?);
        }
    }
    Ok(inputs)
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let target = arguments.first().cloned().unwrap_or_default();
    let dir = Path::new("fuzz/corpus").join(&target);
    if target.is_empty() || !dir.is_dir() {
        eprintln!(
            "which of gguf, pickle, safetensors, index, conversation? (run it from the repository root, after `tar -C fuzz -xf \
             fuzz/corpus.tar.xz`)"
        );
        std::process::exit(2);
    }
    let scratch = std::env::temp_dir().join(format!("dualspeed-fuzz-{}", std::process::id()));
    let subject = Subject::new(&target, &scratch)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut kept: Vec<Vec<u8>> = corpus(&dir)?.into_values().collect();
    let mut seen: BTreeSet<String> =
        kept.iter().map(|input| signature(&subject.run(input))).collect();
    println!("{target}: {} inputs, {} outcomes", kept.len(), seen.len());
    // The panic's own message would come millions of times; it is printed once, with the input.
    std::panic::set_hook(Box::new(|info| eprintln!("panic: {info}")));
    let (begin, limit) = (Instant::now(), Duration::from_secs(value("--seconds", 600)));
    let mut rng = SplitMix::new(&[value("--seed", 0)]);
    let (mut runs, mut slowest) = (0u64, Duration::ZERO);
    while begin.elapsed() < limit {
        let pick = |rng: &mut SplitMix| (rng.next_u64() % kept.len().max(1) as u64) as usize;
        let mut input = kept.get(pick(&mut rng)).cloned().unwrap_or_default();
        let other = kept.get(pick(&mut rng)).cloned().unwrap_or_default();
        mutate(&mut input, &other, dictionary(&target), &mut rng);
        let start = Instant::now();
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| subject.run(&input)));
        slowest = slowest.max(start.elapsed());
        runs += 1;
        let Ok(outcome) = outcome else {
            let crashes = Path::new("fuzz/crashes").join(&target);
            std::fs::create_dir_all(&crashes)?;
            let path = crashes.join(format!("{runs}.bin"));
            std::fs::write(&path, &input)?;
            eprintln!("crash: {}", path.display());
            std::process::exit(1);
        };
        let room = kept.iter().map(Vec::len).sum::<usize>() + input.len() < LARGEST_CORPUS;
        if seen.insert(signature(&outcome)) && room {
            std::fs::write(dir.join(format!("kept-{:04}", kept.len())), &input)?;
            kept.push(input);
        }
    }
    std::fs::remove_dir_all(&scratch)?;
    println!(
        "{target}: {runs} inputs in {} s, no crash; {} outcomes, corpus of {}; slowest input {} ms; peak memory {}",
        begin.elapsed().as_secs(),
        seen.len(),
        kept.len(),
        slowest.as_millis(),
        peak_memory()
    );
    Ok(())
}

/// The process's peak resident memory, where the system tells.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.map_or_else(|| "unknown".to_owned(), |line| line["VmHWM:".len()..].trim().to_owned())
}
