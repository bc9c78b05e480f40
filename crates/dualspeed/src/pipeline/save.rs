//! Checkpoints in published formats, with tokenizer, template and image processor.

use std::path::Path;

use anyhow::Context;
use dualspeed_data::picture::ProcessorFile;
use dualspeed_model::Llava;
use dualspeed_model::export::names::Layout;
use dualspeed_model::export::{ExportOptions, TOWER, Tokens, export_merged};
use dualspeed_model::import::FloatType;
use dualspeed_ops::Backend;
use serde_json::{Map, json};

use super::Pipeline;
use super::llava_text::{image_aspect_ratio, tower_processor, write_tokenizer};
use crate::files::{write_atomic, write_json};

/// The precision to read weights in that are to be written as `dtype`: rounding to 16 bits comes last, and needs no backend
/// that has such floats.
pub fn dtype_to_read(dtype: Option<FloatType>) -> Option<FloatType> {
    dtype.filter(|dtype| *dtype == FloatType::F32)
}

impl<B: Backend> Pipeline<B> {
    /// Options of an export with this pipeline's special tokens and fit of pictures, in precision `dtype` and files of `shard` bytes at
    /// most.
    pub fn export_options(&self, dtype: Option<FloatType>, shard: usize) -> ExportOptions {
        let tokenizer = &self.tokenizer;
        let image = self.image_token_id.unwrap_or(tokenizer.pad_id());
        let (bos, eos, pad) = (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id());
        let aspect = image_aspect_ratio(self.processor.fit);
        ExportOptions {
            dtype,
            shard,
            image_aspect_ratio: Some(aspect.to_owned()),
            ..ExportOptions::new(Tokens { image, bos, eos, pad })
        }
    }

    /// Writes `model`, adapters folded in, with this pipeline's tokenizer, template and image processor.
    ///
    /// # Errors
    /// If the directory cannot be written, or the layout has no place for a part of the model.
    pub fn save(
        &self,
        model: &Llava<B>,
        dir: &Path,
        layout: Layout,
        options: &ExportOptions,
    ) -> anyhow::Result<()> {
        export_merged(model, dir, layout, options)?;
        match layout {
            Layout::Transformers => self.save_processors(dir),
            Layout::Original => self.save_llava_processors(dir),
        }
    }

    /// Writes the tokenizer's files, and the image processor's beside the vision tower.
    fn save_llava_processors(&self, dir: &Path) -> anyhow::Result<()> {
        let own = Map::from_iter([
            ("dualspeed_template".to_owned(), json!(self.template)),
            ("dualspeed_system".to_owned(), json!(self.system)),
        ]);
        write_tokenizer(dir, &self.tokenizer, self.text_files.as_deref(), own)?;
        let path = dir.join(TOWER).join("preprocessor_config.json");
        write_json(&path, &tower_processor(&self.processor))
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `preprocessor_config.json`.
    fn save_processors(&self, dir: &Path) -> anyhow::Result<()> {
        let tokenizer = &self.tokenizer;
        let text = tokenizer.inner().to_string(true);
        let text = text.map_err(|error| anyhow::anyhow!("{error}")).context("tokenizer.json")?;
        write_atomic(&dir.join("tokenizer.json"), text.as_bytes())?;
        let token =
            |id: i64| u32::try_from(id).ok().and_then(|id| tokenizer.inner().id_to_token(id));
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos_id().and_then(token),
            "eos_token": token(tokenizer.eos_id()),
            "pad_token": token(tokenizer.pad_id()),
            "dualspeed_template": self.template,
            "dualspeed_system": self.system,
        });
        write_json(&dir.join("tokenizer_config.json"), &config)?;
        let anyres = self.model.llava_config().and_then(|config| config.anyres.as_ref());
        let processor = ProcessorFile {
            processor: self.processor.clone(),
            pinpoints: anyres.map(|anyres| anyres.image_grid_pinpoints.clone()),
        };
        write_json(&dir.join("preprocessor_config.json"), &processor.to_json())
    }
}
