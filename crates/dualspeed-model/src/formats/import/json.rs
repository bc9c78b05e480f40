//! A JSON object whose fields are asked for by name and type, with errors that say file, field and value.

use std::path::Path;

use dualspeed_core::git_lfs;
use serde_json::{Map, Value};

use super::error::ImportError;
use crate::config::ModelConfigError;

/// An object in a file; an absent one is empty.
pub(crate) struct Json<'a> {
    path: &'a Path,
    prefix: String,
    fields: Map<String, Value>,
}

impl<'a> Json<'a> {
    /// Parses a file whose top level is an object.
    pub fn parse(path: &'a Path, text: &[u8]) -> Result<Self, ImportError> {
        if git_lfs::is_pointer(text) {
            return Err(ImportError::malformed(path, git_lfs::ADVICE));
        }
        match serde_json::from_slice(text) {
            Ok(Value::Object(fields)) => Ok(Self { path, prefix: String::new(), fields }),
            Ok(_) => Err(ImportError::malformed(path, "expected a JSON object")),
            Err(error) => Err(ImportError::malformed(path, format!("malformed JSON: {error}"))),
        }
    }

    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field)
    }

    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    pub fn has(&self, field: &str) -> bool {
        matches!(self.get(field), Some(value) if !value.is_null())
    }

    /// A field that is an object; empty if it is absent or null.
    pub fn object(&self, field: &str) -> Result<Self, ImportError> {
        let prefix = format!("{}{field}.", self.prefix);
        let fields = match self.get(field) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(fields)) => fields.clone(),
            Some(other) => {
                return Err(self.refuse(field, &other.to_string(), "expected an object"));
            }
        };
        Ok(Self { path: self.path, prefix, fields })
    }

    fn typed<'b, T>(
        &'b self,
        field: &str,
        what: &str,
        convert: impl Fn(&'b Value) -> Option<T>,
    ) -> Result<Option<T>, ImportError> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match convert(value) {
                Some(found) => Ok(Some(found)),
                None => Err(self.refuse(field, &value.to_string(), &format!("expected {what}"))),
            },
        }
    }

    pub fn str(&self, field: &str) -> Result<Option<&str>, ImportError> {
        self.typed(field, "text", Value::as_str)
    }

    pub fn bool(&self, field: &str) -> Result<Option<bool>, ImportError> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub fn int(&self, field: &str) -> Result<Option<i64>, ImportError> {
        self.typed(field, "a whole number", Value::as_i64)
    }

    pub fn float(&self, field: &str) -> Result<Option<f64>, ImportError> {
        self.typed(field, "a number", Value::as_f64)
    }

    /// A size that is there or not; above 2^32 it is a mistake, and products of sizes would overflow.
    pub fn optional_size(&self, field: &str) -> Result<Option<usize>, ImportError> {
        let size = |value: &Value| usize::try_from(u32::try_from(value.as_u64()?).ok()?).ok();
        self.typed(field, "a size", size)
    }

    pub fn size(&self, field: &str, default: usize) -> Result<usize, ImportError> {
        Ok(self.optional_size(field)?.unwrap_or(default))
    }

    /// Refuses any value but the one this model has.
    pub fn require(&self, field: &str, value: &str, problem: &str) -> Result<(), ImportError> {
        match self.str(field)? {
            Some(found) if found != value => Err(self.refuse(field, found, problem)),
            _ => Ok(()),
        }
    }

    pub fn refuse(&self, field: &str, value: &str, problem: &str) -> ImportError {
        ImportError::Config {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.prefix),
            value: value.to_owned(),
            problem: problem.to_owned(),
        }
    }

    pub fn invalid(&self, source: ModelConfigError) -> ImportError {
        ImportError::Invalid { path: self.path.to_owned(), source }
    }
}
