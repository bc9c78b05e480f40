//! Names of the files in a run directory.

/// Every effective value of the configuration.
pub const CONFIG_FILE: &str = "config.toml";
/// One record per optimiser step.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// One record per validation.
pub const VALIDATION_FILE: &str = "validation.jsonl";
/// What a run started from, by content.
pub const ORIGINS_FILE: &str = "origins.json";
/// The records of the training data, one a line: id, hash of the content, whether it has pictures, length.
pub const RECORDS_FILE: &str = "records.jsonl";
/// When a run was resumed, from which checkpoint, and with what changed: one record each time.
pub const RESUMES_FILE: &str = "resumes.jsonl";
/// The lock of a run directory.
pub const LOCK_FILE: &str = "run.lock";
