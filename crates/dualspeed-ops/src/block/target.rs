//! The linear layers of a decoder block, by name.

use serde::{Deserialize, Serialize};

/// A linear layer of a decoder block: what a low-rank adapter can be put on.
///
/// The names, in snake case in configurations, are those of the checkpoints. The order is part of dropout masks: append,
/// never reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Target {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Target {
    /// Every linear layer of a block.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The layer's name in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// One value for every [`Target`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PerTarget<T> {
    pub q_proj: T,
    pub k_proj: T,
    pub v_proj: T,
    pub o_proj: T,
    pub gate_proj: T,
    pub up_proj: T,
    pub down_proj: T,
}

impl<T> PerTarget<T> {
    /// The values of `f`, which is called in the order of [`Target::ALL`].
    pub fn from_fn(mut f: impl FnMut(Target) -> T) -> Self {
        Self {
            q_proj: f(Target::QProj),
            k_proj: f(Target::KProj),
            v_proj: f(Target::VProj),
            o_proj: f(Target::OProj),
            gate_proj: f(Target::GateProj),
            up_proj: f(Target::UpProj),
            down_proj: f(Target::DownProj),
        }
    }

    /// The value of one layer.
    pub fn get(&self, target: Target) -> &T {
        match target {
            Target::QProj => &self.q_proj,
            Target::KProj => &self.k_proj,
            Target::VProj => &self.v_proj,
            Target::OProj => &self.o_proj,
            Target::GateProj => &self.gate_proj,
            Target::UpProj => &self.up_proj,
            Target::DownProj => &self.down_proj,
        }
    }

    /// The value of one layer, to be changed.
    pub fn get_mut(&mut self, target: Target) -> &mut T {
        match target {
            Target::QProj => &mut self.q_proj,
            Target::KProj => &mut self.k_proj,
            Target::VProj => &mut self.v_proj,
            Target::OProj => &mut self.o_proj,
            Target::GateProj => &mut self.gate_proj,
            Target::UpProj => &mut self.up_proj,
            Target::DownProj => &mut self.down_proj,
        }
    }

    /// Applies `f` to every value, in the order of [`Target::ALL`].
    pub fn map<'a, U>(&'a self, mut f: impl FnMut(&'a T) -> U) -> PerTarget<U> {
        PerTarget::from_fn(|target| f(self.get(target)))
    }

    /// Layers and values, in the order of [`Target::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Target, &T)> {
        Target::ALL.into_iter().map(|target| (target, self.get(target)))
    }

    /// The values in the order of [`Target::ALL`].
    pub(crate) fn into_array(self) -> [T; Target::ALL.len()] {
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj } = self;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_own_value_and_name() {
        let mut names = PerTarget::from_fn(Target::name);
        for (index, target) in Target::ALL.into_iter().enumerate() {
            assert_eq!(target as usize, index);
            assert_eq!(*names.get(target), target.name());
            *names.get_mut(target) = "changed";
            assert_eq!(names.iter().filter(|(_, name)| **name == "changed").count(), index + 1);
        }
        assert_eq!(PerTarget::from_fn(|target| target).into_array(), Target::ALL);
    }
}
