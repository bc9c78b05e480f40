//! What may differ between a run and the one that goes on from its checkpoint, and why the rest may not.

use std::collections::BTreeSet;

use serde_json::Value;

use super::TrainConfig;
use crate::error::ConfigError;

/// How a resumed run differs from what its checkpoint was written with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumeChanges {
    /// What is accepted and matters: `key is x, was y`, and what follows from it.
    pub accepted: Vec<String>,
    /// What is refused: `key is x, was y`, and why it has to stay.
    pub refused: Vec<String>,
}

/// What becomes of one key that differs.
enum Verdict {
    /// It changes nothing that the run computes.
    Free,
    /// It is accepted, and this follows from it.
    Accepted(&'static str),
    /// It has to stay, for this reason.
    Refused(&'static str),
}

/// Sections and keys that change nothing of what is trained.
const FREE: [&str; 11] = [
    "checkpoint",
    "data.features",
    "data.max_skipped",
    "data.on_error",
    "data.revised",
    "data.valid",
    "data.workers",
    "memory",
    "metrics",
    "optim.max_skipped",
    "validation",
];

/// Names of keys of a data set that say where it is: its content is compared, record by record, and that of its tokenizer.
const PLACES: [&str; 3] = ["image_root", "path", "tokenizer"];

/// Why keys have to stay; the first that a key begins with counts.
const REASONS: [(&str, &str); 16] = [
    ("seed", "the order of samples, the modes and the dropout masks follow from it"),
    ("stage", "it says what is trained, and the checkpoint has the moments of that alone"),
    ("train_vision_tower", "the checkpoint has the moments of what was trained alone"),
    ("compat", "it changes what a step computes"),
    ("init_from", "the frozen weights are those the run started from"),
    ("model.max_length", "samples that were seen whole would be cut"),
    ("model", "the weights in the checkpoint are of that model"),
    ("data.grouping", "the order of samples follows from it"),
    ("data.train.samples", "the order of samples is drawn over that many"),
    ("data", "the run would go on with other data than it began with"),
    ("mode", "which steps are slow follows from it, from the first step on"),
    ("pruning", "fast steps would see other visual tokens than those before"),
    ("objective", "another loss would be minimised than before"),
    ("distill", "another loss would be minimised than before"),
    ("optim", "the moments were gathered, and the rate has decayed, as it says"),
    ("batch", "the order of samples is drawn in steps of size x accumulation"),
];

impl TrainConfig {
    /// How this config differs from that of a checkpoint, both with all values written out. `planned` are the steps that
    /// the checkpoint's run was to have.
    ///
    /// # Errors
    /// `ConfigError::Type` when a number does not fit JSON.
    pub fn resume_changes(
        &self,
        stored: &Value,
        planned: u64,
    ) -> Result<ResumeChanges, ConfigError> {
        let mut changes = ResumeChanges::default();
        for (key, before, now) in differing(stored, &self.fingerprint()?) {
            let told = |why: &str| format!("{key} is {now}, was {before}: {why}");
            match self.verdict(&key, &before, &now, stored, planned) {
                Verdict::Free => {}
                Verdict::Accepted(follows) => changes.accepted.push(told(follows)),
                Verdict::Refused(why) => changes.refused.push(told(why)),
            }
        }
        Ok(changes)
    }

    fn verdict(
        &self,
        key: &str,
        before: &Value,
        now: &Value,
        stored: &Value,
        planned: u64,
    ) -> Verdict {
        let within = |section: &str| {
            key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if FREE.iter().any(|section| within(section)) {
            return Verdict::Free;
        }
        match key {
            "steps" | "epochs" => return self.length_verdict(key, before, planned),
            "model.max_length" if longer(before, now) => {
                return Verdict::Accepted("samples that were cut are longer from here on");
            }
            "batch.size" | "batch.accumulation" if self.same_window(stored) => {
                return Verdict::Accepted("a step has the same samples, in other parts");
            }
            "init_from" if !before.is_null() && !now.is_null() => {
                return Verdict::Accepted("its content is compared");
            }
            _ => {}
        }
        let name = key.rsplit('.').next().unwrap_or(key);
        let place = within("data.train") && PLACES.contains(&name);
        if place && !before.is_null() && !now.is_null() {
            return Verdict::Accepted("its content is compared");
        }
        let reason = REASONS.iter().find(|(section, _)| within(section));
        Verdict::Refused(reason.map_or("it would be another run", |(_, reason)| reason))
    }

    /// A run may become longer; the two keys of its length are judged together.
    fn length_verdict(&self, key: &str, before: &Value, planned: u64) -> Verdict {
        let longer = match (key, self.steps, self.epochs) {
            (_, Some(steps), _) => steps >= planned,
            ("epochs", None, Some(epochs)) => {
                before.as_u64().is_some_and(|before| epochs >= before)
            }
            // Was a number of steps: how many an epoch has is not known here.
            _ => return Verdict::Refused("give the length in steps, as the run began"),
        };
        match longer {
            true => {
                Verdict::Accepted("from here on the rates follow the schedule of the new length")
            }
            false => Verdict::Refused(
                "a run may only become longer: its rates have decayed for that length",
            ),
        }
    }

    /// Whether a step is made of as many samples as before.
    fn same_window(&self, stored: &Value) -> bool {
        let number = |name: &str| stored.get("batch")?.get(name)?.as_u64();
        let before = number("size").zip(number("accumulation"));
        before.is_some_and(|(size, passes)| size * passes == self.batch.window() as u64)
    }
}

/// Whether a limit was raised, or taken away.
fn longer(before: &Value, now: &Value) -> bool {
    match (before.as_u64(), now.as_u64()) {
        (Some(before), Some(now)) => now >= before,
        (Some(_), None) => now.is_null(),
        _ => false,
    }
}

/// The keys in which two configs differ, each with both values.
fn differing(stored: &Value, current: &Value) -> Vec<(String, Value, Value)> {
    let mut differing = Vec::new();
    collect_differences(stored, current, String::new(), &mut differing);
    differing
}

fn collect_differences(
    stored: &Value,
    current: &Value,
    path: String,
    out: &mut Vec<(String, Value, Value)>,
) {
    match (stored, current) {
        (Value::Object(stored), Value::Object(current)) => {
            let keys: BTreeSet<&String> = stored.keys().chain(current.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let value = |of: &serde_json::Map<String, Value>| of.get(key).cloned();
                let (stored, current) =
                    (value(stored).unwrap_or_default(), value(current).unwrap_or_default());
                collect_differences(&stored, &current, path, out);
            }
        }
        (stored, current) if stored != current => {
            out.push((path, stored.clone(), current.clone()));
        }
        _ => {}
    }
}
