//! Scores documents on all ranks. Each batch of them is as large as all ranks together like it; the log-probabilities of a document
//! do not depend on what else a rank computes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flashlm_kernels::Token;
use xxhash_rust::xxh3::Xxh3;

use super::message::{Order, send};
use crate::comm::{Comm, CommError, gather};
use crate::eval::bpb::{Master, Scorer};

/// Master weights on all ranks.
pub struct Shared<'a> {
    comm: &'a dyn Comm,
    own: Master<'a>,
    step: u64,
    stop: &'a AtomicBool,
    failed: Option<CommError>,
}

impl<'a> Shared<'a> {
    /// After a comparison of the parameters of all ranks; every rank makes its own.
    pub(super) fn new(
        comm: &'a dyn Comm,
        own: Master<'a>,
        params: &[f32],
        step: u64,
        stop: &'a AtomicBool,
    ) -> Result<Self, CommError> {
        let mut hash = Xxh3::new();
        params.iter().for_each(|x| hash.update(&x.to_le_bytes()));
        let all = gather(comm, &hash.digest().to_le_bytes())?;
        match all.iter().position(|other| *other != all[0]) {
            Some(rank) => Err(CommError::Drifted { rank, step }),
            None => Ok(Shared { comm, own, step, stop, failed: None }),
        }
    }

    /// That all documents of rank 0 are scored.
    pub(crate) fn end(self) -> Result<(), CommError> {
        self.comm.at(None);
        self.failed.map_or_else(|| send(self.comm, &Order::Scored, &[]), Err)
    }

    /// `ln p` of each token of these documents, each rank computing its part of them.
    pub(super) fn score(&mut self, stories: &[&[Token]], eos: Token) -> Result<Vec<Vec<f64>>, CommError> {
        let (n, size) = (stories.len(), self.comm.size());
        let part = |rank: usize| -> Range<usize> { rank * n / size..(rank + 1) * n / size };
        let tokens = |rank: usize| stories[part(rank)].iter().map(|story| story.len()).sum::<usize>();
        let most = (0..size).map(tokens).max().unwrap_or_default();
        let longest = stories.iter().map(|story| story.len()).max().unwrap_or_default().max(1);
        let mut bytes = vec![self.stop.load(Relaxed).into()];
        for some in stories[part(self.comm.rank())].chunks((self.own.rows() / longest).max(1)) {
            self.comm.at(Some(self.step));
            bytes.extend(self.own.log_probs(some, eos).concat().into_iter().flat_map(f64::to_le_bytes));
        }
        bytes.resize(1 + 8 * most, 0);
        let all = gather(self.comm, &bytes)?;
        // What rank 0 does until the next documents may take any time.
        self.comm.at(None);
        if all.iter().any(|rank| rank[0] == 1) {
            self.stop.store(true, Relaxed);
        }
        let mut out = Vec::with_capacity(n);
        for (rank, bytes) in all.iter().enumerate() {
            let mut values = bytes[1..].as_chunks().0.iter().map(|&x| f64::from_le_bytes(x));
            out.extend(stories[part(rank)].iter().map(|story| values.by_ref().take(story.len()).collect()));
        }
        Ok(out)
    }
}

impl Scorer for Shared<'_> {
    fn vocab_size(&self) -> usize {
        self.own.vocab_size()
    }

    fn rows(&self) -> usize {
        self.comm.size() * self.own.rows()
    }

    fn log_probs(&mut self, stories: &[&[Token]], eos: Token) -> Vec<Vec<f64>> {
        let lens = stories.iter().map(|story| story.len()).collect();
        let scored = match &self.failed {
            Some(error) => Err(error.clone()),
            None => send(self.comm, &Order::Documents(lens), &[&[eos], &stories.concat()[..]].concat())
                .and_then(|_| self.score(stories, eos)),
        };
        scored.unwrap_or_else(|error| {
            // Told at the end: figures are not possible from here on.
            self.failed = Some(error);
            stories.iter().map(|story| vec![0.0; story.len()]).collect()
        })
    }
}
