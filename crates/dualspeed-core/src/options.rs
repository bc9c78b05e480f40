//! Options of parts that are chosen by name (pruners, objectives, schedules, data sources): words and numbers in a
//! configuration, read with types by the part itself.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::nearest::{hint, nearest};

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// `true` or `false`.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A word, a path or any other text.
    Text(String),
}

impl OptionValue {
    /// Reads a value as command lines have it: `true` and `false` are flags, finite numbers are numbers, all else is text.
    pub fn parse(text: &str) -> Self {
        match (text.parse::<bool>(), text.parse::<f64>()) {
            (Ok(flag), _) => Self::Flag(flag),
            (_, Ok(number)) if number.is_finite() => Self::Number(number),
            _ => Self::Text(text.to_owned()),
        }
    }
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<bool> for OptionValue {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<f64> for OptionValue {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for OptionValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// An option that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptionError {
    /// No option of that name.
    #[error("no option `{option}`{}; {}", hint(.nearest), listed(.known))]
    Unknown {
        /// The option given.
        option: String,
        /// The most similar known option.
        nearest: Option<String>,
        /// All known options.
        known: Vec<String>,
    },
    /// A value that the option cannot take.
    #[error("option {option} = {value} cannot be used: expected {expected}")]
    BadValue {
        /// The option.
        option: String,
        /// The value given.
        value: String,
        /// What the option takes, in words.
        expected: String,
    },
    /// An option that must be given.
    #[error("option {option} is missing: expected {expected}")]
    Missing {
        /// The option.
        option: String,
        /// What the option takes, in words.
        expected: String,
    },
}

fn listed(known: &[String]) -> String {
    match known.is_empty() {
        true => "it has none".to_owned(),
        false => format!("it has: {}", known.join(", ")),
    }
}

/// Options by name, as a table of a configuration holds them. Each getter returns `None` where the option is not given,
/// and an error where its value has another type or range.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(pub BTreeMap<String, OptionValue>);

impl Options {
    /// Adds or replaces an option.
    pub fn with(mut self, option: impl Into<String>, value: impl Into<OptionValue>) -> Self {
        self.0.insert(option.into(), value.into());
        self
    }

    /// Whether no option is given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The options given, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &OptionValue)> {
        self.0.iter().map(|(option, value)| (option.as_str(), value))
    }

    /// The value of an option, of any type.
    pub fn get(&self, option: &str) -> Option<&OptionValue> {
        self.0.get(option)
    }

    /// Refuses options that are not among `known`.
    ///
    /// # Errors
    /// [`OptionError::Unknown`] with the nearest known one.
    pub fn expect(&self, known: &[&str]) -> Result<(), OptionError> {
        match self.0.keys().find(|option| !known.contains(&option.as_str())) {
            None => Ok(()),
            Some(option) => Err(OptionError::Unknown {
                option: option.clone(),
                nearest: nearest(option, known.iter().copied()),
                known: known.iter().map(|name| (*name).to_owned()).collect(),
            }),
        }
    }

    /// An option that is a share in [0, 1].
    ///
    /// # Errors
    /// [`OptionError::BadValue`] if it is anything else.
    pub fn share(&self, option: &str) -> Result<Option<f64>, OptionError> {
        self.read(option, "a number in [0, 1]", |value| match value {
            OptionValue::Number(share) if (0.0..=1.0).contains(share) => Some(*share),
            _ => None,
        })
    }

    /// An option that is a whole number, 0 or more.
    ///
    /// # Errors
    /// [`OptionError::BadValue`] if it is anything else.
    pub fn count(&self, option: &str) -> Result<Option<usize>, OptionError> {
        self.read(option, "a whole number, 0 or more", |value| match value {
            OptionValue::Number(count) if *count >= 0.0 && count.fract() == 0.0 => {
                Some(*count as usize)
            }
            _ => None,
        })
    }

    /// An option that is a finite number.
    ///
    /// # Errors
    /// [`OptionError::BadValue`] if it is anything else.
    pub fn number(&self, option: &str) -> Result<Option<f64>, OptionError> {
        self.read(option, "a finite number", |value| match value {
            OptionValue::Number(number) if number.is_finite() => Some(*number),
            _ => None,
        })
    }

    /// An option that is true or false.
    ///
    /// # Errors
    /// [`OptionError::BadValue`] if it is anything else.
    pub fn flag(&self, option: &str) -> Result<Option<bool>, OptionError> {
        self.read(option, "true or false", |value| match value {
            OptionValue::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An option that is text.
    ///
    /// # Errors
    /// [`OptionError::BadValue`] if it is a number or a flag.
    pub fn text(&self, option: &str) -> Result<Option<&str>, OptionError> {
        self.read(option, "text", |value| match value {
            OptionValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Makes the error for an option whose value its part cannot use; [`OptionError::Missing`] if the option is not given.
    pub fn refuse(&self, option: &str, expected: impl Into<String>) -> OptionError {
        let (option, expected) = (option.to_owned(), expected.into());
        match self.0.get(&option) {
            Some(value) => OptionError::BadValue { value: value.to_string(), option, expected },
            None => OptionError::Missing { option, expected },
        }
    }

    fn read<'a, V>(
        &'a self,
        option: &str,
        expected: &str,
        read: impl FnOnce(&'a OptionValue) -> Option<V>,
    ) -> Result<Option<V>, OptionError> {
        let Some(value) = self.0.get(option) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.refuse(option, expected))
    }
}

impl FromIterator<(String, OptionValue)> for Options {
    fn from_iter<I: IntoIterator<Item = (String, OptionValue)>>(options: I) -> Self {
        Self(options.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::default()
            .with("half", 0.5)
            .with("ten", 10.0)
            .with("on", true)
            .with("path", "a/b.json")
    }

    #[test]
    fn getters_read_their_own_type_and_refuse_others() {
        let options = options();
        assert_eq!(options.share("half"), Ok(Some(0.5)));
        assert_eq!(options.count("ten"), Ok(Some(10)));
        assert_eq!(options.number("ten"), Ok(Some(10.0)));
        assert_eq!(options.flag("on"), Ok(Some(true)));
        assert_eq!(options.text("path"), Ok(Some("a/b.json")));
        assert_eq!(options.count("absent"), Ok(None));
        let bad = |error: OptionError| error.to_string();
        assert_eq!(
            bad(options.share("ten").unwrap_err()),
            "option ten = 10 cannot be used: expected a number in [0, 1]"
        );
        assert!(options.count("half").is_err() && options.flag("path").is_err());
        assert!(options.text("on").is_err() && options.number("path").is_err());
        assert!(Options::default().with("x", f64::NAN).count("x").is_err());
    }

    #[test]
    fn unknown_options_name_the_nearest() {
        let error = options().expect(&["half", "tenth", "on", "path"]).unwrap_err();
        let text = "no option `ten` (did you mean `tenth`?); it has: half, tenth, on, path";
        assert_eq!(error.to_string(), text);
        let error = Options::default().with("x", true).expect(&[]).unwrap_err();
        assert_eq!(error.to_string(), "no option `x`; it has none");
        assert_eq!(options().expect(&["half", "ten", "on", "path"]), Ok(()));
    }

    #[test]
    fn a_missing_option_is_said_to_be_missing() {
        let error = options().refuse("file", "a path");
        assert_eq!(error.to_string(), "option file is missing: expected a path");
    }

    #[test]
    fn text_is_read_as_command_lines_mean_it() {
        assert_eq!(OptionValue::parse("true"), OptionValue::Flag(true));
        assert_eq!(OptionValue::parse("1e-3"), OptionValue::Number(1e-3));
        assert_eq!(OptionValue::parse("nan"), OptionValue::Text("nan".into()));
        for text in ["true", "0.25", "7", "word"] {
            assert_eq!(OptionValue::parse(text).to_string(), text);
        }
    }

    #[test]
    fn a_table_of_values_without_tags() {
        let read: Options = serde_json::from_str(r#"{"a": 1, "b": true, "c": "x"}"#).unwrap();
        assert_eq!(read, Options::default().with("a", 1.0).with("b", true).with("c", "x"));
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), read);
    }
}
