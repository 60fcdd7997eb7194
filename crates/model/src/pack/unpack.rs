//! Parameters that pack into the model they come from: what training can start from where only the packed file is left.
//!
//! A ternary weight `s c` (code c, scale s) becomes the master weight `w = s c * (s / s')`, with the scale `s'` that the quantiser
//! gives to `s c`; since that is in proportion to the weights, `w` has the code c and the scale s again. What the master weights
//! were between the codes is lost.

use super::open::Opened;
use crate::codes::error::PackError;
use crate::codes::weight::Values;
use crate::io::safetensors::TensorFile;
use flashlm_kernels::ops::quantise;
use flashlm_kernels::{Buf, Exec};

/// The parameters of the packed model in the file, in the order of its layout.
pub fn unpack(cx: &Exec, file: TensorFile) -> Result<Buf<f32>, PackError> {
    let Opened { config, reader, .. } = Opened::read(file)?;
    let (layout, quant) = (&reader.layout, config.quant.quant());
    let mut params = Buf::zeros(layout.len());
    for (spec, weight) in layout.specs().iter().zip(reader.weights(quant)?) {
        let w = &mut params[spec.range.clone()];
        w.copy_from_slice(&weight.floats());
        if let (Some(quant), Values::Ternary(_)) = (quant, &weight.values) {
            let (mut quantised, size) = (vec![0.0; w.len()], (spec.shape[0], spec.shape[1]));
            quantise(cx, &mut quantised, &mut vec![0.0; w.len()], w, size, quant);
            for (w, quantised) in w.iter_mut().zip(quantised).filter(|(_, quantised)| *quantised != 0.0) {
                *w *= *w / quantised;
            }
        }
    }
    Ok(params)
}
