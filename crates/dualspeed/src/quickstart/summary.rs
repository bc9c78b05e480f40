//! `summary.json`: what quickstart measured, means over seeds with `_std` beside them.

use std::collections::BTreeMap;

use dualspeed_core::stats::{mean, std};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The scores and costs of one trained model, for one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Test accuracy with all visual tokens and no isolator (slow view), 0 to 1.
    pub accuracy_full: f64,
    /// Test accuracy on pruned tokens, with the isolator where the model has one.
    pub accuracy_pruned: f64,
    /// Test accuracy on pruned tokens without the isolator.
    pub accuracy_pruned_no_isolator: f64,
    /// Test accuracy with all visual tokens, on drawings by a vendor that no model saw in training.
    pub accuracy_full_heldout_vendor: f64,
    /// `accuracy_full` over the baseline's `accuracy_full`; NaN (`null` in JSON) where that is 0.
    pub retention_full: f64,
    /// `accuracy_pruned` over the baseline's `accuracy_full`.
    pub retention_pruned: f64,
    /// Seconds spent training: projector, pruning, language model, optimiser.
    pub train_seconds: f64,
    /// The baseline's `train_seconds` over this model's.
    pub speedup: f64,
    /// Visual tokens per image in the slow view.
    pub visual_tokens_full: f64,
    /// Visual tokens per image in the fast view, the isolator not counted.
    pub visual_tokens_pruned: f64,
    /// Accuracy by kind of question, full inference.
    pub accuracy_full_by_kind: BTreeMap<String, f64>,
}

impl Measured {
    fn numbers(&self) -> [(&'static str, f64); 10] {
        [
            ("accuracy_full", self.accuracy_full),
            ("accuracy_pruned", self.accuracy_pruned),
            ("accuracy_pruned_no_isolator", self.accuracy_pruned_no_isolator),
            ("accuracy_full_heldout_vendor", self.accuracy_full_heldout_vendor),
            ("retention_full", self.retention_full),
            ("retention_pruned", self.retention_pruned),
            ("train_seconds", self.train_seconds),
            ("speedup", self.speedup),
            ("visual_tokens_full", self.visual_tokens_full),
            ("visual_tokens_pruned", self.visual_tokens_pruned),
        ]
    }
}

/// Everything measured with one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedResult {
    /// The seed of weights and data.
    pub seed: u64,
    /// The models by name: baseline, naive_prune, dualspeed.
    pub models: BTreeMap<String, Measured>,
    /// Accuracy of always giving the most frequent answer of the question's kind.
    pub chance: f64,
    /// Accuracy of the same model trained and tested without pictures.
    pub text_only_accuracy: f64,
    /// Seconds to run the frozen tower over the fixed training set, once for all models.
    pub featurise_seconds: f64,
}

/// Mean and standard deviation of a number over seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stat {
    /// The mean.
    pub mean: f64,
    /// Sample standard deviation; 0 for a single seed.
    pub std: f64,
}

/// Mean and sample standard deviation of `values`; both 0 when there are none.
pub fn stat(values: &[f64]) -> Stat {
    Stat { mean: mean(values).unwrap_or(0.0), std: std(values).unwrap_or(0.0) }
}

/// The result of a whole quickstart.
#[derive(Debug, Clone)]
pub struct Summary {
    /// One entry per seed, in order.
    pub seeds: Vec<SeedResult>,
    /// Seconds from the start to the end of the quickstart.
    pub total_seconds: f64,
    /// The name of the backend.
    pub backend: String,
    /// The recipe as TOML, overrides included.
    pub recipe: String,
}

impl Summary {
    /// Mean and deviation over the seeds of a number of the model `name`.
    pub fn model(&self, name: &str, pick: impl Fn(&Measured) -> f64) -> Stat {
        stat(&self.seeds.iter().filter_map(|s| s.models.get(name)).map(pick).collect::<Vec<_>>())
    }

    /// Mean and deviation over the seeds of a number that belongs to no single model.
    pub fn overall(&self, pick: impl Fn(&SeedResult) -> f64) -> Stat {
        stat(&self.seeds.iter().map(pick).collect::<Vec<_>>())
    }

    /// Gives the JSON of `summary.json`.
    pub fn to_json(&self) -> Value {
        let mut models = Map::new();
        let names = self.seeds.first().map(|s| s.models.keys().cloned().collect::<Vec<_>>());
        for name in names.unwrap_or_default() {
            let of_seed: Vec<&Measured> =
                self.seeds.iter().filter_map(|s| s.models.get(&name)).collect();
            let mut entry = Map::new();
            for (index, (key, _)) in
                of_seed.first().map(|m| m.numbers()).into_iter().flatten().enumerate()
            {
                let values: Vec<f64> = of_seed.iter().map(|m| m.numbers()[index].1).collect();
                put(&mut entry, key, stat(&values));
            }
            let mut kinds = Map::new();
            for kind in
                of_seed.first().map(|m| m.accuracy_full_by_kind.keys()).into_iter().flatten()
            {
                let values: Vec<f64> = of_seed
                    .iter()
                    .filter_map(|m| m.accuracy_full_by_kind.get(kind))
                    .copied()
                    .collect();
                kinds.insert(kind.clone(), stat(&values).mean.into());
            }
            entry.insert("accuracy_full_by_kind".into(), kinds.into());
            models.insert(name, entry.into());
        }
        let mut root = Map::new();
        root.insert("models".into(), models.into());
        put(&mut root, "chance", self.overall(|s| s.chance));
        put(&mut root, "text_only_accuracy", self.overall(|s| s.text_only_accuracy));
        put(&mut root, "featurise_seconds", self.overall(|s| s.featurise_seconds));
        root.insert("seeds".into(), self.seeds.len().into());
        root.insert(
            "seed_values".into(),
            self.seeds.iter().map(|s| s.seed).collect::<Vec<_>>().into(),
        );
        root.insert("total_seconds".into(), self.total_seconds.into());
        root.insert("backend".into(), self.backend.clone().into());
        root.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        root.insert("recipe".into(), self.recipe.clone().into());
        root.into()
    }

    /// Gives header and rows of the table of results: a row per model, percentages with one decimal.
    pub fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let header = [
            "model",
            "accuracy full",
            "pruned",
            "pruned, no isolator",
            "held-out vendor",
            "retention full",
            "retention pruned",
            "train",
            "speed-up",
        ];
        let rows = [
            ("baseline", "baseline (full tokens)"),
            ("naive_prune", "NaivePrune (always fast)"),
            ("dualspeed", "DualSpeed"),
        ]
        .iter()
        .map(|(name, shown)| {
            let share =
                |pick: fn(&Measured) -> f64| self.show(self.model(name, pick), 100.0, 1, " %");
            vec![
                shown.to_string(),
                share(|m| m.accuracy_full),
                share(|m| m.accuracy_pruned),
                share(|m| m.accuracy_pruned_no_isolator),
                share(|m| m.accuracy_full_heldout_vendor),
                share(|m| m.retention_full),
                share(|m| m.retention_pruned),
                self.show(self.model(name, |m| m.train_seconds), 1.0, 0, " s"),
                self.show(self.model(name, |m| m.speedup), 1.0, 2, "x"),
            ]
        })
        .collect();
        (header.map(String::from).to_vec(), rows)
    }

    /// Formats a number for people: mean, and standard deviation where there are several seeds.
    pub fn show(&self, stat: Stat, scale: f64, digits: usize, unit: &str) -> String {
        if !stat.mean.is_finite() {
            return "-".to_owned();
        }
        let spread = match self.seeds.len() {
            0 | 1 => String::new(),
            _ => format!(" ± {:.digits$}", stat.std * scale),
        };
        format!("{:.digits$}{spread}{unit}", stat.mean * scale)
    }
}

fn put(map: &mut Map<String, Value>, key: &str, stat: Stat) {
    map.insert(key.into(), stat.mean.into());
    map.insert(format!("{key}_std"), stat.std.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(accuracy_full: f64) -> Measured {
        Measured {
            accuracy_full,
            accuracy_pruned: 0.5,
            accuracy_pruned_no_isolator: 0.4,
            accuracy_full_heldout_vendor: 0.3,
            retention_full: 1.0,
            retention_pruned: 0.9,
            train_seconds: 10.0,
            speedup: 1.0,
            visual_tokens_full: 144.0,
            visual_tokens_pruned: 14.0,
            accuracy_full_by_kind: [("count".to_string(), accuracy_full)].into(),
        }
    }

    fn summary(accuracies: &[f64]) -> Summary {
        let seeds = accuracies.iter().enumerate().map(|(i, &a)| SeedResult {
            seed: i as u64,
            models: ["baseline", "naive_prune", "dualspeed"]
                .map(|n| (n.to_string(), measured(a)))
                .into(),
            chance: 0.2,
            text_only_accuracy: 0.25,
            featurise_seconds: 3.0,
        });
        Summary {
            seeds: seeds.collect(),
            total_seconds: 1.0,
            backend: "ndarray".into(),
            recipe: String::new(),
        }
    }

    #[test]
    fn json_has_means_and_deviations_over_seeds() {
        let json = summary(&[0.6, 0.8]).to_json();
        let baseline = &json["models"]["baseline"];
        assert!((baseline["accuracy_full"].as_f64().unwrap() - 0.7).abs() < 1e-12);
        assert!((baseline["accuracy_full_std"].as_f64().unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
        assert_eq!(json["seeds"], 2);
        assert_eq!(json["chance"], 0.2);
        assert!((baseline["accuracy_full_by_kind"]["count"].as_f64().unwrap() - 0.7).abs() < 1e-12);
    }

    #[test]
    fn what_is_undefined_is_a_dash_and_null() {
        let mut summary = summary(&[0.0]);
        for measured in summary.seeds[0].models.values_mut() {
            measured.retention_full = f64::NAN;
        }
        assert_eq!(summary.table().1[2][5], "-");
        assert!(summary.to_json()["models"]["dualspeed"]["retention_full"].is_null());
    }

    #[test]
    fn one_seed_shows_no_deviation() {
        let (header, rows) = summary(&[0.6]).table();
        assert_eq!(rows[0][1], "60.0 %");
        assert!(summary(&[0.6, 0.8]).table().1[0][1].contains('±'));
        assert_eq!((header.len(), rows.len()), (rows[0].len(), 3));
        assert_eq!(rows[2][0], "DualSpeed");
    }
}
