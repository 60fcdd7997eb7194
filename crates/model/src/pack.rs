//! The packed model: one safetensors file that holds all a runtime needs, weights as the integers that they are.
//!
//! ```text
//! x.weight of a BitLinear  U8 [out, ceil(in / n)]   n = 4: codes w + 1 of 2 bits, column 4 i + j in bits 2 j
//!                                                   n = 5: codes as digits of base 3, column 5 i + j times 3^j
//! x.weight.scale           F32 [1], or one for each unit of the quantiser in the order of its rows
//! embedding.weight         I8 [V, D], row r times embedding.weight.scale [V]; likewise matrices that stay float in training
//!   or, table_bits "4"     the same of the first n = ceil(V / 8) rows, which are most of any text, and of the others
//! embedding.rare.weight    U8 [V - n, ceil(D / 2)], codes w + 8 of 4 bits, column 2 i in the low ones; 16 columns of a row share one
//!                          of embedding.rare.weight.scale, BF16 [V - n, ceil(D / 16)]
//! tokenizer                U8 [bytes]
//! all else                 F32 as in training: norms, taps, gates
//! metadata                 format "flashlm-packed", version "1", config (JSON), per_byte "4" or "5", table_bits "8" or "4", xxh3
//! ```
//!
//! `xxh3` is XXH3-64 of the config's bytes and then of all the data; a file whose numbers were damaged is refused. Writing
//! starts from latent parameters, reading gives the cells of [`PackedMatrix`].

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use ::safetensors::tensor::{Dtype, TensorView};
use flashlm_kernels::Exec;
use flashlm_kernels::ops::{Columns, PackedMatrix, Quant, Scale, quantise};
use xxhash_rust::xxh3::Xxh3;

use crate::config::{ConfigError, ModelConfig};
use crate::io::IoError;
use crate::io::safetensors::TensorFile;
use crate::params::{Group, Layout};
use crate::tok::{TokError, Tokenizer};

/// What stands under `format` in the metadata.
pub const FORMAT: &str = "flashlm-packed";
const VERSION: &str = "1";
const TOKENIZER: &str = "tokenizer";
const TABLE: &str = "embedding.weight";
const RARE: &str = "embedding.rare.weight";
/// One row in so many keeps 8 bits in a table of 4: the first, as tokens are numbered by how often they come.
const COMMON: usize = 8;
/// Columns that share a scale in a table of 4 bits.
const NIBBLES: usize = 16;

/// How many ternary weights a byte holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Density {
    /// Four, of 2 bits each.
    #[default]
    Four,
    /// Five, as digits of base 3: 1.6 bits each.
    Five,
}

impl Density {
    fn per_byte(self) -> usize {
        match self {
            Density::Four => 4,
            Density::Five => 5,
        }
    }
}

/// Bits of a number of the table, which is embedding and head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableBits {
    /// A scale a row.
    #[default]
    Eight,
    /// A scale for 16 columns of a row.
    Four,
}

impl TableBits {
    fn name(self) -> &'static str {
        match self {
            TableBits::Eight => "8",
            TableBits::Four => "4",
        }
    }
}

/// How small a packed model is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Of ternary matrices.
    pub density: Density,
    /// Of embedding and head.
    pub table: TableBits,
}

/// Why a packed model was not made or read.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The file is no safetensors file, or a tensor is missing or of another type.
    #[error(transparent)]
    Io(#[from] IoError),
    /// It is one, and no packed model of this version.
    #[error("{file}: metadata `{key}`: expected {expected}, found {found}; {mend}")]
    Metadata {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        mend: &'static str,
    },
    /// A tensor is not what the config asks for.
    #[error("{file}: tensor `{name}`: expected {expected}, found {found}; pack the run again with `flashlm pack`")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// What the config asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The config is none that a model can have, or not that of its tokenizer.
    #[error("{file}: {source}")]
    Config {
        /// The file.
        file: String,
        /// Why.
        source: ConfigError,
    },
    /// The tokenizer inside is none, or of another model.
    #[error("{file}: its tokenizer: {source}")]
    Tokenizer {
        /// The file.
        file: String,
        /// Why.
        source: TokError,
    },
}

/// The bytes of the packed model. `params` in the order of `layout`, the layout of `config`; `tokenizer` such that it
/// [`fits`](ModelConfig::fits).
///
/// # Panics
/// If parameters and layout do not fit each other.
pub fn pack(
    cx: &Exec,
    config: &ModelConfig,
    layout: &Layout,
    params: &[f32],
    tokenizer: &Tokenizer,
    options: Options,
) -> Vec<u8> {
    let density = options.density;
    assert_eq!(params.len(), layout.len(), "parameters of another model");
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
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
                let (codes, scales) = nibble_rows(rare, inputs);
                tensors.push((RARE.into(), Dtype::U8, vec![outputs - common, inputs.div_ceil(2)], codes));
                let shape = vec![outputs - common, inputs.div_ceil(NIBBLES)];
                let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                tensors.push((format!("{RARE}.scale"), Dtype::BF16, shape, bytes));
                let (codes, scales) = byte_rows(w, inputs);
                tensors.push((name.clone(), Dtype::I8, vec![common, inputs], codes));
                scales
            }
            (None, Group::Embedding | Group::Matrix) => {
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

fn digest(config: &str, data: &[u8]) -> String {
    let mut hash = Xxh3::new();
    hash.update(config.as_bytes());
    hash.update(data);
    format!("{:016x}", hash.digest())
}

/// Codes -1, 0, 1 of a matrix, and the scale of each unit of the quantiser.
fn ternary_codes(cx: &Exec, w: &[f32], size: (usize, usize), quant: Quant) -> (Vec<i8>, Vec<f32>) {
    let mut wq = vec![0.0f32; w.len()];
    quantise(cx, &mut wq, &mut vec![0.0; w.len()], w, size, quant);
    let units: Vec<&[f32]> = match unit(quant, size) {
        Unit::Tensor => vec![&wq],
        Unit::Flat(n) => wq.chunks(n).collect(),
        Unit::Row(n) => wq.chunks(size.1).flat_map(|row| row.chunks(n)).collect(),
    };
    // A unit of zeros may have any scale.
    let scales = units.iter().map(|unit| unit.iter().fold(0.0, |scale: f32, w| scale.max(w.abs())));
    let sign = |w: &f32| if *w == 0.0 { 0 } else { w.signum() as i8 };
    (wq.iter().map(sign).collect(), scales.collect())
}

/// Which weights of a matrix share a scale.
enum Unit {
    Tensor,
    /// So many consecutive elements of the flattened matrix.
    Flat(usize),
    /// So many of a row.
    Row(usize),
}

fn unit(quant: Quant, (outputs, inputs): (usize, usize)) -> Unit {
    match quant.scale {
        Scale::Block(n) if n < outputs * inputs => Unit::Flat(n),
        Scale::Tensor | Scale::Block(_) => Unit::Tensor,
        Scale::Group(n) => Unit::Row(n.min(inputs)),
    }
}

/// Rows as bytes of -127 to 127, and the scale of each.
fn byte_rows(w: &[f32], inputs: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::with_capacity(w.len()), Vec::new());
    for row in w.chunks(inputs) {
        let m = row.iter().fold(0f32, |m, w| m.max(w.abs()));
        let by = if m > 1e-30 { 127.0 / m } else { 0.0 };
        codes.extend(row.iter().map(|w| (w * by).round_ties_even() as i8 as u8));
        scales.push(m / 127.0);
    }
    (codes, scales)
}

/// Rows as codes of -8 to 7, two a byte, and as bf16 the scale of each [`NIBBLES`] columns.
fn nibble_rows(w: &[f32], inputs: usize) -> (Vec<u8>, Vec<u16>) {
    let (mut bytes, mut scales) = (Vec::with_capacity(w.len() / 2), Vec::new());
    let mut codes = Vec::with_capacity(inputs + 1);
    for row in w.chunks(inputs) {
        codes.clear();
        for part in row.chunks(NIBBLES) {
            let scale = nibble_scale(part);
            codes.extend(part.iter().map(|&w| (nibble(w, scale) + 8.0) as u8));
            scales.push((scale.to_bits() >> 16) as u16);
        }
        codes.resize(inputs.next_multiple_of(2), 8);
        bytes.extend(codes.chunks(2).map(|two| two[0] | two[1] << 4));
    }
    (bytes, scales)
}

/// The code of a weight: -8 to 7.
fn nibble(w: f32, scale: f32) -> f32 {
    if scale.abs() > 1e-30 { (w / scale).round_ties_even().clamp(-8.0, 7.0) } else { 0.0 }
}

/// The bf16 with the least squared error, of those that give the largest weight -8 (so they may be below 0) or cut it by up to a third.
fn nibble_scale(part: &[f32]) -> f32 {
    let m = part.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    let scales = (0..16).map(|i| f32::from_bits(((m / -8.0 * (1.0 - i as f32 / 48.0)).to_bits() + 0x7fff) & !0xffff));
    let error = |scale: f32| part.iter().map(|&w| f64::from(w - nibble(w, scale) * scale).powi(2)).sum::<f64>();
    let least = scales.map(|scale| (error(scale), scale)).min_by(|a, b| a.0.total_cmp(&b.0));
    least.map_or(0.0, |(_, scale)| scale)
}

fn to_byte(codes: &[i8], density: Density) -> u8 {
    let base = if density == Density::Four { 4 } else { 3 };
    codes.iter().rev().fold(0, |byte, code| byte * base + (code + 1) as u8)
}

fn from_byte(byte: u8, j: usize, density: Density) -> i8 {
    let digit = match density {
        Density::Four => byte >> (2 * j) & 3,
        Density::Five => byte / [1, 3, 9, 27, 81][j] % 3,
    };
    digit as i8 - 1
}

/// A packed model being read: every tensor is asked for once, with the size that the config gives it.
pub(crate) struct Reader {
    file: TensorFile,
    density: Density,
    table: TableBits,
    config: ModelConfig,
    taken: RefCell<BTreeSet<String>>,
}

impl Reader {
    /// Checks all but the tensors' sizes.
    pub(crate) fn new(file: TensorFile) -> Result<Self, PackError> {
        let label = file.label();
        let again = "pack the run again with `flashlm pack`";
        let metadata = |key: &'static str, mend| {
            file.metadata(key).ok_or_else(|| PackError::Metadata {
                file: label.into(),
                key,
                expected: "a text".into(),
                found: "none".into(),
                mend,
            })
        };
        let expect = |key, expected: &str, mend| {
            let found = metadata(key, mend)?;
            if found == expected {
                return Ok(());
            }
            Err(PackError::Metadata { file: label.into(), key, expected: expected.into(), found: shown(found), mend })
        };
        expect("format", FORMAT, "is it a packed model? `flashlm pack` makes one of a run")?;
        expect("version", VERSION, "it was made by another version of this program: use that, or pack the run again")?;
        let config = metadata("config", again)?;
        expect("xxh3", &digest(config, file.data()), "the file was damaged: copy it again from where it came")?;
        // The digest has seen all of it; from here on one tensor after the other is looked at.
        file.release();
        let refused = |key, expected: &str, found: String| PackError::Metadata {
            file: label.into(),
            key,
            expected: expected.into(),
            found: shown(&found),
            mend: again,
        };
        let density = match metadata("per_byte", again)? {
            "4" => Density::Four,
            "5" => Density::Five,
            other => return Err(refused("per_byte", "4 or 5", other.into())),
        };
        let table = match metadata("table_bits", again)? {
            "8" => TableBits::Eight,
            "4" => TableBits::Four,
            other => return Err(refused("table_bits", "8 or 4", other.into())),
        };
        let config: ModelConfig =
            serde_json::from_str(config).map_err(|e| refused("config", "the settings of a model", e.to_string()))?;
        config.validate().map_err(|source| PackError::Config { file: label.into(), source })?;
        Ok(Reader { file, density, table, config, taken: RefCell::default() })
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn wrong(&self, name: &str, expected: impl Into<String>, found: impl Into<String>) -> PackError {
        let (expected, found) = (expected.into(), found.into());
        PackError::Tensor { file: self.file.label().into(), name: name.into(), expected, found }
    }

    fn take(&self, name: &str, expected: &[usize]) -> Result<(), PackError> {
        let shape = self.file.shape(name)?;
        if shape != expected {
            return Err(self.wrong(name, format!("the shape {expected:?}"), format!("{shape:?}")));
        }
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(())
    }

    /// A float tensor, every element a number.
    pub(crate) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, PackError> {
        self.take(name, shape)?;
        let values = self.file.f32(name)?;
        match values.iter().find(|x| !x.is_finite()) {
            Some(bad) => Err(self.wrong(name, "finite numbers", bad.to_string())),
            None => Ok(values),
        }
    }

    /// A matrix of a BitLinear: ternary, or of bytes where the config has no quantiser.
    pub(crate) fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<PackedMatrix, PackError> {
        let Some(quant) = self.config.quant.quant() else { return self.bytes(name, outputs, inputs) };
        let (codes, columns, scales) = self.ternary(name, quant, (outputs, inputs))?;
        Ok(PackedMatrix::ternary(codes, &scales, outputs, columns))
    }

    /// The codes of a ternary matrix, row by row, how the columns share scales, and the scales `[outputs, segments]`.
    fn ternary(
        &self,
        name: &str,
        quant: Quant,
        (outputs, inputs): (usize, usize),
    ) -> Result<(impl Iterator<Item = i8>, Columns, Vec<f32>), PackError> {
        let (columns, scales) = self.scales(&format!("{name}.scale"), quant, (outputs, inputs))?;
        let each = self.density.per_byte();
        let width = inputs.div_ceil(each);
        self.take(name, &[outputs, width])?;
        let bytes = self.file.u8(name)?;
        // What no code stands for: the value 3 of two bits, and bytes above five digits.
        let bad = match self.density {
            Density::Four => bytes.iter().find(|&&byte| byte & byte >> 1 & 0x55 != 0),
            Density::Five => bytes.iter().find(|&&byte| byte > 242),
        };
        if let Some(bad) = bad {
            return Err(self.wrong(name, "ternary codes", format!("a byte of {bad}")));
        }
        let codes = (0..outputs).flat_map(move |output| {
            let row = &bytes[output * width..(output + 1) * width];
            (0..inputs).map(move |i| from_byte(row[i / each], i % each, self.density))
        });
        Ok((codes, columns, scales))
    }

    /// How the columns share scales, and the scales `[outputs, segments]`.
    fn scales(&self, name: &str, quant: Quant, size: (usize, usize)) -> Result<(Columns, Vec<f32>), PackError> {
        let (outputs, inputs) = size;
        Ok(match unit(quant, size) {
            Unit::Tensor => (Columns::whole(inputs), vec![self.floats(name, &[1])?[0]; outputs]),
            Unit::Row(n) => {
                let columns = Columns { inputs, segment: n };
                (columns, self.floats(name, &[outputs * columns.segments()])?)
            }
            Unit::Flat(n) => {
                // Units begin anywhere in a row, but always at a multiple of the greatest common divisor.
                let columns = Columns { inputs, segment: divisor(n, inputs) };
                let units = self.floats(name, &[(outputs * inputs).div_ceil(n)])?;
                let starts = (0..outputs * inputs).step_by(columns.segment);
                (columns, starts.map(|at| units[at / n]).collect())
            }
        })
    }

    /// A matrix of bytes.
    pub(crate) fn bytes(&self, name: &str, outputs: usize, inputs: usize) -> Result<PackedMatrix, PackError> {
        let (codes, scales) = self.byte_codes(name, outputs, inputs)?;
        Ok(PackedMatrix::bytes(codes, &scales, outputs, inputs))
    }

    /// Its codes and the scale of each row.
    fn byte_codes(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<(impl Iterator<Item = i8>, Vec<f32>), PackError> {
        let scales = self.floats(&format!("{name}.scale"), &[outputs])?;
        self.take(name, &[outputs, inputs])?;
        let codes = self.file.i8(name)?;
        if codes.clone().any(|code| code == i8::MIN) {
            return Err(self.wrong(name, "weights of -127 to 127", "-128"));
        }
        Ok((codes, scales))
    }

    /// Embedding and head.
    pub(crate) fn table(&self) -> Result<PackedMatrix, PackError> {
        let (codes, scales) = self.table_codes()?;
        Ok(PackedMatrix::bytes(codes.into_iter(), &scales, self.config.vocab_size, self.config.dim))
    }

    /// Its codes and the scale of each row.
    fn table_codes(&self) -> Result<(Vec<i8>, Vec<f32>), PackError> {
        let (outputs, inputs) = (self.config.vocab_size, self.config.dim);
        if self.table == TableBits::Eight {
            let (codes, scales) = self.byte_codes(TABLE, outputs, inputs)?;
            return Ok((codes.collect(), scales));
        }
        let common = outputs.div_ceil(COMMON);
        let (codes, mut row_scales) = self.byte_codes(TABLE, common, inputs)?;
        let mut codes: Vec<i8> = codes.collect();
        let (width, groups) = (inputs.div_ceil(2), inputs.div_ceil(NIBBLES));
        let name = format!("{RARE}.scale");
        self.take(&name, &[outputs - common, groups])?;
        let scales = self.file.bf16(&name)?;
        if let Some(bad) = scales.iter().find(|scale| !scale.is_finite()) {
            return Err(self.wrong(&name, "finite numbers", bad.to_string()));
        }
        self.take(RARE, &[outputs - common, width])?;
        let bytes = self.file.u8(RARE)?;
        // In memory every number has 8 bits and a row one scale.
        for (bytes, scales) in bytes.chunks(width).zip(scales.chunks(groups)) {
            let code = |i: usize| f32::from(bytes[i / 2] >> (i % 2 * 4) & 15) - 8.0;
            let row: Vec<f32> = (0..inputs).map(|i| code(i) * scales[i / NIBBLES]).collect();
            if let Some(bad) = row.iter().find(|w| !w.is_finite()) {
                return Err(self.wrong(&name, "scales of finite numbers", bad.to_string()));
            }
            let (row, scale) = byte_rows(&row, inputs);
            codes.extend(row.iter().map(|&code| code as i8));
            row_scales.extend(scale);
        }
        Ok((codes, row_scales))
    }

    /// The tokenizer, which fits the model.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, PackError> {
        let bytes = self.file.u8(TOKENIZER)?;
        let file = || self.file.label().to_owned();
        let tokenizer =
            Tokenizer::from_compact(bytes).map_err(|source| PackError::Tokenizer { file: file(), source })?;
        self.taken.borrow_mut().insert(TOKENIZER.into());
        self.config.fits(&tokenizer).map_err(|source| PackError::Config { file: file(), source })?;
        Ok(tokenizer)
    }

    /// That nothing is left.
    pub(crate) fn finish(self) -> Result<(), PackError> {
        let taken = self.taken.borrow();
        match self.file.names().iter().find(|name| !taken.contains(*name)) {
            Some(name) => Err(self.wrong(name, "no such tensor in a model of its config", "one")),
            None => Ok(()),
        }
    }
}

/// A text from outside, cut to what fits a message.
fn shown(text: &str) -> String {
    let cut: Cow<str> = match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}..", &text[..at]).into(),
        None => text.into(),
    };
    format!("{cut:?}")
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

mod unpack;
pub use unpack::unpack;

#[cfg(test)]
mod tests;
