//! A run on a thread of its own, and what it tells.

use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use flashlm::Asked;
use flashlm_train::config::Settings;
use flashlm_train::log::svg::{self, Axis, Series};
use flashlm_train::log::{Row, SampleRow, jsonl};
use flashlm_train::run_folder::{METRICS, RunFolder};
use flashlm_train::trainer::{Ended, Event};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use serde_json::{Value, json};

use crate::error::{Failure, Result};
use crate::json::object;
use crate::model::{Model, load};
use crate::settings::arguments;
use crate::tokenizer::no_pickle;
use crate::wait::{TICK, Writing, wait};

/// What the run's thread sends.
enum Message {
    Started { run: PathBuf, parameters: usize, settings: Box<Settings>, bound: Option<f64> },
    Row(Row),
    Sample(SampleRow),
    Saved(u64, PathBuf),
    Note(String),
    Progress(String),
    Ended(Result<Value>),
}

/// A thread that trains.
#[derive(Clone)]
pub struct Run {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
    process: u32,
}

/// Those of this process, which are saved before it ends.
static RUNS: Mutex<Vec<Run>> = Mutex::new(Vec::new());

/// How far a run is.
enum Stage {
    Asked(Box<Asked>, Vec<String>),
    Running(Receiver<Message>),
    Ended,
}

/// A run: iterating over it trains, and gives what it tells. The training itself is on another thread, and goes on while the body
/// of the loop runs; leaving the loop does not end it, `stop()` or the end of a `with` block does.
///
/// `data` is a path, a folder, the name of a dataset (`"tinystories"`, `"hf:OWNER/DATASET"`, `"synthetic"`), or an iterable of texts,
/// one for each document. The other arguments are the options of `flashlm train`, `set` is a dict of settings by dotted keys, such
/// as `{"model.pattern": ["delta"]}`.
#[pyclass(frozen, module = "flashlm")]
pub struct Trainer {
    run: Run,
    own: Mutex<Own>,
}

struct Own {
    stage: Stage,
    about: About,
}

/// What is known of the run.
struct About {
    run: Option<PathBuf>,
    parameters: Option<usize>,
    settings: Settings,
    bound: Option<f64>,
    progress: String,
    share: f64,
    result: Option<Value>,
}

impl Trainer {
    fn own<T>(&self, of: impl FnOnce(&mut Own) -> Result<T>) -> Result<T> {
        if self.run.process != process::id() {
            return Err(Failure::training(
                "this run belongs to the process that began it: train in that one, or resume the run",
            ));
        }
        match self.own.try_lock() {
            Ok(mut own) => of(&mut own),
            Err(_) => Err(Failure::training("another thread iterates over this run; stop() may be called from any")),
        }
    }
}

#[pymethods]
impl Trainer {
    #[new]
    #[pyo3(signature = (data = None, *, set = None, **settings))]
    fn new(
        py: Python,
        data: Option<&Bound<PyAny>>,
        set: Option<&Bound<PyDict>>,
        settings: Option<&Bound<PyDict>>,
    ) -> Result<Trainer> {
        let args = arguments(data, set, settings)?;
        let (asked, notes) = wait(py, move |_| {
            let mut notes = Vec::new();
            let asked = flashlm::asked(args, &mut |event| {
                if let Event::Note(line) = event {
                    notes.push(line.to_string());
                }
            });
            Ok((asked.map_err(Failure::in_short)?, notes))
        })?;
        let settings = asked.resolved.settings().clone();
        let about = About {
            run: None,
            parameters: None,
            settings,
            bound: None,
            progress: String::new(),
            share: 0.0,
            result: None,
        };
        let run = Run { stop: Arc::default(), done: Arc::default(), process: process::id() };
        Ok(Trainer { run, own: Mutex::new(Own { stage: Stage::Asked(Box::new(asked), notes), about }) })
    }

    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> Result<Option<Bound<'py, PyAny>>> {
        self.own(|own| {
            if let Stage::Asked(..) = own.stage
                && let Stage::Asked(asked, notes) = std::mem::replace(&mut own.stage, Stage::Ended)
            {
                own.stage = Stage::Running(begin(*asked, notes, self.run.clone())?);
            }
            loop {
                py.check_signals().inspect_err(|_| self.run.stop.store(true, SeqCst))?;
                let Stage::Running(receive) = &mut own.stage else { return Ok(None) };
                let message = match py.detach(move || receive.recv_timeout(TICK)) {
                    Ok(message) => message,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => {
                        own.stage = Stage::Ended;
                        return Err(Failure::training("the run has ended unexpectedly; what was saved can be resumed"));
                    }
                };
                if let Some(event) = own.take(py, message)? {
                    return Ok(Some(event));
                }
            }
        })
    }

    /// Asks the run to save and to end; its last events can still be iterated over.
    fn stop(&self) {
        self.run.stop.store(true, SeqCst);
    }

    /// The folder of the run; None before it began.
    #[getter]
    fn run(&self) -> Result<Option<String>> {
        self.own(|own| Ok(own.about.run.as_ref().map(|run| run.display().to_string())))
    }

    /// Number of parameters; None before the run began.
    #[getter]
    fn parameters(&self) -> Result<Option<usize>> {
        self.own(|own| Ok(own.about.parameters))
    }

    /// All settings, as docs/formats.md lists them.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        self.own(|own| object(py, &json!(own.about.settings)))
    }

    /// How far it is, as one line; empty before the first step.
    #[getter]
    fn progress(&self) -> Result<String> {
        self.own(|own| Ok(own.about.progress.clone()))
    }

    /// The fraction of the run that is done, 0 to 1.
    #[getter]
    fn share(&self) -> Result<f64> {
        self.own(|own| Ok(own.about.share))
    }

    /// What the run came to: what its `result.json` holds, and `run`, its folder; of an interrupted run `outcome`, `steps` and `run`.
    /// None until it has ended.
    #[getter]
    fn result<'py>(&self, py: Python<'py>) -> Result<Option<Bound<'py, PyAny>>> {
        self.own(|own| own.about.result.as_ref().map(|result| object(py, result)).transpose())
    }

    /// The model of its best checkpoint.
    fn load(&self, py: Python) -> Result<Model> {
        match self.own(|own| Ok(own.about.run.clone()))? {
            Some(run) => load(py, run),
            None => Err(Failure::training("the run has not begun: iterate over it first")),
        }
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    /// Ctrl-C in the block is passed on at once; the run is saved on its own thread.
    #[pyo3(signature = (*error))]
    fn __exit__(&self, py: Python, error: &Bound<PyTuple>) -> Result<()> {
        self.stop();
        if error.iter().next().is_some_and(|kind| kind.is(py.get_type::<PyKeyboardInterrupt>())) {
            return Ok(());
        }
        finish(py, |run| Arc::ptr_eq(&run.done, &self.run.done))?;
        self.own(|own| {
            while let Stage::Running(receive) = &mut own.stage
                && let Ok(message) = receive.try_recv()
            {
                own.take(py, message)?;
            }
            Ok(())
        })
    }

    fn __repr__(&self) -> String {
        let told = self.own(|own| {
            let run = own.about.run.as_ref().map_or("not begun".into(), |run| run.display().to_string());
            let progress =
                if own.about.progress.is_empty() { String::new() } else { format!(": {}", own.about.progress) };
            Ok(format!("<flashlm.Trainer {run}{progress}>"))
        });
        told.unwrap_or_else(|_| "<flashlm.Trainer>".into())
    }

    /// A progress bar and the curve, for notebooks.
    fn _repr_html_(&self, py: Python) -> Result<String> {
        let (run, name, bound, share, line) = self.own(|own| {
            let About { run, settings, bound, share, progress, .. } = &own.about;
            Ok((run.clone(), settings.name.clone(), *bound, *share, progress.clone()))
        })?;
        let escaped = line.replace('&', "&amp;").replace('<', "&lt;");
        let bar =
            format!("<progress value=\"{share:.4}\" max=\"1\" style=\"width:100%\"></progress><pre>{escaped}</pre>");
        let Some(run) = run else { return Ok(bar) };
        let picture = wait(py, move |_| {
            // What is not readable now is drawn the next time.
            let rows = jsonl::read(&RunFolder::at(&run).file(METRICS)).unwrap_or_default();
            let options = svg::Options { title: name.clone(), axis: Axis::Tokens, entropy_bound: bound };
            Ok(svg::draw(&[Series::new(name, rows)], &options))
        })?;
        Ok(format!("{bar}<div style=\"max-width:960px\">{picture}</div>"))
    }

    fn __reduce__(&self) -> Result<()> {
        Err(no_pickle("a Trainer", "resume=trainer.run goes on with its run in another process"))
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        if self.run.process == process::id() {
            self.run.stop.store(true, SeqCst);
        } else if let Ok(own) = self.own.get_mut() {
            // The other process was perhaps sending when this one was forked from it: to close that channel would wait for the rest.
            std::mem::forget(std::mem::replace(&mut own.stage, Stage::Ended));
        }
    }
}

impl Own {
    /// What a message is to the program; none where it is only to be known.
    fn take<'py>(&mut self, py: Python<'py>, message: Message) -> Result<Option<Bound<'py, PyAny>>> {
        let about = &mut self.about;
        let (class, value) = match message {
            Message::Started { run, parameters, settings, bound } => {
                (about.run, about.parameters, about.settings, about.bound) =
                    (Some(run), Some(parameters), *settings, bound);
                return Ok(None);
            }
            Message::Progress(line) => {
                about.progress = line;
                return Ok(None);
            }
            Message::Ended(result) => {
                self.stage = Stage::Ended;
                about.result = Some(result?);
                return Ok(None);
            }
            Message::Row(Row::Train(row)) => {
                let t = &about.settings.train;
                let parts = [
                    row.step as f64 / t.steps as f64,
                    row.elapsed / (60.0 * t.minutes),
                    if t.steps == 0 && t.minutes == 0.0 { row.epoch / t.epochs } else { 0.0 },
                ];
                about.share = parts.into_iter().filter(|part| part.is_finite()).fold(0.0, f64::max).min(1.0);
                let dict = PyDict::new(py);
                dict.set_item("step", row.step)?;
                dict.set_item("loss", row.loss)?;
                dict.set_item("lr", row.lr)?;
                dict.set_item("grad_norm", row.grad_norm)?;
                dict.set_item("tokens", row.tokens)?;
                dict.set_item("tokens_per_second", row.tokens_per_second)?;
                dict.set_item("elapsed", row.elapsed)?;
                dict.set_item("epoch", row.epoch)?;
                dict.set_item("seq_len", row.seq_len)?;
                dict.set_item("stage", row.stage)?;
                dict.set_item("sources", row.sources)?;
                ("TrainRow", dict)
            }
            Message::Row(Row::Eval(row)) => {
                let dict = PyDict::new(py);
                dict.set_item("step", row.step)?;
                dict.set_item("tokens", row.tokens)?;
                dict.set_item("elapsed", row.elapsed)?;
                dict.set_item("loss", row.loss)?;
                dict.set_item("bpb", row.bpb)?;
                dict.set_item("best", row.best)?;
                ("EvalRow", dict)
            }
            Message::Sample(SampleRow { step, prompt, text })
            | Message::Row(Row::Sample(SampleRow { step, prompt, text })) => {
                let dict = PyDict::new(py);
                dict.set_item("step", step)?;
                dict.set_item("prompt", prompt)?;
                dict.set_item("text", text)?;
                ("Sample", dict)
            }
            Message::Saved(step, path) => {
                let dict = PyDict::new(py);
                dict.set_item("step", step)?;
                dict.set_item("path", path.display().to_string())?;
                ("Checkpoint", dict)
            }
            Message::Note(text) => {
                let dict = PyDict::new(py);
                dict.set_item("text", text)?;
                ("Note", dict)
            }
        };
        Ok(Some(py.import("flashlm.events")?.getattr(class)?.call((), Some(&value))?))
    }
}

/// Starts the thread of a run.
fn begin(asked: Asked, notes: Vec<String>, run: Run) -> Result<Receiver<Message>> {
    let (send, receive) = channel();
    notes.into_iter().for_each(|note| drop(send.send(Message::Note(note))));
    if let Ok(mut runs) = RUNS.lock() {
        runs.retain(|run| !run.done.load(SeqCst));
        runs.push(run.clone());
    }
    let done = run.done.clone();
    let work = move || {
        // Also where it panics.
        let _over = Over(run.done.clone());
        let ended = train(asked, &run.stop, &send);
        let _ = send.send(Message::Ended(ended));
    };
    let started = thread::Builder::new().name("flashlm-train".into()).spawn(work);
    started.map_err(|error| {
        done.store(true, SeqCst);
        Failure::from(PyErr::from(error))
    })?;
    Ok(receive)
}

/// Tells that a thread has ended.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Trains to the end, and tells all of it.
fn train(asked: Asked, stop: &AtomicBool, send: &Sender<Message>) -> Result<Value> {
    // Nobody may be listening any longer: the run goes on until it is stopped.
    let tell = &mut |event: Event| {
        let message = match event {
            Event::Row(Row::Sample(_)) => return,
            Event::Row(row) => Message::Row(row.clone()),
            Event::Sample(sample) => Message::Sample(sample.clone()),
            Event::Note(line) => Message::Note(line.into()),
            Event::Progress(line) => Message::Progress(line.into()),
            Event::Saved { step, path } => Message::Saved(step, path.to_path_buf()),
        };
        let _ = send.send(message);
    };
    let Asked { resolved, place, config } = asked;
    let claim = place.claim(config.as_deref())?;
    let run = claim.folder().path().to_path_buf();
    let cx = resolved.exec();
    let prepared = resolved.prepare(stop, tell)?;
    let (settings, bound) = (Box::new(prepared.settings().clone()), prepared.entropy_bound);
    let mut trainer = prepared.trainer(&cx, claim)?;
    let parameters = trainer.layout().parameters();
    let _ = send.send(Message::Started { run: run.clone(), parameters, settings, bound });
    let Ended { outcome, ending } = trainer.run(stop, tell)?;
    let mut result = match ending {
        Some(ending) => json!(ending),
        None => json!({"outcome": outcome.name(), "steps": trainer.saved_step().unwrap_or_default()}),
    };
    result["run"] = json!(run.display().to_string());
    Ok(result)
}

/// Waits until such runs of this process are saved and have ended; Ctrl-C ends the wait.
pub fn finish(py: Python, wanted: impl Fn(&Run) -> bool) -> Result<()> {
    let own = |run: &Run| run.process == process::id() && !run.done.load(SeqCst) && wanted(run);
    let running: Vec<Run> = match RUNS.try_lock() {
        Ok(runs) => runs.iter().filter(|run| own(run)).cloned().collect(),
        Err(_) => Vec::new(),
    };
    running.iter().for_each(|run| run.stop.store(true, SeqCst));
    while running.iter().any(|run| !run.done.load(SeqCst)) {
        py.detach(|| thread::sleep(TICK));
        py.check_signals()?;
    }
    Ok(())
}

/// Saves and ends all runs, and waits for files, before the interpreter ends.
#[pyfunction]
pub fn finish_all(py: Python) -> Result<()> {
    finish(py, |_| true)?;
    Ok(Writing::finish(py)?)
}
