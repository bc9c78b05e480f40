//! What the authors' own code keeps of random features; where from is in published/README.md.

use std::path::PathBuf;

use burn::tensor::Tensor;
use dualspeed_model::vision::features::{CLS_ATTENTION, LAST_CLS_ATTENTION, LAST_KEYS, PATCH_TEXT};
use dualspeed_model::{
    PruneContext, PrunerSpec, QuestionTokens, Registry, TextFeatures, VisionFeatures, VisualTokens,
};
use serde_json::Value;

use super::reference::{Rows, by_score, cosine, sorted};
use crate::fixtures::{Floats, json};
use crate::support::{B, KeptTokens, prune, values};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/model/pruners/published").join(name)
}

/// Features and what is expected of them.
struct Case {
    floats: Floats,
    expected: Value,
}

impl Case {
    fn open(name: &str) -> Self {
        let mut all = json(&file("expected.json"));
        let expected = all[name].take();
        assert!(expected["keep"].is_u64(), "no case {name}");
        Self { floats: Floats::open(&file(&format!("{name}.safetensors"))), expected }
    }

    fn tensor(&self, name: &str) -> Option<Tensor<B, 3>> {
        self.floats.keys().any(|key| key == name).then(|| self.floats.tensor(name))
    }

    fn rows(&self, name: &str) -> Rows {
        let tensor = self.tensor(name).unwrap();
        let d = tensor.dims()[2];
        values(&tensor).chunks(d).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
    }

    fn keep(&self) -> usize {
        self.expected["keep"].as_u64().unwrap() as usize
    }

    /// What the case's pruner keeps.
    fn prune(&self) -> KeptTokens<B> {
        let (projected, hidden) = (self.tensor("projected"), self.tensor("hidden"));
        let hidden = hidden.or(projected.clone()).unwrap();
        let images = hidden.dims()[0];
        let mut features = VisionFeatures::new(hidden.clone());
        for name in [CLS_ATTENTION, LAST_CLS_ATTENTION] {
            if let Some(attention) = self.tensor(name) {
                features = features.with(name, attention.swap_dims(1, 2));
            }
        }
        for name in [LAST_KEYS, PATCH_TEXT] {
            if let Some(feature) = self.tensor(name) {
                features = features.with(name, feature);
            }
        }
        let lengths = |x: &Tensor<B, 3>| vec![x.dims()[1]; images];
        let visual = VisualTokens {
            text: self.tensor("text").map(|vectors| TextFeatures {
                lengths: lengths(&vectors),
                inverted: true,
                vectors,
            }),
            question: self
                .tensor("question")
                .map(|embeds| QuestionTokens { lengths: lengths(&embeds), embeds }),
            ..VisualTokens::new(projected.unwrap_or(hidden), features)
        };
        let spec: PrunerSpec = self.expected["pruner"].as_str().unwrap().parse().unwrap();
        let pruner = Registry::<B>::builtin().build(&spec).unwrap();
        let ctx = PruneContext {
            images: (0..images).map(|i| (format!("s{i}"), 0)).collect(),
            verify: true,
            ..PruneContext::default()
        };
        prune(&*pruner, &visual, self.keep(), &ctx).unwrap()
    }

    fn picks(&self) -> Vec<usize> {
        let kept = self.prune().indices.expect("a selection");
        kept.into_data().iter::<i64>().map(|index| index as usize).collect()
    }

    fn list(&self, key: &str) -> Vec<usize> {
        serde_json::from_value(self.expected[key].clone()).unwrap()
    }
}

/// The tokens of every image against those expected.
fn check_tokens(case: &Case, images: &[Vec<Vec<f32>>]) {
    let kept = case.prune();
    let lengths: Vec<usize> = images.iter().map(Vec::len).collect();
    assert_eq!(kept.lengths, lengths);
    let [_, most, d] = kept.tokens.dims();
    let found = values(&kept.tokens);
    for (found, expected) in found.chunks(most * d).zip(images) {
        for (found, expected) in found.iter().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() <= 1e-5, "{found} for {expected}");
        }
    }
}

#[test]
fn cdpruner_picks_by_small_residuals() {
    let case = Case::open("cdpruner-residual-floor");
    assert_eq!(case.picks(), case.list("expected"));
}

#[test]
fn prumerge_without_an_outlier_is_one_token() {
    let case = Case::open("prumerge-no-outlier");
    let tokens: Vec<Vec<f32>> = serde_json::from_value(case.expected["expected"].clone()).unwrap();
    assert_eq!(tokens.len(), 1);
    check_tokens(&case, &[tokens]);
}

#[test]
fn prumerge_plus_steps_by_the_inverse_share() {
    let case = Case::open("prumerge-plus-step");
    assert_eq!(case.prune().lengths, [case.expected["tokens"].as_u64().unwrap() as usize]);
}

#[test]
fn trim_official_shares_one_count_over_the_batch() {
    let case = Case::open("trim-adaptive-batch");
    let images: Vec<Vec<Vec<f32>>> =
        serde_json::from_value(case.expected["expected"].clone()).unwrap();
    check_tokens(&case, &images);
}

/// The published picks, and by attention those that its padding leaves out.
#[test]
fn holov_official_weighs_ranges_of_one_by_a_thousandth() {
    let case = Case::open("holov-ranges-of-one");
    let mut expected = case.list("expected");
    let attention = case.rows(CLS_ATTENTION).remove(0);
    let rest = by_score(&attention).into_iter().filter(|i| !expected.contains(i));
    let rest: Vec<usize> = rest.take(case.keep() - expected.len()).collect();
    expected.extend(rest);
    assert_eq!(case.picks(), sorted(expected));
}

/// Nothing but the order of the pivots lies between ours and the published picks.
#[test]
fn dart_differs_in_the_order_of_pivots_only() {
    let case = Case::open("dart-pivot-order");
    let (tokens, question) = (case.rows("projected"), case.rows("question"));
    let largest = |rows: &Rows| -> Vec<usize> {
        let norms: Vec<f64> = rows.iter().map(|x| x.iter().map(|v| v.abs()).sum()).collect();
        by_score(&norms)[..4].to_vec()
    };
    let (own, text) = (largest(&tokens), largest(&question));
    let picks = |pivots: &[&Vec<f64>]| {
        let mut picked = own.clone();
        let left = case.keep() - own.len();
        for (at, pivot) in pivots.iter().enumerate() {
            let quota = left / pivots.len() + usize::from(at < left % pivots.len());
            let mut open: Vec<usize> = (0..tokens.len()).filter(|i| !picked.contains(i)).collect();
            open.sort_by(|a, b| cosine(pivot, &tokens[*a]).total_cmp(&cosine(pivot, &tokens[*b])));
            picked.extend(open.into_iter().take(quota));
        }
        sorted(picked)
    };
    let images = |order: &[usize]| order.iter().map(|i| &tokens[*i]).collect::<Vec<_>>();
    let texts = |order: &[usize]| order.iter().map(|i| &question[*i]).collect::<Vec<_>>();
    assert_eq!(picks(&[images(&own), texts(&text)].concat()), case.picks());
    // Here Python's set goes through the positions as they rise: the image's from 35, then the question's.
    let (own, text) = (sorted(own.clone()), sorted(text));
    assert_eq!(picks(&[images(&own), texts(&text)].concat()), case.list("expected"));
}

#[test]
fn prunesid_groups_by_principal_components() {
    let case = Case::open("prunesid-components");
    let picks = case.picks();
    assert_eq!(picks, case.list("expected"));
    assert!(case.list("official_patches").iter().all(|patch| picks.contains(patch)));
}

/// Every case on file has a test above.
#[test]
fn no_case_is_left_out() {
    let all = json(&file("expected.json"));
    let tested = include_str!("published.rs");
    for name in all.as_object().unwrap().keys() {
        assert!(tested.contains(&format!("Case::open(\"{name}\")")), "{name}");
    }
}
