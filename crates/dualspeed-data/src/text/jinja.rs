//! Jinja as transformers sets it up for chat templates.
//!
//! Source: `_compile_jinja_template` in transformers' `chat_template_utils.py`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::date::Date;
use super::marks::GENERATION;

/// What a compiled template is called in its environment.
pub(super) const NAME: &str = "chat_template";

/// Steps that a template may take; an endless one ends in an error.
const FUEL: u64 = 50_000_000;

/// The function that stands for the tag `generation`.
const MARK: &str = "_generation";

/// Compiles a template. The second value is whether it has a `{% generation %}`.
pub(super) fn compile(
    jinja: &str,
    date: Option<Date>,
) -> Result<(Environment<'static>, bool), Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| strftime(date, format));
    environment.add_function(MARK, generation);
    let (source, marked) = replace_generation(jinja);
    environment.add_template_owned(NAME, source)?;
    Ok((environment, marked))
}

/// An error in one line, without the name that the template has only here.
pub(super) fn describe(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let error = cause.downcast_ref::<Error>().unwrap_or(error);
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// Writes the tag `generation`, which Jinja does not know, as a call block, which trims white space around it just as the tag
/// does.
fn replace_generation(jinja: &str) -> (String, bool) {
    let (mut text, mut rest, mut marked) = (String::new(), jinja, false);
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(end) = tag.find("%}") else { break };
        let (tag, after) = tag.split_at(end + 2);
        let inner = tag[2..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        let replaced = match inner.trim() {
            "generation" => format!("call {MARK}()"),
            "endgeneration" => "endcall".to_owned(),
            _ => {
                text.push_str(tag);
                rest = after;
                continue;
            }
        };
        marked = true;
        text.push_str(&tag.replacen(inner.trim(), &replaced, 1));
        rest = after;
    }
    text.push_str(rest);
    (text, marked)
}

/// Puts the marks around the body of the call block.
fn generation(state: &mut State, kwargs: Kwargs) -> Result<String, Error> {
    let body = kwargs.get::<Value>("caller")?.call(state, &[])?;
    let [start, end] = GENERATION;
    Ok(format!("{start}{body}{end}"))
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses: {message}")))
}

fn strftime(date: Option<Date>, format: &str) -> Result<String, Error> {
    date.and_then(|date| date.format(format)).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {format:?} is not known"))
    })
}

/// `json.dumps` of Python, which escapes no HTML.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent = kwargs.get::<Option<usize>>("indent")?;
    let ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    kwargs.assert_all_used()?;
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        _ if indent.is_some() => [",".into(), ": ".into()],
        _ => [", ".into(), ": ".into()],
    };
    let mut text = String::new();
    Json { indent, ascii, sorted, item, key }.write(value, 0, &mut text)?;
    Ok(text)
}

/// How Python writes JSON.
struct Json {
    indent: Option<usize>,
    ascii: bool,
    sorted: bool,
    item: String,
    key: String,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => text.push_str("null"),
            ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => text.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), text),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], items.len(), depth, text, |this, index, text| {
                    this.write(&items[index], depth + 1, text)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.list(['{', '}'], keys.len(), depth, text, |this, index, text| {
                    this.string(&keys[index].to_string(), text);
                    text.push_str(&this.key);
                    this.write(&value.get_item(&keys[index])?, depth + 1, text)
                })?;
            }
            kind => {
                let problem = format!("tojson: {kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        [open, close]: [char; 2],
        len: usize,
        depth: usize,
        text: &mut String,
        write: impl Fn(&Self, usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |text: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                text.push('\n');
                text.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        text.push(open);
        for index in 0..len {
            if index > 0 {
                text.push_str(&self.item);
            }
            line(text, depth + 1);
            write(self, index, text)?;
        }
        if len > 0 {
            line(text, depth);
        }
        text.push(close);
        Ok(())
    }

    fn string(&self, string: &str, text: &mut String) {
        text.push('"');
        for c in string.chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => text.push(c),
            }
        }
        text.push('"');
    }
}
