//! PEFT adapters, with what LLaVA's trainer leaves beside them.
//!
//! | in `adapter_model.safetensors` or `.bin` | here |
//! |---|---|
//! | `base_model.model.….layers.0.self_attn.q_proj.lora_A.weight` `[r, in]`, `lora_B` `[out, r]` of the decoder | adapters |
//! | the same of other layers; all of them where there are `lora_magnitude_vector`s (DoRA) | folded into the weights |
//! | full copies (`modules_to_save`, biases) | in the place of the base model's |
//!
//! `rank_pattern`, `alpha_pattern`, `layers_to_transform` and `use_rslora` are followed. Which modules have adapters is read from
//! the file, not from `target_modules`.

mod decoder;
mod factors;
mod fold;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use self::decoder::DecoderFactors;
use self::factors::{Factors, Pair, decoder_target, is_factor};
pub(super) use self::fold::Folded;
use super::error::ImportError;
use super::fill::fill_part;
use super::json::Json;
use super::names::Canonical;
use super::parts::{check_roots, has_parts, open_file, open_parts, part_path, put_part};
use super::source::WeightSource;
use super::tensor::FloatType;
use crate::config::{DecoderConfig, LoraConfig, LoraTarget};
use crate::language::Decoder;
use crate::nn::Init;
use crate::nn::lora::Lora;
use crate::vlm::Llava;
use dualspeed_ops::Backend;

/// The configuration of a PEFT adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// PEFT's names of the adapter's weights.
const ADAPTER_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// Ways of initialising that change the base model too, so that the file alone does not make the model.
const CHANGES_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// An adapter directory whose headers have been read.
pub struct Adapter {
    dir: PathBuf,
    /// Rank, scale, dropout, targets of the decoder's adapters; `None` if all there is is folded into the weights.
    pub config: Option<LoraConfig>,
    /// The base model, as the file names it: a directory or a name on the hub.
    pub base_model: Option<String>,
    factors: Arc<Factors>,
    /// The decoder's, by the path of their module.
    kept: BTreeMap<String, Pair>,
    /// Those that become part of the weights.
    folded: BTreeMap<String, Pair>,
    /// Full copies in the adapter's own file, then the files beside it.
    extras: Vec<Box<dyn WeightSource>>,
}

impl Adapter {
    /// Whether a directory holds an adapter.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(ADAPTER_CONFIG).is_file()
    }

    /// Reads an adapter's configuration and the headers of its weights.
    ///
    /// # Errors
    /// [`ImportError`] names what is missing, damaged, or of a kind of adapter that is not read.
    pub fn open(dir: &Path) -> Result<Self, ImportError> {
        let path = dir.join(ADAPTER_CONFIG);
        let text = std::fs::read(&path).map_err(ImportError::read(&path))?;
        let json = Json::parse(&path, &text)?;
        json.require("peft_type", "LORA", "only LoRA adapters are read")?;
        for field in ["fan_in_fan_out", "lora_bias", "use_qalora"] {
            if json.bool(field)? == Some(true) {
                return Err(json.refuse(field, "true", "such adapters are not read"));
            }
        }
        if let Some(Value::String(init)) = json.get("init_lora_weights")
            && CHANGES_BASE.iter().any(|kind| init.starts_with(kind))
        {
            let problem = "it changes the base model too; save the adapter again in Python with \
                           save_pretrained(DIR, path_initial_model_for_weight_conversion=..), which makes it a plain one";
            return Err(json.refuse("init_lora_weights", init, problem));
        }
        let file = ADAPTER_FILES.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        let Some(file) = file else {
            let problem = format!("there is none of {}", ADAPTER_FILES.join(", "));
            return Err(ImportError::malformed(dir, problem));
        };
        let factors = Factors::new(open_file(&file)?, &json)?;
        if factors.pairs.is_empty() {
            return Err(ImportError::malformed(&file, "there are no LoRA factors in it"));
        }
        let dora = factors.pairs.values().any(|pair| pair.magnitude.is_some());
        if json.bool("use_dora")? == Some(true) && !dora {
            return Err(json.refuse(
                "use_dora",
                "true",
                "but the file has no lora_magnitude_vector",
            ));
        }
        let (kept, folded): (BTreeMap<_, _>, BTreeMap<_, _>) = factors
            .pairs
            .clone()
            .into_iter()
            .partition(|(module, _)| !dora && decoder_target(module).is_some());
        let config = decoder_config(&json, &kept)?;
        let saved = Canonical::with(open_file(&file)?, |key| match is_factor(key) {
            true => None,
            false => part_path(key),
        })?;
        check_roots(&saved)?;
        let mut extras: Vec<Box<dyn WeightSource>> = Vec::new();
        if !saved.tensors().is_empty() {
            extras.push(Box::new(saved));
        }
        if has_parts(dir) {
            extras.extend(open_parts(dir)?);
        }
        Ok(Self {
            dir: dir.to_owned(),
            config,
            base_model: json.str("base_model_name_or_path")?.map(str::to_owned),
            factors: Arc::new(factors),
            kept,
            folded,
            extras,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// How many layers' adapters become part of the weights instead of staying adapters.
    pub fn folded(&self) -> usize {
        self.folded.len()
    }

    /// Takes out the weights that are saved in full, by path in our model; later ones count.
    pub(super) fn take_extras(&mut self) -> Vec<Box<dyn WeightSource>> {
        std::mem::take(&mut self.extras)
    }

    /// Makes all adapters part of the weights, the decoder's too: for a model that has no place for them.
    pub(super) fn fold_all(&mut self) {
        self.folded.append(&mut self.kept);
        self.config = None;
    }

    /// Folds into `weights` what does not stay an adapter.
    pub(super) fn fold_into(
        &self,
        weights: Box<dyn WeightSource>,
    ) -> Result<Box<dyn WeightSource>, ImportError> {
        if self.folded.is_empty() {
            return Ok(weights);
        }
        Ok(Box::new(Folded::new(weights, self.factors.clone(), self.folded.clone())?))
    }

    /// Fills the adapters of a decoder; without a configuration there are none.
    pub(super) fn fill_lora<B: Backend, M: burn::module::Module<B>>(
        &self,
        lora: M,
        decoder: &DecoderConfig,
    ) -> Result<M, ImportError> {
        let Some(config) = &self.config else { return Ok(lora) };
        let factors = DecoderFactors::new(self.factors.clone(), &self.kept, config, decoder)?;
        // Trained, so in full precision whatever the base is.
        fill_part(lora, "lora", &factors, Some(FloatType::F32))
    }

    /// Puts the adapter, and the parts saved with it, on a base model in memory.
    ///
    /// # Errors
    /// [`ImportError`] if the adapter does not fit the model, or is folded into the weights: that is done while those are read, by
    /// [`Checkpoint::open`](super::Checkpoint::open).
    pub fn apply<B: Backend>(
        &self,
        model: Llava<B>,
        device: &B::Device,
    ) -> Result<Llava<B>, ImportError> {
        let config = self.only_adapters()?;
        let mut model = model
            .with_lora(config, device, 0)
            .map_err(|error| ImportError::Model(Box::new(error)))?;
        model.lora = self.fill_lora::<B, _>(model.lora, &model.config.text)?;
        self.extras.iter().try_fold(model, |model, extra| put_part(model, &**extra, device))
    }

    /// Folds the adapter into a decoder on its own.
    ///
    /// # Errors
    /// As [`Adapter::apply`]; also if parts of a model are saved with the adapter.
    pub fn merge_into<B: Backend>(
        &self,
        decoder: Decoder<B>,
        device: &B::Device,
    ) -> Result<Decoder<B>, ImportError> {
        if let Some(info) = self.extras.iter().find_map(|extra| extra.tensors().values().next()) {
            let problem =
                "it is saved in full, and only adapters are folded into a decoder in memory";
            return Err(ImportError::tensor(&info.path, &info.key, problem));
        }
        let config = self.only_adapters()?;
        let lora = Lora::init(&Init::new(0, device).at("lora"), config, &decoder.config);
        let lora = self.fill_lora::<B, _>(lora, &decoder.config)?;
        Ok(decoder.merge_lora(&lora))
    }

    fn only_adapters(&self) -> Result<&LoraConfig, ImportError> {
        match (&self.config, self.folded.keys().next()) {
            (Some(config), None) => Ok(config),
            (_, module) => {
                let module = module.map_or("", String::as_str);
                let problem = format!(
                    "its adapter of {module} becomes part of the weights, which is done while they are read: open the base \
                     model with this adapter in its LoadOptions"
                );
                Err(ImportError::malformed(&self.dir, problem))
            }
        }
    }
}

/// Rank, scale, dropout and targets of the decoder's adapters.
fn decoder_config(
    json: &Json<'_>,
    kept: &BTreeMap<String, Pair>,
) -> Result<Option<LoraConfig>, ImportError> {
    let has = |wanted: &LoraTarget| {
        kept.keys()
            .any(|module| decoder_target(module).is_some_and(|(_, target)| target == *wanted))
    };
    let Some(r) = kept.values().map(|pair| pair.rank).max() else { return Ok(None) };
    let use_rslora = json.bool("use_rslora")? == Some(true);
    // The commonest scale is the adapter's own; others are put into the factors.
    let count = |scale: f64| kept.values().filter(|pair| pair.scale == scale).count();
    let scale = kept.values().map(|pair| pair.scale).max_by_key(|scale| count(*scale));
    let rank = if use_rslora { (r as f64).sqrt() } else { r as f64 };
    let own = json.float("lora_alpha")?.unwrap_or(8.0);
    let alpha = scale.filter(|scale| *scale != own / rank).map_or(own, |scale| scale * rank);
    let config = LoraConfig {
        r,
        alpha,
        dropout: json.float("lora_dropout")?.unwrap_or(0.0),
        use_rslora,
        targets: LoraTarget::ALL.into_iter().filter(has).collect(),
    };
    config.validate().map_err(|source| json.invalid(source))?;
    Ok(Some(config))
}
