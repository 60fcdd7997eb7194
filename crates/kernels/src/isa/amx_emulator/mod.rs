//! Software emulation of Intel AMX (AMX-TILE, AMX-INT8, AMX-BF16), for tests on x86_64 Linux machines without it.
//!
//! Such a machine raises #UD on every AMX instruction, which Linux delivers as SIGILL. [`install`] sets a handler that
//! decodes the instruction at RIP, carries it out on tile registers kept in thread-local storage, moves RIP past it
//! and returns. What the handler does not know kills the process with SIGILL as usual; a misuse of AMX does so too,
//! after a message on stderr.
//!
//! Sources: Intel 64 and IA-32 Architectures Software Developer's Manual ("SDM"), volume 1, chapter "Programming with
//! Intel Advanced Matrix Extensions"; volume 2, sections "VEX prefix" and "Intel AMX Instruction Exception Classes" and
//! the pages of the single instructions, whose pseudocode is followed here.
//!
//! Left out: `start_row` other than zero, address-size and segment prefixes, the payload of NaN results, and the
//! kernel's saving of the tiles around signal handlers (a handler sees the tiles of the thread it interrupts).

mod decode;
mod execute;
mod signal;

pub use signal::install;

#[cfg(test)]
mod tests {
    use super::signal::{SIGILL, raise};
    use super::*;
    use crate::testing::Random;
    use std::arch::asm;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::thread;

    /// A palette 1 configuration of (tile, rows, bytes per row).
    fn config(tiles: &[(usize, usize, usize)]) -> [u8; 64] {
        let mut config = [0; 64];
        config[0] = 1;
        for &(tile, rows, colsb) in tiles {
            config[48 + tile] = rows as u8;
            config[16 + 2 * tile..][..2].copy_from_slice(&(colsb as u16).to_le_bytes());
        }
        config
    }

    /// A matrix in memory: `rows` rows of `columns` dwords, `stride` bytes apart, with filler between them.
    #[derive(Clone, Debug, PartialEq)]
    struct Matrix {
        bytes: Vec<u8>,
        rows: usize,
        columns: usize,
        stride: usize,
    }

    impl Matrix {
        fn new(rows: usize, columns: usize, stride: usize, mut fill: impl FnMut() -> [u8; 4]) -> Matrix {
            let bytes = vec![0xee; stride * rows];
            let mut matrix = Matrix { bytes, rows, columns, stride };
            for row in 0..rows {
                for column in 0..columns {
                    *matrix.at(row, column) = fill();
                }
            }
            matrix
        }

        fn at(&mut self, row: usize, column: usize) -> &mut [u8; 4] {
            (&mut self.bytes[row * self.stride + 4 * column..][..4]).try_into().unwrap()
        }

        fn get(&self, row: usize, column: usize) -> [u8; 4] {
            self.bytes[row * self.stride + 4 * column..][..4].try_into().unwrap()
        }
    }

    type Multiply = fn(&Matrix, &Matrix, &mut Matrix);

    /// Defines a function that computes C += A * B by one TDP instruction on the given tiles.
    macro_rules! multiply {
        ($name:ident, $tdp:literal, $c:literal, $a:literal, $b:literal) => {
            fn $name(a: &Matrix, b: &Matrix, c: &mut Matrix) {
                let shape = |tile, matrix: &Matrix| (tile, matrix.rows, 4 * matrix.columns);
                let config = config(&[shape($c, c), shape($a, a), shape($b, b)]);
                // SAFETY: the tiles lie within the matrices; RBP is kept.
                unsafe {
                    asm!(
                        "push rbp",
                        "mov rbp, rcx",
                        "ldtilecfg [rax]",
                        concat!("tileloadd tmm", $c, ", [rbp + rdi*1]"),
                        concat!("tileloadd tmm", $a, ", [r13 + r14*1]"),
                        concat!("tileloaddt1 tmm", $b, ", [r12 + r15*4 + 0x1000]"),
                        concat!($tdp, " tmm", $c, ", tmm", $a, ", tmm", $b),
                        concat!("tilestored [rcx + rdi*1], tmm", $c),
                        "tilerelease",
                        "pop rbp",
                        in("rax") &config,
                        in("rcx") c.bytes.as_mut_ptr(),
                        in("rdi") c.stride,
                        in("r13") a.bytes.as_ptr(),
                        in("r14") a.stride,
                        in("r12") b.bytes.as_ptr().wrapping_sub(0x1000),
                        in("r15") b.stride / 4,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    );
                }
            }
        };
    }

    multiply!(tdpbf16ps, "tdpbf16ps", 0, 1, 2);
    multiply!(tdpbf16ps_high, "tdpbf16ps", 7, 6, 5);
    multiply!(tdpbssd, "tdpbssd", 3, 4, 0);
    multiply!(tdpbsud, "tdpbsud", 5, 0, 7);
    multiply!(tdpbusd, "tdpbusd", 6, 2, 1);
    multiply!(tdpbuud, "tdpbuud", 1, 7, 3);

    /// Rows and columns of C, columns of A in dwords, and what the strides are beyond the rows.
    const SIZES: [[usize; 4]; 8] = [
        [16, 16, 16, 0],
        [1, 1, 1, 0],
        [16, 16, 1, 64],
        [1, 16, 16, 4],
        [16, 1, 16, 12],
        [5, 3, 7, 0],
        [9, 16, 16, 1000],
        [15, 13, 11, 20],
    ];

    /// The same by plain loops, for elements in a normal range.
    fn reference_bf16(a: &Matrix, b: &Matrix, c: &mut Matrix) {
        let f32s = |pair: [u8; 4]| {
            [f32::from_le_bytes([0, 0, pair[0], pair[1]]), f32::from_le_bytes([0, 0, pair[2], pair[3]])]
        };
        for row in 0..c.rows {
            for column in 0..c.columns {
                let (mut even, mut odd) = (0.0, 0.0);
                for k in 0..a.columns {
                    let (a, b) = (f32s(a.get(row, k)), f32s(b.get(k, column)));
                    even = a[0].mul_add(b[0], even);
                    odd = a[1].mul_add(b[1], odd);
                }
                let c = c.at(row, column);
                *c = (f32::from_le_bytes(*c) + (even + odd)).to_le_bytes();
            }
        }
    }

    /// Values of magnitude 2^-8 to 2^8 with all mantissa bits in use.
    fn random_f32(random: &mut Random) -> u32 {
        let bits = random.next();
        bits & 0x807f_ffff | (119 + bits.wrapping_mul(0x9e37_79b9) % 17) << 23
    }

    fn check_bf16(seed: u64, times: usize) {
        assert!(install());
        let mut random = Random::new(seed);
        for [m, n, k, gap] in SIZES.repeat(times) {
            let mut pair = || (random_f32(&mut random) >> 16 | random_f32(&mut random) & 0xffff_0000).to_le_bytes();
            let a = Matrix::new(m, k, 4 * k + gap, &mut pair);
            let b = Matrix::new(k, n, 4 * n + gap, &mut pair);
            let c = Matrix::new(m, n, 4 * n + 2 * gap, || random_f32(&mut random).to_le_bytes());
            let mut expected = c.clone();
            reference_bf16(&a, &b, &mut expected);
            for multiply in [tdpbf16ps as Multiply, tdpbf16ps_high] {
                let mut c = c.clone();
                multiply(&a, &b, &mut c);
                assert_eq!(c, expected, "{m} x {n} x {k}, gap {gap}");
            }
        }
    }

    fn check_int(seed: u64, times: usize) {
        assert!(install());
        let int = |byte: u8, signed: bool| if signed { i64::from(byte as i8) } else { i64::from(byte) };
        let mut random = Random::new(seed);
        for [m, n, k, gap] in SIZES.repeat(times) {
            let mut dword = || (random.next()).to_le_bytes();
            let a = Matrix::new(m, k, 4 * k + gap, &mut dword);
            let b = Matrix::new(k, n, 4 * n + gap, &mut dword);
            let c = Matrix::new(m, n, 4 * n + gap, &mut dword);
            let all: [(Multiply, bool, bool); 4] =
                [(tdpbssd, true, true), (tdpbsud, true, false), (tdpbusd, false, true), (tdpbuud, false, false)];
            for (multiply, signed_a, signed_b) in all {
                let mut expected = c.clone();
                for row in 0..m {
                    for column in 0..n {
                        let mut sum = i64::from(i32::from_le_bytes(c.get(row, column)));
                        for at in 0..4 * k {
                            let (a, b) = (a.get(row, at / 4)[at % 4], b.get(at / 4, column)[at % 4]);
                            sum += int(a, signed_a) * int(b, signed_b);
                        }
                        *expected.at(row, column) = (sum as i32).to_le_bytes();
                    }
                }
                let mut c = c.clone();
                multiply(&a, &b, &mut c);
                assert_eq!(c, expected, "{m} x {n} x {k}, signed {signed_a} {signed_b}");
            }
        }
    }

    #[test]
    fn multiplies_bf16() {
        check_bf16(1, 4);
    }

    #[test]
    fn multiplies_int8() {
        check_int(2, 4);
    }

    #[test]
    fn threads_have_their_own_tiles() {
        thread::scope(|scope| {
            for seed in 10..14 {
                scope.spawn(move || check_bf16(seed, 4));
                scope.spawn(move || check_int(seed, 4));
            }
        });
    }

    #[test]
    fn sums_in_the_documented_order() {
        assert!(install());
        // One row of A times a column of B whose elements are all the same; in the pairs the even one is the lower.
        let run = |a: &[u32], b: u16, c: u32| {
            let mut values = a.iter();
            let a = Matrix::new(1, a.len(), 64, || values.next().unwrap().to_le_bytes());
            let b = Matrix::new(a.columns, 1, 64, || (u32::from(b) * 0x1_0001).to_le_bytes());
            let mut c = Matrix::new(1, 1, 64, || c.to_le_bytes());
            tdpbf16ps(&a, &b, &mut c);
            u32::from_le_bytes(c.get(0, 0))
        };
        // bf16 values; those of f32 have 16 zero bits more.
        const ONE: u16 = 0x3f80;
        const BIG: u32 = 0x4b80; // 2^24
        const MINUS_BIG: u32 = 0xcb80;
        // The products are summed before C is added, the even ones apart from the odd ones.
        assert_eq!(run(&[0x3f80 << 16 | BIG], ONE, MINUS_BIG << 16), 0);
        assert_eq!(run(&[BIG, 0x3f80], ONE, MINUS_BIG << 16), 0);
        assert_eq!(run(&[0x3f80 << 16 | BIG, 0x3f80 << 16 | MINUS_BIG], ONE, 0), 0x4000_0000);
        // Denormals count as zero: in A and B (times 2^100), in C (added to 2^-126), and as a result.
        assert_eq!(run(&[0x007f_0001], 0x7180, 0), 0);
        assert_eq!(run(&[0x7180_7180], 0x0040, 0), 0);
        assert_eq!(run(&[0x2000], 0x2000, 0x007f_ffff), 0x0080_0000);
        assert_eq!(run(&[0x2000], 0x1f80, 0), 0);
        // But not the products within a sum: 2^-123 + 2^-135.
        assert_eq!(run(&[0x2000, 0x1a00], 0x2180, 0), 0x0200_0800);
        assert_eq!(run(&[0x7f80], ONE, 0), 0x7f80_0000);
        assert!(f32::from_bits(run(&[0x7f80, 0xff80], ONE, 0)).is_nan());
    }

    #[test]
    fn configuration_bounds_loads_and_stores() {
        assert!(install());
        let (small, large) = (config(&[(0, 3, 8), (4, 16, 64)]), config(&[(0, 16, 64)]));
        let source: Vec<u8> = (0..1024).map(|i| (i % 251) as u8 + 1).collect();
        let (mut stored, mut after, mut released) = ([0xeeu8; 1024], [0xeeu8; 1024], [0xeeu8; 1024]);
        let (mut config_stored, mut config_released) = ([0xeeu8; 64], [0xeeu8; 64]);
        // SAFETY: all memory named is of the sizes used.
        unsafe {
            asm!(
                "ldtilecfg [{small}]",
                "sttilecfg [{config_stored}]",
                "tileloadd tmm0, [{source} + {stride}*1]",
                "tilestored [{stored} + {stride}*1], tmm0",
                "ldtilecfg [{large}]",
                "tilestored [{after} + {stride}*1], tmm0",
                "tileloadd tmm0, [{source}]", // no index: each row is the first
                "tilestored [{released} + {stride}*1], tmm0",
                "tilezero tmm0",
                "tilestored [{released} + 64], tmm0", // likewise
                "tilerelease",
                "sttilecfg [{config_released}]",
                small = in(reg) &small,
                large = in(reg) &large,
                source = in(reg) source.as_ptr(),
                stored = in(reg) &mut stored,
                after = in(reg) &mut after,
                released = in(reg) &mut released,
                config_stored = in(reg) &mut config_stored,
                config_released = in(reg) &mut config_released,
                stride = in(reg) 64usize,
                out("tmm0") _,
            );
        }
        for (at, &byte) in stored.iter().enumerate() {
            let inside = at / 64 < 3 && at % 64 < 8;
            assert_eq!(byte, if inside { source[at] } else { 0xee }, "at {at}");
        }
        assert_eq!(after, [0; 1024], "ldtilecfg zeroes the tiles");
        for (row, bytes) in released.chunks(64).enumerate() {
            assert_eq!(bytes, if row == 1 { &[0; 64] } else { &source[..64] }, "row {row}");
        }
        assert_eq!((config_stored, config_released), (small, [0; 64]));
    }

    /// Each register of the signal frame as base and as index.
    #[test]
    fn finds_every_register() {
        assert!(install());
        let config = config(&[(0, 4, 64), (1, 4, 64)]);
        let source: Vec<u8> = (0..=255).collect();
        macro_rules! check {
            ($($register:literal),*) => {$(
                let mut stored = [[0u8; 256]; 2];
                // SAFETY: all memory named is of the sizes used; the register is kept.
                unsafe {
                    asm!(
                        "ldtilecfg [rdx]",
                        concat!("push ", $register),
                        concat!("mov ", $register, ", rsi"),
                        concat!("tileloadd tmm0, [", $register, " + rdi*1]"),
                        concat!("mov ", $register, ", rdi"),
                        concat!("tileloadd tmm1, [rsi + ", $register, "*1]"),
                        concat!("pop ", $register),
                        "tilestored [rcx + rdi*1], tmm0",
                        "tilestored [rcx + rdi*1 + 256], tmm1",
                        "tilerelease",
                        in("rsi") source.as_ptr(), in("rdi") 64usize, in("rcx") &mut stored, in("rdx") &config,
                        out("tmm0") _, out("tmm1") _,
                    );
                }
                assert!(stored.iter().all(|stored| *stored == source[..]), $register);
            )*};
        }
        check!("rax", "rcx", "rdx", "rbx", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");
    }

    fn load(config: &[u8; 64]) {
        // SAFETY: reads the configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config) };
    }

    /// Runs AMX instructions that may use a row at RAX.
    macro_rules! amx {
        ($($line:literal),*) => {{
            let mut memory = [0u8; 64];
            // SAFETY: the memory suffices for a row, and there is no stride.
            unsafe { asm!($($line,)* in("rax") &mut memory, out("tmm0") _, out("tmm1") _, out("tmm2") _) };
        }};
    }

    /// What kills the process, and with which message, if any.
    const MISTAKES: [(&str, fn()); 18] = [
        ("over 16 rows", || load(&config(&[(0, 17, 64)]))),
        ("over 64 bytes", || load(&config(&[(0, 16, 0x104)]))),
        ("just one of both zero", || load(&config(&[(7, 16, 0)]))),
        ("just one of both zero", || load(&config(&[(7, 0, 64)]))),
        ("palette", || load(&[2; 64])),
        ("start_row", || load(&[1; 64])),
        ("reserved", || load(&config(&[(12, 0, 4)]))),
        ("not configured", || amx!("tilezero tmm0")),
        ("not configured", || {
            load(&config(&[(0, 1, 4)]));
            amx!("tileloadd tmm0, [rax]", "tileloadd tmm1, [rax]");
        }),
        ("not configured", || {
            load(&config(&[(0, 1, 4)]));
            amx!("tilerelease", "tilestored [rax], tmm0");
        }),
        ("multiple of 4", || {
            load(&config(&[(0, 1, 6)]));
            amx!("tileloadd tmm0, [rax]");
        }),
        ("do not fit", || {
            load(&config(&[(0, 4, 64), (1, 5, 64), (2, 16, 64)]));
            amx!("tdpbf16ps tmm0, tmm1, tmm2");
        }),
        ("do not fit", || {
            load(&config(&[(0, 4, 64), (1, 4, 64), (2, 15, 64)]));
            amx!("tdpbssd tmm0, tmm1, tmm2");
        }),
        ("do not fit", || {
            load(&config(&[(0, 4, 64), (1, 4, 64), (2, 16, 60)]));
            amx!("tdpbusd tmm0, tmm1, tmm2");
        }),
        ("not distinct", || {
            load(&config(&[(0, 16, 64), (1, 16, 64)]));
            amx!(".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc0"); // TDPBSSD on tiles 0, 0, 1, which assemblers refuse
        }),
        ("", || amx!("ud2")),
        ("", || amx!(".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x00")), // TILELOADD without SIB
        ("", || _ = raise(SIGILL)),
    ];

    /// The mistake that the environment names; run by `mistakes_kill` in processes of their own.
    #[test]
    #[ignore = "kills its process; run by mistakes_kill"]
    fn make_mistake() {
        if let Ok(number) = std::env::var("AMX_EMULATOR_MISTAKE") {
            assert!(install() && install());
            MISTAKES[number.parse::<usize>().unwrap()].1();
        }
    }

    #[test]
    fn mistakes_kill() {
        let module = module_path!().split_once("::").unwrap().1;
        for (number, (message, _)) in MISTAKES.iter().enumerate() {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", &format!("{module}::make_mistake")])
                .env("AMX_EMULATOR_MISTAKE", number.to_string())
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(SIGILL), "mistake {number}: {printed}");
            assert_eq!(printed.contains("AMX emulator: "), !message.is_empty(), "mistake {number}: {printed}");
            assert!(printed.contains(message), "mistake {number}: {printed}");
        }
    }
}
