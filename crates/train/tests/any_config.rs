//! Configs at random, and all that becomes of a model: two steps, a checkpoint or a file, loaded, packed, written with, scored.
//! What `validate` lets pass must come through; what it refuses it must refuse by a key that is there.
//!
//! `FLASHLM_CASES=5000` draws more of them, `FLASHLM_CASE=17` the one of that number alone; with `--nocapture` each test prints
//! what it counted.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::{Arc, Mutex};

use flashlm_kernels::ops::{GROUPED_TAPS, round_int8};
use flashlm_kernels::{Exec, Isa, Token};
use flashlm_model::config::{
    ActivationKind, AttentionConfig, DeltaConfig, DeltaForm, DeltaRule, DilatedConfig, QuantConfig, ScaleKind,
    ShortConvConfig, StatKind,
};
use flashlm_model::io::safetensors::{TensorRef, write_tensors};
use flashlm_model::model_file::{Model, save_params};
use flashlm_model::pack::{Density, Options, TableBits, pack};
use flashlm_model::params::Group;
use flashlm_model::rng::Rng;
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, Generation, ModelConfig, PackedModel, Precision, Prepared, Shape, mixer, sample};
use flashlm_train::checkpoint::{self, Part};
use flashlm_train::config::Settings;
use flashlm_train::eval::Stories;
use flashlm_train::eval::bpb::{Master, evaluate};
use flashlm_train::load::load_model;
use flashlm_train::optim;
use flashlm_train::stage::Boundaries;
use flashlm_train::stepper::{Step, Stepper};

const TEXT: &str =
    "The cat sat on the mat. \"Écoute,\" said the bird to the cat, \"the mat is mine!\" The cat was sad.";

/// What a quarter of all rows of a model may be off (RMS ratio) from the packed runtime: these have met no number next to a half.
const APART: f64 = 1e-6;

struct Draw(Rng);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }

    fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// True once in so many times.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A valid config of `v3` for `tokenizer`.
    fn v3(&mut self, tokenizer: &Tokenizer) -> ModelConfig {
        let groups = self.within(1..=6);
        let (reset, vocab_size) = (self.once_in(2), tokenizer.vocab_size());
        let layers = self.within(1..=4);
        ModelConfig {
            family: "v3".into(),
            vocab_size,
            dim: groups * self.within(1..=64 / groups),
            blocks: self.within(1..=4),
            ffn_hidden: self.within(1..=70),
            reset,
            eos: if reset { tokenizer.eos().into() } else { self.below(vocab_size) },
            dilated: DilatedConfig { groups, dilations: (0..layers).map(|_| self.of(&[1, 2, 3, 5, 17, 64])).collect() },
            norm_eps: self.of(&[1e-12, 1e-8, 1e-6, 1e-2, 0.99]),
            activation: ActivationKind::Relu2,
            activation_bits: self.of(&[0, 8]),
            quant: QuantConfig {
                scale: self.of(&[
                    ScaleKind::None,
                    ScaleKind::Tensor,
                    ScaleKind::Block,
                    ScaleKind::Group,
                    ScaleKind::Unit,
                ]),
                size: self.within(1..=64),
                stat: self.of(&[StatKind::Mean, StatKind::Median]),
                norm: false,
            },
            mixers: mixer::Settings { kernel_size: self.within(1..=GROUPED_TAPS), ..ModelConfig::v4_small().mixers },
            ..ModelConfig::v4_small()
        }
    }

    /// A valid config for `tokenizer`: small, and odd wherever it may be.
    fn config(&mut self, tokenizer: &Tokenizer) -> ModelConfig {
        if self.once_in(6) {
            return self.v3(tokenizer);
        }
        let mixer = self.of(mixer::NAMES).to_string();
        let pattern = if self.once_in(2) { 0 } else { self.within(1..=4) };
        let pattern: Vec<String> = (0..pattern).map(|_| self.of(mixer::NAMES).to_string()).collect();
        let heads = self.within(1..=4);
        // Whether or not there is attention: a head of an odd width is one of the edges.
        let dim = if self.once_in(3) { self.within(1..=64) } else { 2 * heads * self.within(1..=64 / (2 * heads)) };
        let attention = match dim.is_multiple_of(2 * heads) {
            true => AttentionConfig {
                heads,
                window: self.of(&[1, 2, 3, 5, 7, 16, 300]),
                rope_base: self.of(&[1.0, 77.7, 10_000.0, 1e9]),
            },
            false => AttentionConfig::default(),
        };
        let allowed = |name: &String| name != "attention" || dim.is_multiple_of(2 * attention.heads);
        let heads = self.within(1..=4);
        let mut expand =
            |most: usize| heads as f64 * self.within(1..=(8 * dim / heads).clamp(1, most)) as f64 / dim as f64;
        let (expand_k, expand_v) = (expand(12), expand(20));
        let delta = match expand_k.max(expand_v) <= 8.0 {
            true => DeltaConfig {
                form: self.of(&[DeltaForm::Published, DeltaForm::Original]),
                rule: self.of(&[DeltaRule::Canonical, DeltaRule::Undecayed]),
                heads,
                expand_k,
                expand_v,
                conv: self.within(1..=6),
                negative_eigenvalues: self.once_in(2),
                norm_eps: self.of(&[1e-12, 1e-6, 1e-5, 1e-2, 0.99]),
            },
            false => DeltaConfig { heads: 1, expand_k: 1.0, expand_v: 1.0, ..DeltaConfig::default() },
        };
        let mut pattern: Vec<String> = pattern.into_iter().filter(allowed).collect();
        if !allowed(&mixer) && pattern.is_empty() {
            pattern.push("conv".into());
        }
        let reset = self.once_in(2);
        let bigram = if self.once_in(2) { 0 } else { self.within(1..=300) };
        let vocab_size = tokenizer.vocab_size();
        ModelConfig {
            vocab_size,
            dim,
            blocks: self.within(1..=4),
            ffn_hidden: self.within(1..=70),
            mixer,
            pattern,
            reset,
            eos: if reset || bigram > 0 { tokenizer.eos().into() } else { self.below(vocab_size) },
            block_norm: !self.once_in(4),
            norm_eps: self.of(&[1e-12, 1e-6, 1e-5, 1e-2, 0.99]),
            activation: self.of(&[ActivationKind::Silu, ActivationKind::Relu2]),
            sub_norm: self.once_in(2),
            zero_init: self.once_in(3),
            x0: self.once_in(2),
            bigram,
            layer_embeddings: self.once_in(3),
            pointer: self.of(&[0, 0, 1, 2, 7, 300]),
            logit_softcap: self.of(&[0.0, 0.0, 1.0, 15.0, 1000.0]),
            activation_bits: self.of(&[0, 8]),
            quant: QuantConfig {
                scale: self.of(&[ScaleKind::None, ScaleKind::Tensor, ScaleKind::Block, ScaleKind::Group]),
                size: if self.once_in(3) { self.of(&[100, 256, 1000, 1 << 20]) } else { self.within(1..=64) },
                stat: self.of(&[StatKind::Mean, StatKind::Median]),
                norm: self.once_in(3),
            },
            mixers: mixer::Settings {
                kernel_size: self.of(&[1, 2, 3, 4, 5, 8, 16, 64]),
                delta,
                attention,
                shortconv: ShortConvConfig { kernel_size: self.of(&[1, 2, 3, 4, 5, 8, 16, 64]) },
            },
            ..ModelConfig::v4_small()
        }
    }

    /// A number from anywhere, more often next to where something begins or ends.
    fn number(&mut self) -> usize {
        match self.below(4) {
            0 => self.below(70),
            1 => self.of(&[0, 1, 2, 3, usize::MAX, usize::MAX / 2, 1 << 32]),
            2 => (self.0.next_u64() >> self.within(32..=63)) as usize,
            _ => (1usize << self.below(22)).saturating_add(2).saturating_sub(self.within(1..=3)),
        }
    }

    fn float(&mut self) -> f64 {
        let edges =
            [-1.0, -0.0, 0.0, 1e-300, 9e-13, 1e-12, 1.0 / 3.0, 1.0, 2.0, 8.0, 8.001, 1e3, 1e4, 1e9, 1e10, 1e300];
        match self.below(6) {
            0 => self.of(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
            1 | 2 => self.of(&edges),
            3 => self.within(1..=64) as f64 / self.within(1..=64) as f64,
            _ => (40.0 * self.0.uniform() - 20.0).exp(),
        }
    }

    fn name(&mut self) -> String {
        if self.once_in(3) { self.of(&["rnn", "", "Conv", "mixer"]).into() } else { self.of(mixer::NAMES).into() }
    }

    /// Sets one key to whatever, and returns it.
    fn change(&mut self, c: &mut ModelConfig) -> &'static str {
        let at = self.below(KEYS.len());
        match KEYS[at] {
            "family" => c.family = self.of(&["flash", "v3", "v9"]).into(),
            "dilated.groups" => c.dilated.groups = self.number(),
            "dilated.dilations" => {
                let layers = self.of(&[0, 1, 2, 16, 17]);
                c.dilated.dilations = (0..layers).map(|_| self.number()).collect();
            }
            "activation" => c.activation = self.of(&[ActivationKind::Silu, ActivationKind::Relu2]),
            "block_norm" => c.block_norm = !c.block_norm,
            "sub_norm" => c.sub_norm = !c.sub_norm,
            "zero_init" => c.zero_init = !c.zero_init,
            "x0" => c.x0 = !c.x0,
            "layer_embeddings" => c.layer_embeddings = !c.layer_embeddings,
            "quant.scale" => c.quant.scale = self.of(&[ScaleKind::None, ScaleKind::Tensor, ScaleKind::Unit]),
            "quant.norm" => c.quant.norm = !c.quant.norm,
            "vocab_size" => c.vocab_size = self.number(),
            "dim" => c.dim = self.number(),
            "blocks" => c.blocks = self.number(),
            "ffn_hidden" => c.ffn_hidden = self.number(),
            "mixer" => c.mixer = self.name(),
            "pattern" => c.pattern = (0..self.of(&[0, 1, 2, 5, 128, 129, 1000])).map(|_| self.name()).collect(),
            "reset" => c.reset = !c.reset,
            "eos" => c.eos = self.number(),
            "bigram" => c.bigram = self.number(),
            "pointer" => c.pointer = self.number(),
            "pointer_words" => c.pointer_words = !c.pointer_words,
            "kernel_size" => c.mixers.kernel_size = self.number(),
            "norm_eps" => c.norm_eps = self.float(),
            "logit_softcap" => c.logit_softcap = self.float(),
            "activation_bits" => c.activation_bits = self.of(&[0, 1, 2, 4, 8, 16, u32::MAX]),
            "quant.size" => c.quant.size = self.number(),
            "delta.heads" => c.mixers.delta.heads = self.number(),
            "delta.expand_k" => c.mixers.delta.expand_k = self.float(),
            "delta.expand_v" => c.mixers.delta.expand_v = self.float(),
            "delta.conv" => c.mixers.delta.conv = self.number(),
            "delta.norm_eps" => c.mixers.delta.norm_eps = self.float(),
            "attention.heads" => c.mixers.attention.heads = self.number(),
            "attention.window" => c.mixers.attention.window = self.number(),
            "shortconv.kernel_size" => c.mixers.shortconv.kernel_size = self.number(),
            "attention.rope_base" => c.mixers.attention.rope_base = self.float(),
            key => panic!("no way to draw `{key}`"),
        }
        KEYS[at]
    }

    /// Sets sizes that are allowed, and may be too large together.
    fn enlarge(&mut self, c: &mut ModelConfig) -> Vec<&'static str> {
        (c.dim, c.blocks) = (1 << self.within(8..=13), self.of(&[1, 4, 30, 128]));
        (c.ffn_hidden, c.mixers.attention.window) = (self.of(&[1, 2048, 32_768]), self.of(&[1, 16_384]));
        (c.mixers.attention.heads, c.mixers.delta.heads) = (1, self.of(&[1, 4]));
        (c.mixers.delta.expand_k, c.mixers.delta.expand_v) = (self.of(&[0.25, 8.0]), self.of(&[0.25, 8.0]));
        KEYS.to_vec()
    }
}

/// Keys whose values can be wrong, alone or together.
const KEYS: &[&str] = &[
    "family",
    "dilated.groups",
    "dilated.dilations",
    "activation",
    "block_norm",
    "sub_norm",
    "zero_init",
    "x0",
    "layer_embeddings",
    "quant.scale",
    "quant.norm",
    "vocab_size",
    "dim",
    "blocks",
    "ffn_hidden",
    "mixer",
    "pattern",
    "reset",
    "eos",
    "bigram",
    "pointer",
    "pointer_words",
    "kernel_size",
    "norm_eps",
    "logit_softcap",
    "activation_bits",
    "quant.size",
    "delta.heads",
    "delta.expand_k",
    "delta.expand_v",
    "delta.conv",
    "delta.norm_eps",
    "attention.heads",
    "attention.window",
    "attention.rope_base",
    "shortconv.kernel_size",
];

/// A setting of a mixer that is not drawn is not tried.
#[test]
fn every_number_of_the_mixers_settings_is_drawn() {
    let settings = serde_json::to_value(ModelConfig::v4_small().mixers).unwrap();
    for (key, value) in settings.as_object().unwrap() {
        let inner = value.as_object().into_iter().flatten().map(|(inner, value)| (format!("{key}.{inner}"), value));
        for (key, value) in inner.chain([(key.clone(), value)]) {
            assert!(
                !value.is_number() || KEYS.contains(&key.as_str()),
                "`{key}` wants a line in KEYS and in `Draw::change`"
            );
        }
    }
}

/// Keys that are refused for what another one is.
const BETWEEN: [&str; 9] = [
    "dilated.groups",
    "vocab_size",
    "dim",
    "blocks",
    "eos",
    "attention.heads",
    "attention.window",
    "delta.expand_k",
    "delta.expand_v",
];

fn tokenizers() -> Vec<Tokenizer> {
    let bpe = |text: &str, size| Tokenizer::train_bpe([text].into_iter(), size).unwrap();
    let frequency = |size| Tokenizer::train_frequency([TEXT].into_iter(), size).unwrap();
    vec![Tokenizer::bytes(), bpe("x", 257), bpe(TEXT, 273), frequency(5), frequency(11), frequency(50_000)]
}

/// Says which config it was when a test fails.
struct Blame<'a>(usize, &'a ModelConfig, &'a str);

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Blame(case, config, about) = self;
            let json = serde_json::to_string(config).unwrap_or_default();
            eprintln!("FLASHLM_CASE={case}, {about}:\n{json}");
        }
    }
}

/// Counts by name.
#[derive(Default)]
struct Counts(Mutex<BTreeMap<String, usize>>);

impl Counts {
    fn add(&self, name: impl Into<String>) {
        *self.0.lock().unwrap().entry(name.into()).or_default() += 1;
    }

    fn get(&self, name: &str) -> usize {
        self.0.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    fn print(&self, title: &str) {
        println!("{title}");
        self.0.lock().unwrap().iter().for_each(|(name, count)| println!("{count:8} {name}"));
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// All that becomes of one model.
fn live(cx: &Exec, draw: &mut Draw, config: &ModelConfig, tokenizer: &Tokenizer, case: usize, counts: &Counts) {
    let mut settings = Settings { model: config.clone(), ..Settings::default() };
    settings.data.boundaries = if config.reset { Boundaries::Reset } else { Boundaries::Packed };
    settings.train.optimizer = optim::NAMES[case % optim::NAMES.len()].into();
    settings.train.row_normalise = draw.once_in(2);
    settings.train.newton_schulz_steps = draw.within(1..=6);
    let momentum = draw.of(&[0.0, 0.8, 0.99]);
    settings.train.dropout = if case.is_multiple_of(3) { 0.2 } else { 0.0 };
    settings.validate().unwrap();
    assert_eq!(Settings::from_toml(&settings.to_toml(), "saved").unwrap().model, *config, "through TOML");

    // Two steps.
    let v = config.vocab_size;
    let (batch, t) = (draw.within(1..=3), draw.within(1..=20));
    let windows: Vec<Vec<Token>> = (0..batch).map(|_| (0..=t).map(|_| draw.below(v) as Token).collect()).collect();
    let precision = draw.of(&[Precision::F32, Precision::Bf16]);
    let shape = Shape { batch, seq_len: t };
    let mut stepper = Stepper::new(config, precision, shape, &settings.train).unwrap();
    for step in 1..=2 {
        let told = Step { shape, settings: &settings.train, lr: 1e-2, momentum, number: step, frozen: 0 };
        let update = stepper.step(cx, told, |i| &windows[i]);
        if !update.is_finite() {
            // Without any norm on the way, what a deep model computes may grow beyond the largest float.
            let bare = !config.block_norm && !config.quant.norm && !config.sub_norm;
            assert!(bare && config.blocks > 4, "step {step}: {update:?}");
            return counts.add("too deep to train without a norm");
        }
    }

    // Saved and loaded.
    let folder = tempfile::tempdir().unwrap();
    let Stepper { lm, params, optimizers, .. } = &mut stepper;
    let (tensors, metadata) = save_params(lm.layout(), params, config);
    let json = tokenizer.to_json();
    let path = if draw.once_in(16) {
        let state = optimizers.state();
        let state = state.iter().map(|t| TensorRef { name: &t.name, shape: &t.shape, data: t.data }).collect();
        let toml = settings.to_toml();
        let parts = [
            Part::Tensors { file: "model.safetensors", tensors, metadata },
            Part::Tensors { file: "optimizer.safetensors", tensors: state, metadata: BTreeMap::new() },
            Part::Bytes { file: "config.toml", data: toml.as_bytes() },
            Part::Bytes { file: "tokenizer.json", data: &json },
        ];
        checkpoint::save(&folder.path().join("checkpoints"), 2, &parts).unwrap();
        folder.path().to_path_buf()
    } else {
        let path = folder.path().join("model.safetensors");
        write_tensors(&mut fs::File::create(&path).unwrap(), &tensors, &metadata).unwrap();
        fs::write(folder.path().join("tokenizer.json"), &json).unwrap();
        path
    };
    let model = load_model(&path).unwrap();
    assert!(bits(&model.params) == bits(params), "loaded parameters");
    assert_eq!((&model.config, model.parameters()), (config, lm.layout().parameters()));

    // Packed, in one of four ways, and read from a file.
    let options = Options {
        density: draw.of(&[Density::Four, Density::Five]),
        table: draw.of(&[TableBits::Eight, TableBits::Four]),
    };
    let file = folder.path().join("packed.safetensors");
    fs::write(&file, model.pack(cx, options)).unwrap();
    let packed = Arc::new(PackedModel::open(&file).unwrap());
    assert_eq!(packed.config(), config);
    write(cx, draw, &packed);

    // Scored in both forms, the latent one also in pieces that carry a state.
    let mut stories = Stories::default();
    ["The cat sat.", TEXT].iter().for_each(|text| stories.push(tokenizer, text));
    let mut lm = Precision::F32.build(&model.config, draw.of(&[7, 300]), false).unwrap();
    let mut engine = Engine::new(packed.clone(), Exec::new(cx.isa(), 1), draw.of(&[1, 5, 64]));
    let goes_on = &mut |_| ControlFlow::Continue(());
    for report in [
        evaluate(&mut engine, tokenizer, &stories, goes_on).unwrap(),
        evaluate(&mut Master::new(cx, &mut *lm, &model.params), tokenizer, &stories, goes_on).unwrap(),
    ] {
        assert!(report.bpb.is_finite() && report.bpb > 0.0, "{report:?}");
    }
    compare(cx, draw, &model, counts);
}

/// A few tokens, some in a second turn.
fn write(cx: &Exec, draw: &mut Draw, model: &Arc<PackedModel>) {
    let mut engine = Engine::new(model.clone(), Exec::new(cx.isa(), draw.within(1..=2)), draw.of(&[1, 3, 16]));
    let settings = sample::Settings { temperature: 0.8, top_p: 0.95, seed: 1, ..sample::Settings::default() };
    let mut generation = Generation::new(model, settings, 4, &[]).unwrap();
    for prompt in ["One day", " the cat and"] {
        generation.push(prompt);
        engine.generate(&mut generation, |_| ()).unwrap();
        generation.extend(3);
    }
    assert!((2..=7).contains(&generation.tokens()), "{} tokens", generation.tokens());
    let mut state = model.new_state();
    engine.feed(&mut state, &[0, 1, 0]);
    let mut again = model.restore(&state.save()).expect("its own bytes");
    let (a, b) = (engine.prefill(&mut state, &[1]).to_vec(), engine.prefill(&mut again, &[1]).to_vec());
    assert!(bits(&a) == bits(&b), "a saved state");
}

/// The packed runtime computes what the latent form does with int8 activations and an int8 table, and not what it does without.
fn compare(cx: &Exec, draw: &mut Draw, model: &Model, counts: &Counts) {
    let (b, t, v) = (8, 5, model.config.vocab_size);
    let mut lm = Precision::F32.build(&model.config, b * t, false).unwrap();
    let mut params = model.params.clone();
    let float = model.config.quant.scale == ScaleKind::None;
    for spec in lm.layout().specs() {
        // What `pack` does to these.
        if matches!(spec.group, Group::Embedding | Group::Table) || float && spec.group == Group::Matrix {
            round_int8(cx, &mut params[spec.range.clone()], spec.shape[1]);
        }
    }
    let bytes = pack(cx, &model.config, &params, &model.tokenizer, Options::default());
    let packed = Arc::new(PackedModel::from_bytes(bytes, "packed").unwrap());
    let mut engine = Engine::new(packed.clone(), Exec::new(cx.isa(), 1), 16);
    let texts: Vec<Token> = (0..b * t).map(|_| draw.below(v) as Token).collect();
    let mut got = Vec::new();
    for text in texts.chunks(t) {
        let mut state = packed.new_state();
        text.iter().for_each(|&token| got.extend_from_slice(engine.prefill(&mut state, &[token])));
    }
    let mut logits = vec![0.0; b * t * v];
    let mut off = |bits| {
        lm.set_activation_bits(bits);
        Prepared::new(cx, &mut *lm, &params).logits(&mut logits, &texts, None, Shape { batch: b, seq_len: t });
        let ratio = |(got, want): (&[f32], &[f32])| {
            let square = |x: f32| f64::from(x).powi(2);
            let apart = got.iter().zip(want).map(|(g, w)| square(g - w)).sum::<f64>().sqrt();
            let size = want.iter().map(|&w| square(w)).sum::<f64>().sqrt();
            // The runtime's soft cap is off by an absolute 1e-7 of the cap.
            (apart - 2e-7 * model.config.logit_softcap * (v as f64).sqrt()).max(0.0) / size
        };
        let mut all: Vec<f64> = got.chunks(v).zip(logits.chunks(v)).map(ratio).collect();
        *all.select_nth_unstable_by(b * t / 4, f64::total_cmp).1
    };
    let (with, without) = (off(8), off(0));
    assert!(with < APART, "a quarter of the rows is {with:.1e} off or more, without int8 {without:.1e}");
    counts.add(if without > APART { "int8 activations tell" } else { "int8 activations do not tell" });
}

/// Runs the cases on all processors.
fn each(default: usize, run: impl Fn(&Exec, usize) + Sync) {
    let asked = |name: &str| std::env::var(name).ok().map(|n| n.parse::<usize>().expect("a number"));
    let (cases, alone) = (asked("FLASHLM_CASES").unwrap_or(default), asked("FLASHLM_CASE"));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(4);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let run = &run;
            scope.spawn(move || {
                let cx = Exec::new(Isa::detect().unwrap(), 1);
                (thread..cases)
                    .step_by(threads)
                    .filter(|case| alone.is_none_or(|n| n == *case))
                    .for_each(|i| run(&cx, i));
            });
        }
    });
}

#[test]
fn a_valid_config_comes_through() {
    let (tokenizers, counts) = (tokenizers(), Counts::default());
    each(500, |cx, case| {
        let mut draw = Draw(Rng::new(case as u64));
        let tokenizer = &tokenizers[case % tokenizers.len()];
        let config = draw.config(tokenizer);
        let _blame = Blame(case, &config, tokenizer.kind());
        config.validate().unwrap();
        live(cx, &mut draw, &config, tokenizer, case, &counts);
        counts.add("came through");
        (0..config.blocks).for_each(|i| counts.add(format!("blocks of {} {}", config.family, config.mixer_of(i))));
        counts.add(format!("quant {:?}", config.quant.scale));
    });
    counts.print("valid configs");
    let (tell, not) = (counts.get("int8 activations tell"), counts.get("int8 activations do not tell"));
    assert!(tell >= 4 * not, "the comparison could not fail in {not} of {} cases", tell + not);
}

#[test]
fn any_config_is_refused_by_its_key_or_comes_through() {
    /// Larger ones would take minutes here.
    const MOST: usize = 1 << 19;
    let (tokenizers, counts) = (tokenizers(), Counts::default());
    each(2000, |cx, case| {
        let mut draw = Draw(Rng::new(!case as u64));
        let tokenizer = &tokenizers[case % tokenizers.len()];
        let mut config = draw.config(tokenizer);
        let changed = match draw.once_in(20) {
            true => draw.enlarge(&mut config),
            false => (0..draw.within(1..=3)).map(|_| draw.change(&mut config)).collect(),
        };
        let about = format!("{} with {changed:?} changed", tokenizer.kind());
        let _blame = Blame(case, &config, &about);
        let refused = |stage: &str, error: flashlm_model::config::ConfigError| {
            let key = error.key;
            // What one family has, another refuses.
            let between = BETWEEN.contains(&key) || changed.contains(&"family");
            assert!(changed.contains(&key) || between, "{error}");
            assert!(KEYS.contains(&key) && error.to_string().starts_with(&format!("model.{key} = ")), "{error}");
            // One line for each rule, whatever its numbers are.
            let word = |word| if str::contains(word, |c: char| c.is_ascii_digit()) { "#" } else { word };
            let rule: Vec<&str> = error.expected.split(' ').map(word).collect();
            counts.add(format!("refused by {stage}: {key} must be {}", rule.join(" ")));
        };
        if let Err(error) = config.validate() {
            return refused("validate", error);
        }
        if let Err(error) = config.fits(tokenizer) {
            return refused("fits (the tokenizer)", error);
        }
        if config.parameters().max(config.state_len()) > MOST {
            return counts.add("valid, too large for a test");
        }
        live(cx, &mut draw, &config, tokenizer, case, &counts);
        counts.add("came through");
    });
    counts.print("configs with one to three keys set to whatever");
}
