//! Generates text from a model file, with this crate alone: `cargo run --release --example generate -- MODEL "Once upon a time"`.
//!
//! MODEL is what `flashlm pack` wrote, or the `model.safetensors` of a checkpoint with its `tokenizer.json` beside it.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use flashlm_model::sample::Settings;
use flashlm_model::{Engine, Exec, Generation, Isa, Model, PackedModel};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("usage: generate MODEL [PROMPT]")?);
    let prompt = args.next().unwrap_or_default();

    let exec = Exec::new(Isa::detect()?, 1);
    let model = match PackedModel::open(&path) {
        Ok(packed) => packed,
        Err(error) => match Model::open(&path) {
            Ok(model) => model.packed(&exec)?,
            Err(other) => return Err(format!("{error}; nor has it master weights: {other}").into()),
        },
    };
    let model = Arc::new(model);
    let mut engine = Engine::new(model.clone(), exec, 16);
    let settings = Settings { temperature: 0.8, top_p: 0.95, seed: 1, ..Settings::default() };
    let mut generation = Generation::new(&model, settings, 200, &[])?;
    generation.push(&prompt);
    let mut out = std::io::stdout().lock();
    // A reader that has gone away is no error: the text is short, and ends soon.
    let mut show = |text: &str| drop(write!(out, "{text}").and_then(|()| out.flush()));
    show(&prompt);
    engine.generate(&mut generation, &mut show)?;
    show(
        "
",
    );
    Ok(())
}
