use flashlm_model::params::Layout;
use flashlm_model::{ModelConfig, Precision};

use super::*;
use crate::stage::{Boundaries, Shuffle, Stage};

#[test]
fn presets_have_the_published_sizes() {
    for (name, parameters) in [("v4-small", 4_364_736), ("v4-large", 16_847_232), ("gdn-small", 5_042_112)] {
        let model = preset(name).unwrap().model;
        assert_eq!(Layout::of(&model).parameters(), parameters, "{name}");
    }
    for name in preset_names() {
        let settings = preset(name).unwrap();
        assert_eq!(settings.name, name);
        assert_eq!(Settings::from_toml(&settings.to_toml(), "saved").unwrap(), settings);
        let new = ["precision", "optimizer", "matrix_", "momentum", "pass_rows"];
        let text = settings.to_toml();
        let older = text.split_inclusive('\n').filter(|line| !new.iter().any(|key| line.starts_with(key)));
        let older = Settings::from_toml(&older.collect::<String>(), "saved").unwrap().train;
        assert_eq!((older.precision, older.optimizer.as_str()), (Precision::F32, "adamw"));
        assert_eq!(older.pass_rows, 2048);
    }
}

#[test]
fn the_readme_lists_every_preset_with_its_size() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    for name in preset_names() {
        let Settings { model, tokenizer, .. } = preset(name).unwrap();
        let model = ModelConfig { vocab_size: tokenizer.vocab, ..model };
        let millions = Layout::of(&model).parameters() as f64 / 1e6;
        let vocab = crate::units::thousands(tokenizer.vocab as u64);
        let row = format!("| `{name}` | {millions:.1} M | {} x {} | {vocab}", model.dim, model.blocks);
        assert!(readme.contains(&row), "README.md wants a row that begins with {row:?}");
    }
}

#[test]
fn runs_saved_before_there_were_switches_have_them_off() {
    let settings = preset("v4-small").unwrap();
    let bits = ["activation_bits", "activation_share"];
    let steps = ["shuffle", "average_share", "final_momentum", "row_normalise", "newton_schulz_steps"];
    let keys = [
        &["activation ", "sub_norm", "zero_init", "pointer ", "pointer_words", "logit_softcap", "z_loss"],
        &bits[..],
        &steps,
    ]
    .concat();
    let saved = settings.to_toml();
    let older: Vec<_> = saved.lines().filter(|line| !keys.iter().any(|key| line.starts_with(key))).collect();
    assert_eq!(older.len() + keys.len(), saved.lines().count());
    assert_eq!(Settings::from_toml(&older.join("\n"), "saved").unwrap(), settings);
    let mut layers = Layers::preset("v4-small").unwrap();
    for (key, value) in [("model.activation", "relu2"), ("model.logit_softcap", "15"), ("train.z_loss", "1e-4")] {
        layers.set(key, value).unwrap();
    }
    let set = layers.settings().unwrap();
    assert_eq!((set.model.logit_softcap, set.train.z_loss), (15.0, 1e-4));
    assert!(settings.conflict(&set).unwrap().contains("model.activation"));
    layers.set("train.z_loss", "-1").unwrap();
    assert!(layers.settings().unwrap_err().to_string().contains("train.z_loss = -1: must be between 0 and 1"));
}

#[test]
fn labels_are_smoothed_without_a_cap_and_without_pointers_alone() {
    for (key, value) in [("model.logit_softcap", "15"), ("model.pointer", "512")] {
        let mut layers = Layers::preset("v4-small").unwrap();
        layers.set("train.label_smoothing", "0.1").unwrap();
        assert_eq!(layers.settings().unwrap().train.label_smoothing, 0.1);
        layers.set(key, value).unwrap();
        let said = layers.settings().unwrap_err().to_string();
        assert!(said.contains(&format!("train.label_smoothing = 0.1: must be 0 where {key} is not")), "{said}");
    }
}

#[test]
fn activation_bits_of_older_runs_are_the_models() {
    let saved = preset("v4-small").unwrap();
    let older = |bits: &str| {
        let text = saved.to_toml().replace("activation_bits = 0\n", "");
        Settings::from_toml(&text.replace("[train]\n", &format!("[train]\nactivation_bits = {bits}\n")), "saved")
    };
    assert_eq!(older("0").unwrap(), saved);
    let mut rounded = saved.clone();
    rounded.model.activation_bits = 8;
    assert_eq!(older("8").unwrap(), rounded);
    assert_eq!(Settings::from_toml(&rounded.to_toml(), "saved").unwrap(), rounded);
    assert!(older("4").unwrap_err().to_string().contains("model.activation_bits = 4: must be 0"));
    // What is asked for now is asked for by its name.
    let error = Layers::defaults().set("train.activation_bits", "8").unwrap_err().to_string();
    assert!(error.contains("unknown key `train.activation_bits`; did you mean `model.activation_bits`?"), "{error}");
}

#[test]
fn a_mixer_that_a_pattern_hides_is_refused() {
    let of = |preset: &str, set: &[(&str, &str)]| {
        let mut layers = Layers::preset(preset).unwrap();
        set.iter().for_each(|(key, value)| layers.set(key, value).unwrap());
        layers.settings().map(|settings| (0..3).map(|i| settings.model.mixer_of(i).to_string()).collect::<Vec<_>>())
    };
    let (mixer, none, own) = (("model.mixer", "delta"), ("model.pattern", "[]"), ("model.pattern", "[\"delta\"]"));
    let error = of("flash-tiny", &[mixer]).unwrap_err().to_string();
    let want =
        r#"model.mixer = "delta" would do nothing: model.pattern = ["conv", "attention"] has the mixer of each block"#;
    assert!(error.starts_with(want) && error.contains(r#"set model.pattern = ["delta"]"#), "{error}");
    assert!(of("flash-tiny", &[own, mixer, ("train.lr", "0.1")]).is_err());
    for set in [&[mixer, none][..], &[none, mixer], &[mixer, own], &[own]] {
        assert_eq!(of("flash-tiny", set).unwrap(), ["delta"; 3], "{set:?}");
    }
    assert_eq!(of("v4-small", &[mixer]).unwrap(), ["delta"; 3]);
    let mut layers = Layers::preset("flash-tiny").unwrap();
    layers.merge_text("model.mixer = 'delta'", "own.toml").unwrap();
    assert!(layers.settings().unwrap_err().to_string().contains("model.pattern"));
    layers.merge_text("model.pattern = []", "own.toml").unwrap();
    assert_eq!(layers.settings().unwrap().model.mixer_of(1), "delta");
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let mut layers = Layers::defaults();
    for (key, nearest) in
        [("train.warm_steps", "train.warmup_steps"), ("train.seqlen", "train.seq_len"), ("modle.dim", "model.")]
    {
        let error = layers.set(key, "1").unwrap_err().to_string();
        assert!(error.contains("unknown key"), "{error}");
        assert!(error.contains(&format!("did you mean `{nearest}")), "{error}");
    }
    let error = layers.set("batch", "4").unwrap_err().to_string();
    assert!(error.contains("train.batch"), "{error}");
    for (key, hint) in [
        ("train.learning_rate", "did you mean `train.lr`?"),
        ("train.lerning_rate", "did you mean `train.lr`?"),
        ("model.n_layer", "did you mean `model.blocks`?"),
        ("train.block_size", "did you mean `train.seq_len`?"),
        ("train.xyzzy_plugh", "list all keys"),
    ] {
        let error = layers.set(key, "1").unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn layers_override_in_order_and_types_are_checked() {
    let mut layers = Layers::preset("v4-large").unwrap();
    layers.merge_text("[train]\nlr = 1\nbatch = 7", "file").unwrap();
    layers.set("train.batch", "9").unwrap();
    layers.set("data.source", "my file.txt").unwrap();
    let settings = layers.settings().unwrap();
    assert_eq!((settings.train.lr, settings.train.batch, settings.model.dim), (1.0, 9, 384));
    assert_eq!(settings.data.source, "my file.txt");
    assert!(layers.set("train.batch", "many").is_err());
    layers.set("train.optimizer", "none-such").unwrap();
    let error = layers.settings().unwrap_err().to_string();
    assert!(error.contains(&format!("must be one of {}", crate::optim::NAMES.join(", "))), "{error}");
    layers.set("train.optimizer", "muon").unwrap();
    layers.set("train.lr", "0").unwrap();
    assert!(layers.settings().unwrap_err().to_string().contains("train.lr = 0: must be above 0"));
    for (key, bad) in [("model.activation_bits", "4"), ("train.activation_share", "0"), ("train.dropout", "0.95")] {
        let mut layers = Layers::defaults();
        layers.set(key, bad).unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains(&format!("{key} = {bad}: must be ")));
    }
    for (key, bad) in [("train.newton_schulz_steps", "0"), ("train.average_share", "2"), ("train.final_momentum", "1")]
    {
        let mut layers = Layers::defaults();
        layers.set(key, bad).unwrap();
        assert!(layers.settings().unwrap_err().to_string().contains(&format!("{key} = {bad}: must be ")));
    }
    layers.set("train.lr", "nan").unwrap();
    assert!(layers.settings().unwrap_err().to_string().contains("train.lr"));
}

#[test]
fn story_boundaries_and_the_reset_of_the_model_are_one_switch() {
    let of = |settings: &[(&str, &str)]| {
        let mut layers = Layers::preset("v4-small").unwrap();
        settings.iter().for_each(|(key, value)| layers.set(key, value).unwrap());
        let settings = layers.settings().unwrap();
        (settings.data.boundaries, settings.model.reset)
    };
    use Boundaries::{Packed, Padded, Reset};
    assert_eq!(of(&[]), (Packed, false));
    assert_eq!(of(&[("model.reset", "true")]), (Reset, true));
    assert_eq!(of(&[("data.boundaries", "reset")]), (Reset, true));
    assert_eq!(of(&[("data.boundaries", "reset"), ("model.reset", "false")]), (Packed, false));
    assert_eq!(of(&[("model.reset", "true"), ("data.boundaries", "packed")]), (Packed, false));
    assert_eq!(of(&[("data.boundaries", "padded")]), (Padded, false));
    assert_eq!(of(&[("data.boundaries", "padded"), ("model.reset", "true")]), (Padded, true));
    assert_eq!(of(&[("data.boundaries", "padded"), ("data.boundaries", "reset")]), (Reset, true));
    let both = "[data]\nboundaries = \"reset\"\n[model]\nreset = false";
    let mut layers = Layers::defaults();
    layers.merge_text(both, "file").unwrap();
    let error = layers.settings().unwrap_err().to_string();
    assert!(error.contains("contradicts model.reset = false: set only one of them"), "{error}");
    layers.set("data.boundaries", "reset").unwrap();
    assert!(layers.settings().unwrap().model.reset, "a later layer mends it");
    // Saved before there was the switch.
    let saved = preset("flash-tiny").unwrap().to_toml();
    let older = saved.replace("boundaries = \"reset\"\n", "");
    assert_ne!(older, saved);
    assert_eq!(Settings::from_toml(&older, "saved").unwrap().to_toml(), saved);
    assert!(Layers::defaults().set("data.boundaries", "1").is_err());
    layers.set("data.boundaries", "none").unwrap();
    assert!(layers.settings().unwrap_err().to_string().contains("packed"), "the values are told");
}

#[test]
fn a_resumed_run_keeps_what_matters() {
    let a = preset("v4-small").unwrap();
    let mut b = a.clone();
    b.train.steps = 77;
    b.train.threads = 3;
    assert_eq!(a.conflict(&b), None);
    b.data.shuffle = Shuffle::Documents;
    assert_eq!(a.conflict(&b).unwrap(), "data.shuffle was \"windows\" when saved and is \"documents\" now");
    b.data.shuffle = a.data.shuffle;
    b.model.dim = 200;
    assert!(a.conflict(&b).unwrap().contains("model.dim was 192 when saved and is 200 now"));
}

#[test]
fn stages_are_saved_and_read_back() {
    let settings = preset("curriculum-small").unwrap();
    let names = |stage: &Stage| stage.sources.iter().map(|s| s.source.clone()).collect::<Vec<_>>().join("+");
    let stages: Vec<_> = settings.stages().iter().map(|stage| (stage.seq_len, names(stage))).collect();
    let wanted = [(128, "tinystories"), (256, "simplestories"), (512, "fineweb-edu+simplestories")];
    assert_eq!(stages, wanted.map(|(seq_len, names)| (seq_len, names.to_string())));
    // 0.3 + 0.4 * 0.2 of the run are SimpleStories.
    let texts: Vec<_> = settings.texts().iter().map(|t| (t.source.clone(), (t.weight * 100.0).round())).collect();
    let wanted = [("tinystories", 30.0), ("simplestories", 38.0), ("fineweb-edu", 32.0)];
    assert_eq!(texts, wanted.map(|(name, weight)| (name.to_string(), weight)));
    assert_eq!(Settings::from_toml(&settings.to_toml(), "saved").unwrap(), settings);
    let filter = &settings.texts()[2].filter;
    assert_eq!((filter.min_score, filter.min_chars, filter.max_chars, filter.min_simple), (3.0, 400, 6000, 0.8));
    let mut other = settings.clone();
    other.train.stages[2].sources[0].filter.min_simple = 0.7;
    assert!(settings.conflict(&other).unwrap().contains("train.stages"));
}

#[test]
fn the_family_is_a_setting_and_is_written_only_where_it_is_another() {
    let mut layers = Layers::preset("v4-small").unwrap();
    layers.set("model.family", "flash").unwrap();
    let settings = layers.settings().unwrap();
    assert!(settings.model.family == "flash" && !settings.to_toml().contains("family"));
    layers.set("model.family", "mlp").unwrap();
    let error = layers.settings().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("model.family = \"mlp\": must be one of flash"), "{error}");
}

/// Runs are told apart by a hash of this text: keys keep their order from one version to the next.
#[test]
fn keys_are_written_in_the_order_they_always_had() {
    let text = preset("v4-small").unwrap().to_toml();
    let keys =
        ["eos =", "kernel_size =", "block_norm =", "norm_eps =", "[model.quant]", "[model.delta]", "[model.attention]"];
    let places: Vec<usize> = keys.iter().map(|key| text.find(key).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn a_digest_follows_what_is_not_the_default() {
    let (plain, mut other) = (Settings::default(), Settings::default());
    // XXH3-64 of nothing, as its authors publish it.
    assert_eq!(plain.digest(), "2d06800538d394c2");
    other.train.lr *= 2.0;
    let changed = other.digest();
    assert_ne!(changed, plain.digest());
    other.train.lr /= 2.0;
    assert_eq!(other.digest(), plain.digest());
    // Through a file as well.
    let saved = preset("hybrid-small").unwrap();
    assert_eq!(Settings::from_toml(&saved.to_toml(), "saved").unwrap().digest(), saved.digest());
}

#[test]
fn v3_has_the_parameters_of_the_original() {
    let v3 = preset("v3").unwrap();
    let model = flashlm_model::ModelConfig { vocab_size: v3.tokenizer.vocab, ..v3.model };
    assert_eq!(model.parameters(), 13_555_969);
}
