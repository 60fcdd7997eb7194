//! One file, one instruction set: its lanes and its entry point `run`, which compiles an op with the set's features.

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux", feature = "emulate-amx"))]
mod amx_emulator;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod scalar;
