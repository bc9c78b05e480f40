//! The configuration that all compared models share.

use dualspeed_train::TrainConfig;

/// The recipe: DualSpeed's configuration; the other models override a line or two of it.
pub const RECIPE: &str = include_str!("recipe.toml");

/// Scenes in the test set.
pub const TEST_SCENES: usize = 512;

/// The recipe for one seed, of weights and data, with the overrides `own` of an arm and those of the command line.
///
/// # Errors
/// If an override is malformed.
pub fn recipe_config(seed: u64, own: &[&str], overrides: &[String]) -> anyhow::Result<TrainConfig> {
    let seeded = [format!("seed={seed}"), format!("data.train.scenes.seed={seed}")];
    let own = own.iter().map(|text| text.to_string());
    let all: Vec<String> = seeded.into_iter().chain(own).chain(overrides.iter().cloned()).collect();
    Ok(TrainConfig::parse(RECIPE, &all)?)
}
