//! `metrics.jsonl`: one [`Row`] a line, as JSON, UTF-8, each line ended by `\n` and in the file once `append` returns.
//!
//! A number that is not finite is written as null and read as NaN. A run that died may leave a last line without its
//! end: reading skips it, and so does resuming, which also moves rows past the checkpoint away and keeps the bytes of all
//! others. Any other line that is not a row is an error to read; resuming moves it aside. Lines have at most [`MAX_LINE`] bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flashlm_model::io::{self as model_io, IoError, not_a_file};

use super::{Append, LogError, Row};
use crate::atomic;
use crate::progress::Best;

/// The longest line accepted, in bytes, without its end.
pub const MAX_LINE: usize = 1 << 20;

/// The metrics file of a run, open for appending.
#[derive(Debug)]
pub struct Metrics {
    file: Append,
}

impl Metrics {
    /// Starts an empty file, in the place of one that is there.
    pub fn create(path: &Path) -> Result<Self, LogError> {
        // Opening a named pipe would wait for ever.
        if let Some(found) = path.metadata().ok().and_then(|about| not_a_file(&about)) {
            return Err(IoError::NotAFile { file: path.display().to_string(), found }.into());
        }
        File::create(path).map_err(LogError::io("create", path))?;
        Self::open(path)
    }

    /// Goes on after the rows up to and including `step`. The later ones, which the run will write again or has turned away
    /// from, are moved to the file `aside`, and so are lines that are no rows. A missing file counts as empty.
    pub fn resume(path: &Path, step: u64, aside: &Path) -> Result<Resumed, LogError> {
        let (mut kept, mut dropped, mut found) = (Vec::new(), Vec::new(), Kept::default());
        if path.exists() {
            lines(path, |line, bytes, row| {
                let keep = matches!(&row, Ok(row) if row.step() <= step);
                match row {
                    // That before the first step is of no checkpoint.
                    Ok(Row::Eval(row)) if keep && row.step > 0 => {
                        found.validated = Some(Best { bpb: row.bpb, step: row.step })
                    }
                    Ok(Row::Sample(row)) if keep => found.sampled = Some(row.step),
                    Ok(_) => {}
                    Err(Bad::Row(_)) => found.damaged += 1,
                    Err(Bad::Long) => return Err(too_long(path, line)),
                }
                let to = if keep { &mut kept } else { &mut dropped };
                to.extend(bytes);
                to.push(b'\n');
                Ok(())
            })?;
            if !dropped.is_empty() {
                let mut file = Append::open(aside, OpenOptions::new().create(true))?;
                file.write(&dropped)?;
                file.file.sync_all().map_err(LogError::io("sync", aside))?;
            }
            atomic::write_file(path, |file| file.write_all(&kept))?;
        }
        Ok(Resumed { metrics: Self::open(path)?, kept: found })
    }

    fn open(path: &Path) -> Result<Self, LogError> {
        let file = Append::open(path, OpenOptions::new().create(true))?;
        Ok(Metrics { file })
    }

    /// Writes one row; when it returns, the line is in the file.
    pub fn append(&mut self, row: &Row) -> Result<(), LogError> {
        let path = &self.file.path;
        let mut line = serde_json::to_vec(row).map_err(|e| LogError::io("write a row to", path)(e.into()))?;
        if line.len() > MAX_LINE {
            let what =
                format!("the row of step {} has {} bytes, at most {MAX_LINE} are read back", row.step(), line.len());
            let error = io::Error::new(io::ErrorKind::InvalidData, what);
            return Err(LogError::io("write a row to", path)(error));
        }
        line.push(b'\n');
        self.file.write(&line)
    }
}

/// A log that is continued.
pub struct Resumed {
    /// For further rows.
    pub metrics: Metrics,
    /// What the rows in it tell.
    pub kept: Kept,
}

/// What the rows that a resumed run keeps tell of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kept {
    /// The last validation.
    pub validated: Option<Best>,
    /// The step of the last samples.
    pub sampled: Option<u64>,
    /// Lines that are no rows.
    pub damaged: usize,
}

/// All rows of a file; a torn last line is skipped, any other bad line is an error.
pub fn read(path: &Path) -> Result<Vec<Row>, LogError> {
    let mut rows = Vec::new();
    lines(path, |line, _, row| {
        rows.push(row.map_err(|bad| match bad {
            Bad::Row(source) => LogError::Line { path: path.to_path_buf(), line, source },
            Bad::Long => too_long(path, line),
        })?);
        Ok(())
    })?;
    Ok(rows)
}

/// Why a line is no row.
enum Bad {
    Row(serde_json::Error),
    Long,
}

fn too_long(path: &Path, line: u64) -> LogError {
    LogError::TooLong { path: path.to_path_buf(), line, limit: MAX_LINE }
}

/// Calls `f` with the number, the bytes (without `\n`) and the row of every whole line; of a torn last one it hears nothing.
fn lines(path: &Path, mut f: impl FnMut(u64, &[u8], Result<Row, Bad>) -> Result<(), LogError>) -> Result<(), LogError> {
    let mut reader = BufReader::new(model_io::open(path)?.0);
    let mut buffer = Vec::new();
    for line in 1u64.. {
        buffer.clear();
        let length = Read::take(&mut reader, MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut buffer)
            .map_err(LogError::io("read", path))?;
        if length == 0 {
            break;
        }
        let ended = buffer.pop_if(|&mut byte| byte == b'\n').is_some();
        let row = match serde_json::from_slice(&buffer) {
            _ if buffer.len() > MAX_LINE => Err(Bad::Long),
            Ok(row) => Ok(row),
            Err(_) if !ended => break,
            Err(source) => Err(Bad::Row(source)),
        };
        f(line, &buffer, row)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::super::{EvalRow, SampleRow, TrainRow};
    use super::*;

    fn folder() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("metrics.jsonl");
        (folder, file)
    }

    fn resume(file: &Path, step: u64) -> Metrics {
        Metrics::resume(file, step, &file.with_extension("aside")).unwrap().metrics
    }

    #[test]
    fn rows_that_a_run_leaves_are_kept() {
        let (_folder, file) = folder();
        let aside = file.with_extension("aside");
        let eval = |step, bpb| Row::Eval(EvalRow { step, tokens: 0, elapsed: 0.0, loss: 1.0, bpb, best: true });
        let rows = [train(1), eval(2, 0.5), sample(2, "a"), train(3), eval(4, 0.25), sample(4, "b")];
        let line = |row: &Row| serde_json::to_string(row).unwrap() + "\n";
        fs::write(&file, rows.iter().map(line).collect::<String>()).unwrap();
        let Resumed { kept, .. } = Metrics::resume(&file, 3, &aside).unwrap();
        let validated = Some(Best { bpb: 0.5, step: 2 });
        assert_eq!(kept, Kept { validated, sampled: Some(2), damaged: 0 });
        assert_eq!((read(&file).unwrap(), read(&aside).unwrap()), (rows[..4].to_vec(), rows[4..].to_vec()));
        // And again: what was set aside before stays.
        Metrics::resume(&file, 1, &aside).unwrap();
        assert_eq!(read(&aside).unwrap(), [&rows[4..], &rows[1..4]].concat());
    }

    fn train(step: u64) -> Row {
        Row::Train(TrainRow {
            step,
            loss: 2.25,
            lr: 0.5,
            grad_norm: 1.0,
            tokens: step * 4096,
            tokens_per_second: 1e4,
            elapsed: step as f64,
            epoch: 0.125,
            seq_len: 256,
            stage: 1,
            sources: Default::default(),
            waited: Vec::new(),
        })
    }

    fn sample(step: u64, text: &str) -> Row {
        Row::Sample(SampleRow { step, prompt: "Once".into(), text: text.into() })
    }

    #[test]
    fn what_was_appended_is_read() {
        let (_folder, file) = folder();
        let eval = Row::Eval(EvalRow { step: 2, tokens: 8192, elapsed: 2.0, loss: 2.0, bpb: 0.75, best: false });
        let rows = [train(1), eval, sample(2, "a\nb \u{2028} \"é\" \0")];
        let mut metrics = Metrics::create(&file).unwrap();
        for (i, row) in rows.iter().enumerate() {
            metrics.append(row).unwrap();
            assert_eq!(read(&file).unwrap(), rows[..=i]);
        }
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 3);
    }

    #[test]
    fn a_number_that_is_not_finite_comes_back_as_nan() {
        let (_folder, file) = folder();
        let Row::Train(mut row) = train(3) else { unreachable!() };
        row.loss = f64::NEG_INFINITY;
        let mut metrics = Metrics::create(&file).unwrap();
        metrics.append(&Row::Train(row)).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains(r#""loss":null"#));
        match &read(&file).unwrap()[..] {
            [Row::Train(r)] => assert!(r.loss.is_nan() && r.lr == 0.5),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn resume_keeps_bytes_up_to_the_step() {
        let (folder, file) = folder();
        // Spacing, key order and an unknown key that no writer of ours would choose.
        let kept = "{\"step\": 4,  \"kind\":\"sample\", \"text\":\"\\u00e9\",\"prompt\":\"\",\"extra\":1}\n";
        let late = serde_json::to_string(&train(5)).unwrap();
        let torn = &late[..late.len() / 2];
        fs::write(&file, format!("{kept}{late}\n{kept}{torn}")).unwrap();
        assert_eq!(read(&file).unwrap().len(), 3);

        let mut metrics = Metrics::resume(&file, 4, &folder.path().join("aside")).unwrap().metrics;
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{kept}{kept}"));
        metrics.append(&train(5)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{kept}{kept}{late}\n"));
        assert_eq!(fs::read_to_string(folder.path().join("aside")).unwrap(), format!("{late}\n"));
        let names: Vec<_> = fs::read_dir(&folder).unwrap().collect();
        assert_eq!(names.len(), 2, "the temporary file is gone");
    }

    #[test]
    fn every_torn_end_is_mended() {
        let (_folder, file) = folder();
        let whole = format!(
            "{}\n{}\n",
            serde_json::to_string(&train(1)).unwrap(),
            serde_json::to_string(&sample(2, "é")).unwrap()
        );
        let first = whole.find('\n').unwrap() + 1;
        for cut in first..=whole.len() {
            fs::write(&file, &whole.as_bytes()[..cut]).unwrap();
            // Only the last cut or two leave the second row whole.
            let rows = if cut >= whole.len() - 1 { 2 } else { 1 };
            assert_eq!(read(&file).unwrap().len(), rows, "cut at {cut}");
            resume(&file, 9).append(&train(3)).unwrap();
            assert_eq!(read(&file).unwrap().len(), rows + 1, "cut at {cut}");
        }
    }

    #[test]
    fn damage_elsewhere_is_an_error_that_names_the_line() {
        let (folder, file) = folder();
        let row = serde_json::to_string(&train(1)).unwrap();
        for bad in ["", "{}", "[1]", "{\"kind\":\"other\"}", "\0\0", &row[1..], &"[".repeat(9999)] {
            let text = format!("{row}\n{bad}\n{row}\n");
            fs::write(&file, &text).unwrap();
            let error = read(&file).unwrap_err();
            assert!(matches!(error, LogError::Line { line: 2, .. }), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "left as it was");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
            // a resumed run keeps its rows, and the damaged line beside them.
            let aside = folder.path().join("aside");
            let Resumed { kept, .. } = Metrics::resume(&file, 9, &aside).unwrap();
            assert_eq!((kept.damaged, read(&file).unwrap().len()), (1, 2));
            assert_eq!(fs::read_to_string(&aside).unwrap(), format!("{bad}\n"));
            fs::remove_file(aside).unwrap();
        }
    }

    #[test]
    fn long_lines_are_refused_both_ways() {
        let (_folder, file) = folder();
        let empty = serde_json::to_string(&sample(1, "")).unwrap().len();
        let mut metrics = Metrics::create(&file).unwrap();
        metrics.append(&sample(1, &"x".repeat(MAX_LINE - empty))).unwrap();
        assert!(metrics.append(&sample(1, &"x".repeat(MAX_LINE - empty + 1))).is_err());
        assert_eq!(read(&file).unwrap().len(), 1);
        fs::write(&file, vec![b'x'; 3 * MAX_LINE]).unwrap();
        let error = read(&file).unwrap_err();
        assert!(matches!(error, LogError::TooLong { line: 1, .. }), "{error}");
    }

    #[test]
    fn a_missing_file_is_resumed_as_empty_and_an_error_to_read() {
        let (_folder, file) = folder();
        assert!(read(&file).unwrap_err().to_string().contains("metrics.jsonl"));
        resume(&file, 5).append(&train(6)).unwrap();
        assert_eq!(read(&file).unwrap(), [train(6)]);
    }
}
