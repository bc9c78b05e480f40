//! Templates by name, and those that checkpoints bring.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::builtin::{AS_TEXT, BUILTIN, Builtin};
use super::chat_template::{ChatTemplate, Content};
use super::tokenizer::TextTokenizer;
use crate::error::EncodeError;

/// Vicuna v1's system prompt, as `templates/vicuna_v1.jinja` has it.
pub const VICUNA_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// How a conversation is written out: one of the library's own templates, or a chat template in Jinja.
///
/// In configurations it is a name (`"vicuna_v1"`), the path of a file that ends in `.jinja`, or a table with the text itself:
/// `{ jinja = ".." }`. It is written as a name or with the text, so that what a run was made with does not depend on a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Template {
    /// Caption pretraining: the images, then the answer and `</s>`; the question and the system prompt are dropped.
    /// With a tokenizer that follows LLaVA's published code, the answer ends in a newline instead of `</s>`.
    Plain,
    /// LLaVA 1.5: `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`, with Vicuna's system prompt. A turn with one
    /// `<image>` has it moved to its front and followed by a newline, as LLaVA's `preprocess_multimodal` does.
    VicunaV1,
    /// Compact: `question answer</s>question answer</s>`. A system prompt, if given, goes first. Question marks at
    /// the end of a question are dropped, so that the question's last word stands right before the answer: a small
    /// model learns little from a key word that stands further off.
    #[default]
    Qa,
    /// Llama 2 chat: `[INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nquestion [/INST] answer </s><s>[INST] ...`, with the system
    /// prompt of LLaVA's `llava_llama_2`.
    LlavaLlama2,
    /// Llama 3: `<|start_header_id|>user<|end_header_id|>\n\nquestion<|eot_id|>...`, without a system prompt of its own.
    Llama3,
    /// ChatML: `<|im_start|>user\nquestion<|im_end|>\n<|im_start|>assistant\n...`, without a system prompt of its own. The
    /// end token after an answer is supervised, the newline after it is not.
    Chatml,
    /// Mistral Instruct, as in LLaVA-NeXT: `[INST] question [/INST] answer </s>[INST] ...`, without a system prompt of
    /// its own.
    MistralInstruct,
    /// A chat template in Jinja: that of a checkpoint, or of a file.
    Jinja(ChatTemplate),
}

/// The built-in templates, compiled when they are first used.
static COMPILED: [OnceLock<ChatTemplate>; BUILTIN.len()] =
    [const { OnceLock::new() }; BUILTIN.len()];

impl Template {
    /// Names of the library's own templates.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|builtin| builtin.name)
    }

    /// Finds one of the library's own templates by its name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Plain,
            Self::VicunaV1,
            Self::Qa,
            Self::LlavaLlama2,
            Self::Llama3,
            Self::Chatml,
            Self::MistralInstruct,
        ];
        all.into_iter().find(|template| template.name() == Some(name))
    }

    /// Finds the template that `--template` or a configuration names: one of the library's own, or a `.jinja` file.
    ///
    /// # Errors
    /// [`EncodeError::UnknownTemplate`], or what is wrong with the file.
    pub fn resolve(name: &str) -> Result<Self, EncodeError> {
        match Self::named(name) {
            Some(template) => Ok(template),
            None if name.ends_with(".jinja") => {
                Ok(Self::Jinja(ChatTemplate::read(Path::new(name))?))
            }
            None => Err(EncodeError::UnknownTemplate { name: name.to_owned() }),
        }
    }

    /// The name of one of the library's own templates.
    pub fn name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Plain => "plain",
            Self::VicunaV1 => "vicuna_v1",
            Self::Qa => "qa",
            Self::LlavaLlama2 => "llava_llama2",
            Self::Llama3 => "llama3",
            Self::Chatml => "chatml",
            Self::MistralInstruct => "mistral_instruct",
            Self::Jinja(_) => return None,
        })
    }

    /// The template in Jinja, as checkpoints bring it.
    pub fn jinja(&self) -> &str {
        match self {
            Self::Jinja(template) => template.jinja(),
            named => named.builtin().map_or("", |(_, builtin)| builtin.jinja),
        }
    }

    /// The template, compiled.
    ///
    /// # Errors
    /// [`EncodeError::Template`] if it cannot be followed.
    pub fn chat_template(&self) -> Result<ChatTemplate, EncodeError> {
        let Some((index, builtin)) = self.builtin() else {
            return match self {
                Self::Jinja(template) => Ok(template.clone()),
                _ => Err(EncodeError::UnknownTemplate { name: format!("{self:?}") }),
            };
        };
        if let Some(template) = COMPILED[index].get() {
            return Ok(template.clone());
        }
        let template = ChatTemplate::new(builtin.jinja)?;
        Ok(COMPILED[index].get_or_init(|| template).clone())
    }

    /// The template in Jinja as transformers' LLaVA is to use it, with what it is used with written into it: `system` instead of
    /// its own system prompt, the tokenizer's way of ending a caption, images where it knows only text, and `image_token` as
    /// what stands for one.
    ///
    /// # Errors
    /// [`EncodeError::Template`] if it cannot be followed.
    pub fn to_jinja(
        &self,
        system: Option<&str>,
        tokenizer: &TextTokenizer,
        image_token: &str,
    ) -> Result<String, EncodeError> {
        let mut jinja = String::new();
        let content = self.chat_template()?.content();
        if content == Content::Text {
            jinja += AS_TEXT;
        }
        // An empty one is written only where the template would put one of its own.
        let own = self.own_system(tokenizer)?;
        if let Some(system) = system.filter(|system| !system.is_empty() || own.is_some()) {
            let text = serde_json::Value::from(system);
            let content = match content {
                Content::Parts => format!("[{{'type': 'text', 'text': {text}}}]"),
                Content::Text => text.to_string(),
            };
            jinja += &format!(
                "{{%- if messages[0].role != 'system' -%}}\n    \
                 {{%- set messages = [{{'role': 'system', 'content': {content}}}] + messages -%}}\n\
                 {{%- endif -%}}\n"
            );
        }
        if tokenizer.is_official() && self.jinja().contains("official") {
            jinja += "{%- set official = true -%}\n";
        }
        jinja += self.jinja();
        let own = tokenizer.image_token();
        Ok(if own == image_token { jinja } else { jinja.replace(own, image_token) })
    }

    /// Finds the system prompt that is used where none is given; `None` if the template has none of its own.
    ///
    /// # Errors
    /// [`EncodeError::Template`] if it cannot be followed.
    pub fn own_system(&self, tokenizer: &TextTokenizer) -> Result<Option<String>, EncodeError> {
        Ok(self.chat_template()?.own_system(tokenizer.variables()))
    }

    /// Checks that a tokenizer has the tokens that one of the library's own templates writes; a checkpoint's own template is
    /// taken to be of its tokenizer.
    ///
    /// # Errors
    /// [`EncodeError::Vocabulary`] names the first that is missing.
    pub fn check(&self, tokenizer: &TextTokenizer) -> Result<(), EncodeError> {
        let tokens = self.builtin().map_or(&[][..], |(_, builtin)| builtin.tokens);
        match tokens.iter().find(|token| tokenizer.token_to_id(token).is_none()) {
            None => Ok(()),
            Some(token) => Err(EncodeError::Vocabulary {
                what: "tokenizer".into(),
                reason: format!(
                    "the template's token {token:?} is not in the vocabulary; choose the template the model was \
                     trained with"
                ),
            }),
        }
    }

    fn builtin(&self) -> Option<(usize, &'static Builtin)> {
        let name = self.name()?;
        BUILTIN.iter().enumerate().find(|(_, builtin)| builtin.name == name)
    }
}

impl fmt::Display for Template {
    /// Writes the name, or where the chat template is from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jinja(template) => write!(f, "{template}"),
            named => f.write_str(named.name().unwrap_or_default()),
        }
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Jinja(template) => template.serialize(serializer),
            named => serializer.serialize_str(named.name().unwrap_or_default()),
        }
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrText;

        impl<'de> Visitor<'de> for NameOrText {
            type Value = Template;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the name of a template, the path of a .jinja file, or { jinja = \"..\" }",
                )
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Template, E> {
                Template::resolve(name).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Template, A::Error> {
                let template =
                    ChatTemplate::deserialize(de::value::MapAccessDeserializer::new(map));
                template.map(Template::Jinja)
            }
        }

        deserializer.deserialize_any(NameOrText)
    }
}
