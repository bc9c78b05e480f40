//! `dualspeed data check`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use dualspeed_data::check::{CheckOptions, DataReport, Severity, check};
use dualspeed_data::{
    ExampleSource, FitMode, ImageProcessor, LlavaJson, LlavaJsonConfig, OnError, SequenceLimits,
    Template, TextTokenizer, ViewLength, read_tokenizer,
};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::metrics::progress_bar;
use dualspeed_train::{SampleCheck, TrainConfig, sequence_limits};

use super::super::checkpoint_args::parse_name;
use super::super::global_args::GlobalArgs;
use super::super::overwrite::refuse_existing;
use super::page::page;
use super::text::report_text;
use crate::extensions::{Extensions, registry, sources};
use crate::files::write_atomic;
use crate::output::{note, print_line};
use crate::run_dir;

/// Arguments of `data check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration of a run: its training and validation data are checked against its model.
    #[arg(long, required_unless_present = "data", conflicts_with = "data")]
    config: Option<PathBuf>,
    /// With --config: override a key, e.g. `--set model.max_length=2048` (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// With --config: the run or published checkpoint that the run is to start from.
    #[arg(long, value_name = "DIR", requires = "config")]
    init_from: Option<PathBuf>,
    /// A JSON or JSONL file of conversations, without a configuration.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// With --data: the folder that images are named relative to; by default that of the file.
    #[arg(long, value_name = "DIR", requires = "data")]
    image_root: Option<PathBuf>,
    /// With --data: a tokenizer.json; without it lengths are in words.
    #[arg(long, value_name = "FILE", requires = "data")]
    tokenizer: Option<PathBuf>,
    /// With --data: how conversations are written out.
    #[arg(long, requires = "data", default_value = "vicuna_v1")]
    template: String,
    /// With --data: where sequences are cut, visual tokens counted.
    #[arg(long, value_name = "N", requires = "data")]
    max_length: Option<usize>,
    /// With --data: rows of the model's embedding.
    #[arg(long, value_name = "N", requires = "tokenizer")]
    vocab_size: Option<usize>,
    /// With --data: visual tokens of an image.
    #[arg(long, value_name = "N", requires = "data", default_value_t = 576)]
    visual_tokens: usize,
    /// Do not decode images; that they are there is checked all the same.
    #[arg(long)]
    skip_images: bool,
    /// Findings of each kind that are listed; all of them are counted.
    #[arg(long, value_name = "N", default_value_t = 20)]
    list: usize,
    /// Let warnings (duplicates, shortened answers, keys that are not read) fail the check too.
    #[arg(long)]
    strict: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Also write the report as data-check.json and data-check.html into DIR.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace these files if they exist.
    #[arg(long, requires = "out")]
    overwrite: bool,
}

/// A data set and what it is checked against.
struct Section {
    what: String,
    source: Arc<dyn ExampleSource>,
    limits: SequenceLimits,
}

pub(super) fn run<B: AutodiffBackend, E: Extensions>(
    args: &CheckArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    let files = args
        .out
        .as_ref()
        .map(|dir| ["data-check.json", "data-check.html"].map(|name| dir.join(name)));
    for file in files.iter().flatten() {
        refuse_existing(file, args.overwrite)?;
    }
    let sections = match (&args.config, &args.data) {
        (Some(config), _) => of_config::<B, E>(args, config, device)?,
        (None, Some(file)) => vec![of_file(args, file)?],
        (None, None) => anyhow::bail!("give --config FILE or --data FILE"),
    };
    let reports: Vec<DataReport> = sections
        .iter()
        .map(|Section { what, source, limits }| {
            let options = CheckOptions {
                limits: limits.clone(),
                images: !args.skip_images,
                listed: args.list,
            };
            let mut report = check_source(what, &**source, &options, !global.quiet);
            report.in_words = args.data.is_some() && args.tokenizer.is_none();
            report
        })
        .collect();
    let json = serde_json::to_string_pretty(&reports)?;
    if args.json {
        print_line(&json)?;
    } else {
        reports.iter().try_for_each(|report| print_line(report_text(report)))?;
    }
    if let Some([json_file, html_file]) = &files {
        let write = |path: &Path, text: &str| {
            write_atomic(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))
        };
        write(json_file, &json)?;
        write(html_file, &page(&reports)?)?;
        if !global.quiet {
            note(format_args!("written: {}", html_file.display()));
        }
    }
    let count = |severity| reports.iter().map(|report| report.count(severity)).sum::<usize>();
    let (faults, warnings) = (count(Severity::Fault), count(Severity::Warning));
    anyhow::ensure!(
        faults == 0,
        "{faults} fault(s) found; correct or remove these records, or set data.on_error = \"skip\""
    );
    anyhow::ensure!(warnings == 0 || !args.strict, "{warnings} warning(s), which --strict refuses");
    Ok(())
}

/// Checks a data set, with a progress bar if `shown`.
pub(crate) fn check_source(
    what: &str,
    source: &dyn ExampleSource,
    options: &CheckOptions,
    shown: bool,
) -> DataReport {
    let bar = progress_bar(source.len() as u64, shown, "check");
    let report = check(what, source, options, &|done| bar.set_position(done as u64));
    bar.finish_and_clear();
    report
}

/// The data sets of a configuration.
fn of_config<B: AutodiffBackend, E: Extensions>(
    args: &CheckArgs,
    path: &Path,
    device: &B::Device,
) -> anyhow::Result<Vec<Section>> {
    let mut config = TrainConfig::load(path, &args.overrides)?;
    if let Some(earlier) = &args.init_from {
        config.init_from = Some(earlier.clone());
    }
    let notes = run_dir::adopt_base_checkpoint(&mut config)?;
    notes.iter().for_each(|line| note(format_args!("{line}")));
    let pruner = registry::<B, E>(device).build(&config.pruner())?;
    let limits = sequence_limits(&config, &*pruner);
    let of_valid = SampleCheck::new(&config, limits.clone()).full_view().limits().clone();
    let sources = sources::<E>();
    let data = &config.data;
    let sections =
        [("data.train", Some(&data.train), limits), ("data.valid", data.valid.as_ref(), of_valid)];
    let mut opened = Vec::new();
    for (name, section, limits) in sections {
        let Some(section) = section else { continue };
        let (model, seed, compat) = (&config.model, config.seed, config.compat);
        let source = section.open_with(model, seed, compat, &sources, OnError::Skip)?;
        let what = match &section.llava_json {
            Some(file) => format!("{name} ({})", file.path.display()),
            None => name.to_owned(),
        };
        opened.push(Section { what, source, limits });
    }
    Ok(opened)
}

/// A file without a configuration.
fn of_file(args: &CheckArgs, file: &Path) -> anyhow::Result<Section> {
    let tokenizer = match &args.tokenizer {
        Some(path) => read_tokenizer(path)?,
        None => TextTokenizer::from_words([])?,
    };
    let template = match args.tokenizer {
        Some(_) => parse_name("template", Some(&args.template))?.unwrap_or(Template::VicunaV1),
        None => Template::Qa,
    };
    let config = LlavaJsonConfig {
        image_root: match &args.image_root {
            Some(folder) => folder.clone(),
            None => file.parent().map(Path::to_path_buf).unwrap_or_default(),
        },
        template,
        system: None,
        max_length: None,
        processor: ImageProcessor::clip(336, FitMode::Pad),
        tiles: None,
        on_error: OnError::Skip,
    };
    let full = ViewLength { name: "full".into(), isolator_length: 0, keep: None, trained: true };
    let limits = SequenceLimits {
        vocab_size: args.vocab_size,
        max_length: args.max_length,
        tile_tokens: args.visual_tokens,
        tiles: false,
        views: vec![full],
    };
    let source = Arc::new(LlavaJson::open(file, config, Arc::new(tokenizer))?);
    Ok(Section { what: file.display().to_string(), source, limits })
}
