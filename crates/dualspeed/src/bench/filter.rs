//! Which measurements are made.

use super::suite::Suite;

/// The parts of names by which measurements are chosen; none chooses all.
#[derive(Clone, Debug, Default)]
pub struct Filter(pub Vec<String>);

impl Filter {
    /// Whether the measurement `name` is chosen: all are by an empty filter, else those whose name contains one of its parts.
    pub fn wants(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|wanted| name.contains(wanted.as_str()))
    }

    /// Whether the measurement `name` is chosen, where a part that is one of the `known` names chooses that one only.
    pub fn wants_of(&self, name: &str, known: &[&str]) -> bool {
        let fits = |wanted: &String| match known.contains(&wanted.as_str()) {
            true => name == wanted,
            false => name.contains(wanted.as_str()),
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }

    /// Refuses a filter that chose none of the `known` names of a suite.
    ///
    /// # Errors
    /// Always, when `rows` is 0.
    pub fn ensure_some(&self, rows: usize, suite: Suite, known: &[&str]) -> anyhow::Result<()> {
        let (wanted, suite) = (self.0.join("`, `"), suite.name());
        let known = known.join("; ");
        anyhow::ensure!(rows > 0, "no row of suite {suite} fits --case `{wanted}`; known: {known}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_a_name_means_that_name_only() {
        let known = ["stage 2 full", "stage 2 full, tower"];
        let wanted = |filter: &str| {
            let filter = Filter(vec![filter.into()]);
            known.map(|name| filter.wants_of(name, &known))
        };
        assert_eq!(wanted("stage 2 full"), [true, false]);
        assert_eq!(wanted("stage 2"), [true, true]);
        assert_eq!(wanted("stage 1"), [false, false]);
        assert!(Filter::default().wants("anything"));
    }
}
