//! Learning rates of the groups of parameters.

use std::collections::{BTreeMap, HashMap};

use burn::module::ParamId;
use dualspeed_model::{ParamGroup, ParamInfo};
use serde::{Deserialize, Serialize};

/// The learning rate of each group at the peak of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRates {
    /// The base rate: decoder and adapters.
    pub base: f64,
    /// The vision tower's.
    pub vision_tower: f64,
    /// The projector's.
    pub projector: f64,
    /// The newline embedding's.
    pub newline: f64,
    /// The isolator's.
    pub isolator: f64,
}

impl GroupRates {
    /// The same rate for every group.
    pub fn uniform(base: f64) -> Self {
        Self { base, vision_tower: base, projector: base, newline: base, isolator: base }
    }

    /// The rate of a group.
    pub fn of(&self, group: ParamGroup) -> f64 {
        match group {
            ParamGroup::VisionTower => self.vision_tower,
            ParamGroup::Projector => self.projector,
            ParamGroup::Newline => self.newline,
            ParamGroup::Isolator => self.isolator,
            ParamGroup::LanguageModel | ParamGroup::Lora => self.base,
        }
    }

    /// The rate of every parameter over the base rate; what is in no group of the model takes the base rate.
    pub(super) fn multipliers(&self, params: &[ParamInfo]) -> HashMap<ParamId, f64> {
        let rate = |param: &ParamInfo| {
            ParamGroup::of(&param.path).map_or(self.base, |group| self.of(group))
        };
        params.iter().map(|param| (param.id, rate(param) / self.base)).collect()
    }

    /// The rates of the groups that some parameter is in, while the base rate is `lr`.
    pub(crate) fn in_use(&self, params: &[ParamInfo], lr: f64) -> BTreeMap<ParamGroup, f64> {
        let groups = params.iter().filter_map(|param| ParamGroup::of(&param.path));
        groups.map(|group| (group, lr * self.of(group) / self.base)).collect()
    }
}
