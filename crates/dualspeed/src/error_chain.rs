//! An error and its causes in one line.

/// Joins an error and its causes with colons; a cause that the text before it already contains is left out.
pub(crate) fn error_chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            before if before.contains(&cause) => text,
            _ => format!("{text}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_printed_once() {
        let disk = || std::io::Error::other("no space left");
        let told =
            Err::<(), _>(disk()).context("cannot write x: no space left; free some").unwrap_err();
        assert_eq!(error_chain(&told), "cannot write x: no space left; free some");
        let untold = Err::<(), _>(disk()).context("cannot write x").unwrap_err();
        assert_eq!(error_chain(&untold), "cannot write x: no space left");
    }
}
