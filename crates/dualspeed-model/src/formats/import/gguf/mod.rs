//! GGUF, the format of llama.cpp: one file with weights, configuration and vocabulary.
//!
//! | GGUF | here |
//! |---|---|
//! | `token_embd` | `embed_tokens` |
//! | `blk.N.attn_norm`, `attn_q/k/v/output` | `layers.N.input_layernorm`, `self_attn.q/k/v/o_proj` |
//! | `blk.N.ffn_norm`, `ffn_gate/up/down` | `post_attention_layernorm`, `mlp.gate/up/down_proj` |
//! | `output_norm`, `output` | `norm`, `lm_head` |
//!
//! Of Llama's files llama.cpp turns neighbouring pairs of a head, Hugging Face the two halves: rows of Q and K are put back in
//! order. Qwen2's have them in Hugging Face's order, and biases of Q, K and V.

mod meta;
mod quants;
mod rope;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use self::meta::{Header, read_header};
use self::quants::GgmlType;
use super::checkpoint::Checkpoint;
use super::config::{Architecture, HfConfig};
use super::error::ImportError;
use super::recognise::refuse_pointer;
use super::source::{TensorInfo, WeightSource};
use super::tensor::{HostTensor, Values};
use crate::config::DecoderConfig;

pub use self::meta::MetaValue;

/// The architecture of Qwen2 and Qwen2.5.
const QWEN2: &str = "qwen2";

/// The architecture of Qwen3.
const QWEN3: &str = "qwen3";

/// An opened GGUF file.
#[derive(Clone, Debug)]
pub struct Gguf {
    path: PathBuf,
    header: Header,
    size: u64,
}

/// The vocabulary in a file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufVocabulary {
    /// The algorithm: `gpt2` is byte-level BPE, `llama` sentencepiece.
    pub model: String,
    /// How text is cut before BPE, e.g. `smollm`.
    pub pre: String,
    /// All tokens, by id.
    pub tokens: Vec<String>,
    /// Ids of tokens that are no text (control and user-defined ones).
    pub special: Vec<u32>,
    /// Those of them that text may spell all the same: user-defined ones.
    pub user_defined: Vec<u32>,
    /// Merges, `"a b"`, best first; sentencepiece has none.
    pub merges: Vec<String>,
    /// Sentencepiece's scores, by id.
    pub scores: Vec<f32>,
    /// Whether a text is put behind a space before it is cut (sentencepiece).
    pub add_space_prefix: bool,
    /// What stands for text that no token spells.
    pub unknown: Option<u32>,
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends an answer.
    pub eos: Option<u32>,
    /// The template of the chat, in Jinja.
    pub chat_template: Option<String>,
}

impl Gguf {
    /// Reads a file's header.
    ///
    /// # Errors
    /// [`ImportError`] if it cannot be read or is damaged.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        refuse_pointer(path)?;
        let file = File::open(path).map_err(ImportError::read(path))?;
        let size = file.metadata().map_err(ImportError::read(path))?.len();
        let header = read_header(BufReader::new(file), size);
        let header = header.map_err(|problem| ImportError::malformed(path, problem))?;
        Ok(Self { path: path.to_owned(), header, size })
    }

    /// A value of the metadata.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.header.metadata.get(key)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ImportError> {
        match self.get(key) {
            None => Ok(None),
            Some(MetaValue::Int(value)) => Ok(Some(*value as f64)),
            Some(MetaValue::Float(value)) => Ok(Some(*value)),
            Some(other) => Err(self.refuse(key, &format!("{other:?}"), "expected a number")),
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ImportError> {
        match self.number(key)? {
            Some(value) if (0.0..4e9).contains(&value) => Ok(Some(value as usize)),
            Some(value) => Err(self.refuse(key, &value.to_string(), "expected a size")),
            None => Ok(None),
        }
    }

    fn required(&self, key: &str) -> Result<usize, ImportError> {
        self.size(key)?.ok_or_else(|| self.refuse(key, "absent", "a decoder's file must have it"))
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(MetaValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let Some(MetaValue::Array(items)) = self.get(key) else { return Vec::new() };
        let text = |item: &MetaValue| match item {
            MetaValue::Text(text) => Some(text.clone()),
            _ => None,
        };
        items.iter().filter_map(text).collect()
    }

    fn refuse(&self, field: &str, value: &str, problem: &str) -> ImportError {
        ImportError::Config {
            path: self.path.clone(),
            field: field.into(),
            value: value.into(),
            problem: problem.into(),
        }
    }

    fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or("absent")
    }

    /// The key of a value that is the architecture's own.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture())
    }

    /// The decoder's configuration.
    ///
    /// # Errors
    /// [`ImportError::Config`] if the architecture is not one of Llama, Qwen2 and Qwen3, or a size is missing.
    pub fn config(&self) -> Result<DecoderConfig, ImportError> {
        let architecture = self.architecture();
        if architecture == "clip" {
            let problem = "this is an mmproj file, llama.cpp's vision tower and projector, which is not read; take the model as \
                           transformers or LLaVA publish it, or put the language model's file behind a CLIP directory with \
                           `assemble`";
            return Err(self.refuse("general.architecture", architecture, problem));
        }
        if !matches!(architecture, "llama" | QWEN2 | QWEN3) {
            let problem = "only files of the architectures llama, qwen2 and qwen3 are read";
            return Err(self.refuse("general.architecture", architecture, problem));
        }
        let heads = self.required(&self.key("attention.head_count"))?;
        let hidden_size = self.required(&self.key("embedding_length"))?;
        let epsilon = self.number(&self.key("attention.layer_norm_rms_epsilon"))?;
        let vocab_size = match self.size(&self.key("vocab_size"))? {
            Some(size) => size,
            None => self.texts("tokenizer.ggml.tokens").len(),
        };
        let mut config = DecoderConfig {
            hidden_size,
            num_hidden_layers: self.required(&self.key("block_count"))?,
            num_attention_heads: heads,
            num_key_value_heads: self.size(&self.key("attention.head_count_kv"))?,
            head_dim: self.size(&self.key("attention.key_length"))?,
            intermediate_size: self.required(&self.key("feed_forward_length"))?,
            vocab_size,
            max_position_embeddings: self.size(&self.key("context_length"))?,
            qkv_bias: architecture == QWEN2,
            qk_norm: architecture == QWEN3,
            mrope_section: None,
            nope_layers: Vec::new(),
            rope_theta: self.number(&self.key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_scaling: None,
            rms_norm_eps: epsilon.unwrap_or(1e-5),
            tie_word_embeddings: !self.header.tensors.iter().any(|t| t.name == "output.weight"),
            initializer_range: Some(0.02),
        };
        let invalid = |source| ImportError::Invalid { path: self.path.clone(), source };
        config.validate().map_err(invalid)?;
        config.rope_scaling = self.rope_scaling(&config)?;
        config.validate().map_err(invalid)?;
        Ok(config)
    }

    /// The vocabulary; `None` if the file has none.
    pub fn vocabulary(&self) -> Option<GgufVocabulary> {
        let id = |key: &str| match self.get(key) {
            Some(MetaValue::Int(id)) => u32::try_from(*id).ok(),
            _ => None,
        };
        // llama.cpp's types: 1 is text, 2 unknown, 3 control, 4 user-defined, 6 a byte.
        let of_kinds = |wanted: &[i64]| -> Vec<u32> {
            let Some(MetaValue::Array(kinds)) = self.get("tokenizer.ggml.token_type") else {
                return Vec::new();
            };
            let is =
                |kind: &MetaValue| matches!(kind, MetaValue::Int(kind) if wanted.contains(kind));
            (0u32..).zip(kinds).filter(|(_, kind)| is(kind)).map(|(id, _)| id).collect()
        };
        let scores = match self.get("tokenizer.ggml.scores") {
            Some(MetaValue::Array(scores)) => scores
                .iter()
                .map(|score| match score {
                    MetaValue::Float(score) => *score as f32,
                    _ => f32::NEG_INFINITY,
                })
                .collect(),
            _ => Vec::new(),
        };
        let space = self.get("tokenizer.ggml.add_space_prefix");
        Some(GgufVocabulary {
            model: self.text("tokenizer.ggml.model")?.to_owned(),
            pre: self.text("tokenizer.ggml.pre").unwrap_or("default").to_owned(),
            tokens: self.texts("tokenizer.ggml.tokens"),
            special: of_kinds(&[3, 4]),
            user_defined: of_kinds(&[4]),
            scores,
            add_space_prefix: space != Some(&MetaValue::Bool(false)),
            unknown: id("tokenizer.ggml.unknown_token_id"),
            merges: self.texts("tokenizer.ggml.merges"),
            bos: id("tokenizer.ggml.bos_token_id"),
            eos: id("tokenizer.ggml.eos_token_id"),
            chat_template: self.text("tokenizer.chat_template").map(str::to_owned),
        })
    }

    /// The values of the tensor that the header lists at this place.
    fn decode(&self, at: usize) -> Result<HostTensor, String> {
        let listed = &self.header.tensors[at];
        let kind = GgmlType::new(listed.kind);
        let count = listed.shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
        let count = count.ok_or("its shape overflows")?;
        let bytes = kind.bytes(count, listed.shape.last().copied().unwrap_or(1))?;
        let start = self.header.data.checked_add(listed.offset);
        let end = start.and_then(|start| start.checked_add(bytes as u64));
        let (Some(start), Some(_)) = (start, end.filter(|end| *end <= self.size)) else {
            return Err(format!(
                "it ends beyond the file's {} bytes; the file is truncated",
                self.size
            ));
        };
        let mut buffer = vec![0; bytes];
        let mut file = File::open(&self.path).map_err(|error| error.to_string())?;
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut buffer))
            .map_err(|error| format!("cannot be read: {error}"))?;
        Ok(HostTensor { shape: listed.shape.clone(), values: kind.decode(&buffer) })
    }

    /// The file as a checkpoint.
    ///
    /// # Errors
    /// [`ImportError`] if it is no decoder's file, or a tensor's name or place makes no sense.
    pub fn into_checkpoint(self) -> Result<Checkpoint, ImportError> {
        let decoder = self.config()?;
        let config = HfConfig {
            tied: Some(decoder.tie_word_embeddings),
            architecture: Architecture::Decoder(decoder.clone()),
            image_token_id: None,
            original: false,
            mm_vision_tower: None,
            image_aspect_ratio: None,
            name_or_path: None,
            quantised: None,
            dtype: None,
        };
        let path = self.path.clone();
        let weights = GgufWeights::new(self, decoder)?;
        Checkpoint::from_parts(&path, config, Box::new(weights))
    }
}

/// Weights of a GGUF file, by path in our model.
struct GgufWeights {
    gguf: Gguf,
    config: DecoderConfig,
    infos: BTreeMap<String, TensorInfo>,
    index: BTreeMap<String, usize>,
}

impl GgufWeights {
    fn new(gguf: Gguf, config: DecoderConfig) -> Result<Self, ImportError> {
        let (mut infos, mut index) = (BTreeMap::new(), BTreeMap::new());
        for (at, listed) in gguf.header.tensors.iter().enumerate() {
            // The configuration has them already.
            if listed.name == rope::FACTORS {
                continue;
            }
            let path = path_of(&listed.name);
            let info = TensorInfo {
                path: gguf.path.clone(),
                key: listed.name.clone(),
                shape: listed.shape.clone(),
                dtype: GgmlType::new(listed.kind).name(),
            };
            if infos.insert(path.clone(), info).is_some() {
                return Err(ImportError::tensor(&gguf.path, &listed.name, "it is there twice"));
            }
            index.insert(path, at);
        }
        Ok(Self { gguf, config, infos, index })
    }
}

impl WeightSource for GgufWeights {
    fn path(&self) -> &Path {
        &self.gguf.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, path: &str) -> Result<HostTensor, ImportError> {
        let missing = || ImportError::tensor(&self.gguf.path, path, "there is no such tensor");
        let at = *self.index.get(path).ok_or_else(missing)?;
        let tensor = self.gguf.decode(at).map_err(|problem| {
            ImportError::tensor(&self.gguf.path, &self.gguf.header.tensors[at].name, problem)
        })?;
        let heads = match () {
            // Only Llama's are stored in pairs.
            () if matches!(self.gguf.architecture(), QWEN2 | QWEN3) => return Ok(tensor),
            () if path.ends_with(".q_proj.weight") => self.config.num_attention_heads,
            () if path.ends_with(".k_proj.weight") => self.config.kv_heads(),
            () => return Ok(tensor),
        };
        Ok(halves_apart(tensor, heads))
    }
}

/// Rows of Q or K from pairs side by side to Hugging Face's two halves.
fn halves_apart(tensor: HostTensor, heads: usize) -> HostTensor {
    let [rows, columns] = tensor.shape[..] else { return tensor };
    let head = rows / heads.max(1);
    if head == 0 || !head.is_multiple_of(2) || head * heads != rows {
        return tensor;
    }
    fn reorder<T: Copy>(values: &[T], rows: usize, columns: usize, head: usize) -> Vec<T> {
        let half = head / 2;
        let from = |row: usize| {
            let (start, within) = (row - row % head, row % head);
            start + 2 * (within % half) + within / half
        };
        (0..rows).flat_map(|row| values[from(row) * columns..][..columns].iter().copied()).collect()
    }
    let values = match &tensor.values {
        Values::F32(values) => Values::F32(reorder(values, rows, columns, head)),
        Values::F16(values) => Values::F16(reorder(values, rows, columns, head)),
        Values::Bf16(values) => Values::Bf16(reorder(values, rows, columns, head)),
    };
    HostTensor { values, ..tensor }
}

/// The path in our model of a GGUF tensor's name.
fn path_of(name: &str) -> String {
    const PLAIN: [(&str, &str); 3] =
        [("token_embd.", "embed_tokens."), ("output_norm.", "norm."), ("output.", "lm_head.")];
    const BLOCK: [(&str, &str); 11] = [
        ("attn_norm.", "input_layernorm."),
        ("attn_q.", "self_attn.q_proj."),
        ("attn_k.", "self_attn.k_proj."),
        ("attn_v.", "self_attn.v_proj."),
        ("attn_q_norm.", "self_attn.q_norm."),
        ("attn_k_norm.", "self_attn.k_norm."),
        ("attn_output.", "self_attn.o_proj."),
        ("ffn_norm.", "post_attention_layernorm."),
        ("ffn_gate.", "mlp.gate_proj."),
        ("ffn_up.", "mlp.up_proj."),
        ("ffn_down.", "mlp.down_proj."),
    ];
    let rename = |name: &str, table: &[(&str, &str)]| {
        table.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
    };
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let renamed = match block {
        Some((n, rest)) => rename(rest, &BLOCK).map(|rest| format!("layers.{n}.{rest}")),
        None => rename(name, &PLAIN),
    };
    renamed.map_or_else(|| name.to_owned(), |path| format!("language_model.{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_apart_into_halves() {
        // One head of 6: pairs (0,3) (1,4) (2,5) were stored side by side.
        let stored = HostTensor::f32(vec![6, 1], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(halves_apart(stored, 1).to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn names_become_paths() {
        assert_eq!(path_of("blk.12.ffn_up.weight"), "language_model.layers.12.mlp.up_proj.weight");
        assert_eq!(path_of("output.weight"), "language_model.lm_head.weight");
    }
}
