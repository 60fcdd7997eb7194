//! Sizes that fit a machine, where none are asked for.

use flashlm_kernels::cpu::Machine;

use crate::units::counted;

/// A preset, and why it was taken.
pub struct Size {
    /// Its name.
    pub preset: &'static str,
    /// As in "preset NAME: WHY".
    pub why: String,
}

/// The preset for a machine and a time.
pub fn size_for(machine: &Machine, minutes: Option<f64>) -> Size {
    let (cores, gib) = (machine.cores, machine.memory >> 30);
    let (preset, why) = match minutes {
        Some(minutes) if minutes * (cores as f64) < 20.0 => {
            let noun = if minutes == 1.0 { "minute" } else { "minutes" };
            let cores = counted(cores as u64, "core");
            ("flash-tiny", format!("{minutes} {noun} on {cores}: enough for a small model only"))
        }
        _ if cores >= 8 && gib >= 32 => ("flash-large", format!("{cores} cores and {gib} GiB of memory")),
        _ => (
            "flash-small",
            format!("{} and {gib} GiB of memory; flash-large needs 8 cores and 32 GiB", counted(cores as u64, "core")),
        ),
    };
    Size { preset, why }
}

/// Sequences of a step of a model of this width.
pub(super) fn batch_for(dim: usize, cores: usize) -> usize {
    if dim >= 384 { (2 * cores).clamp(4, 64) } else { cores.clamp(2, 8) }
}
