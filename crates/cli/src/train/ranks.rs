//! The ranks of a run: processes that `mpirun` or `srun` has started together.

use std::ffi::OsString;
use std::process::{ExitCode, exit};
#[cfg(feature = "mpi")]
use std::time::Duration;

#[cfg(not(feature = "mpi"))]
use anyhow::bail;
#[cfg(feature = "mpi")]
use anyhow::{Context, ensure};
use flashlm_kernels::Isa;
use flashlm_train::comm::{Comm, Solo};
#[cfg(feature = "mpi")]
use flashlm_train::comm::{CommError, Mpi};
use flashlm_train::ranks::{Hello, VERSION, checksum, follow, meet};

use super::flags::{Args, named};
use crate::common::{exec, say};
use crate::signals::quiet;

/// What OpenMPI, MPICH and Slurm tell a process of how many were started together.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Joins the other processes where there are any.
pub fn join() -> anyhow::Result<Box<dyn Comm>> {
    let started = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    match SIZES.into_iter().filter_map(started).max() {
        Some(size @ 2..) => connect(size),
        _ => Ok(Box::new(Solo)),
    }
}

/// That all ranks are alike, with `given` as arguments and `args` as their meaning; where they are not, all have the same error.
pub fn compare(comm: &dyn Comm, isa: Isa, args: &Args, given: &[OsString]) -> anyhow::Result<()> {
    let files = if comm.size() == 1 || args.data_copy { Vec::new() } else { named(args) };
    let file = |(what, path): (&str, String)| Some((format!("{what} {path}"), checksum(&path)?));
    let own = Hello {
        version: VERSION.into(),
        isa: isa.name().into(),
        flags: flags(given.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned())),
        files: files.into_iter().filter_map(file).collect(),
    };
    Ok(meet(comm, &own)?)
}

#[cfg(feature = "mpi")]
fn connect(_: usize) -> anyhow::Result<Box<dyn Comm>> {
    const LIMIT: &str = "FLASHLM_RANK_SECONDS";
    let limit = std::env::var(LIMIT).ok().filter(|text| !text.is_empty()).map(|text| {
        let seconds: f64 = text.parse().with_context(|| format!("{LIMIT}={text} is not a number of seconds"))?;
        ensure!((0.5..=1e6).contains(&seconds), "{LIMIT}={text}: must be between 0.5 and 1000000 seconds");
        Ok(Duration::from_secs_f64(seconds))
    });
    Ok(Box::new(Mpi::join(limit.transpose()?, |error: &CommError| say!("error: {error}"))?))
}

#[cfg(not(feature = "mpi"))]
fn connect(size: usize) -> anyhow::Result<Box<dyn Comm>> {
    bail!(
        "{size} processes were started together, but this flashlm is built without MPI: each would train by itself. Build it with \
         `cargo build --release --features mpi` (docs/cluster.md), or start one"
    )
}

/// All but the number of threads, which each rank may choose.
fn flags(given: impl Iterator<Item = String>) -> String {
    let (mut all, mut given) = (Vec::new(), given);
    while let Some(flag) = given.next() {
        match flag.as_str() {
            "--threads" => drop(given.next()),
            _ if flag.starts_with("--threads=") => {}
            _ => all.push(flag),
        }
    }
    all.join(" ")
}

/// What all ranks but 0 do; rank 0 tells how the run ends.
pub fn work(comm: &dyn Comm, threads: Option<u64>) -> ExitCode {
    let exec = || exec(threads.filter(|&n| n > 0).map(|n| n as usize));
    let followed = exec().and_then(|cx| {
        let stop = quiet()?;
        Ok(follow(comm, &cx, &stop)?)
    });
    match followed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("error: rank {}: {error}", comm.rank());
            // Without a farewell, for which the others are not ready: this ends them too.
            exit(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_threads_are_not_compared() {
        let of = |line: &str| flags(line.split(' ').map(String::from));
        assert_eq!(of("train --threads 3 -m 1 --threads=2"), "train -m 1");
        assert_eq!(of("train -m 1"), of("train --threads 1 -m 1"));
    }
}
