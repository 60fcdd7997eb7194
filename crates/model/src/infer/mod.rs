//! The packed runtime: integer products, no allocation a token, and the same bits whatever ISA, threads, batch or cut of the text.
//!
//! ```text
//! h = E[token];  for each block: h += mixer(norm(h)), h += GLU(norm(h));  logits = norm(h) E^T     matrices take int8 rows
//! ```
//!
//! A [`PackedModel`] is the weights, shared by any number of engines. An [`Engine`] is the working memory of one caller. A
//! [`Stream`] is one text on its way: a state of constant size, so that each token costs the same. [`Engine::prefill`] takes many
//! tokens of one stream at once, [`Engine::step`] one token of each of many streams; who takes part in a step is the caller's to
//! say each time, so streams join and leave at will.

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod delta;
mod ffn;
#[cfg(test)]
mod golden;
pub(crate) mod linear;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod write;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use flashlm_kernels::ops::{Columns, INT8_ROWS, PackedMatrix, exact_log_sum_exp, exact_softcap, packed_matmul};
use flashlm_kernels::tile::{Local, Parts, Rows, Split};
use flashlm_kernels::{Buf, Exec, Token};

use crate::config::{MAX_NUMBERS, ModelConfig};
use crate::io::map_limited;
use crate::io::safetensors::TensorFile;
use crate::mixer;
use crate::pack::{PackError, Reader};
use crate::tok::Tokenizer;
use ffn::Ffn;
use linear::{Linear, Norm, Work};
pub use write::{Finish, Writer};

/// Longest packed model accepted.
const MAX_FILE: u64 = 4 << 30;
/// Most for each parameter: a scale, and a quarter of a byte. Beside them the header and a tokenizer.
const _: () = assert!(MAX_NUMBERS as u64 * 17 / 4 + (32 << 20) <= MAX_FILE);

/// A mixer of the packed runtime; `u: [rows, width]` is what it makes of its input, and mixes.
pub(crate) trait PackedMixer: Send + Sync {
    /// All its matrices.
    fn linears(&self) -> Vec<&Linear>;

    /// Elements of a row of `u`.
    fn width(&self) -> usize;

    /// Elements of the state of one stream; a state of zeros is the start.
    fn state_len(&self) -> usize;

    /// `u` of one tile from its normed rows `x: [rows, D]`.
    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut Work);

    /// Mixes the rows `u` of one stream, whose state moves on; `past` counts the rows of the story before each.
    fn mix(&self, cx: &Exec, u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local);

    /// Adds the branch to `h: [rows, D]` of one tile.
    fn output(&self, cx: &Exec, h: &mut [f32], u: &[f32], work: &mut Work, local: &Local);

    /// Itself, if what it makes of a row hangs on rows `u` near it alone: each tile of a stream then mixes its own.
    fn near(&self) -> Option<&dyn Near> {
        None
    }
}

/// A [`PackedMixer`] in two steps, of rows `u` of one stream with `past`.
pub(crate) trait Near: Sync {
    /// Puts the rows `rows`, mixed, into `m: [rows.len(), width]`.
    fn mix_rows(
        &self,
        cx: &Exec,
        m: &mut [f32],
        from: (&[f32], &[u32]),
        rows: Range<usize>,
        state: &[f32],
        local: &Local,
    );

    /// Moves the state on.
    fn keep(&self, from: (&[f32], &[u32]), state: &mut [f32]);
}

/// Taps as `[K, C]` from the tensor `[C, 1, K]`.
fn taps(from: &Reader, name: &str, channels: usize, k: usize) -> Result<Buf<f32>, PackError> {
    let own = from.floats(name, &[channels, 1, k])?;
    let mut taps = Buf::zeros(own.len());
    crate::mixer::conv::taps_by_row(&mut taps, &own, k);
    Ok(taps)
}

struct Block {
    norm: Option<Norm>,
    mixer: Box<dyn PackedMixer>,
    ffn: Ffn,
}

impl Block {
    /// `u` of the rows `h: [rows, D]` of one tile.
    fn project(&self, cx: &Exec, u: &mut [f32], h: &[f32], work: &mut Work, local: &Local) {
        match &self.norm {
            Some(norm) => {
                let x = local.take::<f32>(h.len());
                norm.forward(cx, x, h);
                self.mixer.project(cx, u, x, work);
            }
            None => self.mixer.project(cx, u, h, work),
        }
    }

    /// Adds both branches to the rows, `u` being mixed.
    fn output(&self, cx: &Exec, h: &mut [f32], u: &[f32], work: &mut Work, local: &Local) {
        self.mixer.output(cx, h, u, work, local);
        self.ffn.forward(cx, h, work, local);
    }
}

/// The weights of a packed model in the layout of the integer units, and its tokenizer.
pub struct PackedModel {
    config: ModelConfig,
    tokenizer: Tokenizer,
    embedding: PackedMatrix,
    blocks: Vec<Block>,
    norm: Norm,
    file_bytes: usize,
}

impl PackedModel {
    /// Reads a file that `flashlm pack` wrote.
    pub fn open(path: &Path) -> Result<Self, PackError> {
        Self::read(TensorFile::from_map(map_limited(path, MAX_FILE)?, &path.display().to_string())?)
    }

    /// The same from memory; `label` names it in errors.
    pub fn from_bytes(bytes: Vec<u8>, label: &str) -> Result<Self, PackError> {
        Self::read(TensorFile::from_bytes(bytes, label)?)
    }

    fn read(file: TensorFile) -> Result<Self, PackError> {
        let file_bytes = file.file_bytes();
        let from = Reader::new(file)?;
        let config = from.config().clone();
        let (d, eps) = (config.dim, config.norm_eps);
        let tokenizer = from.tokenizer()?;
        let embedding = from.table()?;
        let block = |i: usize| {
            let name = |part| format!("blocks.{i}.{part}");
            let norm = |part| match config.block_norm {
                true => Norm::read(&from, &name(part), d, eps).map(Some),
                false => Ok(None),
            };
            Ok(Block {
                norm: norm("norm1.scale")?,
                mixer: mixer::read(config.mixer_of(i), &from, &name("mixer"))?,
                ffn: Ffn::read(&from, &name("ffn"), norm("norm2.scale")?)?,
            })
        };
        let blocks = (0..config.blocks).map(block).collect::<Result<_, PackError>>()?;
        let norm = Norm::read(&from, "final_norm.scale", d, eps)?;
        from.finish()?;
        Ok(PackedModel { config, tokenizer, embedding, blocks, norm, file_bytes })
    }

    /// The model's sizes and switches.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The vocabulary it was trained with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// Bytes of the matrices in memory.
    pub fn memory(&self) -> usize {
        let linears = self.blocks.iter().flat_map(|block| block.mixer.linears().into_iter().chain(block.ffn.linears()));
        self.embedding.memory() + linears.map(Linear::memory).sum::<usize>()
    }

    /// The token that starts a story anew.
    fn start(&self) -> Option<Token> {
        if self.config.reset { Token::try_from(self.config.eos).ok() } else { None }
    }

    /// Rows `h: [tokens, D]` of the table.
    fn embed(&self, h: &mut [f32], tokens: &[Token]) {
        for (h, &token) in h.chunks_exact_mut(self.config.dim).zip(tokens) {
            self.embedding.row(h, token.into());
        }
    }

    /// A stream at the start of a text.
    pub fn stream(&self) -> Stream {
        let len = self.blocks.iter().map(|block| block.mixer.state_len()).sum();
        Stream { state: vec![0.0; len], past: 0 }
    }

    /// A stream that goes on where [`Stream::save`] was called; `None` where the bytes are of another model or damaged.
    pub fn restore(&self, bytes: &[u8]) -> Option<Stream> {
        let mut stream = self.stream();
        let (past, state) = bytes.split_first_chunk()?;
        if state.len() != 4 * stream.state.len() {
            return None;
        }
        stream.past = u32::from_le_bytes(*past);
        for (value, bytes) in stream.state.iter_mut().zip(state.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
            if !value.is_finite() {
                return None;
            }
        }
        Some(stream)
    }
}

/// One text on its way: what the blocks remember of it.
#[derive(Clone)]
pub struct Stream {
    state: Vec<f32>,
    /// Rows of the story so far.
    past: u32,
}

impl Stream {
    /// Back to the start of a text.
    pub fn reset(&mut self) {
        self.state.fill(0.0);
        self.past = 0;
    }

    /// All there is to know of it, as bytes.
    pub fn save(&self) -> Vec<u8> {
        let state = self.state.iter().flat_map(|x| x.to_le_bytes());
        self.past.to_le_bytes().into_iter().chain(state).collect()
    }

    /// The count before the next row `token`, which moves on.
    fn advance(&mut self, token: Token, start: Option<Token>) -> u32 {
        if Some(token) == start {
            self.past = 0;
        }
        let past = self.past;
        self.past = past.saturating_add(1);
        past
    }
}

impl AsMut<Stream> for Stream {
    fn as_mut(&mut self) -> &mut Stream {
        self
    }
}

/// The working memory of one caller, on the threads of its executor.
pub struct Engine {
    model: Arc<PackedModel>,
    cx: Exec,
    /// Rows of a pass: `[rows, D]`, `[rows, width]` of the widest mixer.
    h: Vec<f32>,
    u: Vec<f32>,
    /// Rows `u` as mixers read them while theirs are overwritten.
    before: Vec<f32>,
    widest: usize,
    past: Vec<u32>,
    work: Vec<Work>,
    logits: Vec<f32>,
    /// One of each writer.
    tokens: Vec<Token>,
    /// `ln sum exp` of the logits of a row.
    sums: Vec<f64>,
}

impl Engine {
    /// An engine for passes of at most `rows` rows a thread, 1 to 64: streams that step together, or tokens of a prompt at once.
    pub fn new(model: Arc<PackedModel>, cx: Exec, rows: usize) -> Self {
        let each = rows.clamp(1, INT8_ROWS);
        let threads = cx.pool().threads();
        let all = each * threads;
        let widest = model.blocks.iter().map(|block| block.mixer.width()).max().unwrap_or(0);
        let mut columns = vec![model.embedding.columns()];
        for block in &model.blocks {
            columns.extend(block.mixer.linears().iter().map(|linear| linear.columns()));
            columns.extend(block.ffn.columns());
        }
        columns.sort_unstable_by_key(|c| (c.inputs, c.segment));
        columns.dedup();
        Engine {
            h: vec![0.0; all * model.config.dim],
            u: vec![0.0; all * widest],
            before: vec![0.0; all * widest],
            widest,
            past: vec![0; all],
            work: (0..threads).map(|_| Work::new(&columns, each)).collect(),
            logits: Vec::new(),
            tokens: Vec::new(),
            sums: Vec::new(),
            model,
            cx,
        }
    }

    /// The weights.
    pub fn model(&self) -> &Arc<PackedModel> {
        &self.model
    }

    /// Where it runs.
    pub fn exec(&self) -> &Exec {
        &self.cx
    }

    /// Most rows of one pass.
    pub fn rows(&self) -> usize {
        self.past.len()
    }

    /// Tells `stream` the next tokens of its text.
    ///
    /// # Panics
    /// With a token beyond the vocabulary.
    pub fn feed(&mut self, stream: &mut Stream, tokens: &[Token]) {
        for piece in tokens.chunks(self.rows()) {
            self.pass(stream, piece);
        }
    }

    /// Tells `stream` the next tokens of its text and gives the logits after the last: `[V]`, the caller's until the next call.
    ///
    /// # Panics
    /// Without a token, or with one beyond the vocabulary.
    pub fn prefill(&mut self, stream: &mut Stream, tokens: &[Token]) -> &mut [f32] {
        assert!(!tokens.is_empty(), "a prompt has at least one token");
        self.room(1);
        self.feed(stream, tokens);
        let (d, last) = (self.model.config.dim, (tokens.len() - 1) % self.rows());
        self.h.copy_within(last * d..(last + 1) * d, 0);
        self.head(1);
        &mut self.logits[..self.model.config.vocab_size]
    }

    /// Tells each stream its next token and gives the logits after them: `[streams, V]`, the caller's until the next call.
    ///
    /// # Panics
    /// With as many tokens as streams missing, or one beyond the vocabulary.
    pub fn step<S: AsMut<Stream> + Send + 'static>(&mut self, streams: &mut [S], tokens: &[Token]) -> &mut [f32] {
        assert_eq!(streams.len(), tokens.len(), "a token for each stream");
        self.room(streams.len());
        let (rows, v) = (self.rows(), self.model.config.vocab_size);
        let mut logits = std::mem::take(&mut self.logits);
        let all = streams.chunks_mut(rows).zip(tokens.chunks(rows)).zip(logits.chunks_mut(rows * v));
        for ((streams, tokens), z) in all {
            self.turn(streams, tokens, Rows(z, v), |mut turn, _, z| turn.head(z, 0..z.len() / v));
        }
        self.logits = logits;
        &mut self.logits[..streams.len() * v]
    }

    /// Tells `stream` the tokens and appends `ln p(target)` after each.
    ///
    /// # Panics
    /// As [`Engine::prefill`], and with as many targets missing.
    pub fn log_probs(&mut self, stream: &mut Stream, tokens: &[Token], targets: &[Token], out: &mut Vec<f64>) {
        assert_eq!(tokens.len(), targets.len(), "a target for each token");
        let (rows, v) = (self.rows(), self.model.config.vocab_size);
        self.room(rows);
        for (tokens, targets) in tokens.chunks(rows).zip(targets.chunks(rows)) {
            let n = tokens.len();
            self.pass(stream, tokens);
            self.head(n);
            let Engine { cx, logits, sums, .. } = self;
            sums.resize(rows, 0.0);
            cx.tiles_by(1, n, (Rows(logits, v), Rows(sums, 1)), |cx, _, (z, sum), _| {
                sum[0] = exact_log_sum_exp(cx, z);
            });
            let own = logits.chunks_exact(v).zip(targets).zip(&*sums);
            out.extend(own.map(|((z, &target), sum)| f64::from(z[usize::from(target)]) - sum));
        }
    }

    /// Memory for the logits of `n` rows.
    fn room(&mut self, n: usize) {
        let len = n * self.model.config.vocab_size;
        if self.logits.len() < len {
            self.logits.resize(len, 0.0);
        }
    }

    /// Rows of a tile, one tile a thread.
    fn height(&self, rows: usize) -> usize {
        rows.div_ceil(self.work.len())
    }

    /// One token of each stream: each thread takes its streams through all blocks, and `then` is given their last rows with
    /// its share of `out`.
    fn turn<S: AsMut<Stream> + Send + 'static, V: Split>(
        &mut self,
        streams: &mut [S],
        tokens: &[Token],
        out: V,
        then: impl Fn(Turn, &mut [S], V::Share<'_>) + Sync,
    ) {
        let height = self.height(tokens.len());
        let Engine { model, cx, h, u, past, work, widest, .. } = self;
        let (d, rows) = (model.config.dim, tokens.len());
        let buffers = (Rows(streams, 1), Rows(h, d), Rows(u, *widest), Rows(past, 1), Parts(work, 1), out);
        cx.tiles_by(height, rows, buffers, |cx, r, (streams, h, u, past, work, out), local| {
            let work = &mut work[0];
            for ((past, stream), &token) in past.iter_mut().zip(&mut *streams).zip(&tokens[r.clone()]) {
                *past = stream.as_mut().advance(token, model.start());
            }
            model.embed(h, &tokens[r]);
            let mut at = 0;
            for block in &model.blocks {
                let (len, width) = (block.mixer.state_len(), block.mixer.width());
                let u = &mut u[..past.len() * width];
                local.within(|local| block.project(cx, u, h, work, local));
                for ((stream, u), past) in streams.iter_mut().zip(u.chunks_exact_mut(width)).zip(past.chunks(1)) {
                    let state = &mut stream.as_mut().state[at..at + len];
                    local.within(|local| block.mixer.mix(cx, u, state, past, local));
                }
                local.within(|local| block.output(cx, h, u, work, local));
                at += len;
            }
            then(Turn { model, cx, h, work, local }, streams, out);
        });
    }

    /// Many tokens of one stream.
    fn pass(&mut self, stream: &mut Stream, tokens: &[Token]) {
        let height = self.height(tokens.len());
        let Engine { model, cx, h, u, before, past, work, .. } = self;
        let (d, rows) = (model.config.dim, tokens.len());
        for (past, &token) in past.iter_mut().zip(tokens) {
            *past = stream.advance(token, model.start());
        }
        let past = &past[..rows];
        let first = &model.blocks[0];
        let width = first.mixer.width();
        cx.tiles_by(height, rows, (Rows(h, d), Rows(u, width), Parts(work, 1)), |cx, r, (h, u, work), local| {
            model.embed(h, &tokens[r]);
            first.project(cx, u, h, &mut work[0], local);
        });
        let mut state = &mut stream.state[..];
        for (i, block) in model.blocks.iter().enumerate() {
            let (len, width) = (block.mixer.state_len(), block.mixer.width());
            let own = state.split_off_mut(..len).expect("a state for each block");
            let near = block.mixer.near();
            match near {
                Some(_) => std::mem::swap(u, before),
                None => cx.tiles_by(1, 1, (Rows(own, len), Rows(u, rows * width)), |cx, _, (state, u), local| {
                    block.mixer.mix(cx, u, state, past, local);
                }),
            }
            let from = (&before[..rows * width], past);
            let next = model.blocks.get(i + 1);
            // Of other widths next: its rows must not lie where another tile still reads.
            let same = next.is_none_or(|next| next.mixer.width() == width);
            let fused = next.filter(|_| same);
            cx.tiles_by(height, rows, (Rows(h, d), Rows(u, width), Parts(work, 1)), |cx, r, (h, u, work), local| {
                if let Some(near) = near {
                    near.mix_rows(cx, u, from, r, own, local);
                }
                block.output(cx, h, u, &mut work[0], local);
                if let Some(next) = fused {
                    next.project(cx, u, h, &mut work[0], local);
                }
            });
            if let Some(near) = near {
                near.keep(from, own);
            }
            if let Some(next) = next.filter(|_| !same) {
                let buffers = (Rows(&mut *h, d), Rows(&mut *u, next.mixer.width()), Parts(&mut *work, 1));
                cx.tiles_by(height, rows, buffers, |cx, _, (h, u, work), local| {
                    next.project(cx, u, h, &mut work[0], local);
                });
            }
        }
    }

    /// Logits of the first `rows` rows.
    fn head(&mut self, rows: usize) {
        let height = self.height(rows);
        let Engine { model, cx, h, work, logits, .. } = self;
        let (d, v) = (model.config.dim, model.config.vocab_size);
        cx.tiles_by(height, rows, (Rows(h, d), Rows(logits, v), Parts(work, 1)), |cx, r, (h, z, work), local| {
            Turn { model, cx, h, work: &mut work[0], local }.head(z, 0..r.len());
        });
    }
}

/// Rows of one tile after the last block.
struct Turn<'a> {
    model: &'a PackedModel,
    cx: &'a Exec,
    h: &'a [f32],
    work: &'a mut Work,
    local: &'a Local,
}

impl Turn<'_> {
    /// Logits `z: [rows, V]` of some of the rows.
    fn head(&mut self, z: &mut [f32], rows: Range<usize>) {
        let Turn { model, cx, h, work, local } = self;
        let (d, v) = (model.config.dim, model.config.vocab_size);
        let h = &h[rows.start * d..rows.end * d];
        local.within(|local| {
            let x = local.take::<f32>(h.len());
            model.norm.forward(cx, x, h);
            work.q.quantise(cx, x, Columns::whole(d));
        });
        packed_matmul(cx, (&mut *z, v, 0), &mut work.q, &model.embedding, false);
        if model.config.logit_softcap > 0.0 {
            exact_softcap(cx, z, model.config.logit_softcap);
        }
    }
}
