//! Before anything is trained: that all ranks are alike, and that there is work for each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use flashlm_kernels::Exec;
use flashlm_model::Shape;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::comm::{Comm, CommError, Difference, gather};
use crate::config::{Settings, TrainSettings};
use crate::data::source::Source;
use crate::stepper::{Stepper, pass_rows};
use crate::units::thousands;

/// Of the program, with a checksum of the sources that say what ranks send each other.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " of sources ", env!("FLASHLM_SOURCES"));

/// What must be the same on all ranks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// [`VERSION`].
    pub version: String,
    /// The instruction set to compute with.
    pub isa: String,
    /// The flags that it was started with.
    pub flags: String,
    /// Size and checksum of texts and other files that a rank has ([`checksum`]), by what they are for and their names. A rank may be
    /// without them: it is sent what it needs.
    pub files: BTreeMap<String, String>,
}

/// A text up to this size is read as a whole, of a larger one a part at its beginning, in its middle and at its end.
const WHOLE: u64 = 256 << 20;
const PART: u64 = 16 << 20;

/// Size and checksum of the files that a text, or another file, is read from, as if they were one; nothing where they are not here. Only
/// files are opened: a pipe would be waited for, and what it gives is given once.
pub fn checksum(spec: &str) -> Option<String> {
    let source = Source::parse(spec).ok()?;
    let file = |path| {
        let about = fs::metadata(path).ok()?;
        about.is_file().then_some((path, about.len()))
    };
    let files = source.paths().map(file).collect::<Option<Vec<_>>>()?;
    let bytes: u64 = files.iter().map(|file| file.1).sum();
    if bytes == 0 {
        return None;
    }
    let (starts, piece, of) = if bytes <= WHOLE {
        (vec![0], bytes, "")
    } else {
        (vec![0, (bytes - PART) / 2, bytes - PART], PART, " of the first, middle and last 16 MiB")
    };
    let (mut hash, mut start) = (Xxh3::new(), 0);
    for (path, len) in files {
        let mut file = File::open(path).ok()?;
        for &at in &starts {
            let (from, to) = (start.max(at), (at + piece).min(start + len));
            if from < to {
                file.seek(SeekFrom::Start(from - start)).ok()?;
                let mut part = BufReader::with_capacity(1 << 20, file.by_ref().take(to - from));
                loop {
                    let read = match part.fill_buf() {
                        Ok([]) => break,
                        Ok(bytes) => {
                            hash.update(bytes);
                            bytes.len()
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                        Err(_) => return None,
                    };
                    part.consume(read);
                }
            }
        }
        start += len;
    }
    Some(format!("{} bytes with checksum {:016x}{of}", thousands(bytes), hash.digest()))
}

/// Compares what all ranks are; an error names each that differs from rank 0, and in what. A number of ranks that cannot share out a
/// step is refused.
pub fn meet(comm: &dyn Comm, own: &Hello) -> Result<(), CommError> {
    let ranks = comm.size();
    if !ranks.is_power_of_two() {
        return Err(CommError::NoPower { ranks });
    }
    let text = serde_json::to_vec(own).map_err(|e| CommError::Message(e.to_string()))?;
    let lens = gather(comm, &(text.len() as u32).to_le_bytes())?;
    let longest = lens.iter().map(|len| u32::from_le_bytes([len[0], len[1], len[2], len[3]])).max().unwrap_or(0);
    // Spaces after a JSON text are part of it.
    let mut padded = text;
    padded.resize(longest as usize, b' ');
    let mut all = Vec::new();
    for hello in gather(comm, &padded)? {
        all.push(serde_json::from_slice::<Hello>(&hello).map_err(|e| CommError::Message(e.to_string()))?);
    }
    let first = &all[0];
    let mut differ = Vec::new();
    for (rank, other) in all.iter().enumerate() {
        let files = other.files.iter().filter_map(|(what, theirs)| {
            let mend = "copy that of rank 0, or add --data-copy: all take what rank 0 has";
            Some((&what[..], theirs, first.files.get(what)?, mend))
        });
        let compared = [
            ("version of flashlm", &other.version, &first.version, "install one version everywhere"),
            ("instruction set", &other.isa, &first.isa, "set FLASHLM_ISA to one that all have"),
            ("list of flags", &other.flags, &first.flags, "start all with the same"),
        ];
        let unlike = compared.into_iter().chain(files).filter(|(_, theirs, own, _)| theirs != own);
        differ.extend(unlike.map(|(what, theirs, own, mend)| Difference {
            rank,
            what: what.into(),
            theirs: theirs.clone(),
            own: own.clone(),
            mend,
        }));
    }
    if differ.is_empty() { Ok(()) } else { Err(CommError::Differ(differ)) }
}

/// Compares what all ranks make of the same numbers: of two programs with one version, or two processors with one instruction set.
pub(super) fn compute_alike(
    comm: &dyn Comm,
    cx: &Exec,
    stepper: &mut Stepper,
    settings: &TrainSettings,
) -> Result<(), CommError> {
    let own = stepper.arithmetic(cx, settings);
    let all = gather(comm, &own.to_le_bytes())?;
    let named = |sum: &[u8]| {
        format!("a gradient with checksum {}", sum.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let unlike = all.iter().enumerate().filter(|(_, sum)| **sum != all[0]).map(|(rank, sum)| Difference {
        rank,
        what: "arithmetic".into(),
        theirs: named(sum),
        own: named(&all[0]),
        mend: "install one program everywhere; where it is one, the processors differ: try FLASHLM_ISA=avx2, or take machines that are alike",
    });
    let differ: Vec<_> = unlike.collect();
    if differ.is_empty() { Ok(()) } else { Err(CommError::Differ(differ)) }
}

/// How many ranks have something to do in a step.
pub struct Fit {
    /// Of the stage that has the most.
    passes: usize,
    shape: Shape,
    pass_rows: usize,
}

impl Fit {
    /// Of these settings.
    pub fn of(settings: &Settings) -> Fit {
        let rows = pass_rows(&settings.train, settings.largest());
        let fits = settings.stages().into_iter().map(|stage| {
            let shape = Shape { batch: stage.batch * settings.train.accumulation, seq_len: stage.seq_len };
            Fit { passes: shape.batch.div_ceil((rows / shape.seq_len).max(1)), shape, pass_rows: rows }
        });
        fits.max_by_key(|fit| fit.passes).expect("there is a stage")
    }

    /// An error where some of so many ranks would have nothing to do.
    pub fn check(&self, ranks: usize) -> Result<(), CommError> {
        let Fit { passes, shape: Shape { batch, seq_len }, pass_rows } = *self;
        if ranks > passes {
            return Err(CommError::TooMany { ranks, passes, batch, seq_len, pass_rows });
        }
        Ok(())
    }
}
