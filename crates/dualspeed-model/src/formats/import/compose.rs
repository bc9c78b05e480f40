//! A checkpoint put together: a language model, a vision tower, single parts, an adapter.

use std::path::{Path, PathBuf};

use super::adapter::Adapter;
use super::checkpoint::{Checkpoint, LoadOptions};
use super::config::{Architecture, HfConfig, read_config};
use super::error::ImportError;
use super::names::{Canonical, path_of};
use super::parts::open_parts;
use super::source::{Layered, MemoryWeights, WeightSource};
use super::tower::{Find, TowerName, selected, tower_config};
use super::weights::open_weights;
use crate::config::{DecoderConfig, LlavaConfig, ProjectorType};

impl Checkpoint {
    /// Puts vision tower, parts and adapter of the options on it.
    ///
    /// # Errors
    /// [`ImportError`] if one is not there, is damaged, or belongs to another model.
    pub fn compose(mut self, options: &LoadOptions, find: &Find<'_>) -> Result<Self, ImportError> {
        let mut adapter = options.adapter.as_deref().map(Adapter::open).transpose()?;
        let mut layers = adapter.as_mut().map_or_else(Vec::new, Adapter::take_extras);
        for path in &options.parts {
            layers.extend(open_parts(path)?);
        }
        let mut described = Described::of(options)?;
        match self.config.architecture {
            Architecture::Decoder(_) => self.see(options, described.as_ref(), &layers)?,
            // What has vision describes itself.
            _ => described = None,
        }
        self.add_vision_tower(options, described.as_ref(), find)?;
        for layer in layers {
            self.parts.extend(layer.tensors().keys().cloned());
            self.add(layer);
        }
        if let Some(mut adapter) = adapter {
            if !matches!(self.config.architecture, Architecture::Llava(_)) {
                adapter.fold_all();
            }
            let own = std::mem::replace(&mut self.weights, Box::new(MemoryWeights::default()));
            self.weights = adapter.fold_into(own)?;
            self.adapter = Some(adapter);
        }
        self.settle()?;
        Ok(self)
    }

    /// Makes a language model one with vision, if a tower or parts say so.
    fn see(
        &mut self,
        options: &LoadOptions,
        described: Option<&Described>,
        layers: &[Box<dyn WeightSource>],
    ) -> Result<(), ImportError> {
        let Architecture::Decoder(text) = &self.config.architecture else { return Ok(()) };
        let has = |root: &str| {
            let of_root = |path: &String| path.split('.').next() == Some(root);
            layers.iter().any(|layer| layer.tensors().keys().any(of_root))
        };
        let two = || {
            layers.iter().any(|layer| layer.tensors().contains_key("mm_projector.linear_2.weight"))
        };
        if options.vision_tower.is_none() && described.is_none() && !has("mm_projector") {
            return Ok(());
        }
        let mut config = match described {
            Some(described) => {
                described.check(text)?;
                described.config.clone()
            }
            None => LlavaConfig { isolator_length: 0, ..LlavaConfig::default() },
        };
        if has("mm_projector") {
            config.mm_projector_type = match two() {
                true => ProjectorType::Mlp2xGelu,
                false => ProjectorType::Linear,
            };
        } else if let Some(new) = &options.new_projector {
            config.mm_projector_type = new.kind.clone();
            self.fresh_projector = Some(new.seed);
        } else {
            let problem = "it is a language model, and there is no projector from the vision tower to it; give the file of one \
                           (--part mm_projector.bin), or make a new one with `assemble`";
            return Err(ImportError::malformed(&self.path, problem));
        }
        config.text = text.clone();
        self.config.original = true;
        self.config.mm_vision_tower = described.and_then(|described| described.tower.clone());
        self.config.image_aspect_ratio = described.and_then(|described| described.aspect.clone());
        self.config.architecture = Architecture::Llava(Box::new(config));
        Ok(())
    }

    /// LLaVA's own layout names the vision tower, whose sizes are in the tower's own directory only.
    fn add_vision_tower(
        &mut self,
        options: &LoadOptions,
        described: Option<&Described>,
        find: &Find<'_>,
    ) -> Result<(), ImportError> {
        // The projection into the space shared with text has a file of its own, and makes no tower.
        let here = self.weights.tensors().keys().any(|path| {
            path.strip_prefix("vision_tower.")
                .is_some_and(|rest| !rest.starts_with("visual_projection."))
        });
        let Architecture::Llava(config) = &mut self.config.architecture else {
            return match options.vision_tower {
                None => Ok(()),
                Some(_) => Err(ImportError::malformed(
                    &self.path,
                    "this is a vision tower itself; --vision-tower is for language models",
                )),
            };
        };
        if here && !self.config.original {
            return match options.vision_tower {
                None => Ok(()),
                Some(_) => Err(ImportError::malformed(
                    &self.path,
                    "its vision tower is in it, with its sizes; leave --vision-tower out",
                )),
            };
        }
        let dir = described.map_or(&*self.path, |described| &described.dir);
        let name = self.config.mm_vision_tower.as_deref();
        let name = name.map(|name| TowerName { dir, name });
        let dir = match (&options.vision_tower, &name) {
            (Some(dir), _) => Some(dir.clone()),
            (None, Some(name)) => {
                // With weights here and sizes that everybody knows, nothing is fetched.
                let known = here && name.published().is_some();
                name.beside().or_else(|| if known { None } else { find(name.name) })
            }
            (None, None) => None,
        };
        let called = name.as_ref().map_or("a CLIP checkpoint", |name| name.name).to_owned();
        match (dir, name.as_ref().and_then(TowerName::published)) {
            (Some(dir), _) => {
                config.vision = tower_config(&dir, &config.vision)?;
                if !here {
                    let tower = Canonical::with(open_weights(&dir)?, |key| {
                        path_of(key).filter(|path| path.starts_with("vision_tower."))
                    })?;
                    let own =
                        std::mem::replace(&mut self.weights, Box::new(MemoryWeights::default()));
                    let layers: Vec<Box<dyn WeightSource>> = vec![Box::new(tower), own];
                    self.weights = Box::new(Layered::new(self.path.clone(), layers));
                }
                self.tower = Some(dir);
                Ok(())
            }
            (None, Some(sizes)) if here => {
                config.vision = selected(sizes, &config.vision);
                Ok(())
            }
            (None, _) => {
                let problem = match here {
                    true => "the sizes of its vision tower are in no file here",
                    false => "the vision tower's weights are not in it",
                };
                let problem =
                    format!("{problem}; pass the directory of {called} (--vision-tower DIR)");
                Err(ImportError::malformed(&self.path, problem))
            }
        }
    }
}

/// What the directory of an adapter or of parts says about the model they were trained in.
struct Described {
    dir: PathBuf,
    config: LlavaConfig,
    tower: Option<String>,
    aspect: Option<String>,
}

impl Described {
    /// That of the first directory among adapter and parts whose `config.json` is of LLaVA's own layout.
    fn of(options: &LoadOptions) -> Result<Option<Self>, ImportError> {
        for path in options.adapter.iter().chain(&options.parts) {
            let dir = match path.is_dir() {
                true => &**path,
                false => path.parent().unwrap_or(Path::new("")),
            };
            let file = dir.join("config.json");
            let config = match file.is_file() {
                true => read_config(&file),
                false => continue,
            };
            let HfConfig { architecture, mm_vision_tower, image_aspect_ratio, original, .. } =
                match config {
                    Ok(config) => config,
                    // What lies beside a file may be of anything.
                    Err(_) if path.is_file() => continue,
                    Err(error) => return Err(error),
                };
            let dir = dir.to_owned();
            if let (Architecture::Llava(config), true) = (architecture, original) {
                let (tower, aspect) = (mm_vision_tower, image_aspect_ratio);
                return Ok(Some(Self { dir, config: *config, tower, aspect }));
            }
        }
        Ok(None)
    }

    /// Refuses a language model that is not the one they were trained on.
    fn check(&self, text: &DecoderConfig) -> Result<(), ImportError> {
        let own = &self.config.text;
        let differs = [
            ("hidden_size", own.hidden_size, text.hidden_size),
            ("num_hidden_layers", own.num_hidden_layers, text.num_hidden_layers),
            ("vocab_size", own.vocab_size, text.vocab_size),
        ];
        match differs.into_iter().find(|(_, own, given)| own != given) {
            None => Ok(()),
            Some((field, own, given)) => Err(ImportError::Config {
                path: self.dir.join("config.json"),
                field: field.into(),
                value: own.to_string(),
                problem: format!(
                    "the language model has {given}; it is not the one that this was trained on"
                ),
            }),
        }
    }
}
