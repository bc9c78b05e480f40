use super::*;

fn refused(text: &str) -> String {
    TrainConfig::parse(text, &[]).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_valid_and_survive_a_round_trip() {
    let mut config = TrainConfig::parse("", &[]).unwrap();
    config.data.valid = Some(SourceConfig::default());
    config.optim.lr = Some(3e-4);
    assert_eq!(TrainConfig::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
}

#[test]
fn values_out_of_range_come_with_advice() {
    for (text, words) in [
        ("pruning.ratio = 1.0", ["pruning.ratio", "no image"]),
        ("pruning.ratio = -0.1", ["pruning.ratio", "[0, 1)"]),
        ("mode.slow_mode_ratio = 1.5", ["mode.slow_mode_ratio", "[0, 1]"]),
        ("mode.every = 0", ["mode.every", "at least 1"]),
        ("mode.lag = 1", ["mode.lag", "at least 2"]),
        (
            "train_vision_tower = true\ndata.features.cache = \"memory\"",
            ["train_vision_tower", "cannot be cached"],
        ),
        ("distill.tau = 0.0", ["distill.tau", "positive"]),
        ("distill.lambda = -1.0", ["distill.lambda", "0 (no distillation)"]),
        ("optim.lr = 0.0", ["optim.lr", "positive"]),
        ("optim.betas = [0.9, 1.0]", ["optim.betas", "[0, 1)"]),
        ("batch.size = 0", ["batch.size", "at least 1"]),
        ("checkpoint.keep = 0", ["checkpoint.keep", "resumed"]),
        ("steps = 5\nepochs = 1", ["steps", "one of them"]),
        ("steps = 0", ["steps", "at least 1"]),
        ("data.features.dir = \"\"", ["data.features.dir", "user's cache folder"]),
        (
            "data.features = { cache = \"disk\", dir = \"Cargo.toml\" }",
            ["is a file", "name a folder"],
        ),
        ("data.features.cache = \"ram\"", ["memory", "disk"]),
        ("data.train.samples = 0", ["data.train.samples", "empty"]),
        ("model.text.hidden_size = 0", ["model", "hidden_size"]),
        ("data.train.scenes.grid = 7", ["data.train.scenes", "grid"]),
    ] {
        let message = refused(text);
        assert!(words.iter().all(|word| message.contains(word)), "{text}: {message}");
    }
}

#[test]
fn unknown_keys_are_found_in_every_section() {
    for (text, key, nearest) in [
        ("stagee = \"single\"", "stagee", "stage"),
        ("[mode]\nslow_ratio = 0.1", "mode.slow_ratio", "mode.slow_mode_ratio"),
        ("[optim]\nprojector_rl = 1e-4", "optim.projector_rl", "optim.projector_lr"),
        ("[model]\nisolator_len = 4", "model.isolator_len", "model.isolator_length"),
        ("[model.text]\nhiden_size = 4", "model.text.hiden_size", "model.text.hidden_size"),
        ("[pruning.pruner]\nnam = \"random\"", "pruning.pruner.nam", "pruning.pruner.name"),
    ] {
        let message = refused(text);
        assert!(message.contains(&format!("`{key}`")), "{message}");
        assert!(message.contains(&format!("did you mean `{nearest}`")), "{message}");
    }
}

#[test]
fn removed_keys_say_what_to_write_instead() {
    for text in ["[isolator]\nenabled = false", "isolator.enabled = true", "isolator = 1"] {
        let message = refused(text);
        for word in ["`isolator", "any more", "model.isolator_length = 0"] {
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}

#[test]
fn stage_decides_what_is_left_out() {
    let stage = |stage, extra: &str| {
        TrainConfig::parse(&format!("stage = \"{stage}\"\n{extra}"), &[]).unwrap()
    };
    let pretrain = stage("pretrain", "");
    let rates = pretrain.group_rates();
    assert_eq!((rates.base, rates.projector), (1e-3, 1e-3));
    assert_eq!(pretrain.schedule().name, "always_fast");
    let lora = stage("finetune", "[model.lora]");
    let rates = lora.group_rates();
    assert_eq!((rates.base, rates.projector, rates.isolator), (2e-4, 2e-5, 2e-5));
    assert_eq!((rates.newline, rates.vision_tower), (2e-5, 2e-6));
    assert_eq!(lora.schedule().name, "bernoulli");
    assert_eq!(stage("finetune", "").group_rates().base, 2e-5);
    // The published trainer has the newline among the language model's parameters.
    let official = stage("finetune", "compat = \"official\"\n[model.lora]").group_rates();
    assert_eq!((official.newline, official.projector), (2e-4, 2e-5));
    // Said explicitly, stage 1 has slow steps too.
    let mixed = stage("pretrain", "[mode]\nschedule = \"bernoulli\"");
    assert_eq!(mixed.schedule().name, "bernoulli");
}

#[test]
fn what_a_run_uses_is_written_out() {
    for text in ["", "stage = \"pretrain\"", "stage = \"finetune\"\nsteps = 7\n[model.lora]"] {
        let config = TrainConfig::parse(text, &[]).unwrap();
        let effective = config.effective();
        let written = TrainConfig::parse(&effective.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(written, effective, "{text}");
        assert_eq!(effective.effective(), effective);
        assert_eq!(effective.group_rates(), config.group_rates());
        assert_eq!(effective.schedule(), config.schedule());
        let optim = &effective.optim;
        for rate in [
            optim.lr,
            optim.projector_lr,
            optim.newline_lr,
            optim.isolator_lr,
            optim.vision_tower_lr,
        ] {
            assert!(rate.is_some(), "{text}");
        }
        assert!(effective.mode.schedule.is_some() && effective.data.workers.is_some());
        // One of the two, as it was given; an epoch where neither was.
        let epochs = config.steps.is_none().then_some(1);
        assert_eq!((effective.steps, effective.epochs), (config.steps, epochs));
    }
}

#[test]
fn counts_are_as_published() {
    let config = TrainConfig::parse("", &[]).unwrap();
    assert_eq!(config.keep_count(576), 57);
    let even = TrainConfig::parse("[pruning.pruner]\nrounding = \"half_even\"", &[]).unwrap();
    assert_eq!(even.keep_count(576), 58);
    let all = TrainConfig::parse("[pruning]\nratio = 0.0", &[]).unwrap();
    assert_eq!((all.keep_count(576), all.pruner().name.as_str()), (576, "none"));
}

#[test]
fn overrides_are_applied_before_validation() {
    let set = |text: &str| TrainConfig::parse("", &[text.to_owned()]);
    assert_eq!(set("batch.size=5").unwrap().batch.size, 5);
    assert!(set("batch.size=0").is_err());
    assert_eq!(set("pruning.pruner.name=random").unwrap().pruning.pruner.name, "random");
}

#[test]
fn where_features_are_kept_does_not_stand_in_the_way_of_a_resume() {
    // A checkpoint from before there was a choice.
    let mut stored = TrainConfig::default().fingerprint().unwrap();
    stored["data"].as_object_mut().unwrap().remove("features").unwrap();
    let config =
        TrainConfig::parse("data.features = { cache = \"disk\", dir = \"x\" }", &[]).unwrap();
    for now in [&TrainConfig::default(), &config] {
        assert_eq!(now.resume_changes(&stored, 1).unwrap(), ResumeChanges::default());
    }
    assert_eq!(TrainConfig::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
}

#[test]
fn parts_by_name_take_options_of_any_kind() {
    let text = "metrics = [\"spread\"]\n\
        [mode]\nschedule = \"warm\"\nlag = 6\noptions = { window = 3, name = \"x\", strict = true }\n\
        [objective]\nname = \"margin\"\noptions = { weight = 0.5 }\n\
        [distill]\nlambda = 0.25\ntau = 2.0";
    let set = ["mode.options.window=4", "objective.options.bound=1e-3"].map(str::to_owned);
    let config = TrainConfig::parse(text, &set).unwrap();
    let (schedule, objective) = (config.schedule(), config.objective());
    assert_eq!((schedule.name.as_str(), objective.name.as_str()), ("warm", "margin"));
    assert_eq!(schedule.options.count("window").unwrap(), Some(4));
    assert_eq!(schedule.options.text("name").unwrap(), Some("x"));
    assert_eq!(schedule.options.flag("strict").unwrap(), Some(true));
    assert_eq!(objective.options.number("weight").unwrap(), Some(0.5));
    assert_eq!(objective.options.number("bound").unwrap(), Some(1e-3));
    assert_eq!((objective.lambda, objective.tau), (0.25, 2.0));
    assert_eq!((config.mode.lag, config.metrics.as_slice()), (6, &["spread".to_owned()][..]));
    assert_eq!(TrainConfig::parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    // They are part of the run: a checkpoint with other options is of another run.
    let other = TrainConfig::parse(text, &[]).unwrap().fingerprint().unwrap();
    let differing = config.resume_changes(&other, 1).unwrap().refused;
    assert_eq!(differing.len(), 2, "{differing:?}");
    assert!(differing[0].starts_with("mode.options.window"), "{differing:?}");
    assert!(differing[1].starts_with("objective.options.bound"), "{differing:?}");
}

#[test]
fn the_isolator_is_off_at_length_0() {
    let off = TrainConfig::parse("[model]\nisolator_length = 0", &[]).unwrap();
    let keep = off.keep_count(16);
    assert_eq!(off.fast_view(16), View::Pruned { keep, isolator: false });
    let on = TrainConfig::parse("[model]\nisolator_length = 2", &[]).unwrap();
    assert_eq!(on.fast_view(16), View::Pruned { keep, isolator: true });
}
