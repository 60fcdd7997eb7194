//! Training of FlashLM models: data, optimizers, schedules, the trainer, checkpoints, evaluation and logs.
#![forbid(unsafe_code)]

pub mod atomic;
mod average;
pub mod builtin;
pub mod causal;
pub mod checkpoint;
pub mod clock;
pub mod comm;
pub mod config;
pub mod curriculum;
pub mod data;
pub mod eta;
pub mod eval;
pub mod expect;
mod gradient;
pub mod load;
pub mod log;
pub mod optim;
pub mod positions;
pub mod progress;
pub mod ranks;
pub mod recognise;
pub mod run;
pub mod run_folder;
pub mod runs;
pub mod schedule;
pub mod similar;
pub mod stage;
pub mod stepper;
pub mod subject;
mod svd;
pub mod sweep;
pub mod table;
pub mod tokenizer;
pub mod trainer;
pub mod units;
pub mod what;
