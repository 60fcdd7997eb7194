//! What is asked of a run ([`Request`]), and the same with every choice made ([`Resolved`]).

use std::num::NonZeroUsize;
use std::path::PathBuf;

use flashlm_kernels::cpu::Machine;
use flashlm_kernels::{Exec, Isa};

use super::Origin;
use super::size::{batch_for, pass_rows_for};
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::data::cache::default_dir;
use crate::data::source::Source;
use crate::stepper::ROWS;
use crate::trainer::{Event, Tell, TrainError, check};
use crate::units::{counted, thousands};

/// What is asked of a run.
pub struct Request {
    /// As they were read: a batch, a number of threads or rows of a pass of 0, the precision `auto` and an empty validation text are
    /// yet to be decided, and so is the size of the vocabulary.
    pub settings: Settings,
    /// What it starts from.
    pub origin: Origin,
    /// Whether to use only datasets that are on this machine.
    pub offline: bool,
    /// The folder of vocabularies and token caches.
    pub cache: PathBuf,
}

/// The hardware to run on.
pub struct Hardware {
    /// The machine.
    pub machine: Machine,
    /// The instruction set to compute with.
    pub isa: Isa,
    /// Number of threads, if the settings give none.
    pub threads: NonZeroUsize,
}

impl Hardware {
    /// This machine, with all its processors.
    pub fn detect() -> Result<Hardware, String> {
        let machine = Machine::detect();
        let threads = NonZeroUsize::new(machine.cores).unwrap_or(NonZeroUsize::MIN);
        Ok(Hardware { machine, isa: Isa::detect()?, threads })
    }
}

impl Request {
    /// A new run.
    pub fn new(settings: Settings) -> Request {
        Request { settings, origin: Origin::Fresh, offline: false, cache: default_dir() }
    }

    /// Makes all choices that need no text, and refuses impossible settings before any text is read.
    pub fn resolve(self, hardware: &Hardware, tell: Tell) -> Result<Resolved, TrainError> {
        let Request { mut settings, origin, offline, cache } = self;
        let Hardware { machine, isa, .. } = hardware;
        if origin.checkpoint().is_none() {
            // So that the run can be resumed from anywhere.
            let texts =
                settings.train.stages.iter_mut().flat_map(|stage| &mut stage.sources).map(|text| &mut text.source);
            texts
                .chain([&mut settings.data.source, &mut settings.data.valid])
                .for_each(|spec| *spec = Source::in_full(spec));
        }
        if let Origin::Tuned(start) = &origin
            && start.config != settings.model
        {
            let wanted = Settings { model: start.config.clone(), ..settings.clone() };
            return Err(TrainError::OtherModel(wanted.conflict(&settings).unwrap_or_default()));
        }
        if settings.train.batch == 0 {
            settings.train.batch = batch_for(settings.model.dim, machine.cores);
            let (batch, cores) = (settings.train.batch, machine.cores);
            tell(Event::Note(&format!("batch {batch}: from {}; --batch N sets it", counted(cores as u64, "core"))));
        }
        settings.train.precision = settings.train.precision.resolve(*isa);
        let threads = NonZeroUsize::new(settings.train.threads).unwrap_or_else(|| {
            let threads = hardware.threads;
            tell(Event::Note(&format!(
                "threads {threads}: from FLASHLM_THREADS or the number of processors; --threads N sets it"
            )));
            threads
        });
        if settings.train.pass_rows == 0 {
            settings.train.pass_rows = pass_rows_for(settings.largest().rows(), threads.get());
            if settings.train.pass_rows != ROWS {
                let (rows, threads) =
                    (thousands(settings.train.pass_rows as u64), counted(threads.get() as u64, "thread"));
                tell(Event::Note(&format!("passes of {rows} rows: from {threads}; --set train.pass_rows=N sets it")));
            }
        }
        check(&settings, origin.checkpoint(), threads.get(), machine.memory)?;
        Ok(Resolved { settings, origin, offline, cache, threads, isa: *isa })
    }
}

/// A request with every choice made. Only [`Request::resolve`] creates one.
pub struct Resolved {
    pub(super) settings: Settings,
    pub(super) origin: Origin,
    pub(super) offline: bool,
    pub(super) cache: PathBuf,
    pub(super) threads: NonZeroUsize,
    pub(super) isa: Isa,
}

impl Resolved {
    /// The settings, with batch, precision and rows of a pass decided.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the run starts from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The checkpoint it resumes from, if any.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.origin.checkpoint()
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.get()
    }

    /// The executor.
    pub fn exec(&self) -> Exec {
        Exec::new(self.isa, self.threads())
    }
}
