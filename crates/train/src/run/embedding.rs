//! The start of an embedding from that of another model (`train.embedding_from`): of its token embedding `[V, d]`, the part in the first
//! `D` dimensions of its singular value decomposition, `U S`. It is computed once and kept beside the token caches:
//!
//! ```text
//! <cache>/embedding-<XXH3-64 of name, V and D>.safetensors     embedding.weight: F32 [V, D]; metadata from, kept
//! ```

use std::ops::ControlFlow;
use std::path::Path;

use flashlm_kernels::{Buf, Exec};
use flashlm_model::ModelConfig;
use flashlm_model::io::safetensors::{TensorFile, TensorRef, write_tensors};
use flashlm_model::params::{Group, Layout};
use xxhash_rust::xxh3::xxh3_64;

use super::open::told;
use crate::atomic::write_file;
use crate::data::DataError;
use crate::data::hub::{Client, HubError, ModelName, Progress};
use crate::svd::{Truncated, truncated};
use crate::trainer::{Event, Tell, TrainError};

/// How a token embedding is called.
const NAMES: [&str; 2] = ["wte.weight", "embed_tokens.weight"];
/// Most columns of a table that is decomposed: the square of them is kept in f64.
const WIDEST: usize = 16_384;

/// What a fresh run of `model` starts from: its own start from `seed`, with the embedding from the model `name`; none, told with what it
/// costs, where the network is not there.
pub(super) fn start(
    cx: &Exec,
    model: &ModelConfig,
    name: &str,
    (cache, seed, offline): (&Path, u64, bool),
    stop: &dyn Fn() -> bool,
    tell: Tell,
) -> Result<Option<Buf<f32>>, TrainError> {
    let layout = Layout::of(model);
    let spec = layout.specs().iter().find(|spec| spec.group == Group::Embedding).expect("an embedding");
    let (v, d) = (spec.shape[0], spec.shape[1]);
    let path = cache.join(format!("embedding-{:016x}.safetensors", xxh3_64(format!("{name} {v} {d}").as_bytes())));
    let (values, kept) = match read(&path, (v, d)) {
        Some(found) => found,
        None => match fetched(cx, name, (v, d), offline, stop, tell) {
            Ok(Truncated { values, kept }) => {
                keep(&path, name, &values, (v, d), kept, tell);
                (values, kept)
            }
            Err(TrainError::Data(DataError::Hub(
                error @ (HubError::Unreachable { .. } | HubError::Offline { .. }),
            ))) => {
                tell(Event::Note(&format!(
                    "the embedding starts at random, and is not frozen: {error}. What words have in common must then be \
                     learned from this text alone, which costs some thousand steps; --set train.embedding_from= says that it is meant"
                )));
                return Ok(None);
            }
            Err(error) => return Err(error),
        },
    };
    tell(Event::Note(&format!(
        "the embedding starts from that of {name}: {:.0} % of its variance in {d} dimensions",
        100.0 * kept
    )));
    let mut params: Buf<f32> = layout.init(seed);
    params[spec.range.clone()].copy_from_slice(&values);
    Ok(Some(params))
}

fn fetched(
    cx: &Exec,
    name: &str,
    (v, d): (usize, usize),
    offline: bool,
    stop: &dyn Fn() -> bool,
    tell: Tell,
) -> Result<Truncated, TrainError> {
    let bad = |reason: String| TrainError::Data(HubError::NoFiles { repo: name.to_string(), reason }.into());
    let expected = "train.embedding_from names a model of the hub, hf:OWNER/NAME[@REVISION][:FILE]";
    let model = ModelName::parse(name).ok_or_else(|| bad(expected.into()))?.map_err(bad)?;
    let client = Client::from_env(offline).map_err(DataError::from)?;
    let fits = |shape: &[usize]| match *shape {
        [rows, columns] if rows == v && (d..=WIDEST).contains(&columns) => Ok(()),
        _ => Err(format!(
            "is {shape:?}, and this model needs [{v}, {d} to {WIDEST}]: name another model, or none with --set train.embedding_from="
        )),
    };
    let mut watched = |p: &Progress| -> ControlFlow<()> { told(name, p, stop, tell) };
    let (shape, values) = client.fetch_tensor(&model, &NAMES, &fits, &mut watched).map_err(DataError::from)?;
    let columns = shape[1];
    tell(Event::Progress(&format!("decomposing {v} x {columns} numbers")));
    match truncated(cx, &values, (columns, d), stop) {
        _ if stop() => Err(TrainError::Data(DataError::Stopped)),
        found => found.ok_or_else(|| bad("its token embedding is not of finite numbers".into())),
    }
}

/// What was kept, if it is whole.
fn read(path: &Path, (v, d): (usize, usize)) -> Option<(Vec<f32>, f64)> {
    let file = TensorFile::open(path).ok()?;
    let kept = file.metadata("kept")?.parse().ok()?;
    let values = file.f32("embedding.weight").ok()?;
    let whole = *file.shape("embedding.weight").ok()? == [v, d] && values.iter().all(|x| x.is_finite());
    whole.then(|| (values.to_vec(), kept))
}

/// Keeps it for the next run; a full disk costs this run nothing.
fn keep(path: &Path, name: &str, values: &[f32], (v, d): (usize, usize), kept: f64, tell: Tell) {
    let tensors = [TensorRef { name: "embedding.weight", shape: &[v, d], data: values }];
    let metadata = [("from".to_string(), name.to_string()), ("kept".to_string(), kept.to_string())].into();
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = folder.map_err(|e| e.to_string()).and_then(|()| {
        write_file(path, |file| write_tensors(file, &tensors, &metadata).map_err(std::io::Error::other))
            .map_err(|e| e.to_string())
    });
    if let Err(error) = written {
        tell(Event::Note(&format!("the embedding is not kept for the next run: {error}")));
    }
}
