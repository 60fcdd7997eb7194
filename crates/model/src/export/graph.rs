//! The models of other programs that can say what ours computes, exactly: LFM2 (`shortconv`, `attention`) and Qwen3.5 (`delta` with keys
//! as wide as values, `attention`). [`Graph::of`] gives their tensors, each under its name in GGUF and in transformers, or every reason why not.
//!
//! A loader of either wants a block of each kind: where the model has one kind alone, a block whose outputs are zero is added. Qwen3.5's
//! attention multiplies its output by `sigmoid(gate)`: rows of zeros make that 1/2, and the output matrix is doubled.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::source::{Refused, Source};
use crate::codes::weight::{Codes, Values};
use crate::config::{ActivationKind, DeltaForm, DeltaRule, ModelConfig};

/// Epsilon of the norms of queries and keys in ours.
const UNIT_EPS: f64 = 1e-6;

/// A model of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    Lfm2,
    Qwen35,
}

/// What a block mixes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mix {
    /// `shortconv` or `delta`: a state of constant size.
    Recurrent,
    Attention,
}

/// What a tensor is, where programs keep it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Matrix,
    Embedding,
    /// A norm's scale, which transformers keeps less 1 where the model is Qwen3.5.
    Norm,
    /// Any other vector.
    Plain,
    /// `[channels, K]`.
    Taps,
    /// `A_log`; in GGUF `-exp` of it.
    Decay,
}

/// One of its tensors.
pub(super) struct Named {
    pub(super) gguf: String,
    pub(super) hf: String,
    pub(super) kind: Kind,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

/// A model in another program's form.
pub(super) struct Graph {
    pub(super) arch: Arch,
    pub(super) blocks: Vec<Mix>,
    pub(super) heads: usize,
    /// Taps of the convolutions.
    pub(super) taps: usize,
    /// Tokens that attention sees; without attention any number.
    pub(super) window: usize,
    /// Heads of the delta rule and the width of one.
    pub(super) delta: (usize, usize),
    pub(super) tensors: Vec<Named>,
}

fn refuse(reasons: &mut Vec<String>, bad: bool, key: &str, value: impl Display, expected: &str) {
    if bad {
        reasons.push(format!("{key} = {value} (expected {expected})"));
    }
}

/// The model that can say it, or why none can.
pub(super) fn expressible(c: &ModelConfig, tokenizer: &str) -> Result<Arch, Refused> {
    let used = |name: &str| (0..c.blocks).any(|i| c.mixer_of(i) == name);
    let [shortconv, delta, attention] = ["shortconv", "delta", "attention"].map(used);
    let arch = if delta { Arch::Qwen35 } else { Arch::Lfm2 };
    let mut all = Vec::new();
    let r = &mut all;
    refuse(r, c.family != "flash", "model.family", &c.family, "flash");
    let others: BTreeSet<&str> = (0..c.blocks).map(|i| c.mixer_of(i)).collect();
    for name in others.into_iter().filter(|name| !["shortconv", "delta", "attention"].contains(name)) {
        refuse(r, true, "mixer", name, "shortconv or delta, each alone or beside attention");
    }
    refuse(r, shortconv && delta, "mixer", "shortconv beside delta", "one of them");
    refuse(r, c.activation != ActivationKind::Silu, "model.activation", "relu2", "silu");
    refuse(r, !c.block_norm, "model.block_norm", "false", "true");
    refuse(r, c.sub_norm, "model.sub_norm", "true", "false");
    refuse(r, c.x0, "model.x0", "true", "false");
    refuse(r, c.bigram > 0, "model.bigram", c.bigram, "0");
    refuse(r, c.layer_embeddings, "model.layer_embeddings", "true", "false");
    refuse(r, c.pointer > 0, "model.pointer", c.pointer, "0");
    refuse(r, c.logit_softcap > 0.0, "model.logit_softcap", c.logit_softcap, "0");
    refuse(r, c.quant.norm, "model.quant.norm", "true", "false");
    refuse(r, !["bpe", "bytes"].contains(&tokenizer), "tokenizer.kind", tokenizer, "bpe or bytes");
    refuse(r, !c.dim.is_multiple_of(2), "model.dim", c.dim, "an even number");
    let units = (attention || delta) && c.norm_eps != UNIT_EPS;
    refuse(r, units, "model.norm_eps", c.norm_eps, "1e-6, that of queries and keys");
    if delta {
        let d = &c.mixers.delta;
        let (dk, dv) = d.widths(c.dim);
        refuse(r, d.form != DeltaForm::Published, "model.delta.form", "original", "published");
        refuse(r, d.rule != DeltaRule::Canonical, "model.delta.rule", "undecayed", "canonical");
        refuse(r, d.negative_eigenvalues, "model.delta.negative_eigenvalues", "true", "false");
        refuse(r, dk != dv, "model.delta.expand_v", d.expand_v, &format!("{}, as model.delta.expand_k", d.expand_k));
        refuse(r, d.norm_eps != c.norm_eps, "model.delta.norm_eps", d.norm_eps, "model.norm_eps");
    }
    if all.is_empty() { Ok(arch) } else { Err(Refused(all)) }
}

impl Graph {
    pub(super) fn of(source: &Source) -> Result<Graph, Refused> {
        let c = &source.config;
        let arch = expressible(c, source.tokenizer.kind())?;
        let mix = |i| if c.mixer_of(i) == "attention" { Mix::Attention } else { Mix::Recurrent };
        let mut blocks: Vec<Mix> = (0..c.blocks).map(mix).collect();
        let [attention, recurrent] = [Mix::Attention, Mix::Recurrent].map(|mix| blocks.contains(&mix));
        let fits = c.dim.is_multiple_of(2 * c.mixers.attention.heads);
        let (own, delta) = (c.mixers.shortconv.kernel_size, &c.mixers.delta);
        let taps = match arch {
            _ if !recurrent => 3,
            Arch::Lfm2 => own,
            Arch::Qwen35 => delta.conv,
        };
        // Zeros before the first tap change nothing; these lengths have kernels on GPUs, longer ones on CPUs alone.
        let taps = [3, 4, 5, 9, 15].into_iter().find(|&known| known >= taps).unwrap_or(taps);
        match (attention, recurrent) {
            (false, _) => blocks.push(Mix::Attention),
            (_, false) => blocks.push(Mix::Recurrent),
            _ => {}
        }
        let mut graph = Graph {
            arch,
            heads: if fits { c.mixers.attention.heads } else { 1 },
            taps,
            window: if attention { c.mixers.attention.window } else { 1 << 15 },
            delta: (delta.heads, delta.widths(c.dim).0),
            tensors: Vec::new(),
            blocks: Vec::new(),
        };
        let get = |name: String| {
            let found = source.weights.iter().find(|weight| weight.name == name);
            found.unwrap_or_else(|| panic!("{name} in a model of this config")).values.clone()
        };
        let add = &mut graph.tensors;
        push(
            add,
            "token_embd.weight",
            "model.embed_tokens.weight",
            Kind::Embedding,
            get("embedding.weight".into()),
            c.dim,
        );
        for (i, &mix) in blocks.iter().enumerate() {
            match arch {
                Arch::Lfm2 => lfm2(add, c, i, mix, (graph.heads, taps), &get),
                Arch::Qwen35 => qwen35(add, c, i, mix, (graph.heads, taps), &get),
            }
        }
        let (gguf, hf) = match arch {
            Arch::Lfm2 => ("token_embd_norm.weight", "model.embedding_norm.weight"),
            Arch::Qwen35 => ("output_norm.weight", "model.norm.weight"),
        };
        push(add, gguf, hf, Kind::Norm, get("final_norm.scale".into()), c.dim);
        graph.blocks = blocks;
        Ok(graph)
    }
}

fn push(all: &mut Vec<Named>, gguf: &str, hf: &str, kind: Kind, values: Values, width: usize) {
    let len = match &values {
        Values::Ternary(codes) | Values::Bytes(codes) => codes.codes.len(),
        Values::Floats(values) => values.len(),
    };
    let shape = match kind {
        Kind::Matrix | Kind::Embedding | Kind::Taps => vec![len / width, width],
        Kind::Norm | Kind::Plain | Kind::Decay => vec![len],
    };
    all.push(Named { gguf: gguf.into(), hf: hf.into(), kind, shape, values });
}

/// A matrix of zeros, as codes.
fn zeros(outputs: usize, inputs: usize) -> Values {
    Values::Ternary(Codes { codes: vec![0; outputs * inputs], scales: vec![0.0; outputs], inputs, segment: inputs })
}

/// Rows of several matrices one after the other.
fn stack(parts: Vec<Values>) -> Values {
    let mut parts = parts.into_iter();
    let mut all = parts.next().expect("a part");
    for part in parts {
        match (&mut all, part) {
            (Values::Ternary(all), Values::Ternary(part)) | (Values::Bytes(all), Values::Bytes(part)) => {
                all.codes.extend(part.codes);
                all.scales.extend(part.scales);
            }
            (Values::Floats(all), Values::Floats(part)) => all.extend(part),
            _ => panic!("matrices of one model are of one kind"),
        }
    }
    all
}

fn codes(values: &mut Values) -> &mut Codes {
    match values {
        Values::Ternary(codes) | Values::Bytes(codes) => codes,
        Values::Floats(_) => panic!("a matrix has codes"),
    }
}

/// Zeros before the first of the taps of each channel.
fn padded(values: Values, k: usize, taps: usize) -> Values {
    let Values::Floats(values) = values else { panic!("taps are floats") };
    let zeros = vec![0.0; taps - k];
    Values::Floats(values.chunks(k).flat_map(|own| zeros.iter().chain(own).copied()).collect())
}

type Get<'a> = &'a dyn Fn(String) -> Values;

/// What a block takes its parameters from; those of one that was added are ones and zeros.
struct Origin<'a> {
    get: Get<'a>,
    i: usize,
    added: bool,
}

impl Origin<'_> {
    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Values {
        if self.added { zeros(outputs, inputs) } else { (self.get)(format!("blocks.{}.{name}.weight", self.i)) }
    }

    fn floats(&self, name: &str, len: usize, added: f32) -> Values {
        if self.added { Values::Floats(vec![added; len]) } else { (self.get)(format!("blocks.{}.{name}", self.i)) }
    }
}

fn lfm2(all: &mut Vec<Named>, c: &ModelConfig, i: usize, mix: Mix, (heads, taps): (usize, usize), get: Get) {
    let (d, f, from) = (c.dim, c.ffn_hidden, Origin { get, i, added: i == c.blocks });
    let mut add = |gguf: &str, hf: &str, kind, values, width| {
        push(all, &format!("blk.{i}.{gguf}.weight"), &format!("model.layers.{i}.{hf}.weight"), kind, values, width);
    };
    add("attn_norm", "operator_norm", Kind::Norm, from.floats("norm1.scale", d, 1.0), d);
    match mix {
        Mix::Recurrent => {
            let own = if from.added { taps } else { c.mixers.shortconv.kernel_size };
            let conv = padded(from.floats("mixer.conv.weight", d * own, 0.0), own, taps);
            add("shortconv.in_proj", "conv.in_proj", Kind::Matrix, from.matrix("mixer.up", 3 * d, d), d);
            add("shortconv.conv", "conv.conv", Kind::Taps, conv, taps);
            add("shortconv.out_proj", "conv.out_proj", Kind::Matrix, from.matrix("mixer.down", d, d), d);
        }
        Mix::Attention => {
            for part in ["q", "k", "v"] {
                let matrix = from.matrix(&format!("mixer.{part}_proj"), d, d);
                add(&format!("attn_{part}"), &format!("self_attn.{part}_proj"), Kind::Matrix, matrix, d);
            }
            for part in ["q", "k"] {
                let norm = from.floats(&format!("mixer.{part}_norm.scale"), d / heads, 1.0);
                add(&format!("attn_{part}_norm"), &format!("self_attn.{part}_layernorm"), Kind::Norm, norm, d);
            }
            add("attn_output", "self_attn.out_proj", Kind::Matrix, from.matrix("mixer.o_proj", d, d), d);
        }
    }
    add("ffn_norm", "ffn_norm", Kind::Norm, from.floats("norm2.scale", d, 1.0), d);
    add("ffn_gate", "feed_forward.w1", Kind::Matrix, from.matrix("ffn.W_gate", f, d), d);
    add("ffn_up", "feed_forward.w3", Kind::Matrix, from.matrix("ffn.W_up", f, d), d);
    add("ffn_down", "feed_forward.w2", Kind::Matrix, from.matrix("ffn.W_down", d, f), f);
}

fn qwen35(all: &mut Vec<Named>, c: &ModelConfig, i: usize, mix: Mix, (heads, taps): (usize, usize), get: Get) {
    let (d, f, from) = (c.dim, c.ffn_hidden, Origin { get, i, added: i == c.blocks });
    let mut add = |gguf: &str, hf: &str, kind, values, width| {
        push(all, &format!("blk.{i}.{gguf}"), &format!("model.layers.{i}.{hf}"), kind, values, width);
    };
    let matrix = |part: &str, outputs| from.matrix(&format!("mixer.{part}_proj"), outputs, d);
    add("attn_norm.weight", "input_layernorm.weight", Kind::Norm, from.floats("norm1.scale", d, 1.0), d);
    match mix {
        Mix::Recurrent => {
            let (h, dk) = (c.mixers.delta.heads, c.mixers.delta.widths(d).0);
            let own = c.mixers.delta.conv;
            let conv = |part| padded(from.floats(&format!("mixer.{part}_conv.weight"), h * dk * own, 0.0), own, taps);
            let float = |part| from.floats(&format!("mixer.{part}_proj.weight"), h * d, 0.0);
            let qkv = stack(["q", "k", "v"].map(|part| matrix(part, h * dk)).into());
            add("attn_qkv.weight", "linear_attn.in_proj_qkv.weight", Kind::Matrix, qkv, d);
            add("attn_gate.weight", "linear_attn.in_proj_z.weight", Kind::Matrix, matrix("g", h * dk), d);
            let conv = stack(["q", "k", "v"].map(conv).into());
            add("ssm_conv1d.weight", "linear_attn.conv1d.weight", Kind::Taps, conv, taps);
            add("ssm_alpha.weight", "linear_attn.in_proj_a.weight", Kind::Matrix, float("a"), d);
            add("ssm_beta.weight", "linear_attn.in_proj_b.weight", Kind::Matrix, float("b"), d);
            add("ssm_a", "linear_attn.A_log", Kind::Decay, from.floats("mixer.A_log", h, 0.0), d);
            add("ssm_dt.bias", "linear_attn.dt_bias", Kind::Plain, from.floats("mixer.dt_bias", h, 0.0), d);
            add(
                "ssm_norm.weight",
                "linear_attn.norm.weight",
                Kind::Plain,
                from.floats("mixer.o_norm.scale", dk, 1.0),
                d,
            );
            let output = from.matrix("mixer.o_proj", d, h * dk);
            add("ssm_out.weight", "linear_attn.out_proj.weight", Kind::Matrix, output, h * dk);
        }
        Mix::Attention => {
            let mut q = matrix("q", d);
            {
                // [H, 2, dh, D]: rows of a head's query, then of its gate.
                let own = codes(&mut q);
                let (dh, segments) = (d / heads, own.scales.len() / d);
                own.codes = own.codes.chunks(dh * d).flat_map(|head| [head, &vec![0; dh * d]].concat()).collect();
                let gate = vec![0.0; dh * segments];
                own.scales = own.scales.chunks(dh * segments).flat_map(|head| [head, &gate].concat()).collect();
            }
            add("attn_q.weight", "self_attn.q_proj.weight", Kind::Matrix, q, d);
            for part in ["k", "v"] {
                let (gguf, hf) = (format!("attn_{part}.weight"), format!("self_attn.{part}_proj.weight"));
                add(&gguf, &hf, Kind::Matrix, matrix(part, d), d);
            }
            for part in ["q", "k"] {
                let norm = from.floats(&format!("mixer.{part}_norm.scale"), d / heads, 1.0);
                let (gguf, hf) = (format!("attn_{part}_norm.weight"), format!("self_attn.{part}_norm.weight"));
                add(&gguf, &hf, Kind::Norm, norm, d);
            }
            let mut output = matrix("o", d);
            codes(&mut output).scales.iter_mut().for_each(|scale| *scale *= 2.0);
            add("attn_output.weight", "self_attn.o_proj.weight", Kind::Matrix, output, d);
        }
    }
    let norm = from.floats("norm2.scale", d, 1.0);
    add("post_attention_norm.weight", "post_attention_layernorm.weight", Kind::Norm, norm, d);
    add("ffn_gate.weight", "mlp.gate_proj.weight", Kind::Matrix, from.matrix("ffn.W_gate", f, d), d);
    add("ffn_up.weight", "mlp.up_proj.weight", Kind::Matrix, from.matrix("ffn.W_up", f, d), d);
    add("ffn_down.weight", "mlp.down_proj.weight", Kind::Matrix, from.matrix("ffn.W_down", d, f), f);
}
