//! What an ablation is: a base configuration and arms of a line or two of overrides each.

/// One row of a table or one point of a figure.
#[derive(Debug, Clone, Copy)]
pub struct Arm {
    /// Directory name and label.
    pub name: &'static str,
    /// `key=value` overrides on top of the study's base.
    pub overrides: &'static [&'static str],
}

/// How the report shows a study.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A table with bars.
    Table,
    /// Accuracy against training time, one dot per arm.
    Tradeoff,
}

/// A table or figure of the paper.
#[derive(Debug, Clone, Copy)]
pub struct Study {
    /// The name on the command line.
    pub name: &'static str,
    /// Where in the paper it stands.
    pub source: &'static str,
    /// The question it answers.
    pub question: &'static str,
    /// Overrides shared by all arms.
    pub base: &'static [&'static str],
    /// The arm that retention and speed-up are relative to.
    pub reference: &'static str,
    /// The arms, the reference among them.
    pub arms: &'static [Arm],
    /// How it is shown.
    pub shape: Shape,
}

/// All studies, in the order of `list`.
pub const STUDIES: &[&Study] = &[&crate::table_ablation::STUDY, &crate::fig_tradeoff::STUDY];

/// The study of that name.
pub fn find(name: &str) -> anyhow::Result<&'static Study> {
    STUDIES.iter().copied().find(|s| s.name == name).ok_or_else(|| {
        let known: Vec<_> = STUDIES.iter().map(|s| s.name).collect();
        anyhow::anyhow!("no study is called {name:?}; there are: {}", known.join(", "))
    })
}
