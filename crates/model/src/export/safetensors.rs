//! One safetensors file with every parameter in F32, named as in the PyTorch originals: ternary weights are `-alpha`, 0 or `alpha`.
//! Its metadata holds `format` = `pt`, as other programs expect it, and `config`, the JSON of the model's sizes and switches.

use std::collections::BTreeMap;

use super::source::{Exported, Refused, Source};
use crate::io::safetensors::{TensorRef, write_tensors};

/// What weights may be written as.
pub const WEIGHTS: &[&str] = &["f32"];

/// The bytes of the file.
pub fn write(source: &Source, _: &str) -> Result<Exported, Refused> {
    let floats: Vec<Vec<f32>> = source.weights.iter().map(|weight| weight.floats()).collect();
    let weights = source.weights.iter().zip(&floats);
    let tensors: Vec<TensorRef> =
        weights.map(|(weight, data)| TensorRef { name: &weight.name, shape: &weight.shape, data }).collect();
    let config = serde_json::to_string(&source.config).expect("numbers, texts and switches have a JSON form");
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("config".to_owned(), config)]);
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &tensors, &metadata).expect("memory to write to");
    Ok(Exported::File(bytes))
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::ops::quantise;
    use flashlm_kernels::{Exec, Isa};

    use super::*;
    use crate::infer::testing::{Noise, shapes};
    use crate::io::safetensors::TensorFile;
    use crate::params::Group;

    /// Ternary matrices are what the quantiser makes of the master weights; floats are as they were.
    #[test]
    fn every_tensor_is_what_the_model_computes_with() {
        for (name, config) in shapes() {
            let noise = Noise::new(config);
            let source = Source::read(TensorFile::from_bytes(noise.bytes.clone(), "packed").unwrap()).unwrap();
            let Ok(Exported::File(bytes)) = write(&source, "f32") else { panic!("{name}") };
            let file = TensorFile::from_bytes(bytes, "exported").unwrap();
            assert_eq!(file.names().len(), noise.layout.specs().len(), "{name}");
            for spec in noise.layout.specs() {
                let (got, w) = (file.f32(&spec.name).unwrap(), &noise.params[spec.range.clone()]);
                assert_eq!(file.shape(&spec.name).unwrap(), spec.shape, "{name}: {}", spec.name);
                let mut want = w.to_vec();
                match (spec.group, noise.config.quant.quant()) {
                    (Group::Matrix, Some(quant)) => {
                        let size = (spec.shape[0], spec.shape[1]);
                        quantise(&Exec::new(Isa::SCALAR, 1), &mut want, &mut vec![0.0; w.len()], w, size, quant);
                    }
                    (Group::Matrix | Group::Embedding | Group::Table, _) => {
                        for (row, got) in want.chunks(spec.shape[1]).zip(got.chunks(spec.shape[1])) {
                            let step = row.iter().fold(0.0, |m: f32, w| m.max(w.abs())) / 127.0;
                            assert!(row.iter().zip(got).all(|(w, g)| (w - g).abs() <= 0.501 * step), "{name}");
                        }
                        continue;
                    }
                    _ => {}
                }
                assert_eq!(got, want, "{name}: {}", spec.name);
            }
        }
    }
}
