//! Parts that a test crate brings by name: a mode schedule, an objective, a metric.

use dualspeed_core::registry::MakerError;
use dualspeed_model::objective::{LossPart, ObjectiveRegistry};
use dualspeed_model::{
    DualSpeedObjective, Losses, ModelError, Objective, ObjectiveInputs, ObjectiveSpec,
};
use dualspeed_ops::Backend;
use dualspeed_train::{
    METRICS_FILE, Mode, ModeSchedule, PastStep, RecordMetric, ScheduleSpec, StepRecord,
    TrainConfig, TrainError, TrainJob, VALIDATION_FILE, train,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{Train, config, job, one_step, records, scenes, timeless, weights};

/// Slow while the newest loss it has seen is above the mean of those it has seen.
#[derive(Debug, Default, Serialize, Deserialize)]
struct AboveMean {
    seen: u64,
    sum: f64,
    newest: f64,
}

impl ModeSchedule for AboveMean {
    fn mode(&mut self, _step: u64, _total: u64) -> Mode {
        let slow = self.seen > 0 && self.newest > self.sum / self.seen as f64;
        if slow { Mode::Slow } else { Mode::Fast }
    }

    fn observe(&mut self, past: &PastStep) {
        assert_eq!(past.step, self.seen, "losses come in order, none twice");
        self.seen += 1;
        self.sum += past.loss;
        self.newest = past.loss;
    }

    fn state(&self) -> Value {
        json!(self)
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        *self = serde_json::from_value(state.clone()).map_err(|error| error.to_string())?;
        Ok(())
    }
}

fn reacting(run_dir: &std::path::Path) -> TrainJob<Train> {
    let mut config = TrainConfig { steps: Some(10), ..config() };
    config.mode.schedule = Some("above_mean".into());
    config.mode.lag = 3;
    // So little is learnt, and no divergence added, that losses go up and down with the samples.
    config.distill.lambda = 0.0;
    config.optim.lr = Some(1e-5);
    let mut job = job(config, run_dir);
    job.doors.schedules =
        job.doors.schedules.with("above_mean", |_: &ScheduleSpec| Ok(Box::<AboveMean>::default()));
    job
}

#[test]
fn a_run_whose_modes_follow_its_losses_resumes_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (whole_dir, parts_dir) = (dir.path().join("whole"), dir.path().join("parts"));
    let whole = train(reacting(&whole_dir)).unwrap();
    let whole_records = records(&whole_dir);
    let modes: Vec<Mode> = whole_records.iter().map(|record| record.mode).collect();
    // What the trait promises: step s knows the losses up to s - 3.
    let losses: Vec<f64> = whole_records.iter().map(|record| record.loss).collect();
    let expected = (0..10).map(|step: usize| {
        let seen = &losses[..(step + 1).saturating_sub(3)];
        let mean = seen.iter().sum::<f64>() / seen.len() as f64;
        if seen.last().is_some_and(|newest| *newest > mean) { Mode::Slow } else { Mode::Fast }
    });
    assert_eq!(modes, expected.collect::<Vec<_>>());
    assert!(modes.contains(&Mode::Slow) && modes[4..].contains(&Mode::Fast), "{modes:?}");

    // Stopped after every step.
    for step in 1..=10 {
        let mut part = reacting(&parts_dir);
        part.resume = step > 1;
        let part = train(one_step(part)).unwrap();
        assert_eq!((part.steps, part.interrupted), (step, step < 10));
        let state = format!("checkpoints/step-{step:08}/state.json");
        let state = std::fs::read_to_string(parts_dir.join(state)).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let seen = state["schedule"]["schedule"]["seen"].as_u64().unwrap();
        let recent = state["schedule"]["recent"].as_array().unwrap().len() as u64;
        assert_eq!((seen, seen + recent), (step.saturating_sub(3), step));
        if step == 10 {
            assert_eq!(weights(&part.model), weights(&whole.model));
        }
    }
    assert_eq!(records(&parts_dir), whole_records);
    assert_eq!(timeless(&parts_dir), timeless(&whole_dir));
}

#[test]
fn a_state_that_the_schedule_refuses_is_a_bad_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    train(one_step(reacting(dir.path()))).unwrap();
    let mut second = reacting(dir.path());
    second.resume = true;
    // Another schedule under the same name.
    second.doors.schedules = second
        .doors
        .schedules
        .with("above_mean", |_: &ScheduleSpec| Ok(Box::new(dualspeed_train::AlwaysFast)));
    let error = train(second).err().unwrap();
    assert!(matches!(error, TrainError::BadCheckpoint { .. }), "{error:?}");
    assert!(error.to_string().contains("has no state"), "{error}");
}

/// DualSpeed's objective with a penalty on large hidden states, and a count that is only reported.
#[derive(Debug)]
struct Penalised {
    inner: DualSpeedObjective,
    weight: f64,
}

impl<B: Backend> Objective<B> for Penalised {
    fn name(&self) -> &str {
        "penalised"
    }

    fn needs_teacher(&self) -> bool {
        Objective::<B>::needs_teacher(&self.inner)
    }

    fn losses(&self, inputs: &ObjectiveInputs<'_, B>) -> Result<Losses<B>, ModelError> {
        let mut losses = self.inner.losses(inputs)?;
        let tokens = losses.tokens;
        let hidden = inputs.student.hidden.clone();
        let squares = hidden.clone().powi_scalar(2).mean_dim(1).sum();
        let positive = hidden.detach().greater_elem(0.0).float().mean_dim(1).sum();
        for (name, sum, weight) in
            [("hidden_square", squares, self.weight), ("hidden_positive", positive, 0.0)]
        {
            losses.parts.push(LossPart { name: name.into(), sum, tokens, weight });
        }
        Ok(losses)
    }
}

fn penalised<B: Backend>(registry: ObjectiveRegistry<B>) -> ObjectiveRegistry<B> {
    registry.with("penalised", |spec: &ObjectiveSpec| {
        spec.options.expect(&["weight"])?;
        let weight = spec.options.number("weight")?.ok_or("it needs a weight")?;
        let inner = DualSpeedObjective { lambda: spec.lambda, tau: spec.tau };
        Ok(Box::new(Penalised { inner, weight }))
    })
}

/// A run that penalises hidden states by `weight`, in micro-batches of `size`.
fn penalised_job(weight: f64, size: usize, run_dir: &std::path::Path) -> TrainJob<Train> {
    let mut config = config();
    config.objective.name = "penalised".into();
    config.objective.options = config.objective.options.with("weight", weight);
    (config.batch.size, config.batch.accumulation) = (size, 4 / size);
    config.validation.every = 4;
    config.optim.eps = 1e-3;
    let mut job = job(config, run_dir);
    job.valid = Some(scenes(4));
    job.doors.objectives = penalised(job.doors.objectives);
    job.doors.valid_objectives = penalised(job.doors.valid_objectives);
    job
}

#[test]
fn the_parts_of_an_objective_by_name_are_reported_and_minimised() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let outcome = train(penalised_job(0.5, 4, &path("whole"))).unwrap();
    let whole = records(&path("whole"));
    assert_eq!(whole.len(), 4);
    for record in &whole {
        let parts: Vec<&str> = record.parts.keys().map(String::as_str).collect();
        assert_eq!(parts, ["hidden_positive", "hidden_square"]);
        let (square, positive) = (record.parts["hidden_square"], record.parts["hidden_positive"]);
        assert!(square > 0.0 && (0.01..0.99).contains(&positive), "{square} {positive}");
        let loss = record.ce + record.kl + 0.5 * square;
        assert!((record.loss - loss).abs() < 1e-6, "{} {loss}", record.loss);
        assert_eq!(record.mode == Mode::Slow, record.kl_tokens > 0);
    }
    // As a program without this crate reads it.
    let lines = std::fs::read_to_string(path("whole").join(METRICS_FILE)).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["parts"]["hidden_square"].as_f64(), Some(whole[0].parts["hidden_square"]));
    assert!(path("whole").join(VALIDATION_FILE).is_file());

    // The weight matters, and sums over micro-batches are the sum.
    train(penalised_job(0.0, 4, &path("reported"))).unwrap();
    let reported = records(&path("reported"));
    assert_eq!(reported[0].parts, whole[0].parts);
    assert!((reported[0].loss - reported[0].ce).abs() < 1e-9);
    assert_ne!(reported[1].ce, whole[1].ce);
    let split = train(penalised_job(0.5, 2, &path("split"))).unwrap();
    for (whole, split) in whole.iter().zip(records(&path("split"))) {
        for (name, part) in &whole.parts {
            assert!((part - split.parts[name]).abs() < 1e-5, "{name}");
        }
    }
    let (whole, split) = (weights(&outcome.model), weights(&split.model));
    let difference = crate::support::largest_difference(&whole, &split);
    assert!(difference < 2e-6, "{difference}");
}

/// The divergence per token, where a step has one; and one that divides by nothing.
#[derive(Debug)]
struct Figure(&'static str, fn(&StepRecord) -> (f64, usize));

impl RecordMetric for Figure {
    fn name(&self) -> &str {
        self.0
    }

    fn value(&self, record: &StepRecord) -> (f64, usize) {
        self.1(record)
    }
}

fn figure(
    name: &'static str,
    value: fn(&StepRecord) -> (f64, usize),
) -> impl Fn(&()) -> Result<Box<dyn RecordMetric>, MakerError> {
    move |_| Ok(Box::new(Figure(name, value)))
}

fn measured(config: TrainConfig, run_dir: &std::path::Path) -> TrainJob<Train> {
    let mut job = job(config, run_dir);
    job.doors.metrics = job
        .doors
        .metrics
        .with("divergence", figure("divergence", |r| (2.0 * r.kl, r.kl_tokens)))
        .with("step_number", figure("step_number", |r| (r.step as f64, 1)))
        .with("nothing", figure("nothing", |_| (f64::NAN, 1)));
    job
}

#[test]
fn a_metric_by_name_is_in_the_records_of_the_steps_that_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.metrics = vec!["divergence".into()];
    train(measured(config.clone(), &dir.path().join("one"))).unwrap();
    let records = records(&dir.path().join("one"));
    let lines = std::fs::read_to_string(dir.path().join("one").join(METRICS_FILE)).unwrap();
    assert_eq!(records.len(), 4);
    for (record, line) in records.iter().zip(lines.lines()) {
        let line: Value = serde_json::from_str(line).unwrap();
        match record.mode {
            Mode::Fast => assert!(line.get("metrics").is_none(), "{line}"),
            Mode::Slow => assert_eq!(line["metrics"], json!({"divergence": 2.0 * record.kl})),
        }
    }

    // Only those that the config names; what is no number leaves the records readable.
    config.metrics = vec!["nothing".into(), "step_number".into()];
    train(measured(config, &dir.path().join("two"))).unwrap();
    for record in crate::support::records(&dir.path().join("two")) {
        let metrics: Vec<_> = record.metrics.into_iter().collect();
        assert_eq!(metrics, [("step_number".to_owned(), record.step as f64)]);
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: fn(&mut TrainConfig)| {
        let mut config = config();
        change(&mut config);
        let run_dir = dir.path().join("run");
        let error = train(measured(config, &run_dir)).err().unwrap();
        assert!(!run_dir.exists());
        assert!(matches!(error, TrainError::Name(_)), "{error:?}");
        error.to_string()
    };
    let cases: [(fn(&mut TrainConfig), [&str; 2]); 5] = [
        (
            |config| config.objective.name = "dualsped".into(),
            ["objective `dualsped`", "did you mean `dualspeed`"],
        ),
        (
            |config| config.mode.schedule = Some("bernouli".into()),
            ["mode schedule `bernouli`", "did you mean `bernoulli`"],
        ),
        (
            |config| config.metrics = vec!["divergense".into()],
            ["metric `divergense`", "did you mean `divergence`"],
        ),
        // A name that is known, with an option that is not.
        (
            |config| config.mode.options = config.mode.options.clone().with("evry", 3.0),
            ["mode schedule `periodic`", "no option `evry`"],
        ),
        (
            |config| config.objective.options = config.objective.options.clone().with("tau", 2.0),
            ["objective `dualspeed`", "no option `tau`"],
        ),
    ];
    for (change, words) in cases {
        let message = refused(change);
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}
