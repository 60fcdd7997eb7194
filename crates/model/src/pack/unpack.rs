//! Parameters that pack into the model they come from: what training can start from where only the packed file is left.
//!
//! A ternary weight `s c` (code c, scale s) becomes the master weight `w = s c * (s / s')`, with the scale `s'` that the quantiser
//! gives to `s c`; since that is in proportion to the weights, `w` has the code c and the scale s again. What the master weights
//! were between the codes is lost.

use super::error::PackError;
use super::open::Opened;
use crate::io::safetensors::TensorFile;
use crate::params::Group;
use flashlm_kernels::ops::quantise;
use flashlm_kernels::{Buf, Exec};
use std::path::Path;

/// The parameters of the packed model in the file, in the order of its layout.
pub fn unpack(cx: &Exec, path: &Path) -> Result<Buf<f32>, PackError> {
    let Opened { config, reader, .. } = Opened::read(TensorFile::open(path)?)?;
    let layout = &reader.layout;
    let mut params = Buf::zeros(layout.len());
    for spec in layout.specs() {
        let w = &mut params[spec.range.clone()];
        match (config.quant.quant(), spec.group, &spec.shape[..]) {
            (Some(quant), Group::Matrix, &[outputs, inputs]) => {
                let (codes, columns, scales) = reader.ternary(&spec.name, quant, (outputs, inputs))?;
                let segments = columns.segments();
                for (i, (w, code)) in w.iter_mut().zip(codes).enumerate() {
                    *w = f32::from(code) * scales[i / inputs * segments + i % inputs / columns.segment];
                }
                let mut quantised = vec![0.0; w.len()];
                quantise(cx, &mut quantised, &mut vec![0.0; w.len()], w, (outputs, inputs), quant);
                for (w, quantised) in w.iter_mut().zip(quantised).filter(|(_, quantised)| *quantised != 0.0) {
                    *w *= *w / quantised;
                }
            }
            (_, Group::Embedding, &[_, inputs]) => {
                let (codes, scales) = reader.table_codes(spec)?;
                rows(w, codes.into_iter(), &scales, inputs);
            }
            (_, Group::Matrix, &[outputs, inputs]) => {
                let (codes, scales) = reader.byte_codes(&spec.name, outputs, inputs)?;
                rows(w, codes, &scales, inputs);
            }
            _ => w.copy_from_slice(&reader.floats(&spec.range)?),
        }
    }
    Ok(params)
}

/// Codes times the scale of their row.
fn rows(w: &mut [f32], codes: impl Iterator<Item = i8>, scales: &[f32], inputs: usize) {
    for (i, (w, code)) in w.iter_mut().zip(codes).enumerate() {
        *w = f32::from(code) * scales[i / inputs];
    }
}
