//! A trained model from disk: from a run folder, a checkpoint folder, or a `.safetensors` file.
//!
//! Parts of a checkpoint are read against its checksums; its `config.toml` only where it is older than the model's
//! `activation_bits`.

use crate::builtin;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::older_activation_bits;
use crate::optim::Tensor;
use crate::recognise::recognise;
use crate::run_folder::{RunError, RunFolder};
use crate::what::{Unwanted, What};
use flashlm_kernels::{Buf, Exec};
use flashlm_model::export::Source;
use flashlm_model::io::IoError;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_model::model_file::{Model, ModelError, TOKENIZER, TokenizerFile, read_tensor, wrong};
use flashlm_model::original::Original;
use flashlm_model::pack::{self, Options, PackError};
use flashlm_model::peer::PeerError;
use flashlm_model::tok::{TokError, Tokenizer};
use flashlm_model::{ModelConfig, PackedModel, Peer};
use std::path::{Path, PathBuf};

const MODEL: &str = "model.safetensors";
const SETTINGS: &str = "config.toml";

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The path is not a model.
    #[error(transparent)]
    Unwanted(#[from] Unwanted),
    /// A folder or file of another kind.
    #[error("{}: expected {expected}, found {found}; {mend}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
        /// What to do.
        mend: &'static str,
    },
    /// The model is none, or damaged.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The checkpoint is damaged.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run folder cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The model of another program cannot be used.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// No packed model could be made or read.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// What may be named as a model.
const ANY: &str = "a model: a run, a checkpoint, a packed model, or a model file of FlashLM";
/// What may be named where master weights are needed.
const MASTER: &str = "a model with master weights: a run, a checkpoint, or a model file of FlashLM";

/// A model in the form it was found in.
pub enum Found {
    /// With its master weights.
    Master(Box<Model>),
    /// As `flashlm pack` wrote it.
    Packed(Box<PackedModel>),
}

impl Found {
    /// Loads a packed model, or whatever [`load_model`] takes.
    pub fn load(path: &Path) -> Result<Found, LoadError> {
        match recognise(path) {
            What::Packed => Ok(Found::Packed(PackedModel::open(path)?.into())),
            What::Builtin => Ok(Found::Packed(PackedModel::read(builtin::tensors()?)?.into())),
            what => Ok(Found::Master(model_of(path, what, ANY)?.into())),
        }
    }
}

/// A float model of another program with its tokenizer; none where the path is anything else.
pub fn load_peer(cx: &Exec, path: &Path) -> Result<Option<Peer>, LoadError> {
    match recognise(path) {
        What::Peer(_) => Ok(Some(Peer::open(cx, path)?)),
        _ => Ok(None),
    }
}

/// The tensors of a packed model.
pub fn packed_file(path: &Path) -> Result<TensorFile, LoadError> {
    Ok(if recognise(path) == What::Builtin { builtin::tensors()? } else { TensorFile::open(path)? })
}

/// Parameters of a packed model, to continue training from.
pub fn unpacked(cx: &Exec, path: &Path) -> Result<Buf<f32>, LoadError> {
    Ok(pack::unpack(cx, packed_file(path)?)?)
}

/// A model for the packed runtime: a packed file, or whatever [`load_model`] takes, packed in memory.
pub fn load_packed(cx: &Exec, path: &Path) -> Result<PackedModel, LoadError> {
    match Found::load(path)? {
        Found::Packed(packed) => Ok(*packed),
        Found::Master(model) => Ok(model.packed(cx)?),
    }
}

/// The same, unpacked for an export.
pub fn export_source(cx: &Exec, path: &Path) -> Result<Source, LoadError> {
    let file = match recognise(path) {
        What::Packed | What::Builtin => packed_file(path)?,
        what => TensorFile::from_bytes(
            model_of(path, what, ANY)?.pack(cx, Options::default()),
            &path.display().to_string(),
        )?,
    };
    Ok(Source::read(file)?)
}

/// Loads a model with master weights from a run folder (its best checkpoint, or where none is marked or good the latest good one),
/// a checkpoint folder, or a `.safetensors` file with `tokenizer.json` beside it.
pub fn load_model(path: &Path) -> Result<Model, LoadError> {
    model_of(path, recognise(path), MASTER)
}

fn model_of(path: &Path, what: What, wanted: &'static str) -> Result<Model, LoadError> {
    match &what {
        What::Model => return from_file(path),
        What::Torch => return from_torch(path),
        What::Checkpoint { folder, .. } => return from_checkpoint(Checkpoint::open(folder)?),
        What::Run { folder, checkpoints: 1.. } => {
            if let Some(chosen) = RunFolder::at(folder).chosen()? {
                return from_checkpoint(chosen);
            }
        }
        _ => {}
    }
    Err(Unwanted::new(path, wanted, what).into())
}

fn from_checkpoint(checkpoint: Checkpoint) -> Result<Model, LoadError> {
    let (file, json) = (checkpoint.tensors(MODEL)?, checkpoint.bytes(TOKENIZER)?);
    let settings = checkpoint.bytes(SETTINGS).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let table = settings.and_then(|text| text.parse().ok());
    let bits = table.and_then(|mut table| older_activation_bits(&mut table)?.as_integer());
    let bits = bits.filter(|&bits| bits == 8).map(|_| 8);
    let folder = checkpoint.path();
    let tokenizer = TokenizerFile { path: &folder.join(TOKENIZER), json: &json };
    let model = Model::read(&file, &folder.join(MODEL), tokenizer, bits)?;
    Ok(Model { path: folder.to_owned(), step: Some(checkpoint.step()), ..model })
}

/// A file of the original scripts with its tokenizer.
fn from_torch(path: &Path) -> Result<Model, LoadError> {
    let beside = tokenizer_beside(path);
    let Original { config, params, step, .. } = Original::open(path)?;
    let tokenizer = original_tokenizer(beside, &config)?;
    Ok(Model { config, params, tokenizer, path: path.to_owned(), step })
}

/// The tokenizer beside a file of the original scripts, which fits its model. Where there is none, a model of GPT-2's vocabulary, as v3 is,
/// has that.
pub(crate) fn original_tokenizer(
    beside: Result<PathBuf, LoadError>,
    config: &ModelConfig,
) -> Result<Tokenizer, LoadError> {
    let beside = match beside {
        Ok(beside) => beside,
        Err(error) => {
            let (gpt2, none) = (Tokenizer::gpt2(), matches!(error, LoadError::NotAModel { .. }));
            return if none && config.vocab_size == gpt2.vocab_size() { Ok(gpt2) } else { Err(error) };
        }
    };
    let tokenizer = read_tokenizer(&beside)?;
    config.fits(&tokenizer).map_err(|source| ModelError::Vocabulary { path: beside, source })?;
    Ok(tokenizer)
}

/// A tokenizer, its path told once where it is none.
pub(crate) fn read_tokenizer(path: &Path) -> Result<Tokenizer, LoadError> {
    Tokenizer::load(path).map_err(|e| match e {
        TokError::Read(source) => (*source).into(),
        TokError::File { reason, .. } => ModelError::Tokenizer { path: path.to_owned(), source: *reason }.into(),
        source => ModelError::Tokenizer { path: path.to_owned(), source }.into(),
    })
}

fn from_file(path: &Path) -> Result<Model, LoadError> {
    tokenizer_beside(path)?;
    Ok(Model::open(path)?)
}

/// The `tokenizer.json` beside a model file.
pub(crate) fn tokenizer_beside(path: &Path) -> Result<PathBuf, LoadError> {
    let beside = path.with_file_name(TOKENIZER);
    match recognise(&beside) {
        What::Tokenizer(_) => Ok(beside),
        What::Missing(_) => Err(LoadError::NotAModel {
            path: beside,
            expected: "the model's tokenizer",
            found: "no such file".into(),
            mend: "copy the tokenizer.json of its checkpoint beside the model file",
        }),
        found => Err(Unwanted::new(&beside, "the tokenizer of the model beside it", found).into()),
    }
}

/// Fills the state of optimizers from a file, which must hold exactly these tensors, all of their elements finite.
pub(crate) fn read_state(file: &TensorFile, tensors: &mut [Tensor]) -> Result<(), LoadError> {
    for t in &mut *tensors {
        read_tensor(file, &t.name, &t.shape, t.data)?;
    }
    match file.names().iter().find(|&name| tensors.iter().all(|t| t.name != *name)) {
        Some(name) => {
            Err(wrong(name, "no tensor of this name".into(), format!("one of shape {:?}", file.shape(name)?)).into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Part, save};
    use crate::run_folder::Claim;
    use flashlm_model::config::ScaleKind;
    use flashlm_model::io::safetensors::{TensorRef, write_tensors};
    use flashlm_model::model_file::save_params;
    use flashlm_model::params::Layout;
    use std::collections::BTreeMap;
    use std::fs;

    /// Of a run saved before the bits of activations were the model's.
    const SETTINGS_TEXT: &[u8] = b"[model]\ndim = 16\n[train]\nactivation_bits = 8\n";
    /// What lies beside a model that was copied into a project.
    const FOREIGN: &str = "[package]\nname = \"mine\"\n[train]\nactivation_bits = 8\n";

    fn config() -> ModelConfig {
        ModelConfig { vocab_size: 257, dim: 16, blocks: 2, ffn_hidden: 24, ..ModelConfig::v4_small() }
    }

    fn layout(config: &ModelConfig) -> Layout {
        Layout::of(config)
    }

    fn save_step(run: &Path, step: u64) -> PathBuf {
        let layout = layout(&config());
        let params = layout.init::<f32>(step);
        let (tensors, metadata) = save_params(&layout, &params, &config());
        let tokenizer = Tokenizer::bytes().to_json();
        let parts = [
            Part::Tensors { file: MODEL, tensors, metadata },
            Part::Bytes { file: TOKENIZER, data: &tokenizer },
            Part::Bytes { file: SETTINGS, data: SETTINGS_TEXT },
        ];
        save(&run.join("checkpoints"), step, &parts).unwrap()
    }

    /// A model file of `config` whose tensors went through `edit`.
    fn write(path: &Path, config: &ModelConfig, edit: impl FnOnce(&mut Vec<TensorRef>, &mut BTreeMap<String, String>)) {
        let layout = layout(config);
        let params = layout.init::<f32>(1);
        let (mut tensors, mut metadata) = save_params(&layout, &params, config);
        edit(&mut tensors, &mut metadata);
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, &tensors, &metadata).unwrap();
        fs::write(path, bytes).unwrap();
        fs::write(path.with_file_name(TOKENIZER), Tokenizer::bytes().to_json()).unwrap();
    }

    fn error(path: &Path) -> String {
        load_model(path).map(|_| panic!("{} was loaded", path.display())).unwrap_err().to_string()
    }

    fn damage(folder: &Path) {
        let file = folder.join(MODEL);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file, bytes).unwrap();
    }

    #[test]
    fn what_was_saved_is_loaded_from_run_folder_and_file() {
        let run = tempfile::tempdir().unwrap();
        let folders = [save_step(run.path(), 100), save_step(run.path(), 200)];
        let check = |path: &Path, from: &Path, seed, step| {
            let model = load_model(path).unwrap();
            assert_eq!((model.path.as_path(), model.step, &model.config), (from, step, &config()));
            assert_eq!(model.params[..], layout(&config()).init::<f32>(seed)[..]);
            // What lies beside a file may be anything's.
            assert_eq!((model.tokenizer.kind(), model.parameters()), ("bytes", layout(&config()).parameters()));
        };
        check(run.path(), &folders[1], 200, Some(200));
        check(&folders[0], &folders[0], 100, Some(100));
        check(&folders[0].join(MODEL), &folders[0].join(MODEL), 100, None);
        Claim::resume(RunFolder::at(run.path())).unwrap().mark_best(Some(100)).unwrap();
        check(run.path(), &folders[0], 100, Some(100));
        // A best that is not good any more gives way to the latest.
        damage(&folders[0]);
        check(run.path(), &folders[1], 200, Some(200));
        fs::write(run.path().join("best"), "nonsense").unwrap();
        check(run.path(), &folders[1], 200, Some(200));
        damage(&folders[1]);
        assert!(error(run.path()).contains("no undamaged checkpoint among 2"));
        assert!(error(&folders[1]).contains("expected checksum"));
    }

    #[test]
    fn what_is_no_model_says_what_it_is_and_what_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let has = |path: &Path, part: &str| {
            let text = error(path);
            assert!(text.starts_with(&path.display().to_string()) && text.contains(part), "{text}");
        };
        has(&at("none"), "; expected a model with master weights: a run, a checkpoint, or a model file of FlashLM");
        has(folder.path(), "found an empty folder");
        fs::write(at("run.json"), "{}").unwrap();
        has(folder.path(), "found a run that has no checkpoint yet");
        fs::write(at("notes.txt"), "notes").unwrap();
        has(&at("notes.txt"), "found text; to train on it: flashlm train --data ");
        for (name, text) in [("a.safetensors", "a text that is long enough to be one"), ("b.safetensors", "")] {
            fs::write(at(name), text).unwrap();
            has(&at(name), "expected");
        }
        let file = at("m.safetensors");
        write(&file, &config(), |_, _| {});
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 9]).unwrap();
        has(&file, &format!("found {}; it was cut short", whole.len() - 9));
        fs::write(&file, &whole).unwrap();
        assert!(load_model(&file).is_ok());
        for (bytes, part) in [
            ("{}", "expected the tokenizer of the model beside it, found a JSON file that is no tokenizer"),
            ("version https://git-lfs.github.com/spec/v1\n", "found a git LFS pointer"),
            ("{\"model\":{}}", "needs the tokenizer.json it was trained with"),
            ("{\"model\":{\"type\":\"Unigram\"}}", "type is Unigram"),
        ] {
            fs::write(at(TOKENIZER), bytes).unwrap();
            assert!(error(&file).contains(part), "{}", error(&file));
        }
        let other = Tokenizer::train_frequency(["a b c d e"].into_iter(), 9).unwrap();
        fs::write(at(TOKENIZER), other.to_json()).unwrap();
        let said = format!("model.vocab_size = 257: must be {}, since its tokenizer has", other.vocab_size());
        assert!(error(&file).contains(&said));
        fs::write(at(TOKENIZER), Tokenizer::bytes().to_json()).unwrap();
        let ends = ModelConfig { reset: true, eos: 255, ..config() };
        write(&at("e.safetensors"), &ends, |_, _| {});
        let said = error(&at("e.safetensors"));
        assert!(said.contains("model.eos = 255: must be 256, the end of a document in its tokenizer"), "{said}");
        fs::remove_file(at(TOKENIZER)).unwrap();
        assert!(error(&file).contains("expected the model's tokenizer, found no such file"));
    }

    #[test]
    fn tensors_that_are_not_those_of_the_config_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.safetensors");
        let has = |part: &str| {
            let text = error(&file);
            assert!(text.starts_with(&file.display().to_string()) && text.contains(part), "{text}");
        };
        let json = |config: &ModelConfig| ("config".to_owned(), serde_json::to_string(config).unwrap());
        let other = |edit: fn(&mut ModelConfig)| {
            let mut other = config();
            edit(&mut other);
            write(&file, &config(), |_, metadata| metadata.extend([json(&other)]));
        };
        other(|c| c.ffn_hidden = 23);
        has("tensor `blocks.0.ffn.W_gate.weight`: expected shape [23, 16], found [24, 16]");
        other(|c| c.mixers.kernel_size = 7);
        has("expected shape [16, 1, 7], found [16, 1, 8]");
        other(|c| c.blocks = 1);
        has("expected no tensor of this name, found one of shape");
        other(|c| c.quant.norm = true);
        has("expected a tensor `blocks.0.mixer.up.norm.scale`");
        // Taking memory for this one would end the program.
        other(|c| (c.dim, c.blocks, c.ffn_hidden, c.vocab_size) = (8192, 128, 32_768, 65_535));
        has("model.dim = 8192: must be smaller");
        // And this one would be the largest there is.
        other(|c| (c.dim, c.blocks, c.ffn_hidden) = (4096, 6, 8192));
        has("tensor `embedding.weight`: expected shape [257, 4096], found [257, 16]");
        other(|c| c.norm_eps = 2.0);
        has("model.norm_eps = 2: must be at least 1e-12 and below 1");
        // A switch without tensors of its own is not seen in them.
        other(|c| c.quant.scale = ScaleKind::None);
        assert_eq!(load_model(&file).unwrap().config.quant.scale, ScaleKind::None);

        type Edit = fn(&mut Vec<TensorRef>, &mut BTreeMap<String, String>);
        let edited = |edit: Edit| write(&file, &config(), edit);
        edited(|_, metadata| metadata.clear());
        has("found a safetensors file of another program (no format, 18 tensors)");
        edited(|_, metadata| drop(metadata.insert("format".into(), "pt".into())));
        has("found a safetensors file of another program (format \"pt\", 18 tensors)");
        edited(|_, metadata| drop(metadata.remove("config")));
        has("metadata `config`: expected a model's sizes and switches as JSON, found nothing");
        edited(|_, metadata| drop(metadata.insert("config".into(), "{\"dim\":16}".into())));
        has("missing field");
        edited(|tensors, _| tensors.truncate(17));
        has("expected a tensor `final_norm.scale`");
        edited(|tensors, _| tensors.push(TensorRef { name: "extra", shape: &[1], data: &[0.0] }));
        has("tensor `extra`: expected no tensor of this name, found one of shape [1]");
        const fn fifth(bad: f32) -> [f32; 16] {
            let mut values = [0.5; 16];
            values[5] = bad;
            values
        }
        edited(|tensors, _| tensors[1].data = const { &fifth(f32::NAN) });
        has("tensor `blocks.0.norm1.scale`: expected finite numbers, found NaN at element 5");
        edited(|tensors, _| tensors[1].data = const { &fifth(f32::NEG_INFINITY) });
        has("expected finite numbers, found -inf at element 5");
    }

    #[test]
    fn activation_bits_are_those_of_the_model_file() {
        let folder = tempfile::tempdir().unwrap();
        let (file, run) = (folder.path().join("m.safetensors"), folder.path().join("run"));
        let bits = |path: &Path| load_model(path).unwrap().config.activation_bits;
        let without = |metadata: &mut BTreeMap<String, String>| {
            let json = metadata.get_mut("config").unwrap();
            *json = json.replace(",\"activation_bits\":0", "");
            assert!(!json.contains("activation_bits"));
        };
        // Whatever lies beside it, old or new.
        fs::write(folder.path().join(SETTINGS), FOREIGN).unwrap();
        for own in [0, 8] {
            write(&file, &ModelConfig { activation_bits: own, ..config() }, |_, _| {});
            assert_eq!(bits(&file), own);
        }
        write(&file, &config(), |_, metadata| without(metadata));
        assert_eq!(bits(&file), 0);
        // A checkpoint from before says it in its settings; one that says it in its model is believed there, and a file that
        // is not in the manifest nowhere.
        let [of_run, none] = [SETTINGS_TEXT, &b"[train]\n"[..]].map(Some);
        for (older, settings, want) in [(true, of_run, 8), (true, none, 0), (true, None, 0), (false, of_run, 0)] {
            let (layout, tokenizer) = (layout(&config()), Tokenizer::bytes().to_json());
            let params = layout.init::<f32>(1);
            let (tensors, mut metadata) = save_params(&layout, &params, &config());
            if older {
                without(&mut metadata);
            }
            let mut parts = vec![
                Part::Tensors { file: MODEL, tensors, metadata },
                Part::Bytes { file: TOKENIZER, data: &tokenizer },
            ];
            parts.extend(settings.map(|data| Part::Bytes { file: SETTINGS, data }));
            let saved = save(&run.join("checkpoints"), 1, &parts).unwrap();
            if settings.is_none() {
                fs::write(saved.join(SETTINGS), FOREIGN).unwrap();
            }
            assert_eq!((bits(&run), bits(&saved)), (want, want), "{older} {settings:?}");
        }
    }

    #[test]
    fn a_tied_head_is_accepted_where_it_is_tied() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.safetensors");
        write(&file, &config(), |tensors, _| tensors.push(TensorRef { name: "head.weight", ..tensors[0] }));
        let model = load_model(&file).unwrap();
        assert_eq!(model.params[..], layout(&config()).init::<f32>(1)[..]);
        write(&file, &config(), |tensors, _| {
            tensors.push(TensorRef { name: "head.weight", data: &[0.0; 257 * 16], ..tensors[0] });
        });
        assert!(error(&file).contains("tensor `head.weight`: expected the same values as `embedding.weight`"));
    }
}
