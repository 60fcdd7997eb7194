//! Several models on the same text, a row each, and their picture.
//!
//! ```text
//! bits per byte   of the model as it is run: FlashLM's packed, those of other programs in float
//! size            bytes on disk: FlashLM's as `flashlm pack` writes it, tokenizer included; of other programs the file of weights
//! tokens/second   tokens scored, over the time that the model itself takes
//! ```

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use flashlm_kernels::{Exec, Token};
use flashlm_model::pack::Options;
use flashlm_model::params::Layout;
use flashlm_model::{Engine, PackedModel, Peer};
use serde::Serialize;

use crate::data::source::Source;
use crate::eval::bpb::{EvalError, Float, Report, Scorer};
use crate::eval::source::{Progress, full, published};
use crate::load::{Found, LoadError, load_peer};
use crate::log::bars::{Bar, draw};

/// Rows of the packed runtime at once, per thread.
const ROWS: usize = 64;

/// A model that takes part.
pub struct Entry {
    name: String,
    form: Form,
    parameters: usize,
    file_bytes: u64,
}

enum Form {
    Packed(Arc<PackedModel>),
    Float(Arc<Peer>),
}

/// What was found out about one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// As it was named.
    pub model: String,
    /// `packed` or `float`.
    pub runs: &'static str,
    /// Numbers that were trained, a tied head counted once.
    pub parameters: usize,
    /// Bytes on disk.
    pub file_bytes: u64,
    /// Tokens scored in a second.
    pub tokens_per_second: f64,
    /// Bits of the published protocol over characters; none where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub understated_bits_per_character: Option<f64>,
    /// The figures.
    #[serde(flatten)]
    pub report: Report,
}

impl Entry {
    /// Loads whatever `flashlm eval` takes; `name` is what it is called in the table.
    pub fn load(cx: &Exec, path: &Path, name: &str) -> Result<Entry, LoadError> {
        let name = name.to_owned();
        if let Some(peer) = load_peer(cx, path)? {
            let (parameters, file_bytes) = (peer.parameters(), peer.file_bytes());
            return Ok(Entry { name, form: Form::Float(peer.into()), parameters, file_bytes });
        }
        let packed = match Found::load(path)? {
            Found::Packed(packed) => *packed,
            Found::Master(model) => PackedModel::from_bytes(model.pack(cx, Options::default()), &name)?,
        };
        let (parameters, file_bytes) = (Layout::of(packed.config()).parameters(), packed.file_bytes() as u64);
        Ok(Entry { name, form: Form::Packed(packed.into()), parameters, file_bytes })
    }

    /// As it was named.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Scores it on `cx`; by the published protocol, too, where `also_published`, then on its documents alone.
    pub fn score(
        &self,
        cx: Exec,
        source: &Source,
        also_published: bool,
        tell: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Row, EvalError> {
        let (scorer, tokenizer, runs): (Box<dyn Scorer>, _, _) = match &self.form {
            Form::Packed(model) => (Box::new(Engine::new(model.clone(), cx, ROWS)), model.tokenizer(), "packed"),
            Form::Float(peer) => {
                let tokenizer = peer.tokenizer().expect("a model that is scored is opened with its tokenizer");
                (Box::new(Float::new(peer.clone(), cx)), tokenizer, "float")
            }
        };
        let mut timed = Timed { scorer, seconds: 0.0, tokens: 0 };
        let (report, understated) = if also_published {
            let scored = published(vec![&mut timed], tokenizer, source, tell)?;
            let (published, whole) = scored.reports.into_iter().next().ok_or(EvalError::Empty)?;
            (whole, Some(published.understated_bits_per_character))
        } else {
            let scored = full(vec![&mut timed], tokenizer, source, tell)?;
            (scored.reports.into_iter().next().ok_or(EvalError::Empty)?, None)
        };
        Ok(Row {
            model: self.name.clone(),
            runs,
            parameters: self.parameters,
            file_bytes: self.file_bytes,
            tokens_per_second: timed.tokens as f64 / timed.seconds.max(1e-9),
            understated_bits_per_character: understated,
            report,
        })
    }
}

/// A scorer, and how long it took.
struct Timed {
    scorer: Box<dyn Scorer>,
    seconds: f64,
    tokens: usize,
}

impl Scorer for Timed {
    fn vocab_size(&self) -> usize {
        self.scorer.vocab_size()
    }

    fn is_padded(&self) -> bool {
        self.scorer.is_padded()
    }

    fn rows(&self) -> usize {
        self.scorer.rows()
    }

    fn log_probs(&mut self, stories: &[&[Token]], eos: Token) -> Vec<Vec<f64>> {
        let start = Instant::now();
        let all = self.scorer.log_probs(stories, eos);
        self.seconds += start.elapsed().as_secs_f64();
        self.tokens += stories.iter().map(|story| story.len()).sum::<usize>();
        all
    }
}

/// What stands in front of each row: the last part of the name, where no two have the same.
pub fn labels(rows: &[Row]) -> Vec<String> {
    let last = |row: &Row| {
        let name = Path::new(&row.model).file_name();
        name.map_or(row.model.clone(), |name| name.to_string_lossy().into_owned())
    };
    let short: Vec<String> = rows.iter().map(last).collect();
    let unique = short.iter().all(|name| short.iter().filter(|other| *other == name).count() == 1);
    if unique { short } else { rows.iter().map(|row| row.model.clone()).collect() }
}

/// The picture as an SVG document: bars of bits per byte on `data`, and of the size on disk.
pub fn picture(rows: &[Row], data: &str) -> String {
    let bar = |(row, label): (&Row, String)| Bar {
        label,
        bits: row.report.bpb,
        understated: row.understated_bits_per_character,
        bytes: row.file_bytes,
        parameters: row.parameters as u64,
        float: row.runs == "float",
    };
    let bars: Vec<Bar> = rows.iter().zip(labels(rows)).map(bar).collect();
    let (stories, bytes) = rows.first().map_or((0, 0), |row| (row.report.stories, row.report.bytes));
    draw(&bars, data, stories, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use flashlm_kernels::Isa;

    #[test]
    fn a_row_has_the_figures_of_the_model_alone() {
        let exec = || Exec::new(Isa::detect().unwrap(), 1);
        let source = Source::parse("synthetic:12").unwrap();
        let go_on = &mut |_: &_| ControlFlow::Continue(());
        // By its file: a folder of its name is here.
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("builtin/model.safetensors");
        let entry = Entry::load(&exec(), &path, builtin::NAME).unwrap();
        let row = entry.score(exec(), &source, false, go_on).unwrap();
        let model = Arc::new(PackedModel::read(builtin::tensors().unwrap()).unwrap());
        let mut engine = Engine::new(model.clone(), exec(), ROWS);
        let alone = full(vec![&mut engine], model.tokenizer(), &source, go_on).unwrap();
        assert_eq!(row.report, alone.reports[0]);
        assert_eq!((row.file_bytes, row.runs), (model.file_bytes() as u64, "packed"));
        // Some stories have more than 256 tokens: cut there, and measured against all of their characters, they cost less.
        let both = entry.score(exec(), &source, true, go_on).unwrap();
        assert_eq!(both.report, row.report);
        let longest = alone.documents.iter().map(|document| document.tokens).max().unwrap();
        let (cut, whole) = (both.understated_bits_per_character.unwrap(), row.report.bpb);
        assert!(longest > 256 && cut < whole, "{longest} {cut} {whole}");
        let named = |names: &[&str]| {
            let rows: Vec<Row> = names.iter().map(|name| Row { model: name.to_string(), ..row.clone() }).collect();
            labels(&rows)
        };
        assert_eq!(named(&["runs/a", "b.bin"]), ["a", "b.bin"]);
        assert_eq!(named(&["x/a", "y/a"]), ["x/a", "y/a"]);
    }
}
