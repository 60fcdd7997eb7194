//! What the tests of the packed runtime share: small models of noise, in every shape that a config can give them.

use std::sync::Arc;

use flashlm_kernels::{Exec, Isa, Token};

use super::engine::Engine;
use super::model::PackedModel;
use super::state::SequenceState;
use crate::config::{
    ActivationKind, DeltaConfig, DeltaForm, DeltaRule, QuantConfig, ScaleKind, ShortConvConfig, StatKind,
};
use crate::mixer::Settings;
use crate::pack::{Options, pack};
use crate::params::Layout;
use crate::rng::Rng;
use crate::testing::{noisy_model, tiny};
use crate::tok::Tokenizer;
use crate::{ModelConfig, mixer};

/// EOS of the vocabulary of bytes.
pub(crate) const EOS: Token = 256;

/// A model whose weights are noise: every token it writes hangs on all those before.
pub(crate) struct Noise {
    pub(crate) config: ModelConfig,
    pub(crate) layout: Layout,
    pub(crate) params: Vec<f32>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) model: Arc<PackedModel>,
}

impl Noise {
    pub(crate) fn new(config: ModelConfig) -> Self {
        Self::with(config, &Tokenizer::bytes(), |_, _| {})
    }

    /// With the vocabulary of `tokenizer`; `change` is given each parameter by its name.
    pub(crate) fn with(config: ModelConfig, tokenizer: &Tokenizer, change: impl Fn(&str, &mut [f32])) -> Self {
        let config = ModelConfig { vocab_size: tokenizer.vocab_size(), eos: tokenizer.eos().into(), ..config };
        let layout = Layout::of(&config);
        let mut params: Vec<f32> = noisy_model(&layout, 11).iter().map(|&p| p as f32).collect();
        layout.specs().iter().for_each(|spec| change(&spec.name, &mut params[spec.range.clone()]));
        let bytes = pack(&Exec::new(Isa::SCALAR, 1), &config, &params, tokenizer, Options::default());
        let model = Arc::new(PackedModel::from_bytes(bytes.clone(), "noise").unwrap());
        Noise { config, layout, params, bytes, model }
    }

    /// On one ISA, threads, rows of a pass.
    pub(crate) fn engine(&self, isa: Isa, threads: usize, rows: usize) -> Engine {
        Engine::new(self.model.clone(), Exec::new(isa, threads), rows)
    }

    /// The logits after each token and the state after the last, a token at a time on the portable ISA.
    pub(crate) fn in_turn(&self, tokens: &[Token]) -> (Vec<Vec<f32>>, SequenceState) {
        let (mut engine, mut state) = (self.engine(Isa::SCALAR, 1, 1), self.model.new_state());
        let logits = tokens.iter().map(|&token| engine.prefill(&mut state, &[token]).to_vec()).collect();
        (logits, state)
    }
}

/// All ISAs of the machine; `FLASHLM_ISA` narrows them to one.
pub(crate) fn isas() -> Vec<Isa> {
    Isa::wanted().unwrap()
}

/// Tokens of which some end a document.
pub(crate) fn stories(n: usize, seed: u64) -> Vec<Token> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| if rng.below(23) == 0 { EOS } else { rng.below(256) as Token }).collect()
}

/// A name for each shape of model, and its config.
pub(crate) fn shapes() -> Vec<(String, ModelConfig)> {
    let quant = |scale, size, stat, norm| QuantConfig { scale, size, stat, norm };
    let mut all = Vec::new();
    for &name in mixer::NAMES {
        let tensor = quant(ScaleKind::Tensor, 16, StatKind::Mean, false);
        let plain = ModelConfig { quant: tensor.clone(), norm_eps: 1e-2, ..tiny(name) };
        let recipe = ModelConfig {
            activation: ActivationKind::Relu2,
            sub_norm: true,
            logit_softcap: 3.0,
            x0: true,
            bigram: 1000,
            layer_embeddings: true,
            reset: true,
            pointer: 17,
            pointer_words: true,
            quant: quant(ScaleKind::Group, 10, StatKind::Mean, false),
            ..plain.clone()
        };
        let blocks = ModelConfig {
            ffn_hidden: 40,
            bigram: 77,
            pointer: 1,
            mixers: Settings {
                delta: DeltaConfig { expand_v: 1.0, ..plain.mixers.delta.clone() },
                ..plain.mixers.clone()
            },
            quant: quant(ScaleKind::Block, 32, StatKind::Median, true),
            ..plain.clone()
        };
        // Wider than a group of columns, a cell of outputs and a line of the cache, and a multiple of none.
        let delta = DeltaConfig { conv: 1, ..plain.mixers.delta.clone() };
        let wide = ModelConfig {
            dim: 72,
            ffn_hidden: 90,
            mixers: Settings {
                kernel_size: 1,
                shortconv: ShortConvConfig { kernel_size: 1 },
                delta,
                ..plain.mixers.clone()
            },
            quant: quant(ScaleKind::Group, 32, StatKind::Mean, true),
            ..plain.clone()
        };
        // Blocks that begin anywhere in a row.
        let odd = ModelConfig {
            layer_embeddings: true,
            quant: quant(ScaleKind::Block, 35, StatKind::Mean, false),
            ..plain.clone()
        };
        let bytes =
            ModelConfig { block_norm: false, quant: quant(ScaleKind::None, 1, StatKind::Mean, false), ..tiny(name) };
        for (shape, config) in
            [("plain", plain), ("recipe", recipe), ("blocks", blocks), ("wide", wide), ("bytes", bytes), ("odd", odd)]
        {
            all.push((format!("{name} {shape}"), config));
        }
    }
    let delta = |form, rule, negative_eigenvalues| {
        let base = tiny("delta");
        let quant = quant(ScaleKind::Tensor, 16, StatKind::Mean, false);
        let delta = DeltaConfig { form, rule, negative_eigenvalues, ..base.mixers.delta.clone() };
        ModelConfig { mixers: Settings { delta, ..base.mixers.clone() }, quant, ..base }
    };
    all.push(("delta original".into(), delta(DeltaForm::Original, DeltaRule::Undecayed, false)));
    all.push((
        "delta original, reset".into(),
        ModelConfig { reset: true, ..delta(DeltaForm::Original, DeltaRule::Canonical, true) },
    ));
    all.push(("delta undecayed".into(), delta(DeltaForm::Published, DeltaRule::Undecayed, true)));
    let mut square = delta(DeltaForm::Published, DeltaRule::Canonical, false);
    (square.norm_eps, square.mixers.delta.norm_eps) = (1e-3, 1e-3);
    square.mixers.delta.expand_v = square.mixers.delta.expand_k;
    all.push(("delta, keys as wide as values".into(), square));
    let pattern = ["delta", "delta", "attention", "conv"].map(String::from).to_vec();
    let mixed = delta(DeltaForm::Published, DeltaRule::Canonical, true);
    all.push(("pattern".into(), ModelConfig { pattern, blocks: 6, reset: true, ..mixed }));
    let pattern = ["shortconv", "conv"].map(String::from).to_vec();
    all.push(("both convolutions".into(), ModelConfig { pattern, blocks: 3, reset: true, ..tiny("shortconv") }));
    all
}
