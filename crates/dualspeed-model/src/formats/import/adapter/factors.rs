//! The factors in an adapter's file: which module each belongs to, of which rank and scale.

use std::collections::BTreeMap;

use super::super::error::ImportError;
use super::super::json::Json;
use super::super::names::path_of;
use super::super::source::{TensorInfo, WeightSource};
use crate::config::LoraTarget;

/// The factors of one module, by their keys in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    /// `lora_A`, `[rank, in]`.
    pub a: String,
    /// `lora_B`, `[out, rank]`.
    pub b: String,
    /// DoRA's norm of every row of the adapted weight, `[out]`.
    pub magnitude: Option<String>,
    /// Rows of `lora_A`.
    pub rank: usize,
    /// Input and output width.
    pub widths: [usize; 2],
    /// What the product is multiplied by.
    pub scale: f64,
}

/// All factors of an adapter, by the path of their module in our model (`language_model.layers.0.self_attn.q_proj`).
pub(super) struct Factors {
    pub source: Box<dyn WeightSource>,
    pub pairs: BTreeMap<String, Pair>,
}

/// A key of the file as the module it belongs to and what it is of it.
enum Piece {
    A(String),
    B(String),
    Magnitude(String),
}

fn piece(key: &str) -> Option<Piece> {
    let of = |mark: &str| {
        let (module, _) = key.split_once(mark)?;
        let bare = module.strip_prefix("base_model.model.").unwrap_or(module);
        let path = path_of(&format!("{bare}.weight"))?;
        path.strip_suffix(".weight").map(str::to_owned)
    };
    of(".lora_A.")
        .map(Piece::A)
        .or_else(|| of(".lora_B.").map(Piece::B))
        .or_else(|| of(".lora_magnitude_vector").map(Piece::Magnitude))
}

/// Whether a key of an adapter's file is a factor, not a weight that is saved with it.
pub(super) fn is_factor(key: &str) -> bool {
    piece(key).is_some()
}

impl Factors {
    /// Pairs the keys of a file; ranks are those of its shapes, scales those of `adapter_config.json`.
    ///
    /// # Errors
    /// [`ImportError`] if half of a pair is missing, a shape is none of a linear layer's, or the configuration says another rank.
    pub fn new(source: Box<dyn WeightSource>, json: &Json<'_>) -> Result<Self, ImportError> {
        let mut halves: BTreeMap<String, [Option<&TensorInfo>; 3]> = BTreeMap::new();
        for (key, info) in source.tensors() {
            if key.contains(".lora_embedding_") || key.contains("token_adapter") {
                let problem = "adapters of embeddings are not read; name embed_tokens in modules_to_save instead";
                return Err(ImportError::tensor(&info.path, &info.key, problem));
            }
            let (module, place) = match piece(key) {
                Some(Piece::A(module)) => (module, 0),
                Some(Piece::B(module)) => (module, 1),
                Some(Piece::Magnitude(module)) => (module, 2),
                None => continue,
            };
            halves.entry(module).or_default()[place] = Some(info);
        }
        let scales = Scales::new(json)?;
        let mut pairs = BTreeMap::new();
        for (module, halves) in halves {
            let [a, b, magnitude] = halves;
            let Some(some) = a.or(b).or(magnitude) else { continue };
            let wrong = |problem: &str| ImportError::tensor(&some.path, &some.key, problem);
            let (Some(a), Some(b)) = (a, b) else {
                return Err(wrong("an adapter has lora_A and lora_B; one is missing here"));
            };
            let (&[rank, d_in], &[d_out, columns]) = (&a.shape[..], &b.shape[..]) else {
                return Err(wrong("only adapters of linear layers are read"));
            };
            if rank != columns || rank == 0 {
                let problem =
                    format!("lora_A is {:?} and lora_B {:?}; ranks differ", a.shape, b.shape);
                return Err(wrong(&problem));
            }
            if let Some(expected) = scales.only_rank().filter(|expected| *expected != rank) {
                let problem = format!("its rank is {rank}, adapter_config.json says {expected}");
                return Err(wrong(&problem));
            }
            let pair = Pair {
                a: a.key.clone(),
                b: b.key.clone(),
                magnitude: magnitude.map(|info| info.key.clone()),
                rank,
                widths: [d_in, d_out],
                scale: scales.of(&some.key, rank),
            };
            pairs.insert(module, pair);
        }
        Ok(Self { source, pairs })
    }

    /// One half of a pair, in 32 bits.
    pub fn read(&self, key: &str) -> Result<Vec<f32>, ImportError> {
        self.source.read(key).map(|tensor| tensor.to_f32())
    }
}

/// The linear layer of a decoder's block that a module path names.
pub(super) fn decoder_target(module: &str) -> Option<(usize, LoraTarget)> {
    let rest = module.strip_prefix("language_model.layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    let (_, name) = rest.rsplit_once('.')?;
    let target = LoraTarget::ALL.into_iter().find(|target| target.name() == name)?;
    Some((layer.parse().ok()?, target))
}

/// `lora_alpha`, `alpha_pattern` and `use_rslora`.
struct Scales {
    alpha: f64,
    rank: usize,
    /// Whether every module has that rank.
    uniform: bool,
    patterns: Vec<(regex::Regex, f64)>,
    rslora: bool,
}

impl Scales {
    fn new(json: &Json<'_>) -> Result<Self, ImportError> {
        let mut patterns = Vec::new();
        if let Some(serde_json::Value::Object(map)) = json.get("alpha_pattern") {
            for (pattern, value) in map {
                let field = format!("alpha_pattern.{pattern}");
                let refuse = |problem: &str| json.refuse(&field, &value.to_string(), problem);
                // As peft matches it: the whole name, or what follows a dot.
                let regex = regex::Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                    .map_err(|error| refuse(&error.to_string()))?;
                patterns.push((regex, value.as_f64().ok_or_else(|| refuse("expected a number"))?));
            }
        }
        let ranks = json.object("rank_pattern")?;
        Ok(Self {
            alpha: json.float("lora_alpha")?.unwrap_or(8.0),
            rank: json.size("r", 8)?,
            uniform: ranks.is_empty(),
            patterns,
            rslora: json.bool("use_rslora")? == Some(true),
        })
    }

    fn only_rank(&self) -> Option<usize> {
        self.uniform.then_some(self.rank)
    }

    /// The scale of the module that a key of the file belongs to.
    fn of(&self, key: &str, rank: usize) -> f64 {
        let module = key.split(".lora_").next().unwrap_or(key);
        let module = module.strip_prefix("base_model.model.").unwrap_or(module);
        let own = self.patterns.iter().find(|(regex, _)| regex.is_match(module));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        if self.rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}
