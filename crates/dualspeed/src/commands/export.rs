//! `dualspeed export`: a run's model, or a checkpoint, in another format.

use std::path::Path;

use anyhow::Context;
use dualspeed_data::picture::ProcessorFile;
use dualspeed_model::Llava;
use dualspeed_model::export::names::Layout;
use dualspeed_model::export::{ExportOptions, Tokens, export_adapter, export_merged};
use dualspeed_model::import::FloatType;
use dualspeed_ops::{AutodiffBackend, Backend};
use serde_json::json;

use super::Outcome;
use crate::cli::{ExportArgs, ExportFormat};
use crate::run::{write_atomic, write_json};
use crate::speaker::{Model, Speaker};

pub fn run<B: AutodiffBackend>(args: &ExportArgs, device: &B::Device) -> anyhow::Result<Outcome> {
    export::<B::InnerBackend>(args, device)?;
    Ok(Outcome::Done)
}

fn export<B: Backend>(args: &ExportArgs, device: &B::Device) -> anyhow::Result<()> {
    refuse_occupied(&args.out, args.overwrite)?;
    let mut options = args.source.options()?;
    let dtype = options.load.dtype;
    options.load.dtype = read_as(dtype);
    let speaker = match (&args.run, &args.model) {
        (Some(dir), _) => Speaker::<B>::from_run(dir, device)?,
        (None, Some(path)) => Speaker::from_checkpoint(path, &options, device)?.0,
        (None, None) => anyhow::bail!("give --run DIR or --model PATH"),
    };
    let Model::Llava(model) = &speaker.model else {
        anyhow::bail!("only models with vision are exported")
    };
    let export = options_of(&speaker, dtype, (args.shard_size * 1e9) as usize);
    let whole = |dir: &Path, layout: Layout| write_model(&speaker, model, dir, layout, &export);
    match args.format {
        ExportFormat::Hf => whole(&args.out, Layout::Transformers)?,
        ExportFormat::Llava => whole(&args.out, Layout::Original)?,
        ExportFormat::Peft => {
            let base = match &args.base {
                Some(base) => base.clone(),
                None => {
                    // The adapter's base, beside it: the model without its adapters.
                    let dir = args.out.join("base");
                    let plain = model.clone().without_lora();
                    write_model(&speaker, &plain, &dir, Layout::Transformers, &export)?;
                    "base".to_owned()
                }
            };
            export_adapter(model, &args.out, &base)?;
        }
    }
    println!("{}", args.out.display());
    Ok(())
}

/// Refuses to write among other files unless told to.
pub(super) fn refuse_occupied(dir: &Path, overwrite: bool) -> anyhow::Result<()> {
    let occupied = dir.is_dir() && std::fs::read_dir(dir)?.next().is_some();
    anyhow::ensure!(
        overwrite || !occupied,
        "{} exists and is not empty; give another --out, or --overwrite to write into it",
        dir.display()
    );
    Ok(())
}

/// What weights are read as to be written as `dtype`: rounding to 16 bits comes last, and needs no backend that has them.
pub(super) fn read_as(dtype: Option<FloatType>) -> Option<FloatType> {
    dtype.filter(|dtype| *dtype == FloatType::F32)
}

/// What the files say beside the weights.
pub(super) fn options_of<B: Backend>(
    speaker: &Speaker<B>,
    dtype: Option<FloatType>,
    shard: usize,
) -> ExportOptions {
    let tokenizer = &speaker.tokenizer;
    let image = speaker.image_token_id.unwrap_or(tokenizer.pad_id());
    let (bos, eos, pad) = (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id());
    ExportOptions { dtype, shard, tokens: Tokens { image, bos, eos, pad } }
}

/// A whole model with all that stands between it and people.
pub(super) fn write_model<B: Backend>(
    speaker: &Speaker<B>,
    model: &Llava<B>,
    dir: &Path,
    layout: Layout,
    options: &ExportOptions,
) -> anyhow::Result<()> {
    export_merged(model, dir, layout, options)?;
    write_texts(speaker, dir)
}

/// Tokenizer, image processor, and how conversations are written out.
fn write_texts<B: Backend>(speaker: &Speaker<B>, dir: &Path) -> anyhow::Result<()> {
    let tokenizer = &speaker.tokenizer;
    let text = tokenizer.inner().to_string(true);
    let text = text.map_err(|error| anyhow::anyhow!("{error}")).context("tokenizer.json")?;
    write_atomic(&dir.join("tokenizer.json"), text.as_bytes())?;
    let token = |id: i64| u32::try_from(id).ok().and_then(|id| tokenizer.inner().id_to_token(id));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_id().and_then(token),
        "eos_token": token(tokenizer.eos_id()),
        "pad_token": token(tokenizer.pad_id()),
        "dualspeed_template": speaker.template,
        "dualspeed_system": speaker.system,
    });
    write_json(&dir.join("tokenizer_config.json"), &config)?;
    let anyres = speaker.llava_config().and_then(|config| config.anyres.as_ref());
    let processor = ProcessorFile {
        processor: speaker.processor.clone(),
        pinpoints: anyres.map(|anyres| anyres.image_grid_pinpoints.clone()),
    };
    write_json(&dir.join("preprocessor_config.json"), &processor.to_json())
}
