//! The configuration that all compared models share.

use dualspeed_train::TrainConfig;

/// The configuration of DualSpeed, in TOML; the other models override a line or two of it.
pub const RECIPE: &str = include_str!("recipe.toml");

/// Number of scenes in the test set.
pub const TEST_SCENES: usize = 512;

/// The recipe for one seed, of weights and data, with the overrides of an arm and then those of the command line.
///
/// # Errors
/// If an override is malformed.
pub fn recipe_config(
    seed: u64,
    arm_overrides: &[&str],
    overrides: &[String],
) -> anyhow::Result<TrainConfig> {
    let seeded = [format!("seed={seed}"), format!("data.train.scenes.seed={seed}")];
    let own = arm_overrides.iter().map(|text| text.to_string());
    let all: Vec<String> = seeded.into_iter().chain(own).chain(overrides.iter().cloned()).collect();
    Ok(TrainConfig::parse(RECIPE, &all)?)
}
