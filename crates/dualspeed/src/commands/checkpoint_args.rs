//! Arguments that say how a checkpoint is read, and values given by their names in configurations.

use std::path::PathBuf;

use clap::Args;
use dualspeed_data::Template;
use dualspeed_model::import::LoadOptions;
use serde::de::DeserializeOwned;

use super::global_args::GlobalArgs;
use crate::pipeline::PipelineOptions;

/// What is put on a checkpoint; shared by the commands that read one.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// An adapter directory to put on the model, as peft or LLaVA's trainer wrote it, or its name on the hub.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// A file of single parts to put on the model, or a directory of such files: mm_projector.bin, mode_isolator.bin (repeatable).
    #[arg(long, value_name = "PATH")]
    part: Vec<PathBuf>,
    /// The vision tower's own checkpoint, where the model's directory names it only, or the model is a language model.
    #[arg(long, value_name = "DIR")]
    vision_tower: Option<PathBuf>,
}

/// How a checkpoint is read; shared by the commands that read one.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    #[command(flatten)]
    pub(super) put: PutArgs,
    /// The CLIP checkpoint that the vision tower is from, for pruners that read the question (cdpruner, trim).
    #[arg(long, value_name = "DIR")]
    pub(super) clip: Option<PathBuf>,
    /// What weights become; by default they keep the precision of the file if the backend has it.
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
    /// How conversations are written out, instead of the model's own chat template: plain, vicuna_v1, qa, llava_llama2, llama3,
    /// chatml, mistral_instruct, or a .jinja file.
    #[arg(long, value_name = "NAME|FILE")]
    template: Option<String>,
    /// The system prompt, instead of the template's own; an empty one leaves it out.
    #[arg(long)]
    system: Option<String>,
    /// How rectangles become squares: resize, pad, centre_crop.
    #[arg(long)]
    fit: Option<String>,
}

impl PutArgs {
    /// Whether there is anything to put on it.
    pub(super) fn is_empty(&self) -> bool {
        self.adapter.is_none() && self.part.is_empty() && self.vision_tower.is_none()
    }

    /// The options of loading.
    pub(super) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            vision_tower: self.vision_tower.clone(),
            adapter: self.adapter.clone(),
            parts: self.part.clone(),
            ..LoadOptions::default()
        }
    }
}

impl CheckpointArgs {
    /// The options of [`Pipeline::from_checkpoint`](crate::pipeline::Pipeline::from_checkpoint).
    ///
    /// # Errors
    /// If the name of a dtype, template or fit is not known.
    pub(super) fn options(&self, global: &GlobalArgs) -> anyhow::Result<PipelineOptions> {
        Ok(PipelineOptions {
            load: LoadOptions {
                dtype: parse_name("dtype", self.dtype.as_ref())?,
                ..self.put.load_options()
            },
            progress: !global.quiet,
            clip: self.clip.clone(),
            template: self.template.as_deref().map(Template::resolve).transpose()?,
            system: self.system.clone(),
            fit: parse_name("fit", self.fit.as_ref())?,
        })
    }
}

/// The value that configurations call `name`, given as `--flag`.
///
/// # Errors
/// If the name is not known.
pub(super) fn parse_name<T: DeserializeOwned>(
    flag: &str,
    name: Option<&String>,
) -> anyhow::Result<Option<T>> {
    let parse = |name: &String| {
        serde_json::from_value(serde_json::Value::String(name.clone()))
            .map_err(|error| anyhow::anyhow!("--{flag}: {error}"))
    };
    name.map(parse).transpose()
}
