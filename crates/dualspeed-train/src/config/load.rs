//! From TOML text to a checked config: overrides, unknown keys with the nearest known one, typed
//! errors.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::ConfigError;

/// Sets one dotted key, as `--set optim.lr=1e-4` does.
///
/// The value is read as TOML (`true`, `3`, `[1, 2]`, `"text"`); what is no TOML value is taken as a
/// string, so `pruning.pruner=divprune` needs no quotes. Tables on the way are created.
///
/// # Errors
/// `ConfigError::Override` when there is no `=`, the key is empty, or a part of the path is not a
/// table.
pub fn apply_override(value: &mut toml::Value, text: &str) -> Result<(), ConfigError> {
    let refuse = |problem: String| ConfigError::Override { text: text.to_owned(), problem };
    let Some((key, raw)) = text.split_once('=') else {
        return Err(refuse("write it as key=value, for example optim.lr=1e-4".into()));
    };
    let parts: Vec<&str> = key.trim().split('.').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(refuse("a part of the key is empty; write it as section.key=value".into()));
    }
    let parsed = parse_value(raw.trim());
    let (last, path) = parts.split_last().ok_or_else(|| refuse("the key is empty".into()))?;
    let mut table =
        value.as_table_mut().ok_or_else(|| refuse("the config is not a table".into()))?;
    for part in path {
        table = table
            .entry(part.to_string())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| refuse(format!("`{part}` is a value, not a section")))?;
    }
    table.insert(last.to_string(), parsed);
    Ok(())
}

fn parse_value(raw: &str) -> toml::Value {
    match format!("value = {raw}").parse::<toml::Table>() {
        Ok(mut table) => {
            table.remove("value").unwrap_or_else(|| toml::Value::String(raw.to_owned()))
        }
        Err(_) => toml::Value::String(raw.to_owned()),
    }
}

/// Reads a TOML file into a value that overrides can be applied to.
pub fn read_toml(path: &Path) -> Result<toml::Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_toml(&text, &path.display().to_string())
}

/// Parses TOML text; `origin` names it in errors.
pub fn parse_toml(text: &str, origin: &str) -> Result<toml::Value, ConfigError> {
    let table = text.parse::<toml::Table>().map_err(|error| ConfigError::Syntax {
        origin: origin.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })?;
    Ok(toml::Value::Table(table))
}

/// Keys that configs once had, with what to write instead.
const REMOVED: [(&str, &str); 1] = [(
    "isolator",
    "a model has a mode isolator unless its length is 0: to go without, write `model.isolator_length = 0`; else leave \
     the section out",
)];

/// Refuses keys that a config once had, saying what to write instead.
///
/// # Errors
/// `ConfigError::RemovedKey` for the first of them.
pub(super) fn check_removed(value: &toml::Value) -> Result<(), ConfigError> {
    for (key, advice) in REMOVED {
        let found = key.split('.').try_fold(value, |value, part| value.as_table()?.get(part));
        if let Some(found) = found {
            // Of a section, the key that stands in it.
            let inner = found.as_table().and_then(|table| table.keys().next());
            let key = inner.map_or_else(|| key.to_owned(), |inner| format!("{key}.{inner}"));
            return Err(ConfigError::RemovedKey { key, advice: advice.to_owned() });
        }
    }
    Ok(())
}

/// Deserialises `value`, and refuses every key that `T` does not have, naming the nearest it has.
///
/// The known keys are those of the deserialised value written out again, so nested sections of
/// other crates are covered whether or not they refuse unknown keys themselves.
pub fn from_value<T: DeserializeOwned + Serialize>(value: toml::Value) -> Result<T, ConfigError> {
    let given = value.clone();
    let parsed: T = value.try_into().map_err(|error: toml::de::Error| {
        let message = error.to_string();
        unknown_field(&given, &message)
            .unwrap_or_else(|| ConfigError::Type { message: message.trim_end().to_owned() })
    })?;
    let known = serde_json::to_value(&parsed)
        .map_err(|error| ConfigError::Type { message: error.to_string() })?;
    check_keys(&given, &known, &mut Vec::new())?;
    Ok(parsed)
}

fn check_keys(
    given: &toml::Value,
    known: &serde_json::Value,
    path: &mut Vec<String>,
) -> Result<(), ConfigError> {
    match (given, known) {
        (toml::Value::Table(given), serde_json::Value::Object(known)) => {
            for (key, value) in given {
                path.push(key.clone());
                let Some(inner) = known.get(key) else {
                    let mut nearest = path.clone();
                    nearest.pop();
                    let key = path.join(".");
                    let nearest = nearest_key(path.last().map_or("", String::as_str), known.keys())
                        .map(|name| {
                            nearest.push(name);
                            nearest.join(".")
                        });
                    return Err(ConfigError::UnknownKey { key, nearest });
                };
                check_keys(value, inner, path)?;
                path.pop();
            }
            Ok(())
        }
        (toml::Value::Array(given), serde_json::Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                path.push(index.to_string());
                check_keys(given, known, path)?;
                path.pop();
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The known key spelled most like `key`, if any comes close.
fn nearest_key<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    known
        .map(|name| (strsim::jaro_winkler(key, name), name))
        .filter(|(score, _)| *score > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.clone())
}

/// Recovers key and candidates from serde's "unknown field" message of a section that refuses
/// unknown keys itself.
fn unknown_field(given: &toml::Value, message: &str) -> Option<ConfigError> {
    let rest = message.split_once("unknown field `")?.1;
    let (key, rest) = rest.split_once('`')?;
    let known: Vec<String> = rest
        .lines()
        .next()
        .unwrap_or_default()
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    let mut path = find_key(given, key).unwrap_or_else(|| vec![key.to_owned()]);
    let full = path.join(".");
    path.pop();
    let nearest = nearest_key(key, known.iter()).map(|name| {
        path.push(name);
        path.join(".")
    });
    Some(ConfigError::UnknownKey { key: full, nearest })
}

fn find_key(value: &toml::Value, key: &str) -> Option<Vec<String>> {
    let table = value.as_table()?;
    if table.contains_key(key) {
        return Some(vec![key.to_owned()]);
    }
    table.iter().find_map(|(name, inner)| {
        let mut path = vec![name.clone()];
        path.extend(find_key(inner, key)?);
        Some(path)
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Outer {
        seed: u64,
        optim: Inner,
        strict: Option<Strict>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Inner {
        lr: Option<f64>,
        weight_decay: f64,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Strict {
        length: usize,
    }

    fn parse(text: &str) -> Result<Outer, ConfigError> {
        from_value(parse_toml(text, "test").unwrap())
    }

    fn unknown(text: &str) -> (String, Option<String>) {
        match parse(text) {
            Err(ConfigError::UnknownKey { key, nearest }) => (key, nearest),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unknown_keys_name_path_and_nearest() {
        let nearest = |name: &str| Some(name.to_owned());
        assert_eq!(unknown("sed = 1"), ("sed".into(), nearest("seed")));
        assert_eq!(
            unknown("[optim]\nweight_decai = 1.0"),
            ("optim.weight_decai".into(), nearest("optim.weight_decay"))
        );
        // An option that is not set is a known key too.
        assert_eq!(unknown("[optim]\nlrr = 1.0"), ("optim.lrr".into(), nearest("optim.lr")));
        // A section that refuses unknown keys itself.
        assert_eq!(
            unknown("[strict]\nlenght = 1"),
            ("strict.lenght".into(), nearest("strict.length"))
        );
        assert_eq!(unknown("qqqq = 1").1, None);
    }

    #[test]
    fn overrides_reach_any_depth_and_keep_types() {
        let mut value = parse_toml("seed = 1", "test").unwrap();
        for text in ["seed=7", "optim.lr=1e-4", "strict.length = 3"] {
            apply_override(&mut value, text).unwrap();
        }
        let config: Outer = from_value(value).unwrap();
        assert_eq!((config.seed, config.optim.lr), (7, Some(1e-4)));
        assert_eq!(config.strict, Some(Strict { length: 3 }));
    }

    #[test]
    fn bad_overrides_say_what_is_wrong() {
        let mut value = parse_toml("seed = 1", "test").unwrap();
        for text in ["seed", "=1", "a..b=1", "seed.x=1"] {
            let error = apply_override(&mut value, text).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        apply_override(&mut value, "seed=many").unwrap();
        let error = from_value::<Outer>(value).unwrap_err().to_string();
        assert!(error.contains("seed") && error.contains("string"), "{error}");
    }

    #[test]
    fn bad_toml_names_the_line() {
        let error = parse_toml("a = 1\nb = = 2", "x.toml").unwrap_err().to_string();
        assert!(error.contains("x.toml") && error.contains("line 2"), "{error}");
    }
}
