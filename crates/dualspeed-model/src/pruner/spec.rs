//! A pruner as configurations and command lines name it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use dualspeed_core::{OptionValue, nearest};
use serde::{Deserialize, Serialize};

use super::PruneError;
use crate::config::Compat;

/// How a fractional number of kept tokens becomes a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Towards zero, as DualSpeed's published code: `int((1 - p) * n)`, 57 of 576 at p = 0.9.
    #[default]
    Trunc,
    /// To nearest, ties to even, as DivPrune's.
    HalfEven,
    /// To nearest, ties up.
    Round,
}

/// How many of `n` tokens stay at a pruning ratio; at least one, at most all.
///
/// The product is taken in f64 as Python does, so `(1 - 0.9) * 10` truncates to 0 (then raised
/// to 1) and not to 1.
pub fn keep_count(n: usize, pruning_ratio: f64, rounding: Rounding) -> usize {
    let exact = (1.0 - pruning_ratio) * n as f64;
    let count = match rounding {
        Rounding::Trunc => exact.trunc(),
        Rounding::HalfEven => exact.round_ties_even(),
        Rounding::Round => exact.round(),
    };
    (count.max(0.0) as usize).clamp(1, n.max(1))
}

/// What one decision spans where an image has several tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Each tile keeps its own share.
    #[default]
    Tile,
    /// All tiles of an image compete.
    Image,
}

/// A pruner as configurations name it; backend-free, so that anything may hold it.
///
/// On the command line: `name`, or `name:key=value:key=value`, for example
/// `visionzip:compat=official:contextual=10`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrunerSpec {
    /// Name in the registry.
    pub name: String,
    /// How a fractional number of kept tokens becomes a count.
    pub rounding: Rounding,
    /// The sane or the published variant.
    pub compat: Compat,
    /// What one decision spans where an image has several tiles.
    pub scope: Scope,
    /// The method's own options; those it does not have are errors.
    pub options: BTreeMap<String, OptionValue>,
}

impl Default for PrunerSpec {
    fn default() -> Self {
        Self::new("divprune")
    }
}

impl PrunerSpec {
    /// The pruner of that name with the published rounding and nothing else set.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            rounding: Rounding::default(),
            compat: Compat::default(),
            scope: Scope::default(),
            options: BTreeMap::new(),
        }
    }

    /// How many of `n` tokens stay at a pruning ratio.
    pub fn keep_count(&self, n: usize, pruning_ratio: f64) -> usize {
        keep_count(n, pruning_ratio, self.rounding)
    }

    /// Refuses options that the method does not have.
    ///
    /// # Errors
    /// [`PruneError::UnknownOption`] with the nearest one it has.
    pub fn expect_options(&self, known: &[&str]) -> Result<(), PruneError> {
        match self.options.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(option) => Err(PruneError::UnknownOption {
                pruner: self.name.clone(),
                option: option.clone(),
                nearest: nearest(option, known.iter().copied()),
                known: known.iter().map(|name| (*name).to_owned()).collect(),
            }),
        }
    }

    /// Refuses `compat = "official"` for a method that cannot be run as published.
    ///
    /// # Errors
    /// [`PruneError::NoOfficial`] with the reason.
    pub fn sane_only(&self, reason: &'static str) -> Result<(), PruneError> {
        match self.compat {
            Compat::Sane => Ok(()),
            Compat::Official => Err(PruneError::NoOfficial { pruner: self.name.clone(), reason }),
        }
    }

    /// An option that is a share in [0, 1].
    ///
    /// # Errors
    /// [`PruneError::BadOption`] if it is anything else.
    pub fn share(&self, option: &str, default: f64) -> Result<f64, PruneError> {
        match self.options.get(option) {
            None => Ok(default),
            Some(OptionValue::Number(share)) if (0.0..=1.0).contains(share) => Ok(*share),
            Some(other) => Err(self.bad_option(option, other, "a number in [0, 1]")),
        }
    }

    /// An option that is a whole number, 0 or more.
    ///
    /// # Errors
    /// [`PruneError::BadOption`] if it is anything else.
    pub fn count(&self, option: &str) -> Result<Option<usize>, PruneError> {
        match self.options.get(option) {
            None => Ok(None),
            Some(OptionValue::Number(count)) if *count >= 0.0 && count.fract() == 0.0 => {
                Ok(Some(*count as usize))
            }
            Some(other) => Err(self.bad_option(option, other, "a whole number, 0 or more")),
        }
    }

    /// An option that is true or false.
    ///
    /// # Errors
    /// [`PruneError::BadOption`] if it is anything else.
    pub fn flag(&self, option: &str, default: bool) -> Result<bool, PruneError> {
        match self.options.get(option) {
            None => Ok(default),
            Some(OptionValue::Flag(flag)) => Ok(*flag),
            Some(other) => Err(self.bad_option(option, other, "true or false")),
        }
    }

    /// The error for an option's value.
    pub fn bad_option(
        &self,
        option: &str,
        value: &OptionValue,
        expected: &'static str,
    ) -> PruneError {
        let (pruner, option) = (self.name.clone(), option.to_owned());
        PruneError::BadOption { pruner, option, value: value.to_string(), expected }
    }
}

impl fmt::Display for PrunerSpec {
    /// As on the command line, the rounding left out: it is no part of the method.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.compat == Compat::Official {
            f.write_str(":compat=official")?;
        }
        if self.scope == Scope::Image {
            f.write_str(":scope=image")?;
        }
        self.options.iter().try_for_each(|(key, value)| write!(f, ":{key}={value}"))
    }
}

impl FromStr for PrunerSpec {
    type Err = PruneError;

    fn from_str(text: &str) -> Result<Self, PruneError> {
        let mut parts = text.split(':');
        let mut spec = Self::new(parts.next().unwrap_or_default());
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, "true"));
            let parsed = OptionValue::parse(value);
            match (key, value) {
                ("compat", "sane") => spec.compat = Compat::Sane,
                ("compat", "official") => spec.compat = Compat::Official,
                ("compat", _) => return Err(spec.bad_option(key, &parsed, "sane or official")),
                ("scope", "tile") => spec.scope = Scope::Tile,
                ("scope", "image") => spec.scope = Scope::Image,
                ("scope", _) => return Err(spec.bad_option(key, &parsed, "tile or image")),
                _ => {
                    spec.options.insert(key.to_owned(), parsed);
                }
            }
        }
        Ok(spec)
    }
}
