//! Tables of text.

/// Writes a table as aligned plain text: the first column left, the others right.
pub fn plain_table(header: &[String], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().map(|r| r.get(c)).chain([header.get(c)]);
        cells.flatten().map(|s| s.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &[String]| {
        let cells = row.iter().enumerate().map(|(c, cell)| match c {
            0 => format!("{cell:<w$}", w = width(c)),
            _ => format!("{cell:>w$}", w = width(c)),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    let rule = "-".repeat(line(header).chars().count());
    let mut out = vec![line(header), rule];
    out.extend(rows.iter().map(|r| line(r)));
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_column_is_left_aligned_and_others_right() {
        let [header, row] =
            [["model", "n"], ["a", "100"]].map(|cells| cells.map(String::from).to_vec());
        let text = plain_table(&header, &[row]);
        assert_eq!(text, "model    n\n----------\na      100");
    }
}
