//! What is asked of a run, and the same with nothing left to the machine.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use flashlm_kernels::cpu::Machine;
use flashlm_kernels::{Exec, Isa};

use super::Origin;
use super::size::batch_for;
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::data::cache::default_dir;
use crate::data::source::Source;
use crate::trainer::{Event, Tell, TrainError, check};
use crate::units::counted;

/// What is asked of a run.
pub struct Request {
    /// As they were read: a batch or a number of threads of 0, the precision `auto` and an empty validation text are still to be
    /// decided, and the size of the vocabulary to be found out.
    pub settings: Settings,
    /// What it starts from.
    pub origin: Origin,
    /// Whether to take datasets from this machine alone.
    pub offline: bool,
    /// The folder of vocabularies and token caches.
    pub cache: PathBuf,
}

/// What there is to run on.
pub struct Hardware {
    /// The machine.
    pub machine: Machine,
    /// The instruction set to compute with.
    pub isa: Isa,
    /// Threads, where the settings name no number.
    pub threads: NonZeroUsize,
}

impl Hardware {
    /// All of this machine.
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

    /// Decides what needs no text, and refuses what cannot be before any is read.
    pub fn resolve(self, hardware: &Hardware, tell: Tell) -> Result<Resolved, TrainError> {
        let Request { mut settings, origin, offline, cache } = self;
        let Hardware { machine, isa, .. } = hardware;
        if origin.checkpoint().is_none() {
            // So that the run can go on from anywhere.
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
        check(&settings, origin.checkpoint(), threads.get(), machine.memory)?;
        Ok(Resolved { settings, origin, offline, cache, threads, isa: *isa })
    }
}

/// A request of which nothing is left to the machine. Only [`Request::resolve`] makes one.
pub struct Resolved {
    pub(super) settings: Settings,
    pub(super) origin: Origin,
    pub(super) offline: bool,
    pub(super) cache: PathBuf,
    threads: NonZeroUsize,
    isa: Isa,
}

impl Resolved {
    /// The settings, with a batch and a precision.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the run starts from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The checkpoint that is gone on from.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.origin.checkpoint()
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.threads.get()
    }

    /// What computes.
    pub fn exec(&self) -> Exec {
        Exec::new(self.isa, self.threads())
    }
}
