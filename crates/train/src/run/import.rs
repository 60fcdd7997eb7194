//! A file of the original scripts as the checkpoint that a run resumes from: weights, both moments of AdamW, step.
//!
//! The settings are those of the preset whose model it is, else of `v4-small` or `v3` with the sizes of the file; betas, epsilon and weight decay
//! are those of its optimizer. The original's place in its text is not known: epochs are counted anew.

use std::path::Path;

use flashlm_model::ModelConfig;
use flashlm_model::io::safetensors::TensorRef;
use flashlm_model::model_file::{TOKENIZER, save_params};
use flashlm_model::original::{AdamW, Original};
use flashlm_model::params::{Group, Layout, Spec};

use crate::checkpoint::{Checkpoint, Part};
use crate::config::{Settings, preset, preset_names};
use crate::load::{LoadError, original_tokenizer, tokenizer_beside};
use crate::optim::{ADAMW, Optimizers};
use crate::progress::State;
use crate::trainer::TrainError;
use crate::units::thousands;

/// The checkpoint in memory, and what is to be said of it.
pub(super) fn import(path: &Path) -> Result<(Checkpoint, String), TrainError> {
    let beside = tokenizer_beside(path);
    let (original, adamw) = Original::with_optimizer(path).map_err(LoadError::from)?;
    let Original { mut config, params, step, tokens, seq_len } = original;
    let tokenizer = original_tokenizer(beside, &config)?;
    config.eos = tokenizer.eos().into();
    let mut settings = settings_of(&config)?;
    if let Some(seq_len) = seq_len {
        settings.train.seq_len = seq_len;
    }
    let layout = Layout::of(&config);
    // As a run with these settings starts; AdamW's moments are those of the file, where it has them.
    let mut optimizers = Optimizers::new(&layout, &settings.train.optimizer, settings.train.frozen_taps);
    let shown = path.display();
    let (step, frozen, told) = match adamw {
        Some(AdamW { m, v, updates, betas, eps, weight_decay, frozen }) => {
            let t = &mut settings.train;
            ([t.beta1, t.beta2], t.eps, t.weight_decay) = (betas, eps, weight_decay);
            // Matrices that are another optimizer's have moments of another kind.
            let of_adamw = |spec: &&Spec| t.optimizer == ADAMW || spec.group != Group::Matrix;
            for tensor in optimizers.state() {
                let from = tensor.name.split_once('.').and_then(|(kind, name)| {
                    Some((if kind == "m" { &m } else { &v }, layout.find(name).filter(of_adamw)?.range.clone()))
                });
                from.into_iter().for_each(|(from, range)| tensor.data.copy_from_slice(&from[range]));
            }
            let told = format!("{shown}: weights and AdamW after {} steps", thousands(updates));
            let step = step.filter(|&step| step != updates);
            let said = step.map(|step| format!(", which it counts as step {}", thousands(step)));
            (updates, frozen, format!("{told}{}", said.unwrap_or_default()))
        }
        None => {
            let why = "weights alone: the file has no optimizer state that can be taken over, so moments start at zero";
            match step {
                Some(step) if config.family == "v3" => {
                    (step, 0, format!("{shown}: {why}; steps go on from {}", thousands(step)))
                }
                step => {
                    let said = step.map(|step| format!("; the file counts {} steps", thousands(step)));
                    (0, 0, format!("{shown}: {why} and steps at 0{}", said.unwrap_or_default()))
                }
            }
        }
    };
    let (tokens, stage_start, windows) = (tokens.unwrap_or(0), step, Some(0));
    let state = State { step, frozen, tokens, stage_start, windows, ..State::default() };
    let (tensors, metadata) = save_params(&layout, &params, &config);
    let moments = optimizers.state();
    let kept = moments.iter().map(|t| TensorRef { name: &t.name, shape: &t.shape, data: t.data }).collect();
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
    let (other, optimizer) = match config.family.as_str() {
        "v3" => (preset("v3")?, preset("v3")?.train.optimizer),
        _ => (Settings { name: "v4".into(), ..preset("v4-small")? }, ADAMW.into()),
    };
    let mut settings = presets.iter().find(same).cloned().unwrap_or(other);
    settings.model = config.clone();
    settings.tokenizer.vocab = vocab_size;
    let t = &mut settings.train;
    (t.average_share, t.average_decay, t.frozen_embedding) = (0.0, 0.0, 0);
    t.embedding_from.clear();
    t.stages.clear();
    t.optimizer = optimizer;
    Ok(settings)
}
