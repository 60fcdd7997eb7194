//! Which instruction set runs: the best one the machine has, or the one named by `FLASHLM_ISA`. The one place that knows all
//! of them.

use crate::dot::DotOp;
use crate::isa;
use crate::simd::{Op, Units};

/// An instruction set with its own kernels. A value is proof that this machine supports it: [`Isa::SCALAR`] always is, all
/// others come from looking at the machine.
///
/// ```
/// use flashlm_kernels::Isa;
/// assert_eq!(Isa::named("scalar"), Some(Isa::SCALAR));
/// ```
///
/// Neither its field nor the names of the others can be reached from outside:
///
/// ```compile_fail
/// let isa = flashlm_kernels::Isa::Amx;
/// ```
/// ```compile_fail
/// let isa = flashlm_kernels::Isa(flashlm_kernels::dispatch::Kind::Amx);
/// ```
/// ```compile_fail
/// let flashlm_kernels::Isa(kind) = flashlm_kernels::Isa::SCALAR;
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

/// Values are made in [`Isa::available`] alone, after its features were found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One lane, any machine.
    Scalar,
    /// 8 f32 lanes with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same with `vpdpbusd` for sums of integers.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// The same, with AVX-512 VNNI in 256 bits.
    #[cfg(target_arch = "x86_64")]
    AvxVnniVl,
    /// 16 f32 lanes with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with `vdpbf16ps` for bf16 matmuls.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same with tile registers for bf16 matmuls.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// 4 f32 lanes with FMA.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// One lane of plain arithmetic, which any machine has.
    pub const SCALAR: Isa = Isa(Kind::Scalar);

    /// All that this machine supports, best first.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if isa::avx512::has_bf16() && isa::amx::available() {
                all.push(Isa(Kind::Amx));
            }
            if isa::avx512::has_bf16() {
                all.push(Isa(Kind::Avx512Bf16));
            }
            if isa::avx512::available() {
                all.push(Isa(Kind::Avx512));
            }
            if isa::avx2::has_vnni() {
                all.push(Isa(Kind::AvxVnni));
            } else if isa::avx2::available() && isa::avx2::has_vnni_of_avx512() {
                all.push(Isa(Kind::AvxVnniVl));
            }
            if isa::avx2::available() {
                all.push(Isa(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if isa::neon::available() {
            all.push(Isa(Kind::Neon));
        }
        all.push(Isa::SCALAR);
        all
    }

    /// The name that `FLASHLM_ISA` takes.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni | Kind::AvxVnniVl => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
        }
    }

    /// The available one of that name.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.name() == name)
    }

    /// What tests and benchmarks go through: all available ones, best first, or the one that the environment variable
    /// `FLASHLM_ISA` names.
    pub fn wanted() -> Result<Vec<Isa>, String> {
        match std::env::var("FLASHLM_ISA") {
            Ok(name) if !name.is_empty() => match Isa::named(&name) {
                Some(isa) => Ok(vec![isa]),
                None => {
                    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
                    Err(format!("FLASHLM_ISA={name} is not available on this machine; it has: {}", names.join(", ")))
                }
            },
            _ => Ok(Isa::available()),
        }
    }

    /// The best available one, or the one that `FLASHLM_ISA` names.
    pub fn detect() -> Result<Isa, String> {
        Isa::wanted().map(|isas| isas[0])
    }

    /// Whether it has instructions for bf16 matmuls.
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Kind::Avx512Bf16 | Kind::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether bf16 matmuls run on tile registers.
    pub fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Kind::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Rows of one tile of [`crate::Exec::tiles`]: a multiple of the tile of its fastest matmul.
    pub(crate) fn tile_rows(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Avx512Bf16 => 56,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni | Kind::AvxVnniVl => 48,
            _ => 64,
        }
    }

    /// Runs an integer matmul on its unit for these.
    pub(crate) fn dot(self, op: impl DotOp) {
        match self.0 {
            Kind::Scalar => isa::scalar::run_dot(op),
            // SAFETY: the value is proof of the features.
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => unsafe { isa::avx2::run_vnni(op) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnniVl => unsafe { isa::avx2::run_vnni_of_avx512(op) },
            // SAFETY: features and tiles of bytes were found.
            #[cfg(target_arch = "x86_64")]
            Kind::Amx if isa::avx512::has_vnni() && isa::amx::has_int8() => unsafe { isa::avx512::run_dot_amx(op) },
            // SAFETY: the features were found.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx if isa::avx512::has_vnni() => unsafe {
                isa::avx512::run_dot(op)
            },
            // SAFETY: the value is proof of the features, which are some of those of AVX-512 too.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx => unsafe { isa::avx2::run_dot(op) },
            // SAFETY: the features were found.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon if isa::neon::has_dot() => unsafe { isa::neon::run_dot(op) },
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => isa::scalar::run_dot(op),
        }
    }
}

impl Units for Isa {
    #[inline]
    fn f32<O: Op<f32>>(self, op: O) -> O::Out {
        match self.0 {
            Kind::Scalar => isa::scalar::run(op),
            // SAFETY: the value is proof of the features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni | Kind::AvxVnniVl => unsafe { isa::avx2::run(op) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { isa::avx512::run(op) },
            // SAFETY: as above, and of tiles.
            #[cfg(target_arch = "x86_64")]
            Kind::Amx if O::TILES => unsafe { isa::avx512::run_amx(op) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 | Kind::Amx => unsafe { isa::avx512::run_bf16(op) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { isa::neon::run(op) },
        }
    }

    #[inline]
    fn f64<O: Op<f64>>(self, op: O) -> O::Out {
        isa::scalar::run(op)
    }
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
