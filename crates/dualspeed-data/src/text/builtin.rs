//! The library's own templates: names, texts, and the tokens that they write.

/// A template of the library.
pub(super) struct Builtin {
    /// Its name in configurations.
    pub(super) name: &'static str,
    /// Its text.
    pub(super) jinja: &'static str,
    /// The tokens that it writes beside those that every tokenizer names.
    pub(super) tokens: &'static [&'static str],
}

/// What turns messages of parts into messages of text, before a template that knows only those.
pub(super) const AS_TEXT: &str = include_str!("templates/as_text.jinja");

/// All of them.
pub(super) const BUILTIN: [Builtin; 7] = [
    Builtin { name: "plain", jinja: include_str!("templates/plain.jinja"), tokens: &[] },
    Builtin { name: "vicuna_v1", jinja: include_str!("templates/vicuna_v1.jinja"), tokens: &[] },
    Builtin { name: "qa", jinja: include_str!("templates/qa.jinja"), tokens: &[] },
    Builtin {
        name: "llava_llama2",
        jinja: include_str!("templates/llava_llama2.jinja"),
        tokens: &[],
    },
    Builtin {
        name: "llama3",
        jinja: include_str!("templates/llama3.jinja"),
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    },
    Builtin {
        name: "chatml",
        jinja: include_str!("templates/chatml.jinja"),
        tokens: &["<|im_start|>", "<|im_end|>"],
    },
    Builtin {
        name: "mistral_instruct",
        jinja: include_str!("templates/mistral_instruct.jinja"),
        tokens: &[],
    },
];
