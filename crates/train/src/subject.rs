//! A model of any kind, to be looked at from outside: its log-probabilities of tokens, whatever it is made of.

use std::path::Path;
use std::sync::Arc;

use flashlm_kernels::{Exec, Token};
use flashlm_model::config::ConfigError;
use flashlm_model::io::IoError;
use flashlm_model::model_file::ModelError;
use flashlm_model::original::Original;
use flashlm_model::pack::{self, Options, PackError};
use flashlm_model::peer::{Peer, PeerError};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, ModelConfig, PackedModel, Precision, Prepared, Shape};

use crate::load::{LoadError, load_model, load_packed, original_tokenizer, tokenizer_beside};
use crate::recognise::recognise;
use crate::what::{Unwanted, What};

/// Rows of the packed runtime at once.
const ROWS: usize = 64;

/// Why a model cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// The path is no model.
    #[error(transparent)]
    Unwanted(#[from] Unwanted),
    /// A file cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The model of another program cannot be run.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The file of the original scripts is none.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// One model in one form.
pub enum Subject {
    /// Of another program, in float.
    Peer(Arc<Peer>),
    /// Master weights, activations in float.
    Master {
        /// Its sizes and switches.
        config: Box<ModelConfig>,
        /// Its parameters.
        params: flashlm_kernels::Buf<f32>,
        /// Its tokenizer, where one lies beside it.
        tokenizer: Option<Tokenizer>,
    },
    /// Packed, as it is run.
    Packed(Arc<PackedModel>),
}

impl Subject {
    /// Opens a model in float; no tokenizer is needed.
    pub fn float(cx: &Exec, path: &Path) -> Result<Subject, SubjectError> {
        Ok(match recognise(path) {
            What::Peer(_) => Subject::Peer(Arc::new(match Peer::open(cx, path) {
                // None, or one that is not ours to read.
                Err(PeerError::NoTokenizer { .. } | PeerError::Tokenizer { .. } | PeerError::Vocabulary { .. }) => {
                    Peer::weights(cx, path)?
                }
                peer => peer?,
            })),
            What::Torch => {
                let Original { config, params, .. } = Original::open(path)?;
                let tokenizer = original_tokenizer(tokenizer_beside(path), &config).ok();
                Subject::Master { config: config.into(), params, tokenizer }
            }
            What::Model | What::Run { .. } | What::Checkpoint { .. } => {
                let model = load_model(path)?;
                let (config, params) = (model.config.into(), model.params);
                Subject::Master { config, params, tokenizer: Some(model.tokenizer) }
            }
            what => return Err(Unwanted::new(path, "a model with float weights", what).into()),
        })
    }

    /// Opens a model in every form that it has: in float, and packed.
    pub fn all(cx: &Exec, path: &Path) -> Result<Vec<Subject>, SubjectError> {
        if let What::Packed | What::Builtin = recognise(path) {
            return Ok(vec![Subject::Packed(load_packed(cx, path)?.into())]);
        }
        let float = Subject::float(cx, path)?;
        let packed = match &float {
            // The packed form holds its tokenizer.
            Subject::Master { config, params, tokenizer: Some(tokenizer) } => {
                let bytes = pack::pack(cx, config, params, tokenizer, Options::default());
                Some(Subject::Packed(PackedModel::from_bytes(bytes, &path.display().to_string())?.into()))
            }
            _ => None,
        };
        Ok([float].into_iter().chain(packed).collect())
    }

    /// As in "packed".
    pub fn form(&self) -> &'static str {
        match self {
            Subject::Peer(_) => "float",
            Subject::Master { .. } => "master weights",
            Subject::Packed(_) => "packed",
        }
    }

    /// Tokens of its vocabulary.
    pub fn vocab_size(&self) -> usize {
        match self {
            Subject::Peer(peer) => peer.vocab_size(),
            Subject::Master { config, .. } => config.vocab_size,
            Subject::Packed(model) => model.config().vocab_size,
        }
    }

    /// Most tokens that it sees at once; none where there is no bound.
    pub fn context(&self) -> Option<usize> {
        match self {
            Subject::Peer(peer) => Some(peer.context()),
            _ => None,
        }
    }

    /// Its tokenizer, if it has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        match self {
            Subject::Peer(peer) => peer.tokenizer(),
            Subject::Master { tokenizer, .. } => tokenizer.as_ref(),
            Subject::Packed(model) => Some(model.tokenizer()),
        }
    }

    /// `ln p` of each target after the input beside it and all inputs before, from a fresh state, at once.
    pub fn log_probs(&self, cx: &Exec, inputs: &[Token], targets: &[Token]) -> Result<Vec<f64>, SubjectError> {
        let mut out = Vec::with_capacity(inputs.len());
        match self {
            Subject::Peer(peer) => peer.sequence().log_probs(cx, inputs, targets, &mut out),
            Subject::Master { config, params, .. } => {
                let mut lm = Precision::F32.build(config, inputs.len(), false)?;
                let shape = Shape { batch: 1, seq_len: inputs.len() };
                Prepared::new(cx, &mut *lm, params).log_probs(&mut out, inputs, targets, None, shape);
            }
            Subject::Packed(model) => {
                let mut engine = Engine::new(model.clone(), Exec::new(cx.isa(), cx.pool().threads()), ROWS);
                engine.log_probs(&mut model.new_state(), inputs, targets, &mut out);
            }
        }
        Ok(out)
    }
}
