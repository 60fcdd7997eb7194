//! Datasets and models from the hub, over HTTP, into the cache that its other programs use as well:
//! `names` (what is meant) -> list of files -> `cache` (is it here?) -> `download` (if not) -> paths of files.
//!
//! ```text
//! GET HF_ENDPOINT/api/datasets/OWNER/NAME/revision/main?blobs=true     commit; name, size and checksum of each file
//! GET HF_ENDPOINT/datasets/OWNER/NAME/resolve/COMMIT/PATH              the file, mostly by a redirect
//! GET HF_ENDPOINT/api/models/OWNER/NAME/revision/REVISION?blobs=true   the same of a model (`models`)
//! GET HF_ENDPOINT/OWNER/NAME/resolve/COMMIT/PATH
//! ```
//!
//! Whatever is in the cache costs no request, the list included. Source: the client in Python, `huggingface_hub`.

mod address;
mod cache;
mod client;
mod download;
mod error;
mod fetch;
mod http;
mod models;
mod names;
mod retry;
mod tensor;
mod watch;

pub use client::Client;
pub use error::HubError;
pub use fetch::Fetched;
pub use models::ModelName;
pub(crate) use names::split_of_word;
pub use names::{Dataset, NAMES};
pub use watch::Progress;
