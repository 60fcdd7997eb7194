//! Writing a packed model, from master weights.

use std::collections::BTreeMap;

use ::safetensors::tensor::{Dtype, TensorView};
use flashlm_kernels::Exec;

use crate::codes::format::{FORMAT, RARE, TOKENIZER, VERSION, digest};
use crate::codes::options::{Options, TableBits};
use crate::codes::weights::{COMMON, NIBBLES, byte_rows, nibble_rows, ternary_codes, to_byte};
use crate::config::ModelConfig;
use crate::params::{Group, Layout};
use crate::tok::Tokenizer;

/// The bytes of the packed model. `params` in the order of the config's layout; `tokenizer` such that it
/// [`fits`](ModelConfig::fits).
///
/// # Panics
/// If the config is not valid, or the parameters are not as many as its layout's.
pub fn pack(cx: &Exec, config: &ModelConfig, params: &[f32], tokenizer: &Tokenizer, options: Options) -> Vec<u8> {
    let (density, layout) = (options.density, Layout::of(config));
    assert_eq!(params.len(), layout.len(), "parameters of another model");
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let nibbles = |name: &str, w: &[f32], inputs: usize| {
        let (rows, (codes, scales)) = (w.len() / inputs, nibble_rows(w, inputs));
        let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = (format!("{name}.scale"), Dtype::BF16, vec![rows, inputs.div_ceil(NIBBLES)], bytes);
        [(name.to_owned(), Dtype::U8, vec![rows, inputs.div_ceil(2)], codes), scales]
    };
    for spec in layout.specs() {
        let (name, w) = (&spec.name, &params[spec.range.clone()]);
        let ternary = config.quant.quant().filter(|_| spec.group == Group::Matrix);
        let scales = match (ternary, spec.group) {
            (Some(quant), _) => {
                let (outputs, inputs) = (spec.shape[0], spec.shape[1]);
                let (codes, scales) = ternary_codes(cx, w, (outputs, inputs), quant);
                let rows = codes.chunks(inputs).flat_map(|row| row.chunks(density.per_byte()));
                let bytes = rows.map(|codes| to_byte(codes, density)).collect();
                tensors.push((name.clone(), Dtype::U8, vec![outputs, inputs.div_ceil(density.per_byte())], bytes));
                scales
            }
            (None, Group::Embedding) if options.table == TableBits::Four => {
                let (outputs, inputs) = (spec.shape[0], spec.shape[1]);
                let common = outputs.div_ceil(COMMON);
                let (w, rare) = w.split_at(common * inputs);
                tensors.extend(nibbles(RARE, rare, inputs));
                let (codes, scales) = byte_rows(w, inputs);
                tensors.push((name.clone(), Dtype::I8, vec![common, inputs], codes));
                scales
            }
            (None, Group::Table) if options.table == TableBits::Four => {
                tensors.extend(nibbles(name, w, spec.shape[1]));
                continue;
            }
            (None, Group::Embedding | Group::Table | Group::Matrix) => {
                let (codes, scales) = byte_rows(w, spec.shape[1]);
                tensors.push((name.clone(), Dtype::I8, spec.shape.clone(), codes));
                scales
            }
            _ => {
                tensors.push((name.clone(), Dtype::F32, spec.shape.clone(), floats(w)));
                continue;
            }
        };
        tensors.push((format!("{name}.scale"), Dtype::F32, vec![scales.len()], floats(&scales)));
    }
    let tokenizer = tokenizer.to_compact();
    tensors.push((TOKENIZER.into(), Dtype::U8, vec![tokenizer.len()], tokenizer));
    let views: BTreeMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("a shape that fits its data"))
        })
        .collect();
    let config = serde_json::to_string(config).expect("a config is plain data");
    let plain =
        ::safetensors::serialize(views.iter().map(|(&name, view)| (name, view)), None).expect("tensors in memory");
    let (n, rest) = plain.split_first_chunk().expect("a header's length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*n) as usize);
    // The library gives metadata in any order; here the same model is the same bytes. The digest needs the order of the data.
    let metadata: BTreeMap<&str, String> = [
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_owned()),
        ("xxh3", digest(&config, data)),
        ("config", config),
        ("per_byte", density.per_byte().to_string()),
        ("table_bits", options.table.name().to_owned()),
    ]
    .into();
    let mut header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).expect("what was just written");
    header.insert("__metadata__".into(), serde_json::to_value(metadata).expect("texts"));
    let mut header = serde_json::to_string(&header).expect("what was just read");
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}
