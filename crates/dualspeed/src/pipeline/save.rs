//! Checkpoints in published formats, with tokenizer, template and image processor.

use std::path::Path;

use anyhow::Context;
use dualspeed_data::ImageToken;
use dualspeed_data::picture::ProcessorFile;
use dualspeed_model::export::names::Layout;
use dualspeed_model::export::{ExportOptions, TOWER, Tokens, export_merged};
use dualspeed_model::import::FloatType;
use dualspeed_model::{Llava, SelectFeature};
use dualspeed_ops::Backend;
use serde_json::json;

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
        let ImageToken { id: image, pad, .. } = self.image_token();
        let (bos, eos) = (tokenizer.bos_id(), tokenizer.eos_id());
        let aspect = image_aspect_ratio(self.processor.fit);
        ExportOptions {
            dtype,
            shard,
            image_aspect_ratio: Some(aspect.to_owned()),
            ..ExportOptions::new(Tokens { image, bos, eos, pad })
        }
    }

    /// What stands for an image in transformers' prompts.
    fn image_token(&self) -> ImageToken {
        ImageToken::find(&self.tokenizer, self.image_token_id, self.model.text_config().vocab_size)
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
        write_tokenizer(dir, &self.tokenizer, self.text_files.as_deref())?;
        // The published code has templates by name and does not read it.
        let image = self.image_token().text;
        let jinja = self.template.to_jinja(self.system.as_deref(), &self.tokenizer, &image)?;
        write_atomic(&dir.join("chat_template.jinja"), jinja.as_bytes())?;
        let path = dir.join(TOWER).join("preprocessor_config.json");
        write_json(&path, &tower_processor(&self.processor))
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, `preprocessor_config.json` and
    /// `processor_config.json`.
    fn save_processors(&self, dir: &Path) -> anyhow::Result<()> {
        let tokenizer = &self.tokenizer;
        let ImageToken { text: image, pad, tokenizer: inner, .. } = self.image_token();
        let text = inner.to_string(true);
        let text = text.map_err(|error| anyhow::anyhow!("{error}")).context("tokenizer.json")?;
        write_atomic(&dir.join("tokenizer.json"), text.as_bytes())?;
        let token = |id: i64| tokenizer.token(id);
        let jinja = self.template.to_jinja(self.system.as_deref(), tokenizer, &image)?;
        write_atomic(&dir.join("chat_template.jinja"), jinja.as_bytes())?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos_id().and_then(token),
            "eos_token": token(tokenizer.eos_id()),
            "pad_token": token(pad),
            "extra_special_tokens": { "image_token": image },
            "chat_template": jinja,
        });
        write_json(&dir.join("tokenizer_config.json"), &config)?;
        let anyres = self.model.llava_config().and_then(|config| config.anyres.as_ref());
        let processor = ProcessorFile {
            processor: self.processor.clone(),
            pinpoints: anyres.map(|anyres| anyres.image_grid_pinpoints.clone()),
        };
        write_json(&dir.join("preprocessor_config.json"), &processor.to_json())?;
        match self.processor_config(&image) {
            Some(config) => write_json(&dir.join("processor_config.json"), &config),
            None => Ok(()),
        }
    }

    /// `LlavaProcessor` or `LlavaNextProcessor` of transformers, which puts visual tokens where the chat template has an image;
    /// `None` where the vision tower is not one that transformers' LLaVA knows.
    fn processor_config(&self, image: &str) -> Option<serde_json::Value> {
        let config = self.model.llava_config()?;
        let vit = config.vision.vit()?;
        let class = match &config.anyres {
            Some(_) => "LlavaNextProcessor",
            None => "LlavaProcessor",
        };
        let strategy = match vit.mm_vision_select_feature {
            SelectFeature::Patch => "default",
            SelectFeature::ClsPatch => "full",
        };
        Some(json!({
            "processor_class": class,
            "image_token": image,
            "patch_size": vit.patch_size,
            "vision_feature_select_strategy": strategy,
            // The class token, which the strategy `default` takes off again.
            "num_additional_image_tokens": 1,
        }))
    }
}
