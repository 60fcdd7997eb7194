//! `metrics.jsonl`: one [`Row`] a line, as JSON, UTF-8, each line ended by `\n` and in the file once `append` returns.
//!
//! A number that is not finite is written as null and read as NaN. A run that died may leave a last line without its
//! end: reading skips it, and so does resuming, which also drops rows past the checkpoint and keeps the bytes of all
//! others. Any other line that is not a row is an error. Lines have at most [`MAX_LINE`] bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flashlm_model::io::{self as model_io, IoError, not_a_file};

use super::{Append, LogError, Row};
use crate::atomic;

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

    /// Goes on after the rows up to and including `step`; the later ones are dropped, for the run will write them
    /// again. A missing file counts as empty.
    pub fn resume(path: &Path, step: u64) -> Result<Self, LogError> {
        if path.exists() {
            let mut kept = Vec::new();
            each(path, |line, row| {
                if row.step() <= step {
                    kept.extend(line);
                    kept.push(b'\n');
                }
            })?;
            atomic::write_file(path, |file| file.write_all(&kept))?;
        }
        Self::open(path)
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
            let error = io::Error::other(format!(
                "the row of step {} has {} bytes, at most {MAX_LINE} are read back",
                row.step(),
                line.len()
            ));
            return Err(LogError::io("write a row to", path)(error));
        }
        line.push(b'\n');
        self.file.write(&line)
    }
}

/// All rows of a file; a torn last line is skipped, any other bad line is an error.
pub fn read(path: &Path) -> Result<Vec<Row>, LogError> {
    let mut rows = Vec::new();
    each(path, |_, row| rows.push(row))?;
    Ok(rows)
}

/// Calls `f` with the bytes (without `\n`) and the row of every whole line.
fn each(path: &Path, mut f: impl FnMut(&[u8], Row)) -> Result<(), LogError> {
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
        if buffer.len() > MAX_LINE {
            return Err(LogError::TooLong { path: path.to_path_buf(), line, limit: MAX_LINE });
        }
        match serde_json::from_slice(&buffer) {
            Ok(row) => f(&buffer, row),
            Err(_) if !ended => break,
            Err(source) => {
                return Err(LogError::Line { path: path.to_path_buf(), line, source });
            }
        }
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

        let mut metrics = Metrics::resume(&file, 4).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{kept}{kept}"));
        metrics.append(&train(5)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{kept}{kept}{late}\n"));
        let names: Vec<_> = fs::read_dir(&folder).unwrap().collect();
        assert_eq!(names.len(), 1, "the temporary file is gone");
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
            Metrics::resume(&file, 9).unwrap().append(&train(3)).unwrap();
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
            assert!(Metrics::resume(&file, 9).is_err());
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "left as it was");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
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
        Metrics::resume(&file, 5).unwrap().append(&train(6)).unwrap();
        assert_eq!(read(&file).unwrap(), [train(6)]);
    }
}
