//! From a request to a running trainer: [`Request`] (settings as they were read) -> [`Resolved`] (every choice made) ->
//! [`Prepared`] (texts as tokens, a vocabulary, a validation text) -> [`Trainer`](crate::trainer::Trainer).
//! Events on the way go to the caller's callback, and a flag stops all of it.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use flashlm_train::config::Layers;
//! use flashlm_train::run::{Hardware, Request};
//! use flashlm_train::run_folder::Claim;
//! use flashlm_train::trainer::Event;
//!
//! let mut layers = Layers::preset("flash-tiny")?;
//! layers.set("data.source", "synthetic:2000")?;
//! layers.set("train.steps", "500")?;
//!
//! let stop = AtomicBool::new(false);
//! let tell = &mut |event: Event| {
//!     if let Event::Note(line) | Event::Progress(line) = event {
//!         eprintln!("{line}");
//!     }
//! };
//! let resolved = Request::new(layers.settings()?).resolve(&Hardware::detect()?, tell)?;
//! let cx = resolved.exec();
//! let prepared = resolved.prepare(&stop, tell)?;
//! let mut trainer = prepared.trainer(&cx, Claim::new(Path::new("my-run"), None)?)?;
//! let finished = trainer.run(&stop, tell)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod beginnings;
mod dial;
mod embedding;
mod forecast;
mod import;
mod open;
mod origin;
mod place;
mod prepare;
mod request;
mod size;
mod steps;
mod validation;

pub use dial::{Chosen, Dial, MINUTES};
pub use forecast::{Forecast, StageForecast, TextForecast};
pub use open::{open_model, open_source};
pub use origin::{Origin, Resume, Start};
pub use place::Place;
pub use prepare::Prepared;
pub use request::{Hardware, Request, Resolved};
pub use size::pass_rows_for;
pub use steps::Steps;
