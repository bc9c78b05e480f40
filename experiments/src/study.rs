//! What an ablation is: a base configuration and arms of a line or two of overrides each.

/// One row of a table or one point of a figure.
#[derive(Debug, Clone, Copy)]
pub struct Arm {
    /// The name of the directory and in reports.
    pub name: &'static str,
    /// `key=value` overrides on top of the study's base.
    pub overrides: &'static [&'static str],
}

/// What a report shows of a study.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// A table with bars.
    Table,
    /// Accuracy against training time, one dot per arm.
    Tradeoff,
}

/// A table or figure of the paper.
#[derive(Debug, Clone, Copy)]
pub struct Study {
    /// The name on the command line and of the directory.
    pub name: &'static str,
    /// The table or figure of the paper.
    pub source: &'static str,
    /// The question that the study answers.
    pub question: &'static str,
    /// Overrides shared by all arms.
    pub base: &'static [&'static str],
    /// The arm that retention and speed-up are relative to.
    pub reference: &'static str,
    /// The rows or points, the reference among them.
    pub arms: &'static [Arm],
    /// What its report shows.
    pub report: ReportKind,
}
