//! A token allocates nothing: a counting allocator sees none once the prompt is read.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use flashlm_model::config::{AttentionConfig, DeltaConfig, DeltaForm, QuantConfig, ScaleKind};
use flashlm_model::pack::{Options, pack};
use flashlm_model::params;
use flashlm_model::sample::Settings;
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, Exec, Generation, Isa, ModelConfig, PackedModel, mixer};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn models() -> Vec<(String, Arc<PackedModel>)> {
    let tokenizer = Tokenizer::bytes();
    let base = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        dim: 24,
        blocks: 4,
        ffn_hidden: 40,
        mixers: mixer::Settings {
            delta: DeltaConfig { heads: 3, ..DeltaConfig::default() },
            attention: AttentionConfig { heads: 3, window: 50, ..AttentionConfig::default() },
            ..ModelConfig::v4_small().mixers
        },
        ..ModelConfig::v4_small()
    };
    let mut all: Vec<(String, ModelConfig)> = mixer::NAMES
        .iter()
        .map(|&name| (name.to_owned(), ModelConfig { mixer: name.into(), ..base.clone() }))
        .collect();
    let mut original = ModelConfig { mixer: "delta".into(), ..base.clone() };
    original.mixers.delta.form = DeltaForm::Original;
    all.push(("original delta".into(), original));
    let quant = QuantConfig { scale: ScaleKind::Group, size: 10, norm: true, ..base.quant.clone() };
    let pattern = mixer::NAMES.iter().map(|name| name.to_string()).collect();
    all.push(("pattern".into(), ModelConfig { pattern, quant, logit_softcap: 5.0, ..base }));
    let cx = Exec::new(Isa::SCALAR, 1);
    let model = |(name, config): (String, ModelConfig)| {
        let params = params::Layout::of(&config).init::<f32>(1);
        let bytes = pack(&cx, &config, &params, &tokenizer, Options::default());
        (name, Arc::new(PackedModel::from_bytes(bytes, "random").unwrap()))
    };
    all.into_iter().map(model).collect()
}

#[test]
fn a_token_allocates_nothing() {
    // Without an end, so that all go on.
    let open = Settings { logit_bias: vec![(256, -100.0)], ..Settings::default() };
    let greedy = Settings { temperature: 0.0, ..open.clone() };
    let penalised = Settings {
        top_p: 0.9,
        min_p: 0.01,
        repeat_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.3,
        ..open.clone()
    };
    let top_k = Settings { top_k: 20, ..open };
    let stops = ["Never.".to_owned(), "\u{fffd}\u{fffd}, no".to_owned()];
    for (name, model) in models() {
        for (threads, streams) in [(1, 1), (1, 6), (2, 1), (2, 6)] {
            let mut engine = Engine::new(model.clone(), Exec::new(Isa::detect().unwrap(), threads), 16);
            let all = [&greedy, &penalised, &top_k];
            let mut generations: Vec<Generation> = (0..streams)
                .map(|i| {
                    let mut generation =
                        Generation::new(&model, all[i % 3].clone(), usize::MAX, &stops[..i % 3]).unwrap();
                    generation.push(["Once upon a time", "", "É"][i / 2]);
                    generation
                })
                .collect();
            engine.advance(&mut generations).unwrap();
            // A thread's own memory grows with the first work of a kind that it takes, which may be late.
            let mut stretch = || {
                let before = COUNT.load(SeqCst);
                for _ in 0..100 {
                    engine.advance(&mut generations).unwrap();
                }
                COUNT.load(SeqCst) - before
            };
            let counts: Vec<usize> = (0..5).map(|_| stretch()).collect();
            assert!(counts.contains(&0), "{name}: {streams} streams on {threads} threads: {counts:?}");
            assert!(threads > 1 || counts.iter().sum::<usize>() == 0, "{name}: {streams} streams: {counts:?}");
            assert!(generations.iter().all(|generation| generation.tokens() == 501 && generation.finish().is_none()));
        }
    }
}
