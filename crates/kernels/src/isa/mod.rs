//! One file, one instruction set: its lanes and its entry point `run`, which compiles an op with the set's features.

#[cfg(target_arch = "aarch64")]
pub(crate) use std::arch::is_aarch64_feature_detected as detected;
#[cfg(target_arch = "x86_64")]
pub(crate) use std::arch::is_x86_feature_detected as detected;

/// Functions that are compiled with a list of features, and the function `$has` that looks for them: one list for both, so
/// that nothing is compiled for what was not looked for. A feature that the compiler takes along with another is listed too.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! with_features {
    (@detected [$($feature:tt)+]) => { $($crate::isa::detected!($feature))&&+ };
    (@enabled [$($feature:tt)+] $function:item) => { $(#[target_feature(enable = $feature)])+ $function };
    ($features:tt $has:ident $($function:item)+) => {
        /// Whether this machine has all that the functions of the same list are compiled with.
        pub(crate) fn $has() -> bool {
            with_features!(@detected $features)
        }
        $(with_features! { @enabled $features $function })+
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux", feature = "emulate-amx"))]
mod amx_emulator;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;
