//! Makers by name: how a configuration's word becomes an implementation of a trait.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::nearest::{hint, nearest};

/// Why something could not be made: any error, or text (`"...".into()`).
pub type MakerError = Box<dyn Error + Send + Sync>;

/// Makes a `T` from its specification.
pub type Maker<S, T> = Arc<dyn Fn(&S) -> Result<Box<T>, MakerError> + Send + Sync>;

/// Something that a registry could not make.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nothing of that name.
    #[error("unknown {kind} `{name}`{}; {}", hint(.nearest), listed(.known))]
    Unknown {
        /// What the registry makes, in words.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The most similar known name.
        nearest: Option<String>,
        /// All known names.
        known: Vec<String>,
    },
    /// The maker of that name refused.
    #[error("{kind} `{name}`: {problem}")]
    Failed {
        /// What the registry makes, in words.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// What the maker said, its causes included.
        problem: String,
    },
}

/// Makers of `T` (a trait object, mostly) by name, each given a specification `S`. A value, not global state: clone it and
/// add to it with [`Registry::with`].
pub struct Registry<S: ?Sized, T: ?Sized> {
    kind: &'static str,
    makers: BTreeMap<String, Maker<S, T>>,
}

impl<S: ?Sized, T: ?Sized> Registry<S, T> {
    /// Makes a registry without any maker; `kind` names in errors what it makes, such as `pruner`.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, makers: BTreeMap::new() }
    }

    /// Adds or replaces a maker.
    pub fn with(
        mut self,
        name: impl Into<String>,
        maker: impl Fn(&S) -> Result<Box<T>, MakerError> + Send + Sync + 'static,
    ) -> Self {
        self.makers.insert(name.into(), Arc::new(maker));
        self
    }

    /// What the registry makes, in words.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Known names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.makers.keys().cloned().collect()
    }

    /// Whether there is a maker of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.makers.contains_key(name)
    }

    /// Checks that there is a maker of that name, so that a configuration can be refused before anything is made.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] with the nearest known name.
    pub fn check(&self, name: &str) -> Result<(), RegistryError> {
        self.maker(name).map(|_| ())
    }

    /// Makes what is called `name`.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] with the nearest known name, or [`RegistryError::Failed`] with what the maker says.
    pub fn build(&self, name: &str, spec: &S) -> Result<Box<T>, RegistryError> {
        self.maker(name)?(spec).map_err(|error| RegistryError::Failed {
            kind: self.kind,
            name: name.to_owned(),
            problem: with_causes(error.as_ref()),
        })
    }

    fn maker(&self, name: &str) -> Result<&Maker<S, T>, RegistryError> {
        self.makers.get(name).ok_or_else(|| {
            let known = self.names();
            let nearest = nearest(name, known.iter().map(String::as_str));
            RegistryError::Unknown { kind: self.kind, name: name.to_owned(), nearest, known }
        })
    }
}

// Derives would ask S and T for the same.
impl<S: ?Sized, T: ?Sized> Clone for Registry<S, T> {
    fn clone(&self) -> Self {
        Self { kind: self.kind, makers: self.makers.clone() }
    }
}

impl<S: ?Sized, T: ?Sized> fmt::Debug for Registry<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.makers.keys().collect();
        f.debug_struct("Registry").field("kind", &self.kind).field("names", &names).finish()
    }
}

fn listed(known: &[String]) -> String {
    match known.is_empty() {
        true => "none is registered".to_owned(),
        false => format!("known: {}", known.join(", ")),
    }
}

/// The message of an error and of those behind it that it does not repeat itself.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    trait Shape {
        fn area(&self) -> f64;
    }

    struct Square(f64);

    impl Shape for Square {
        fn area(&self) -> f64 {
            self.0 * self.0
        }
    }

    type Shapes = Registry<Options, dyn Shape>;

    fn shapes() -> Shapes {
        Shapes::new("shape").with("unit", |_| Ok(Box::new(Square(1.0)))).with(
            "square",
            |options: &Options| {
                options.expect(&["side"])?;
                let side = options.number("side")?.ok_or("it needs a side")?;
                Ok(Box::new(Square(side)))
            },
        )
    }

    fn refusal(registry: &Shapes, name: &str, options: &Options) -> String {
        registry.build(name, options).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn builds_by_name_and_options() {
        let shape = shapes().build("square", &Options::default().with("side", 3.0)).unwrap();
        assert_eq!(shape.area(), 9.0);
        let replaced = shapes().with("unit", |_| Ok(Box::new(Square(2.0))));
        assert_eq!(replaced.build("unit", &Options::default()).unwrap().area(), 4.0);
        assert_eq!(replaced.names(), ["square", "unit"]);
    }

    #[test]
    fn unknown_names_are_refused_with_the_nearest() {
        let text = "unknown shape `sqare` (did you mean `square`?); known: square, unit";
        assert_eq!(refusal(&shapes(), "sqare", &Options::default()), text);
        assert_eq!(shapes().check("sqare").unwrap_err().to_string(), text);
        assert_eq!(shapes().check("square"), Ok(()));
        let none = Shapes::new("shape").check("square").unwrap_err().to_string();
        assert_eq!(none, "unknown shape `square`; none is registered");
    }

    #[test]
    fn what_a_maker_says_is_passed_on() {
        let (none, wrong) = (Options::default(), Options::default().with("sides", 3.0));
        assert_eq!(refusal(&shapes(), "square", &none), "shape `square`: it needs a side");
        assert_eq!(
            refusal(&shapes(), "square", &wrong),
            "shape `square`: no option `sides` (did you mean `side`?); it has: side"
        );
    }

    #[test]
    fn causes_are_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the list")]
        struct Outer(#[source] std::io::Error);
        let registry =
            shapes().with("list", |_| Err(Outer(std::io::Error::other("no such file")).into()));
        let error =
            registry.build("list", &Options::default()).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("shape `list`: cannot read the list: no such file"));
    }
}
