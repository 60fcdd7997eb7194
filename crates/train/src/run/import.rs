//! A file of the original scripts as the checkpoint that a run resumes from: weights, both moments of AdamW, step.
//!
//! The settings are those of the preset whose model it is, else of `v4-small` with the sizes of the file; betas, epsilon and weight decay
//! are those of its optimizer. The original's place in its text is not known: epochs are counted anew.

use std::path::Path;

use flashlm_kernels::Buf;
use flashlm_model::ModelConfig;
use flashlm_model::io::safetensors::TensorRef;
use flashlm_model::model_file::{ModelError, TOKENIZER, save_params};
use flashlm_model::original::{AdamW, Original};
use flashlm_model::params::Layout;

use crate::checkpoint::{Checkpoint, Part};
use crate::config::{Settings, preset, preset_names};
use crate::load::{LoadError, read_tokenizer, tokenizer_beside};
use crate::optim::ADAMW;
use crate::progress::State;
use crate::trainer::TrainError;
use crate::units::thousands;

/// The checkpoint in memory, and what is to be said of it.
pub(super) fn import(path: &Path) -> Result<(Checkpoint, String), TrainError> {
    let beside = tokenizer_beside(path)?;
    let (original, adamw) = Original::with_optimizer(path).map_err(LoadError::from)?;
    let Original { mut config, params, step, tokens, seq_len } = original;
    let tokenizer = read_tokenizer(&beside)?;
    let misfit = |source| LoadError::from(ModelError::Vocabulary { path: beside.clone(), source });
    config.fits(&tokenizer).map_err(misfit)?;
    config.eos = tokenizer.eos().into();
    let mut settings = settings_of(&config)?;
    if let Some(seq_len) = seq_len {
        settings.train.seq_len = seq_len;
    }
    let layout = Layout::of(&config);
    let zeros = || Buf::<f32>::zeros(layout.len());
    let shown = path.display();
    let (step, [m, v], told) = match adamw {
        Some(AdamW { m, v, updates, betas, eps, weight_decay }) => {
            let t = &mut settings.train;
            ([t.beta1, t.beta2], t.eps, t.weight_decay) = (betas, eps, weight_decay);
            let told = format!("{shown}: weights and AdamW after {} steps", thousands(updates));
            let step = step.filter(|&step| step != updates);
            let said = step.map(|step| format!(", which it counts as step {}", thousands(step)));
            (updates, [m, v], format!("{told}{}", said.unwrap_or_default()))
        }
        None => {
            let told = "weights alone, without an optimizer: the moments of AdamW start at zero, and steps at 0";
            let said = step.map(|step| format!("; the file counts {} steps", thousands(step)));
            (0, [zeros(), zeros()], format!("{shown}: {told}{}", said.unwrap_or_default()))
        }
    };
    let state = State { step, tokens: tokens.unwrap_or(0), stage_start: step, windows: Some(0), ..State::default() };
    let (tensors, metadata) = save_params(&layout, &params, &config);
    let moments = [("m", &m), ("v", &v)];
    let names: Vec<(String, &[usize], &[f32])> = moments
        .into_iter()
        .flat_map(|(kind, all)| {
            let tensor = move |spec: &flashlm_model::params::Spec| format!("{kind}.{}", spec.name);
            layout.specs().iter().map(move |spec| (tensor(spec), &spec.shape[..], &all[spec.range.clone()]))
        })
        .collect();
    let kept = names.iter().map(|(name, shape, data)| TensorRef { name, shape, data }).collect();
    let (state, toml, json) = (serde_json::to_vec(&state).unwrap_or_default(), settings.to_toml(), tokenizer.to_json());
    let parts = [
        Part::Tensors { file: "model.safetensors", tensors, metadata },
        Part::Tensors { file: "optimizer.safetensors", tensors: kept, metadata: Default::default() },
        Part::Bytes { file: "state.json", data: &state },
        Part::Bytes { file: "config.toml", data: toml.as_bytes() },
        Part::Bytes { file: TOKENIZER, data: &json },
    ];
    let made = Checkpoint::made(path, step, &parts);
    let from = made.map_err(|e| TrainError::State { path: path.to_owned(), what: e.to_string() })?;
    Ok((from, format!("{told}; settings: {}", settings.name)))
}

/// Those of the preset whose model it is.
fn settings_of(config: &ModelConfig) -> Result<Settings, TrainError> {
    let ModelConfig { vocab_size, eos, .. } = *config;
    let presets = preset_names().into_iter().map(preset).collect::<Result<Vec<Settings>, _>>()?;
    let same = |settings: &&Settings| ModelConfig { vocab_size, eos, ..settings.model.clone() } == *config;
    let mut settings = match presets.iter().find(same) {
        Some(settings) => settings.clone(),
        None => Settings { name: "v4".into(), ..preset("v4-small")? },
    };
    settings.model = config.clone();
    settings.tokenizer.vocab = vocab_size;
    (settings.train.optimizer, settings.train.average_share) = (ADAMW.into(), 0.0);
    settings.train.stages.clear();
    Ok(settings)
}
