//! Ids and labels that are no tokens.

/// Stands once in `input_ids` for each image (LLaVA's `IMAGE_TOKEN_INDEX`).
pub const IMAGE_TOKEN_INDEX: i64 = -200;

/// The label of positions that are not supervised (LLaVA's and PyTorch's `IGNORE_INDEX`).
pub const IGNORE_INDEX: i64 = -100;
