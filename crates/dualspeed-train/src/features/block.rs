//! Rows of features wherever they lie: in memory, or in a mapped shard.

use std::sync::Arc;

use super::rows::{Layout, Rows};
use super::shard::Shard;

/// Some images' features, wherever they lie.
#[derive(Clone, Debug)]
pub(crate) enum Block {
    Memory(Arc<Rows>),
    Disk(Arc<Shard>),
}

impl Block {
    pub fn layout(&self, kind: &str) -> Option<Layout> {
        match self {
            Self::Memory(rows) => rows.kinds.get(kind).map(|kind| kind.layout),
            Self::Disk(shard) => shard.layouts().get(kind).copied(),
        }
    }

    /// The bytes of one image.
    pub fn row(&self, kind: &str, row: usize) -> Option<&[u8]> {
        match self {
            Self::Memory(rows) => {
                let kind = rows.kinds.get(kind)?;
                let size = kind.layout.bytes();
                kind.bytes.get(row * size..(row + 1) * size)
            }
            Self::Disk(shard) => shard.row(kind, row),
        }
    }

    /// Bytes of host memory that are this process's own.
    pub fn memory(&self) -> usize {
        match self {
            Self::Memory(rows) => rows.bytes(),
            Self::Disk(_) => 0,
        }
    }
}
