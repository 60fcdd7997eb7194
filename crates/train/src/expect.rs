//! A model of another program against what that program computed.
//!
//! A safetensors file holds `ids: [B, T]` (or `x`), `logits: [B, T, V]` and, where they are wanted, `nll: [B, T-1]`: the nats of each
//! token after the first.
//!
//! ```text
//! logits_rms_ratio = sqrt(sum (z - z')^2 / sum z'^2)        nll_abs_diff_max = max |nll - nll'|
//! ```

use crate::eval::verify::rms_ratio;
use crate::subject::{Subject, SubjectError};
use flashlm_kernels::{Exec, Token};
use flashlm_model::io::IoError;
use flashlm_model::io::safetensors::TensorFile;
use flashlm_model::{ModelConfig, Precision, Prepared, Shape};
use serde::Serialize;
use std::path::Path;

/// The bound of both figures.
pub const BOUND: f64 = 1e-5;
/// Most logits that a file may ask for.
const MAX_LOGITS: usize = 1 << 28;

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    /// The model cannot be run.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// A file cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The model cannot be built.
    #[error(transparent)]
    Config(#[from] flashlm_model::config::ConfigError),
    /// A tensor that does not fit.
    #[error(
        "{file}: tensor `{name}`: expected {expected}, found {found}; make the file with the model that it is compared with"
    )]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        name: &'static str,
        /// What fits.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// How far a model is from what was expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Of all logits.
    pub logits_rms_ratio: f64,
    /// Of the nats of a token; none where the file has none.
    pub nll_abs_diff_max: Option<f64>,
}

impl Compared {
    /// Whether both are within [`BOUND`]; a NaN is not.
    pub fn passed(&self) -> bool {
        self.logits_rms_ratio <= BOUND && self.nll_abs_diff_max.is_none_or(|nll| nll <= BOUND)
    }
}

/// Compares the model at `path`, whose tokenizer is not needed, with a file.
pub fn compare(cx: &Exec, path: &Path, file: &TensorFile) -> Result<Compared, ExpectError> {
    let subject = Subject::float(cx, path)?;
    let v = subject.vocab_size();
    let misfit = |name, expected: String, found: String| ExpectError::Tensor {
        file: file.label().into(),
        name,
        expected,
        found,
    };
    let ids_name = if file.names().iter().any(|name| name == "ids") { "ids" } else { "x" };
    let [b, t] = *file.shape(ids_name)? else {
        return Err(misfit("ids", "two axes, [B, T]".into(), format!("{:?}", file.shape(ids_name)?)));
    };
    let size = b.checked_mul(t).and_then(|n| n.checked_mul(v)).filter(|n| (1..=MAX_LOGITS).contains(n));
    if size.is_none() {
        return Err(misfit("ids", format!("1 to {MAX_LOGITS} logits"), format!("[{b}, {t}] of {v} tokens")));
    }
    let token = |&id: &i64| Token::try_from(id).ok().filter(|&id| usize::from(id) < v);
    let ids: Option<Vec<Token>> = file.ints(ids_name)?.iter().map(token).collect();
    let ids = ids.ok_or_else(|| misfit("ids", format!("tokens below {v}"), "others".into()))?;
    if *file.shape("logits")? != [b, t, v] {
        return Err(misfit("logits", format!("{:?}", [b, t, v]), format!("{:?}", file.shape("logits")?)));
    }
    let want = file.floats("logits")?;
    let mut got = Vec::with_capacity(want.len());
    if let Some(context) = subject.context().filter(|&context| t > context) {
        return Err(misfit("ids", format!("at most {context} tokens, the model's context"), t.to_string()));
    }
    match &subject {
        Subject::Peer(peer) => ids.chunks(t).for_each(|row| peer.sequence().feed(cx, row, |z| got.extend(z))),
        Subject::Master { config, params, .. } => {
            got = logits(cx, config, params, &ids, Shape { batch: b, seq_len: t })?;
        }
        Subject::Packed(_) => unreachable!("a model in float"),
    }
    let nll = match file.shape("nll") {
        Ok(shape) if *shape != [b, t - 1] => {
            return Err(misfit("nll", format!("{:?}", [b, t - 1]), format!("{shape:?}")));
        }
        Ok(_) => Some(nll_apart(&got, &ids, &file.floats("nll")?, (t, v))),
        Err(_) => None,
    };
    Ok(Compared { logits_rms_ratio: rms_ratio(&got, &want), nll_abs_diff_max: nll })
}

/// Logits of master weights, activations in float.
fn logits(
    cx: &Exec,
    config: &ModelConfig,
    params: &[f32],
    ids: &[Token],
    shape: Shape,
) -> Result<Vec<f32>, ExpectError> {
    let mut lm = Precision::F32.build(config, shape.rows(), false)?;
    let mut out = vec![0.0; ids.len() * config.vocab_size];
    Prepared::new(cx, &mut *lm, params).logits(&mut out, ids, None, shape);
    Ok(out)
}

/// The largest difference of the nats of a token; a NaN stays one.
fn nll_apart(logits: &[f32], ids: &[Token], want: &[f32], (t, v): (usize, usize)) -> f64 {
    let rows = logits.chunks_exact(t * v).zip(ids.chunks_exact(t));
    let own = rows.flat_map(|(logits, ids)| {
        logits.chunks_exact(v).zip(&ids[1..]).map(|(z, &next)| {
            let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = z.iter().map(|&z| f64::from(z - max).exp()).sum();
            f64::from(max) + sum.ln() - f64::from(z[usize::from(next)])
        })
    });
    own.zip(want)
        .map(|(own, &want)| (own - f64::from(want)).abs())
        .fold(0.0, |a: f64, b: f64| if a.is_nan() || b <= a { a } else { b })
}
