//! A model file as training saves it, from any bytes, and what it says: an error, or logits of a few tokens once it is packed.
//!
//! A first byte below 64 chooses one of some small models, of which the rest of the input changes bytes, so that the input is
//! nearly a model. Any other first byte: the rest is the file.
#![no_main]

use std::sync::LazyLock;

use flashlm_fuzz::safetensors::{changed, exec, small, whole};
use flashlm_fuzz::{file, run, seed};
use flashlm_model::io::safetensors::write_tensors;
use flashlm_model::model_file::save_params;
use flashlm_model::tok::Tokenizer;
use flashlm_train::load::load_model;
use libfuzzer_sys::fuzz_target;

static MODELS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let model = |i| {
        let (config, layout) = small(i);
        let params = layout.init::<f32>(1);
        let (tensors, metadata) = save_params(&layout, &params, &config);
        let mut file = Vec::new();
        write_tensors(&mut file, &tensors, &metadata).expect("memory to write to");
        file
    };
    (0..12).map(model).collect()
});

fuzz_target!(
    init: {
        file("tokenizer.json", Tokenizer::bytes().to_json());
        let tiny = |i: u8| vec![i, 0, 0, b'{'];
        seed((0..12).map(tiny).chain([[&[64], &MODELS[0][..]].concat()]));
    },
    |input: &[u8]| {
        let Some((&which, rest)) = input.split_first() else { return };
        let bytes = match which {
            0..64 => changed(&MODELS[usize::from(which) % MODELS.len()], rest).map(|(header, data)| whole(&header, &data)),
            _ => Some(rest.to_vec()),
        };
        let Some(bytes) = bytes else { return };
        if let Ok(model) = load_model(&file("model.safetensors", bytes))
            && let Ok(packed) = model.packed(&exec())
        {
            run(packed);
        }
    }
);
