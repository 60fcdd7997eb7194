//! Which instruction set runs: the best one the machine has, or the one named by `FLASHLM_ISA`.

use crate::elem::Elem;
use crate::simd::Simd;

/// An instruction set with kernels of its own. A value is proof that the machine supports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// One lane, any machine.
    Scalar,
    /// 8 f32 lanes with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same with `vpdpbusd` for sums of integers.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// 16 f32 lanes with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with `vdpbf16ps` for products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same with tile registers for products of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// 4 f32 lanes with FMA.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// One kernel body, written over any [`Simd`].
pub trait Op<E: Elem> {
    /// What it returns.
    type Out;
    /// The body. Implementations are `#[inline(always)]`, so that they compile with the caller's target features.
    ///
    /// # Safety
    /// The machine supports `S`, and the op's own pointers are valid for its sizes.
    unsafe fn run<S: Simd<E = E>>(self) -> Self::Out;
}

impl Isa {
    /// All that this machine supports, best first.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                if has!("avx512bf16") {
                    if crate::isa::amx::available() {
                        all.push(Isa::Amx);
                    }
                    all.push(Isa::Avx512Bf16);
                }
                all.push(Isa::Avx512);
            }
            if has!("avx2") && has!("fma") {
                if has!("avxvnni") {
                    all.push(Isa::AvxVnni);
                }
                all.push(Isa::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Isa::Neon);
        }
        all.push(Isa::Scalar);
        all
    }

    /// The name that `FLASHLM_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }

    /// The available ISA of that name.
    pub fn named(name: &str) -> Result<Isa, String> {
        let all = Isa::available();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
            format!("FLASHLM_ISA={name} is not available on this machine; it has: {}", names.join(", "))
        })
    }

    /// The best available one, or the one that the environment variable `FLASHLM_ISA` names.
    pub fn detect() -> Result<Isa, String> {
        match std::env::var("FLASHLM_ISA") {
            Ok(name) if !name.is_empty() => Isa::named(&name),
            _ => Ok(Isa::available()[0]),
        }
    }
}
