//! Where a repository of the hub is, and what it is called: datasets and models have other addresses and folders.

use super::http;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dataset,
    Model,
}

/// A repository at a revision.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub kind: Kind,
    /// `OWNER/NAME`.
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Address {
    /// Its folder in the cache.
    pub fn folder(&self) -> String {
        let kind = if self.kind == Kind::Dataset { "datasets" } else { "models" };
        format!("{kind}--{}", self.repo.replace('/', "--"))
    }

    /// Asks for the commit and its files.
    pub fn list(&self, endpoint: &str) -> String {
        let kind = if self.kind == Kind::Dataset { "datasets" } else { "models" };
        format!("{endpoint}/api/{kind}/{}/revision/{}?blobs=true", self.repo, self.revision)
    }

    /// Asks for a file.
    pub fn file(&self, endpoint: &str, commit: &str, path: &str) -> String {
        format!("{}/resolve/{commit}/{}", self.page(endpoint), http::quote(path))
    }

    /// For people.
    pub fn page(&self, endpoint: &str) -> String {
        let kind = if self.kind == Kind::Dataset { "datasets/" } else { "" };
        format!("{endpoint}/{kind}{}", self.repo)
    }

    /// As in "no such dataset".
    pub fn noun(&self) -> &'static str {
        if self.kind == Kind::Dataset { "dataset" } else { "model" }
    }

    /// What there is without the hub.
    pub fn instead(&self) -> &'static str {
        match self.kind {
            Kind::Dataset => "`--data synthetic` trains on made-up stories and `--data PATH` on your own text",
            Kind::Model => "name a model on this machine: a path, or `builtin`",
        }
    }
}
