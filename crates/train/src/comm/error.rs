//! Why ranks cannot go on together.

/// Why ranks cannot go on together. What was saved is left as it is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CommError {
    #[error(
        "rank {rank} has ended; the last checkpoint is whole, and --resume goes on from there on any number of ranks"
    )]
    Gone { rank: usize },
    #[error("rank {rank} has not answered for {seconds} s")]
    Late { rank: usize, seconds: f64 },
    #[error(
        "rank {rank} has not been heard of for {seconds} s, the last time in step {step}: its process hangs, or its machine or the network \
         is lost; the last checkpoint is whole, and --resume goes on from there. FLASHLM_RANK_SECONDS sets how long to wait"
    )]
    Silent { rank: usize, step: u64, seconds: f64 },
    #[error(
        "rank {rank} stands still in step {step}: its process lives, but has neither computed nor sent anything for {seconds} s. A \
         debugger may hold it, or a disk or memory does not answer. The last checkpoint is whole: --resume goes on from there. \
         FLASHLM_RANK_SECONDS sets how long to wait"
    )]
    Stuck { rank: usize, step: u64, seconds: f64 },
    #[error("{ranks} ranks: must be a power of two, so that the order of additions does not depend on how many there are; start {less} \
         or {more}", less = (ranks + 1).next_power_of_two() / 2, more = ranks.next_power_of_two())]
    NoPower { ranks: usize },
    #[error(
        "{ranks} ranks, but an update has {passes} {}: at most {} can take part; start fewer, raise --batch (now {batch} \
         sequences of {seq_len} tokens), or lower train.pass_rows (now {pass_rows})",
        if *passes == 1 { "pass" } else { "passes" }, (passes + 1).next_power_of_two() / 2
    )]
    TooMany { ranks: usize, passes: usize, batch: usize, seq_len: usize, pass_rows: usize },
    #[error("{}", listed(.0))]
    Differ(Vec<Difference>),
    #[error(
        "the parameters of rank {rank} are not those of rank 0 at step {step}, although both did the same: a faulty machine, or \
         another processor; resume from an earlier checkpoint without it"
    )]
    Drifted { rank: usize, step: u64 },
    #[error("rank 0 sent what this rank cannot read: {0}; start all ranks with the same program")]
    Message(String),
    #[error("MPI: {0}")]
    Library(String),
}

/// What a rank has otherwise than rank 0.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("rank {rank} has another {what} than rank 0: {theirs}, not {own}; {mend}")]
#[allow(missing_docs)]
pub struct Difference {
    pub rank: usize,
    pub what: String,
    pub theirs: String,
    pub own: String,
    pub mend: &'static str,
}

/// Most differences that are told.
const TOLD: usize = 8;

fn listed(all: &[Difference]) -> String {
    let mut lines: Vec<String> = all.iter().take(TOLD).map(Difference::to_string).collect();
    if all.len() > TOLD {
        lines.push(format!("and {} more differences", all.len() - TOLD));
    }
    lines.join("\n")
}
