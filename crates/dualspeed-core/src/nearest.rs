//! The known name that a misspelt one most likely means.

/// Jaro-Winkler similarity from which on a name is worth suggesting.
const SIMILAR: f64 = 0.7;

/// Finds the name spelled most like `given` among `known`; `None` if none comes close.
///
/// Source: Jaro-Winkler similarity, of which at least 0.7 is asked.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(name, given), name))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.to_owned())
}

/// ` (did you mean ...?)`, or nothing: the tail of messages about unknown names.
pub(crate) fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_name_or_none() {
        let known = ["seed", "weight_decay", "lr", "length"];
        let nearest = |given| nearest(given, known);
        assert_eq!(nearest("sed").as_deref(), Some("seed"));
        assert_eq!(nearest("weight_decai").as_deref(), Some("weight_decay"));
        assert_eq!(nearest("lrr").as_deref(), Some("lr"));
        assert_eq!(nearest("lenght").as_deref(), Some("length"));
        assert_eq!(nearest("qqqq"), None);
        assert_eq!(super::nearest("seed", []), None);
    }
}
