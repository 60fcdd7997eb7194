//! The tensors of a packed model: each is asked for once, by its place in the layout, which gives its name and size.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use flashlm_kernels::ops::{Columns, PackedMatrix, Quant};

use super::error::PackError;
use super::format::{RARE, TOKENIZER};
use super::options::{Density, TableBits};
use super::weight::{Codes, Values, Weight};
use super::weights::{COMMON, NIBBLES, Unit, byte_rows, digits, unit};
use crate::io::safetensors::TensorFile;
use crate::params::{Group, Layout, Spec};

/// A packed model being read.
pub(crate) struct Reader {
    pub(crate) file: TensorFile,
    pub(crate) layout: Layout,
    density: Density,
    table: TableBits,
    taken: RefCell<BTreeSet<String>>,
}

impl Reader {
    /// The tensors of a file that hold the parameters of `layout`.
    pub(crate) fn new(file: TensorFile, layout: Layout, density: Density, table: TableBits) -> Self {
        Reader { file, layout, density, table, taken: RefCell::default() }
    }

    /// Bytes of the tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<&[u8], PackError> {
        let bytes = self.file.u8(TOKENIZER)?;
        self.taken.borrow_mut().insert(TOKENIZER.into());
        Ok(bytes)
    }

    pub(crate) fn wrong(&self, name: &str, expected: impl Into<String>, found: impl Into<String>) -> PackError {
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

    /// A float parameter, every element a number.
    pub(crate) fn floats(&self, place: &Range<usize>) -> Result<Vec<f32>, PackError> {
        let Spec { name, shape, .. } = self.layout.at(place);
        self.numbers(name, shape)
    }

    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, PackError> {
        self.take(name, shape)?;
        let values = self.file.f32(name)?;
        match values.iter().find(|x| !x.is_finite()) {
            Some(bad) => Err(self.wrong(name, "finite numbers", bad.to_string())),
            None => Ok(values),
        }
    }

    /// A matrix of a BitLinear: ternary, or of bytes where there is no quantiser.
    pub(crate) fn matrix(&self, place: &Range<usize>, quant: Option<Quant>) -> Result<PackedMatrix, PackError> {
        let Spec { name, shape, .. } = self.layout.at(place);
        let (outputs, inputs) = (shape[0], shape[1]);
        match quant {
            Some(quant) => {
                let (codes, columns, scales) = self.ternary(name, quant, (outputs, inputs))?;
                Ok(PackedMatrix::ternary(codes, &scales, outputs, columns))
            }
            None => {
                let (codes, scales) = self.byte_codes(name, outputs, inputs)?;
                Ok(PackedMatrix::bytes(codes, &scales, outputs, inputs))
            }
        }
    }

    /// Every parameter, in the order of the layout; matrices are ternary where there is a quantiser.
    pub(crate) fn weights(&self, quant: Option<Quant>) -> Result<Vec<Weight>, PackError> {
        let weight = |spec: &Spec| {
            let Spec { name, shape, range, group, .. } = spec;
            let values = match (quant, group, &shape[..]) {
                (Some(quant), Group::Matrix, &[outputs, inputs]) => {
                    let (codes, Columns { segment, .. }, scales) = self.ternary(name, quant, (outputs, inputs))?;
                    Values::Ternary(Codes { codes: codes.collect(), scales, inputs, segment })
                }
                (_, Group::Embedding, &[_, inputs]) => {
                    let (codes, scales) = self.table_codes(spec)?;
                    Values::Bytes(Codes { codes, scales, inputs, segment: inputs })
                }
                (_, Group::Table, &[_, inputs]) => {
                    let (codes, scales) = self.table_rows(range)?;
                    Values::Bytes(Codes { codes, scales, inputs, segment: inputs })
                }
                (_, Group::Matrix, &[outputs, inputs]) => {
                    let (codes, scales) = self.byte_codes(name, outputs, inputs)?;
                    Values::Bytes(Codes { codes: codes.collect(), scales, inputs, segment: inputs })
                }
                _ => Values::Floats(self.floats(range)?),
            };
            Ok(Weight { name: name.clone(), shape: shape.clone(), values })
        };
        self.layout.specs().iter().map(weight).collect()
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
            return Err(self.wrong(name, "ternary codes", format!("the byte {bad}")));
        }
        let digits = digits(self.density);
        let codes = (0..outputs).flat_map(move |output| {
            let row = &bytes[output * width..(output + 1) * width];
            row.iter().flat_map(move |&byte| &digits[usize::from(byte)][..each]).take(inputs).copied()
        });
        Ok((codes, columns, scales))
    }

    /// How the columns share scales, and the scales `[outputs, segments]`.
    fn scales(&self, name: &str, quant: Quant, size: (usize, usize)) -> Result<(Columns, Vec<f32>), PackError> {
        let (outputs, inputs) = size;
        Ok(match unit(quant, size) {
            Unit::Tensor => (Columns::whole(inputs), vec![self.numbers(name, &[1])?[0]; outputs]),
            Unit::Row(n) => {
                let columns = Columns { inputs, segment: n };
                (columns, self.numbers(name, &[outputs * columns.segments()])?)
            }
            Unit::Flat(n) => {
                // Units begin anywhere in a row, but always at a multiple of the greatest common divisor.
                let columns = Columns { inputs, segment: divisor(n, inputs) };
                let units = self.numbers(name, &[(outputs * inputs).div_ceil(n)])?;
                let starts = (0..outputs * inputs).step_by(columns.segment);
                (columns, starts.map(|at| units[at / n]).collect())
            }
        })
    }

    /// The codes of a matrix of bytes, and the scale of each row.
    fn byte_codes(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<(impl Iterator<Item = i8>, Vec<f32>), PackError> {
        let scales = self.numbers(&format!("{name}.scale"), &[outputs])?;
        self.take(name, &[outputs, inputs])?;
        let codes = self.file.i8(name)?;
        if codes.clone().any(|code| code == i8::MIN) {
            return Err(self.wrong(name, "weights of -127 to 127", "-128"));
        }
        Ok((codes, scales))
    }

    /// Embedding and head.
    pub(crate) fn table(&self, place: &Range<usize>) -> Result<PackedMatrix, PackError> {
        let spec = self.layout.at(place);
        let (codes, scales) = self.table_codes(spec)?;
        Ok(PackedMatrix::bytes(codes.into_iter(), &scales, spec.shape[0], spec.shape[1]))
    }

    /// The codes of a table of rows that are looked up, and the scale of each row.
    pub(crate) fn table_rows(&self, place: &Range<usize>) -> Result<(Vec<i8>, Vec<f32>), PackError> {
        let Spec { name, shape, .. } = self.layout.at(place);
        match self.table {
            TableBits::Eight => {
                let (codes, scales) = self.byte_codes(name, shape[0], shape[1])?;
                Ok((codes.collect(), scales))
            }
            TableBits::Four => self.nibble_codes(name, shape[0], shape[1]),
        }
    }

    /// Its codes and the scale of each row.
    fn table_codes(&self, spec: &Spec) -> Result<(Vec<i8>, Vec<f32>), PackError> {
        let (table, outputs, inputs) = (&spec.name, spec.shape[0], spec.shape[1]);
        if self.table == TableBits::Eight {
            let (codes, scales) = self.byte_codes(table, outputs, inputs)?;
            return Ok((codes.collect(), scales));
        }
        let common = outputs.div_ceil(COMMON);
        let (codes, mut row_scales) = self.byte_codes(table, common, inputs)?;
        let mut codes: Vec<i8> = codes.collect();
        let (rare, scales) = self.nibble_codes(RARE, outputs - common, inputs)?;
        codes.extend(rare);
        row_scales.extend(scales);
        Ok((codes, row_scales))
    }

    /// The codes of a matrix of 4 bits, as bytes, and the scale of each row: in memory every number has 8 bits and a row one scale.
    fn nibble_codes(&self, table: &str, outputs: usize, inputs: usize) -> Result<(Vec<i8>, Vec<f32>), PackError> {
        let (mut codes, mut row_scales) = (Vec::with_capacity(outputs * inputs), Vec::with_capacity(outputs));
        let (width, groups) = (inputs.div_ceil(2), inputs.div_ceil(NIBBLES));
        let name = format!("{table}.scale");
        self.take(&name, &[outputs, groups])?;
        let scales = self.file.bf16(&name)?;
        if let Some(bad) = scales.iter().find(|scale| !scale.is_finite()) {
            return Err(self.wrong(&name, "finite numbers", bad.to_string()));
        }
        self.take(table, &[outputs, width])?;
        let bytes = self.file.u8(table)?;
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

    /// That nothing is left.
    pub(crate) fn finish(self) -> Result<(), PackError> {
        let taken = self.taken.borrow();
        match self.file.names().iter().find(|name| !taken.contains(*name)) {
            Some(name) => Err(self.wrong(name, "no tensor of this name in a model with this config", "one")),
            None => Ok(()),
        }
    }
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}
