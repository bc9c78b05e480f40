//! `dualspeed generate`: answers, one or many.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use dualspeed_model::{GenerateOptions, PrunerSpec, TextTower, View};
use dualspeed_ops::{AutodiffBackend, Backend};
use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::cli::GenerateArgs;
use crate::clip_words::ClipWords;
use crate::extensions::{Extensions, registry};
use crate::run;
use crate::speaker::{Answer, Asking, Question, Speaker};

/// A line of `--batch`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchLine {
    id: Option<String>,
    prompt: String,
    image: Option<OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    prompt: &'a str,
    text: &'a str,
    prompt_ids: &'a [i64],
    ids: &'a [i64],
    log_probs: &'a [f64],
    finished: bool,
}

impl<'a> Line<'a> {
    fn new(id: Option<&'a str>, prompt: &'a str, answer: &'a Answer) -> Self {
        Self {
            id,
            prompt,
            text: &answer.text,
            prompt_ids: &answer.prompt_ids,
            ids: &answer.generated.ids,
            log_probs: &answer.generated.log_probs,
            finished: answer.generated.finished,
        }
    }
}

pub fn run<B: AutodiffBackend, E: Extensions>(
    args: &GenerateArgs,
    quiet: bool,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    speak::<B::InnerBackend, E>(args, quiet, device)?;
    Ok(Outcome::Done)
}

fn speak<B: Backend, E: Extensions>(
    args: &GenerateArgs,
    quiet: bool,
    device: &B::Device,
) -> anyhow::Result<()> {
    let (speaker, trained_with) = match (&args.run, &args.model) {
        (Some(dir), _) => (Speaker::<B>::from_run(dir, device)?, Some(run::config(dir)?.pruner())),
        (None, Some(path)) => {
            let (speaker, report) =
                Speaker::from_checkpoint(path, &args.source.options()?, device)?;
            if !quiet {
                eprintln!(
                    "read {} tensors, {:.2} GB in {:.1} s ({:.2} GB/s)",
                    report.loaded.tensors,
                    report.loaded.bytes as f64 / 1e9,
                    report.elapsed.as_secs_f64(),
                    report.gigabytes_per_second()
                );
            }
            (speaker, None)
        }
        (None, None) => anyhow::bail!("give --run DIR or --model PATH"),
    };
    let spec = match &args.pruner {
        Some(name) => Some(name.parse()?),
        None => trained_with.or_else(|| args.keep.map(|_| PrunerSpec::default())),
    };
    let mut registry = registry::<B, E>(device);
    if let Some(dir) = &args.source.clip {
        let options = args.source.options()?.load;
        let words: Arc<dyn TextTower<B>> = Arc::new(ClipWords::open(dir, &options, device)?);
        registry = registry.with_text_tower(move || Ok(words.clone()));
    }
    let pruner = spec.map(|spec| registry.build(&spec)).transpose()?;
    let asking = Asking {
        view: match args.keep {
            Some(keep) => {
                View::Pruned { keep, isolator: args.isolator.is_some_and(|on| on.is_on()) }
            }
            None => View::Full,
        },
        pruner: pruner.as_deref(),
        options: GenerateOptions {
            max_new_tokens: args.max_new_tokens,
            temperature: args.temperature,
            top_p: args.top_p,
            eos_token_ids: Vec::new(),
            seed: args.seed,
            layouts: Vec::new(),
            prompt: String::new(),
        },
    };
    match &args.batch {
        Some(path) => batch(&speaker, path, &asking, device),
        None => one(&speaker, args, &asking, device),
    }
}

/// One question; the answer appears as it is made, unless it is wanted as JSON.
fn one<B: Backend>(
    speaker: &Speaker<B>,
    args: &GenerateArgs,
    asking: &Asking<'_, B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let prompt = args.prompt.clone().context("give --prompt TEXT, or --batch FILE")?;
    let question = Question { prompt, images: args.image.clone() };
    let mut out = std::io::stdout().lock();
    // A closed pipe shows in the last write.
    let mut each = |piece: &str| {
        if !args.json {
            let _ = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        }
    };
    let answer = speaker.answer(&question, asking, device, &mut each)?;
    if args.json {
        serde_json::to_writer(&mut out, &Line::new(None, &question.prompt, &answer))?;
    }
    writeln!(out).context("cannot write to standard output")
}

/// One question per line, one answer per line, in order.
fn batch<B: Backend>(
    speaker: &Speaker<B>,
    path: &Path,
    asking: &Asking<'_, B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let file = std::fs::File::open(path)
        .with_context(|| format!("cannot read {}; check the path", path.display()))?;
    // Images are named relative to the file that names them.
    let root = path.parent().unwrap_or(Path::new(""));
    let mut out = std::io::stdout().lock();
    for (number, line) in std::io::BufReader::new(file).lines().enumerate() {
        let place = || format!("{}:{}", path.display(), number + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let BatchLine { id, prompt, image } = serde_json::from_str(&line).with_context(|| {
            format!(
                "{}: a line looks like {{\"id\": \"1\", \"image\": \"a.png\", \"prompt\": \"..\"}}",
                place()
            )
        })?;
        let images = match image {
            None => Vec::new(),
            Some(OneOrMany::One(image)) => vec![image],
            Some(OneOrMany::Many(images)) => images,
        };
        let images = images.into_iter().map(|image| root.join(image)).collect();
        let question = Question { prompt, images };
        let answer = speaker.answer(&question, asking, device, &mut |_| {}).with_context(place)?;
        serde_json::to_writer(&mut out, &Line::new(id.as_deref(), &question.prompt, &answer))?;
        writeln!(out).context("cannot write to standard output")?;
    }
    Ok(())
}
