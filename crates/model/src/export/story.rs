//! A model as one run of bytes, laid out as the engine of `export/c` reads it, in the order in which it is computed: matrices in the
//! cells of the portable integer unit ([`flashlm_kernels::ops::packed_matmul`]), all else as floats, then the vocabulary as tables. All
//! numbers are little-endian.
//!
//! What the packed runtime computes once for a model in f64 (rates of decay, rotations of positions) is in it as numbers.

use std::collections::BTreeMap;

use super::source::{Refused, Source};
use crate::codes::weight::{Codes, Values, Weight};
use crate::config::{ActivationKind, DeltaForm, DeltaRule};
use crate::mixer::attention::turns;

/// Outputs of a cell, and columns of a group.
const CELL: usize = 16;

struct Writer<'a> {
    bytes: Vec<u8>,
    weights: BTreeMap<&'a str, &'a Weight>,
}

/// The bytes, or why the engine has not what the model wants.
pub(super) fn bytes(source: &Source) -> Result<Vec<u8>, Refused> {
    let mut reasons = source.unknown();
    reasons.extend(source.unknown_vocabulary(&["bpe", "bytes", "frequency"]));
    if !reasons.is_empty() {
        return Err(Refused(reasons));
    }
    let weights = source.weights.iter().map(|weight| (weight.name.as_str(), weight)).collect();
    let mut w = Writer { bytes: b"FLSTORY2".to_vec(), weights };
    let config = &source.config;
    let (delta, attention, d) = (&config.mixers.delta, &config.mixers.attention, config.dim);
    let published = delta.form == DeltaForm::Published;
    let flags = [
        config.x0,
        config.reset,
        config.activation == ActivationKind::Relu2,
        published,
        delta.rule == DeltaRule::Undecayed,
        config.pointer > 0 && config.pointer_words,
    ];
    w.number(flags.iter().zip(0..).map(|(&on, bit)| usize::from(on) << bit).sum());
    let (dk, dv) = delta.widths(d);
    let heads =
        [attention.heads.min(d), attention.window, delta.heads, dk.max(1), dv.max(1), delta.conv, config.pointer];
    let sizes = [config.vocab_size, d, config.ffn_hidden, config.blocks, config.bigram, config.mixers.kernel_size];
    sizes.into_iter().chain([config.mixers.shortconv.kernel_size]).chain(heads).for_each(|n| w.number(n));
    let width = d / attention.heads.min(d);
    let norm = if published { [1e-6, (dk as f64).powf(-0.5)] } else { [1e-24, 1.0] };
    let key_norm = [if published { 1e-6 } else { 1e-24 }, 1.0];
    let strength = if delta.negative_eigenvalues { 2.0 } else { 1.0 };
    let numbers = [config.norm_eps, config.logit_softcap, strength].into_iter().chain(norm).chain(key_norm);
    numbers.chain([delta.norm_eps, (width as f64).powf(-0.5)]).for_each(|x| w.real(x as f32));
    let attends = (0..config.blocks).any(|i| config.mixer_of(i) == "attention");
    w.number(attends.into());
    if attends {
        let turns = turns(width, attention.rope_base);
        w.bytes.extend(turns.as_flattened().iter().flat_map(|x| x.to_le_bytes()));
    }
    w.matrix("embedding");
    if config.bigram > 0 {
        w.table("bigram.weight");
    }
    w.reals("final_norm.scale");
    if config.pointer > 0 {
        w.reals("pointer.key.weight");
        let scale = f64::from(w.of("pointer.scale")[0]);
        w.real((scale * (d as f64).powf(-0.5)) as f32);
        w.reals("pointer.bias");
        if config.pointer_words {
            let opens = w.of("pointer.opens");
            let words = w.of("pointer.twin").into_iter().zip(opens);
            words.for_each(|(twin, opens)| w.number(twin as usize | usize::from(opens > 0.5) << 31));
        }
    }
    for i in 0..config.blocks {
        w.block(i, config.mixer_of(i), published);
    }
    w.bytes.extend(source.tokenizer.to_tables());
    Ok(w.bytes)
}

impl Writer<'_> {
    fn number(&mut self, n: usize) {
        self.bytes.extend((n as u32).to_le_bytes());
    }

    fn real(&mut self, x: f32) {
        self.bytes.extend(x.to_le_bytes());
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        self.weights.get(name).map(|weight| weight.floats())
    }

    fn of(&self, name: &str) -> Vec<f32> {
        self.floats(name).expect("a parameter of the layout")
    }

    fn all(&mut self, floats: &[f32]) {
        floats.iter().for_each(|&x| self.real(x));
    }

    fn reals(&mut self, name: &str) {
        let floats = self.of(name);
        self.all(&floats);
    }

    /// 1 and the numbers of all these parameters, or 0 where there are none.
    fn maybe(&mut self, names: &[String]) {
        let floats: Option<Vec<Vec<f32>>> = names.iter().map(|name| self.floats(name)).collect();
        self.number(floats.is_some().into());
        floats.iter().flatten().for_each(|floats| self.all(floats));
    }

    fn codes(&self, name: &str) -> (bool, Codes) {
        match &self.weights.get(name).expect("a parameter of the layout").values {
            Values::Ternary(codes) => (false, codes.clone()),
            Values::Bytes(codes) => (true, codes.clone()),
            Values::Floats(_) => unreachable!("a matrix of codes"),
        }
    }

    /// A table whose rows are looked up: codes, scales.
    fn table(&mut self, name: &str) {
        let (_, Codes { codes, scales, .. }) = self.codes(name);
        self.bytes.extend(codes.iter().map(|&code| code as u8));
        self.all(&scales);
    }

    /// A matrix with the norm before it, where it has one of its own.
    fn matrix(&mut self, name: &str) {
        let (bytes, Codes { codes, scales, inputs, segment }) = self.codes(&format!("{name}.weight"));
        let (outputs, segments) = (codes.len() / inputs, inputs.div_ceil(segment));
        [bytes.into(), outputs, inputs, segment].into_iter().for_each(|n| self.number(n));
        self.maybe(&[format!("{name}.norm.scale")]);
        // Every segment but the last is filled up to whole groups.
        let each = segment.div_ceil(CELL);
        let groups = (segments - 1) * each + (inputs - (segments - 1) * segment).div_ceil(CELL);
        let (zero, size) = if bytes { (128, 4 * 64) } else { (0b0101_0101, 64) };
        let mut cells = vec![zero; outputs.div_ceil(CELL) * groups * size];
        for (at, &code) in codes.iter().enumerate() {
            let (output, i) = (at / inputs, at % inputs);
            let (segment, i) = (i / segment, i % segment);
            let cell = (output / CELL * groups + segment * each + i / CELL) * size + output % CELL * 4;
            match bytes {
                true => cells[cell + i % CELL / 4 * 64 + i % 4] = (code as u8).wrapping_add(128),
                false => {
                    let byte = &mut cells[cell + i % 4];
                    *byte = byte.wrapping_add((code as u8) << (i % CELL / 4 * 2));
                }
            }
        }
        self.bytes.extend(cells);
        let mut own = vec![0.0; outputs.div_ceil(CELL) * segments * CELL];
        for (at, &scale) in scales.iter().enumerate() {
            let (output, segment) = (at / segments, at % segments);
            own[(output / CELL * segments + segment) * CELL + output % CELL] = scale;
        }
        self.all(&own);
    }

    /// Taps of a convolution, `[K, C]` of `[C, 1, K]`.
    fn taps(&mut self, name: &str) {
        let k = self.weights[name].shape[2];
        let taps = self.of(name);
        (0..k).for_each(|j| taps.chunks(k).for_each(|own| self.real(own[j])));
    }

    fn block(&mut self, i: usize, mixer: &str, published: bool) {
        let name = |part: &str| format!("blocks.{i}.{part}");
        let of = |part: &str| format!("blocks.{i}.mixer.{part}");
        let kinds = ["conv", "delta", "attention", "leaky", "shortconv"];
        self.number(kinds.iter().position(|kind| *kind == mixer).expect("a mixer that the engine has"));
        self.maybe(&[name("resid_lambda"), name("x0_lambda")]);
        let table = name("embedding.weight");
        let looked_up = self.weights.contains_key(table.as_str());
        self.number(looked_up.into());
        if looked_up {
            self.table(&table);
        }
        self.maybe(&[name("norm1.scale")]);
        self.maybe(&[name("norm2.scale")]);
        let (inputs, output): (&[&str], _) = match mixer {
            "conv" | "shortconv" => {
                self.taps(&of("conv.weight"));
                (&["up"], "down")
            }
            "leaky" => {
                let sigmoid = |decay: f32| (1.0 / (1.0 + (-f64::from(decay)).exp())) as f32;
                let decay: Vec<f32> = self.of(&of("decay")).into_iter().map(sigmoid).collect();
                self.all(&decay);
                (&["up"], "down")
            }
            "attention" => {
                self.reals(&of("q_norm.scale"));
                self.reals(&of("k_norm.scale"));
                (&["q_proj", "k_proj", "v_proj"], "o_proj")
            }
            _ => {
                ["q_conv.weight", "k_conv.weight", "v_conv.weight"].iter().for_each(|name| self.taps(&of(name)));
                self.maybe(&[of("o_norm.scale")]);
                if published {
                    self.reals(&of("a_proj.weight"));
                    self.reals(&of("b_proj.weight"));
                    let rate: Vec<f32> = self.of(&of("A_log")).into_iter().map(|x| f64::from(x).exp() as f32).collect();
                    self.all(&rate);
                    self.reals(&of("dt_bias"));
                }
                let all: &[&str] = &["q_proj", "k_proj", "v_proj", "g_proj", "gk_proj", "beta_proj"];
                (if published { &all[..4] } else { all }, "o_proj")
            }
        };
        inputs.iter().for_each(|input| self.matrix(&of(input)));
        self.matrix(&of(output));
        ["ffn.W_gate", "ffn.W_up", "ffn.W_down"].iter().for_each(|part| self.matrix(&name(part)));
    }
}
