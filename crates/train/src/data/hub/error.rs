//! What can go wrong between the name of a dataset or model and its files, and what to do about it.

use crate::atomic::AtomicError;

/// Why a dataset or model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No connection to the hub.
    #[error(
        "{repo}: cannot reach {endpoint} ({cause}). Without a network, {instead}; HF_ENDPOINT names a mirror of the hub, \
         HTTPS_PROXY a proxy"
    )]
    Unreachable {
        /// The repository.
        repo: String,
        /// Address of the hub.
        endpoint: String,
        /// What the system says.
        cause: String,
        /// What there is without it.
        instead: &'static str,
    },
    /// Offline, and not all is here.
    #[error(
        "{repo}: offline, and {missing}. Run once without --offline and HF_HUB_OFFLINE to fetch it; without a network, {instead}"
    )]
    Offline {
        /// The repository.
        repo: String,
        /// What is missing, and where it would be.
        missing: String,
        /// What there is without it.
        instead: &'static str,
    },
    /// The hub says no.
    #[error("{repo}: {url} answers {status}{message}: {why}")]
    Refused {
        /// The repository.
        repo: String,
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// The hub's own words, with brackets.
        message: String,
        /// What it means, and what to do.
        why: String,
    },
    /// It went wrong over and over again.
    #[error("{url}: {cause}, in every attempt; what has arrived is kept, and the same command continues from there")]
    Broken {
        /// What was asked for.
        url: String,
        /// What went wrong last.
        cause: String,
    },
    /// An answer that nothing can be made of.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing in the repository is what was asked for.
    #[error("{repo}: {reason}")]
    NoFiles {
        /// The repository.
        repo: String,
        /// What there is instead.
        reason: String,
    },
    /// The content is not what the hub's list says, twice.
    #[error(
        "{url}: the checksum is {found}, but the hub's list says {expected}, in two attempts; the file was not kept. Try \
         later, or set another HF_ENDPOINT"
    )]
    Checksum {
        /// What was fetched.
        url: String,
        /// Checksum in the list.
        expected: String,
        /// Checksum of what came.
        found: String,
    },
    /// The token cannot be sent.
    #[error("{origin}: a token is one line of visible ASCII; correct it or leave it out")]
    Token {
        /// Where it comes from.
        origin: String,
    },
    /// The cache could not be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// The callback asked to stop.
    #[error("stopped; what has arrived is kept, and the same command continues from there")]
    Stopped,
}
