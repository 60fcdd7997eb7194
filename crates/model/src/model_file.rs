//! A model with master weights: one safetensors file with the tokenizer beside it.
//!
//! The tensors carry the names of the layout (`embedding.weight: [V, D]`, ...) in F32. The metadata of the file holds
//! `format` = `flashlm` and `config`, the JSON of [`ModelConfig`]. Beside it lies `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flashlm_kernels::{Buf, Exec};

use crate::codes::error::PackError;
use crate::config::{ConfigError, ModelConfig};
use crate::infer::model::PackedModel;
use crate::io::safetensors::{TensorFile, TensorRef};
use crate::io::{IoError, read_limited};
use crate::pack::{self, Options};
use crate::params::{Layout, Spec};
use crate::tok::{MAX_FILE, TokError, Tokenizer};

/// What stands under `format` in the metadata.
pub const FORMAT: &str = "flashlm";
/// The tokenizer's name beside a model file.
pub const TOKENIZER: &str = "tokenizer.json";

/// Why a model with master weights was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The model file says nothing usable about its sizes.
    #[error("metadata `{key}`: expected {expected}, found {found}; was the file made by this version of this program?")]
    Metadata {
        /// The key.
        key: &'static str,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The tensors are not those of the config.
    #[error(
        "tensor `{name}`: expected {expected}, found {found}; the file does not fit its config: use a config and a file of \
         the same model"
    )]
    Tensor {
        /// The tensor.
        name: String,
        /// What the config asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A parameter that is no number.
    #[error(
        "tensor `{name}`: expected finite numbers, found {found} at element {at}; the training run diverged or the file is damaged: use an earlier checkpoint"
    )]
    NotFinite {
        /// The tensor.
        name: String,
        /// The value.
        found: f32,
        /// Its place in the tensor.
        at: usize,
    },
    /// The tokenizer is of another model.
    #[error("{}: the tokenizer of another model ({source}); use the tokenizer the model was trained with", path.display())]
    Vocabulary {
        /// The tokenizer file.
        path: PathBuf,
        /// What does not fit.
        source: ConfigError,
    },
    /// The tokenizer could not be read.
    #[error("{}: not a tokenizer ({source}); a model needs the tokenizer.json it was trained with beside it", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokError,
    },
    /// Something is wrong inside this file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What.
        source: Box<ModelError>,
    },
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// No packed model could be made of it.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// A model ready to train on, to evaluate or to pack: parameters in the order of the layout that its config gives.
pub struct Model {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// All parameters, flat.
    pub params: Buf<f32>,
    /// The tokenizer it was trained with.
    pub tokenizer: Tokenizer,
    /// The checkpoint folder or the file that was read.
    pub path: PathBuf,
    /// The step of a checkpoint.
    pub step: Option<u64>,
}

/// The bytes of a model's tokenizer, and where they are from.
pub struct TokenizerFile<'a> {
    /// The file, for errors.
    pub path: &'a Path,
    /// Its bytes, JSON.
    pub json: &'a [u8],
}

impl Model {
    /// Loads a model file with its `tokenizer.json` beside it.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        let (file, beside) = (TensorFile::open(path)?, path.with_file_name(TOKENIZER));
        let json = read_limited(&beside, MAX_FILE as u64)?;
        Self::read(&file, path, TokenizerFile { path: &beside, json: &json }, None)
    }

    /// The same from a file that is open already. `activation_bits` are those of a model saved before its config had them.
    pub fn read(
        file: &TensorFile,
        path: &Path,
        tokenizer: TokenizerFile,
        activation_bits: Option<u32>,
    ) -> Result<Model, ModelError> {
        let within = |source| match source {
            ModelError::Io(_) => source,
            source => ModelError::File { path: path.to_owned(), source: Box::new(source) },
        };
        let config = read_config(file, activation_bits).map_err(within)?;
        let params = read_params(file, &config, "").map_err(within)?;
        let beside = || tokenizer.path.to_owned();
        let tokenizer =
            Tokenizer::from_json(tokenizer.json).map_err(|source| ModelError::Tokenizer { path: beside(), source })?;
        config.fits(&tokenizer).map_err(|source| ModelError::Vocabulary { path: beside(), source })?;
        Ok(Model { config, params, tokenizer, path: path.to_owned(), step: None })
    }

    /// Number of its parameters.
    pub fn parameters(&self) -> usize {
        self.config.parameters()
    }

    /// The bytes of the packed model.
    pub fn pack(&self, cx: &Exec, options: Options) -> Vec<u8> {
        pack::pack(cx, &self.config, &self.params, &self.tokenizer, options)
    }

    /// The packed model as `flashlm pack` makes it.
    pub fn packed(&self, cx: &Exec) -> Result<PackedModel, PackError> {
        PackedModel::from_bytes(self.pack(cx, Options::default()), &self.path.display().to_string())
    }
}

/// The config in the metadata, its values checked.
fn read_config(file: &TensorFile, activation_bits: Option<u32>) -> Result<ModelConfig, ModelError> {
    match file.metadata("format") {
        Some(FORMAT) => {}
        other => {
            let found = other.map_or("nothing".into(), |f| format!("{f:?}"));
            return Err(ModelError::Metadata { key: "format", expected: "`flashlm`", found });
        }
    }
    let bad = |found| ModelError::Metadata { key: "config", expected: "a model's sizes and switches as JSON", found };
    let json = file.metadata("config").ok_or_else(|| bad("nothing".into()))?;
    let mut config: ModelConfig = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
    if !json.contains("\"activation_bits\"") {
        config.activation_bits = activation_bits.unwrap_or(0);
    }
    config.validate().map_err(|e| bad(e.to_string()))?;
    Ok(config)
}

/// The parameters of a valid config from the tensors named `prefix` + name, all of which must be there with their shapes, and
/// all of their elements finite. A `head.weight` or `lm_head.weight` is accepted where it equals the embedding, with which it is tied.
pub fn read_params(file: &TensorFile, config: &ModelConfig, prefix: &str) -> Result<Buf<f32>, ModelError> {
    read_named(file, config, prefix, |_| true)
}

/// The same of gradients: what is never read has none, and may be left out.
pub fn read_gradients(file: &TensorFile, config: &ModelConfig, prefix: &str) -> Result<Buf<f32>, ModelError> {
    read_named(file, config, prefix, |spec| spec.group.is_trained())
}

fn read_named(
    file: &TensorFile,
    config: &ModelConfig,
    prefix: &str,
    wanted: impl Fn(&Spec) -> bool,
) -> Result<Buf<f32>, ModelError> {
    let layout = Layout::of(config);
    // Shapes first: a config that is larger than its tensors takes no memory.
    for spec in layout.specs().iter().filter(|spec| wanted(spec)) {
        check_shape(file, &format!("{prefix}{}", spec.name), &spec.shape)?;
    }
    let mut params = Buf::zeros(layout.len());
    for spec in layout.specs().iter().filter(|spec| wanted(spec)) {
        read_values(file, &format!("{prefix}{}", spec.name), &mut params[spec.range.clone()])?;
    }
    for name in &file.names() {
        let Some(own) = name.strip_prefix(prefix) else { continue };
        if layout.find(own).is_some() {
            continue;
        }
        if !["head.weight", "lm_head.weight"].contains(&own) {
            return Err(wrong(name, "no tensor of this name".into(), format!("one of shape {:?}", file.shape(name)?)));
        }
        let embedding = layout.find("embedding.weight").map(|spec| &params[spec.range.clone()]);
        if embedding != Some(&file.f32(name)?[..]) {
            return Err(wrong(name, "the same values as `embedding.weight`".into(), "others".into()));
        }
    }
    Ok(params)
}

/// Fills `out` from a tensor of this shape, all of whose elements must be finite.
pub fn read_tensor(file: &TensorFile, name: &str, shape: &[usize], out: &mut [f32]) -> Result<(), ModelError> {
    check_shape(file, name, shape)?;
    read_values(file, name, out)
}

fn read_values(file: &TensorFile, name: &str, out: &mut [f32]) -> Result<(), ModelError> {
    let values = file.f32(name)?;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(ModelError::NotFinite { name: name.into(), found: values[at], at });
    }
    out.copy_from_slice(&values);
    Ok(())
}

/// A tensor that is not what the layout asks for.
pub fn wrong(name: &str, expected: String, found: String) -> ModelError {
    ModelError::Tensor { name: name.into(), expected, found }
}

fn check_shape(file: &TensorFile, name: &str, shape: &[usize]) -> Result<(), ModelError> {
    let found = file.shape(name)?;
    if found == shape { Ok(()) } else { Err(wrong(name, format!("shape {shape:?}"), format!("{found:?}"))) }
}

/// The tensors and the metadata of a model file.
pub fn save_params<'a>(
    layout: &'a Layout,
    params: &'a [f32],
    config: &ModelConfig,
) -> (Vec<TensorRef<'a>>, BTreeMap<String, String>) {
    let tensor = |spec: &'a Spec| TensorRef { name: &spec.name, shape: &spec.shape, data: &params[spec.range.clone()] };
    let json = serde_json::to_string(config).expect("numbers, texts and switches have a JSON form");
    let metadata = [("format".to_owned(), FORMAT.to_owned()), ("config".to_owned(), json)];
    (layout.specs().iter().map(tensor).collect(), metadata.into())
}
