//! Files that are truncated, mislabelled or hostile: an error that names file and key, never a panic or a surprise.

use std::io::Write;
use std::path::{Path, PathBuf};

use dualspeed::model::import::gguf::Gguf;
use dualspeed::model::import::pickle::PickleWeights;
use dualspeed::model::import::source::WeightSource;
use dualspeed::model::import::{Checkpoint, FloatType, LoadOptions, parse_config};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::commands::dualspeed;
use crate::support::{B, fixture};

/// A copy of a fixture that may be damaged.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The message of the error that loading ends with.
    fn error(&self) -> String {
        let options = LoadOptions::default();
        let loaded = Checkpoint::open(self.dir.path(), &options)
            .and_then(|checkpoint| checkpoint.load::<B>(&options, &Default::default()));
        loaded.expect_err("it loads").to_string()
    }

    /// Rewrites the weights with some of them changed.
    fn rewrite(
        &self,
        change: impl Fn(&str, Vec<usize>, Vec<u8>) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    ) {
        let path = self.path("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors: Vec<_> = file
            .iter()
            .flat_map(|(key, view)| change(key, view.shape().to_vec(), view.data().to_vec()))
            .collect();
        let views = tensors.iter().map(|(key, dtype, shape, data)| {
            (key.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

const KEY: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn a_truncated_file() {
    let copy = Copy::of("llama_tied");
    let path = copy.path("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    assert_says(&copy.error(), &["model.safetensors", "tensor `", "truncated"]);
    std::fs::write(&path, &bytes[..5]).unwrap();
    assert_says(&copy.error(), &["model.safetensors", "5 bytes"]);
}

#[test]
fn a_header_that_claims_a_hundred_gigabytes() {
    let copy = Copy::of("llama_tied");
    let path = copy.path("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&100_000_000_000u64.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert_says(&copy.error(), &["model.safetensors", "100000000000 bytes"]);
    // And one whose tensor claims as much.
    let header = br#"{"a":{"dtype":"F32","shape":[25000000000],"data_offsets":[0,100000000000]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    std::fs::write(&path, &bytes).unwrap();
    assert_says(&copy.error(), &["model.safetensors", "tensor `a`", "truncated"]);
}

#[test]
fn a_tensor_of_the_wrong_type() {
    let copy = Copy::of("llama_tied");
    copy.rewrite(|key, shape, data| {
        let dtype = if key == KEY { Dtype::I32 } else { Dtype::F32 };
        vec![(key.to_owned(), dtype, shape, data)]
    });
    assert_says(&copy.error(), &["model.safetensors", KEY, "I32", "BF16"]);
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let copy = Copy::of("llama_tied");
    copy.rewrite(|key, mut shape, data| {
        if key == KEY {
            shape.reverse();
        }
        vec![(key.to_owned(), Dtype::F32, shape, data)]
    });
    assert_says(&copy.error(), &["model.safetensors", KEY, "[32, 56]", "[56, 32]"]);
}

#[test]
fn a_tensor_too_few_and_one_too_many() {
    let copy = Copy::of("llama_tied");
    copy.rewrite(|key, shape, data| {
        let name = if key == KEY { "model.layers.1.mlp.sideways_proj.weight" } else { key };
        vec![(name.to_owned(), Dtype::F32, shape, data)]
    });
    let missing = "missing in the checkpoint: language_model.layers.1.mlp.up_proj.weight";
    assert_says(&copy.error(), &[missing, "of no parameter", "sideways_proj"]);
}

#[test]
fn two_keys_for_one_parameter() {
    let copy = Copy::of("llama_tied");
    copy.rewrite(|key, shape, data| {
        let mut both = vec![(key.to_owned(), Dtype::F32, shape.clone(), data.clone())];
        if key == KEY {
            both.push((key.replace("model.", ""), Dtype::F32, shape, data));
        }
        both
    });
    assert_says(&copy.error(), &[KEY, "both mean"]);
}

#[test]
fn a_missing_shard_and_an_index_that_leads_elsewhere() {
    let copy = Copy::of("llava_cls_sharded");
    let shard = "model-00002-of-00006.safetensors";
    std::fs::remove_file(copy.path(shard)).unwrap();
    assert_says(&copy.error(), &["model.safetensors.index.json", shard, "not there"]);
    let index = std::fs::read_to_string(copy.path("model.safetensors.index.json")).unwrap();
    for evil in ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", "..", ""] {
        let text = index.replace(shard, evil);
        std::fs::write(copy.path("model.safetensors.index.json"), text).unwrap();
        assert_says(&copy.error(), &["model.safetensors.index.json", "beside the index"]);
    }
}

#[test]
fn an_index_that_disagrees_with_its_shards() {
    let copy = Copy::of("llava_cls_sharded");
    let path = copy.path("model.safetensors.index.json");
    let index = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, index.replace("lm_head.weight\"", "other.weight\"")).unwrap();
    let error = copy.error();
    assert!(error.contains("other.weight") || error.contains("lm_head"), "{error}");
}

#[test]
fn configurations_of_other_models() {
    let parse = |text: &str| {
        parse_config(Path::new("dir/config.json"), text.as_bytes()).err().unwrap().to_string()
    };
    assert_says(&parse(r#"{"model_type": "bert"}"#), &["dir/config.json", "model_type", "bert"]);
    assert_says(
        &parse(r#"{"model_type": "llama", "hidden_size": "x"}"#),
        &["hidden_size", "a size"],
    );
    assert_says(
        &parse(r#"{"model_type": "llama", "attention_bias": true}"#),
        &["attention_bias", "no biases"],
    );
    assert_says(
        &parse(r#"{"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 2}}"#),
        &["rope_scaling.rope_type", "yarn"],
    );
    assert_says(&parse(r#"{"model_type": "mistral"}"#), &["sliding_window", "4096"]);
    assert_says(&parse("[1]"), &["dir/config.json", "JSON object"]);
}

/// A zip archive as `torch.save` makes it.
fn torch_zip(path: &Path, pickle: &[u8], storages: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    for (key, bytes) in storages {
        zip.start_file(format!("archive/data/{key}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// A dictionary of one tensor `w` over storage `0`.
fn one_tensor(offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n".to_vec();
    pickle.extend(b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000");
    pickle.extend(b"X\x03\x00\x00\x00cpuK\x06tQK");
    pickle.push(offset);
    for numbers in [shape, strides] {
        pickle.push(b'(');
        numbers.iter().for_each(|n| pickle.extend([b'K', *n]));
        pickle.push(b't');
    }
    pickle.extend(b"\x89}tRu.");
    pickle
}

#[test]
fn pickles_are_read_with_their_strides_and_never_beyond_their_storage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    torch_zip(&path, &one_tensor(0, &[3, 2], &[1, 3]), &[("0", &storage)]);
    let weights = PickleWeights::open(&path).unwrap();
    assert_eq!(weights.read("w").unwrap().to_f32(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    for (offset, shape, strides) in
        [(1, [3, 2], [1, 3]), (0, [3, 3], [1, 3]), (0, [250, 250], [0, 0])]
    {
        torch_zip(&path, &one_tensor(offset, &shape, &strides), &[("0", &storage)]);
        let error = PickleWeights::open(&path).unwrap().read("w").err().unwrap().to_string();
        assert_says(&error, &["a.bin", "tensor `w`", "storage"]);
    }
    torch_zip(&path, &one_tensor(0, &[6], &[1]), &[]);
    assert_says(&PickleWeights::open(&path).err().unwrap().to_string(), &["a.bin", "data/0"]);
}

#[test]
fn hostile_pickles_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.bin");
    let marker = dir.path().join("executed");
    let mut call = b"\x80\x02cos\nsystem\nX".to_vec();
    let command = format!("touch {}", marker.display());
    call.extend((command.len() as u32).to_le_bytes());
    call.extend(command.as_bytes());
    call.extend(b"\x85R.");
    torch_zip(&path, &call, &[]);
    let error = PickleWeights::open(&path).err().unwrap().to_string();
    assert_says(&error, &["evil.bin", "os.system", "nothing in a pickle is executed"]);
    assert!(!marker.exists());
    // A dictionary that contains itself.
    torch_zip(&path, b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", &[]);
    assert!(PickleWeights::open(&path).unwrap().tensors().is_empty());
    // Instructions without operands, text without an end, a text of two gigabytes.
    for pickle in
        [&b"\x80\x02R."[..], b"\x80\x02X\xff\xff\xff\x7fab", b"\x80\x02(((t", b"\x80\x02h\x07."]
    {
        torch_zip(&path, pickle, &[]);
        assert_says(
            &PickleWeights::open(&path).err().unwrap().to_string(),
            &["evil.bin", "data.pkl"],
        );
    }
    std::fs::write(&path, b"neither").unwrap();
    assert_says(&PickleWeights::open(&path).err().unwrap().to_string(), &["evil.bin", "neither"]);
}

#[test]
fn gguf_headers_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let header = |entries: u64, tensors: u64, rest: &[u8]| {
        let mut bytes = b"GGUF\x03\x00\x00\x00".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes.extend(rest);
        std::fs::write(&path, bytes).unwrap();
        Gguf::open(&path).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_says(&header(u64::MAX, 0, b""), &["a.gguf", "ends in its header"]);
    assert_says(&header(0, u64::MAX, b""), &["a.gguf", "ends in its header"]);
    assert_says(&header(1, 0, &u64::MAX.to_le_bytes()), &["a.gguf", "bytes are left"]);
    let mut array = 1u64.to_le_bytes().to_vec();
    array.extend(b"k\x09\x00\x00\x00\x00\x00\x00\x00");
    array.extend(100_000_000_000u64.to_le_bytes());
    assert_says(&header(1, 0, &array), &["a.gguf", "`k`", "100000000000"]);
    std::fs::write(&path, b"GGML").unwrap();
    assert_says(&Gguf::open(&path).err().unwrap().to_string(), &["a.gguf", "no GGUF"]);
}

#[test]
fn a_directory_without_weights_or_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(dir.path(), &LoadOptions::default()).err().unwrap().to_string();
    assert_says(&open(), &["config.json"]);
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    assert_says(&open(), &["model.safetensors", "pytorch_model.bin"]);
}

/// What git-lfs leaves where large files were not fetched, in every place that large files have.
#[test]
fn git_lfs_pointers_are_called_that() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4cac19622fc3ada9c0fdeadb33f88f367b541f38b89102a3f12\nsize 84977953\n";
    let refused = |error: String, file: &str| {
        assert!(error.contains(file) && error.contains("git lfs pull"), "{error}");
    };
    let copy = Copy::of("llava_mha");
    std::fs::write(copy.path("model.safetensors"), pointer).unwrap();
    refused(copy.error(), "model.safetensors");
    std::fs::remove_file(copy.path("model.safetensors")).unwrap();
    std::fs::write(copy.path("pytorch_model.bin"), pointer).unwrap();
    refused(copy.error(), "pytorch_model.bin");
    std::fs::write(copy.path("config.json"), pointer).unwrap();
    refused(copy.error(), "config.json");
    let gguf = copy.path("model.gguf");
    std::fs::write(&gguf, pointer).unwrap();
    refused(Gguf::open(&gguf).unwrap_err().to_string(), "model.gguf");
    std::fs::write(copy.path("tokenizer.json"), pointer).unwrap();
    let error = dualspeed::data::TextTokenizer::from_dir(copy.dir.path()).unwrap_err();
    refused(error.to_string(), "tokenizer.json");
    // A shard of several.
    let copy = Copy::of("llava_cls_sharded");
    std::fs::write(copy.path("model-00003-of-00006.safetensors"), pointer).unwrap();
    refused(copy.error(), "model-00003-of-00006.safetensors");
}

/// Rewrites one matrix as bitsandbytes and AutoAWQ keep it: packed integers, with what unpacks them beside it.
#[test]
fn quantised_weights_are_called_that() {
    let quantised = |config: &str, keys: &[(&str, Dtype, usize)]| {
        let copy = Copy::of("llava_mha");
        let text = std::fs::read_to_string(copy.path("config.json")).unwrap();
        let text = text.replacen('{', &format!("{{\"quantization_config\": {config},"), 1);
        std::fs::write(copy.path("config.json"), text).unwrap();
        copy.rewrite(|key, shape, data| {
            let Some(module) = key.strip_suffix("q_proj.weight") else {
                return vec![(key.to_owned(), Dtype::F32, shape, data)];
            };
            let packed = |(name, dtype, count): &(&str, Dtype, usize)| {
                let bytes = vec![1; count * dtype.bitsize() / 8];
                (format!("{module}q_proj.{name}"), *dtype, vec![*count, 1], bytes)
            };
            keys.iter().map(packed).collect()
        });
        copy.error()
    };
    let nf4 = [
        ("weight", Dtype::U8, 512),
        ("weight.absmax", Dtype::F32, 16),
        ("weight.quant_map", Dtype::F32, 16),
        ("weight.quant_state.bitsandbytes__nf4", Dtype::U8, 80),
    ];
    let config = r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false}"#;
    let error = quantised(config, &nf4);
    for part in ["quantization_config", "bitsandbytes, 4 bits", "q_proj", "dequantize"] {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
    let awq = [("qweight", Dtype::I32, 128), ("qzeros", Dtype::I32, 4), ("scales", Dtype::F16, 32)];
    for method in ["awq", "gptq"] {
        let config = format!(r#"{{"quant_method": {method:?}, "bits": 4, "group_size": 128}}"#);
        let error = quantised(&config, &awq);
        for part in [&*format!("{method}, 4 bits"), "qweight", "model card"] {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
    }
    let error = quantised("null", &[("weight", Dtype::I8, 1024), ("SCB", Dtype::F32, 32)]);
    assert!(error.contains("quantised") && error.contains("absent"), "{error}");
    // What says that it is quantised and is not is read: a merged model whose configuration was kept.
    let copy = Copy::of("llava_mha");
    let text = std::fs::read_to_string(copy.path("config.json")).unwrap();
    let text =
        text.replacen('{', r#"{"quantization_config": {"quant_method": "bitsandbytes"},"#, 1);
    std::fs::write(copy.path("config.json"), text).unwrap();
    Checkpoint::open(copy.dir.path(), &LoadOptions::default()).unwrap();
}

/// llama.cpp keeps vision tower and projector in a file of their own, of the architecture `clip`.
#[test]
fn an_mmproj_file_is_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mmproj-model-f16.gguf");
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let header = [
        b"GGUF".to_vec(),
        3u32.to_le_bytes().to_vec(),
        0u64.to_le_bytes().to_vec(),
        2u64.to_le_bytes().to_vec(),
        text("general.architecture"),
        8u32.to_le_bytes().to_vec(),
        text("clip"),
        text("clip.has_llava_projector"),
        7u32.to_le_bytes().to_vec(),
        vec![1],
    ];
    std::fs::write(&path, header.concat()).unwrap();
    let (success, _, stderr) = dualspeed(&["inspect", &path.display().to_string()]);
    assert!(!success && !stderr.contains("panicked"), "{stderr}");
    for part in ["mmproj-model-f16.gguf", "clip", "mmproj", "assemble"] {
        assert!(stderr.contains(part), "no {part:?} in: {stderr}");
    }
}

/// A backend without such numbers says so before anything is read.
#[test]
fn half_precision_without_a_backend_for_it_is_an_error() {
    let options = LoadOptions { dtype: Some(FloatType::Bf16), ..LoadOptions::default() };
    let error = Checkpoint::open(&fixture("llava_mha"), &options)
        .and_then(|checkpoint| checkpoint.load::<B>(&options, &Default::default()));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("BFloat16") && error.contains("--dtype f32"), "{error}");
    for dtype in ["bf16", "f16"] {
        // The directory is not even looked for.
        let args = [
            "generate",
            "--backend",
            "ndarray",
            "--model",
            "gone",
            "--prompt",
            "what",
            "--dtype",
            dtype,
        ];
        let (success, _, stderr) = dualspeed(&args);
        assert!(!success && stderr.contains("Float16") && !stderr.contains("panicked"), "{stderr}");
    }
}
