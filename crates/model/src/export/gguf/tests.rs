//! Files read back, and what is refused.

use std::collections::BTreeMap;

use super::*;
use crate::ModelConfig;
use crate::config::{ActivationKind, DeltaForm, DeltaRule, QuantConfig, ScaleKind, StatKind};
use crate::export::graph::expressible;
use crate::infer::testing::Noise;
use crate::io::safetensors::TensorFile;
use crate::testing::tiny;

/// A model that can be expressed, with these mixers in turn.
fn portable(pattern: &[&str]) -> ModelConfig {
    let quant = QuantConfig { scale: ScaleKind::Group, size: 64, stat: StatKind::Mean, norm: false };
    let pattern: Vec<String> = pattern.iter().map(|&name| name.into()).collect();
    let mut c = ModelConfig { dim: 64, ffn_hidden: 128, blocks: 2, norm_eps: 1e-6, quant, pattern, ..tiny("conv") };
    (c.mixers.delta.expand_k, c.mixers.delta.expand_v, c.mixers.delta.norm_eps) = (1.0, 1.0, 1e-6);
    c.mixers.delta.heads = 2;
    c.mixers.attention.heads = 4;
    c.mixers.shortconv.kernel_size = 6;
    c
}

fn source(config: ModelConfig) -> Source {
    Source::read(TensorFile::from_bytes(Noise::new(config).bytes, "packed").unwrap()).unwrap()
}

struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        self.1 += n;
        &self.0[self.1 - n..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }

    fn text(&mut self) -> String {
        let n = self.u64();
        String::from_utf8(self.take(n).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> String {
        match kind {
            4 | 5 => (self.u32() as i32).to_string(),
            6 => f32::from_bits(self.u32()).to_string(),
            7 => (self.take(1)[0] == 1).to_string(),
            8 => self.text(),
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                (0..n).map(|_| self.value(kind)).collect::<Vec<_>>().join("|")
            }
            other => panic!("type {other}"),
        }
    }
}

fn half(bytes: &[u8]) -> f32 {
    let h = u16::from_le_bytes(bytes.try_into().unwrap());
    let (e, m) = (i32::from(h >> 10 & 31), f32::from(h & 1023));
    let x = if e == 0 { m * 2f32.powi(-24) } else { (1.0 + m / 1024.0) * 2f32.powi(e - 15) };
    if h >> 15 == 1 { -x } else { x }
}

fn dequantised(kind: u32, n: usize, data: &[u8]) -> Vec<f32> {
    match kind {
        0 => data[..4 * n].chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect(),
        1 => data[..2 * n].chunks(2).map(half).collect(),
        2 => (0..n)
            .map(|i| {
                let block = &data[i / 32 * 18..];
                let byte = block[2 + i % 16];
                (f32::from(if i % 32 < 16 { byte & 15 } else { byte >> 4 }) - 8.0) * half(&block[..2])
            })
            .collect(),
        8 => {
            (0..n).map(|i| f32::from(data[i / 32 * 34 + 2 + i % 32] as i8) * half(&data[i / 32 * 34..][..2])).collect()
        }
        42 => (0..n)
            .map(|i| {
                let block = &data[i / 64 * 18..];
                (f32::from(block[2 + i % 64 / 4] >> (2 * (i % 4)) & 3) - 1.0) * half(&block[..2])
            })
            .collect(),
        other => panic!("type {other}"),
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, u32, Vec<f32>)>;

fn read(file: &[u8]) -> (BTreeMap<String, String>, Tensors) {
    let mut at = Cursor(file, 0);
    assert_eq!((at.take(4).to_vec(), at.u32()), (b"GGUF".to_vec(), 3));
    let (tensors, keys) = (at.u64(), at.u64());
    let keys = (0..keys).map(|_| {
        let (key, kind) = (at.text(), at.u32());
        (key, at.value(kind))
    });
    let keys = keys.collect();
    let infos = (0..tensors).map(|_| {
        let (name, axes) = (at.text(), at.u32());
        let mut shape: Vec<usize> = (0..axes).map(|_| at.u64()).collect();
        shape.reverse();
        (name, shape, at.u32(), at.u64())
    });
    let infos: Vec<_> = infos.collect();
    let start = at.1.next_multiple_of(32);
    let each = infos.into_iter().map(|(name, shape, kind, offset)| {
        assert_eq!(offset % 32, 0);
        let values = dequantised(kind, shape.iter().product(), &file[start + offset..]);
        (name, (shape, kind, values))
    });
    (keys, each.collect())
}

fn written(source: &Source, weights: &str) -> Vec<u8> {
    match write(source, weights) {
        Ok(Exported::File(bytes)) => bytes,
        Ok(_) => panic!("a folder"),
        Err(e) => panic!("{e}"),
    }
}

fn near(got: &[f32], want: &[f32], bound: f32, name: &str) {
    assert_eq!(got.len(), want.len(), "{name}");
    let off = got.iter().zip(want).find(|(g, w)| (*g - *w).abs() > bound * w.abs());
    assert!(off.is_none(), "{name}: {off:?}");
}

/// What every type holds is the model's weights, rounded as it says.
#[test]
fn weights_are_read_back() {
    let source = source(portable(&["shortconv", "attention"]));
    let own = |name: &str| source.weights.iter().find(|weight| weight.name == name).unwrap().floats();
    for (weights, matrix, table, bound) in
        [("f32", 0, 0, 0.0), ("f16", 1, 1, 5e-4), ("q4_0", 2, 8, 5e-4), ("q2_0", 42, 8, 5e-4)]
    {
        let (keys, tensors) = read(&written(&source, weights));
        assert_eq!(keys["general.architecture"], "lfm2");
        assert_eq!(keys["lfm2.attention.head_count_kv"], "0|4");
        assert_eq!((&*keys["lfm2.shortconv.l_cache"], &*keys["tokenizer.ggml.eos_token_id"]), ("9", "256"));
        for (name, ours) in [
            ("blk.0.shortconv.in_proj", "blocks.0.mixer.up"),
            ("blk.0.shortconv.out_proj", "blocks.0.mixer.down"),
            ("blk.1.attn_q", "blocks.1.mixer.q_proj"),
            ("blk.1.attn_output", "blocks.1.mixer.o_proj"),
            ("blk.1.ffn_gate", "blocks.1.ffn.W_gate"),
            ("blk.1.ffn_down", "blocks.1.ffn.W_down"),
            ("token_embd", "embedding"),
        ] {
            let (_, kind, values) = &tensors[&format!("{name}.weight")];
            assert_eq!(*kind, if name == "token_embd" { table } else { matrix }, "{name}");
            near(values, &own(&format!("{ours}.weight")), bound, name);
        }
        let (shape, kind, taps) = &tensors["blk.0.shortconv.conv.weight"];
        assert_eq!((&**shape, *kind), (&[64, 9][..], 0));
        for (padded, own) in taps.chunks(9).zip(own("blocks.0.mixer.conv.weight").chunks(6)) {
            assert_eq!((&padded[..3], &padded[3..]), (&[0.0; 3][..], own));
        }
        assert_eq!(tensors["blk.1.attn_q_norm.weight"].2, own("blocks.1.mixer.q_norm.scale"));
        assert_eq!(tensors["token_embd_norm.weight"].2, own("final_norm.scale"));
    }
}

/// Qwen3.5's gate is 1/2 and its output doubled; its decay is `-exp`.
#[test]
fn the_delta_rule_is_qwens() {
    let source = source(portable(&["delta", "attention"]));
    let own = |name: &str| source.weights.iter().find(|weight| weight.name == name).unwrap().floats();
    let (keys, tensors) = read(&written(&source, "f32"));
    assert_eq!((&*keys["qwen35.attention.recurrent_layers"], &*keys["qwen35.ssm.state_size"]), ("true|false", "32"));
    let qkv = ["q", "k", "v"].map(|part| own(&format!("blocks.0.mixer.{part}_proj.weight"))).concat();
    assert_eq!(tensors["blk.0.attn_qkv.weight"].2, qkv);
    let rates: Vec<f32> = own("blocks.0.mixer.A_log").iter().map(|a| -a.exp()).collect();
    assert_eq!(tensors["blk.0.ssm_a"].2, rates);
    let heads = own("blocks.1.mixer.q_proj.weight");
    for (both, query) in tensors["blk.1.attn_q.weight"].2.chunks(2 * 16 * 64).zip(heads.chunks(16 * 64)) {
        assert_eq!(&both[..16 * 64], query);
        assert!(both[16 * 64..].iter().all(|&gate| gate == 0.0));
    }
    let twice: Vec<f32> = own("blocks.1.mixer.o_proj.weight").iter().map(|w| 2.0 * w).collect();
    assert_eq!(tensors["blk.1.attn_output.weight"].2, twice);
}

/// A block of the kind that the model lacks adds nothing to the stream.
#[test]
fn an_added_block_is_the_identity() {
    for (pattern, zeros) in [
        (["attention"], ["shortconv.out_proj", "ffn_down"]),
        (["shortconv"], ["attn_output", "ffn_down"]),
        (["delta"], ["attn_output", "ffn_down"]),
    ] {
        let (keys, tensors) = read(&written(&source(portable(&pattern)), "q2_0"));
        let arch = &keys["general.architecture"];
        assert_eq!(keys[&format!("{arch}.block_count")], "3");
        for name in zeros {
            assert!(tensors[&format!("blk.2.{name}.weight")].2.iter().all(|&w| w == 0.0), "{pattern:?}");
        }
    }
}

/// A change of the config and what the reasons say.
type Case = (fn(&mut ModelConfig), &'static [&'static str]);

#[test]
fn what_cannot_be_said_is_refused_with_every_reason() {
    let cases: [Case; 21] = [
        (|c| c.pattern = vec!["conv".into()], &["mixer = conv"]),
        (|c| c.pattern = vec!["leaky".into()], &["mixer = leaky"]),
        (|c| c.pattern = ["conv", "leaky", "delta"].map(String::from).into(), &["mixer = conv", "mixer = leaky"]),
        (|c| c.pattern = ["shortconv", "delta"].map(String::from).into(), &["shortconv beside delta"]),
        (|c| c.activation = ActivationKind::Relu2, &["activation = relu2"]),
        (|c| c.block_norm = false, &["block_norm = false"]),
        (|c| c.sub_norm = true, &["sub_norm = true"]),
        (|c| c.x0 = true, &["x0 = true"]),
        (|c| c.bigram = 77, &["bigram = 77"]),
        (|c| c.layer_embeddings = true, &["layer_embeddings = true"]),
        (|c| c.pointer = 512, &["model.pointer = 512 (expected 0)"]),
        (|c| c.logit_softcap = 15.0, &["logit_softcap = 15"]),
        (|c| c.quant.norm = true, &["quant.norm = true"]),
        (|c| c.norm_eps = 1e-5, &["model.norm_eps = 0.00001", "delta.norm_eps = 0.000001"]),
        (|c| c.mixers.delta.form = DeltaForm::Original, &["delta.form = original"]),
        (|c| c.mixers.delta.rule = DeltaRule::Undecayed, &["delta.rule = undecayed"]),
        (|c| c.mixers.delta.negative_eigenvalues = true, &["negative_eigenvalues = true"]),
        (|c| c.mixers.delta.expand_v = 2.0, &["delta.expand_v = 2", "expected 1"]),
        (|c| c.mixers.delta.norm_eps = 1e-5, &["delta.norm_eps = 0.00001"]),
        (|c| (c.x0, c.sub_norm, c.bigram) = (true, true, 5), &["sub_norm", "x0", "bigram = 5"]),
        (
            |c| (c.activation, c.mixers.delta.rule) = (ActivationKind::Relu2, DeltaRule::Undecayed),
            &["activation", "delta.rule"],
        ),
    ];
    let good = portable(&["delta", "attention"]);
    assert_eq!(expressible(&good, "bpe"), Ok(Arch::Qwen35));
    assert!(expressible(&good, "frequency").unwrap_err().0[0].contains("tokenizer.kind = frequency"));
    for (change, says) in cases {
        let mut config = good.clone();
        change(&mut config);
        let Refused(reasons) = expressible(&config, "bytes").unwrap_err();
        assert_eq!(
            reasons.len(),
            says.iter().filter(|part| part.contains(" = ") || !part.contains("expected")).count(),
            "{reasons:?}"
        );
        for part in says {
            assert!(reasons.iter().any(|reason| reason.contains(part)), "{part}: {reasons:?}");
        }
    }
}

/// Codes that do not fall into blocks of 64 are told matrix by matrix; blocks of 32 hold them.
#[test]
fn blocks_must_fit() {
    let mut config = portable(&["shortconv", "attention"]);
    (config.dim, config.ffn_hidden, config.quant.size) = (96, 128, 32);
    let source = source(config);
    let Err(Refused(reasons)) = write(&source, "q2_0") else { panic!("it has no blocks of 64") };
    assert!(reasons.len() > 10 && reasons[0].contains("96 inputs, 32 of them to a scale"), "{reasons:?}");
    assert!(write(&source, "q4_0").is_ok());
}
