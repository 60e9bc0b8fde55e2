//! What the machine can do at most: bytes read from memory a second, and arithmetic from registers alone.
//!
//! `cargo bench -p amnesic-benches --bench ceilings -- --threads N --json`. Each figure is the best of some passes with all threads: a
//! ceiling, not an average.

#[path = "support/bandwidth.rs"]
mod bandwidth;

use std::error::Error;
use std::hint::black_box;

use bandwidth::{Buffer, best_secs};
use serde_json::json;

/// Passes of which the fastest counts.
const PASSES: usize = 7;
/// Rounds of one arithmetic pass: some tens of milliseconds.
const ROUNDS: u64 = 1 << 22;

fn main() -> Result<(), Box<dyn Error>> {
    use lexopt::prelude::*;
    let mut threads = std::thread::available_parallelism()?.get();
    let mut json = false;
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("threads") => threads = parser.value()?.parse::<usize>()?.max(1),
            Long("json") => json = true,
            Long("bench") => {} // from cargo
            _ => return Err(arg.unexpected().into()),
        }
    }
    let report =
        |line: serde_json::Value, text: String| if json { println!("{line}") } else { println!("{text}") };

    let bandwidth = Buffer::new()?.read_rate(threads, PASSES);
    report(
        json!({ "test": "ceiling", "bytes_per_second": bandwidth }),
        format!("{:10} {:8.1} GB/s read", "memory", bandwidth / 1e9),
    );
    for peak in peaks() {
        let secs = best_secs(threads, PASSES, |_| (peak.run)(ROUNDS));
        let rate = (threads as u64 * peak.operations * ROUNDS) as f64 / secs;
        report(
            json!({ "test": "ceiling", "flops_per_second": rate, "instruction": peak.instruction }),
            format!("{:10} {:8.1} G operations/s", peak.instruction, rate / 1e9),
        );
    }
    Ok(())
}

/// A loop of one instruction.
struct Peak {
    instruction: &'static str,
    /// Multiplications and additions of one round.
    operations: u64,
    run: fn(u64),
}

/// A function that runs `$step` on `$count` independent accumulators, enough to hide its latency, so many times.
macro_rules! peak {
    ($name:ident, $features:literal, $count:literal, $zero:expr, $operand:expr, $step:expr) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: u64) {
            let (a, b) = black_box(($operand, $operand));
            let mut sums = [$zero; $count];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = $step(*sum, a, b);
                }
            }
            black_box(sums);
        }
    };
}

/// The loops that this machine can run.
#[cfg(target_arch = "x86_64")]
fn peaks() -> Vec<Peak> {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    peak!(fma_avx2, "avx2,fma", 12, _mm256_setzero_ps(), _mm256_set1_ps(1e-3), _mm256_fmadd);
    peak!(fma_avx512, "avx512f", 16, _mm512_setzero_ps(), _mm512_set1_ps(1e-3), _mm512_fmadd);
    peak!(bf16, "avx512bf16", 16, _mm512_setzero_ps(), bf16_ones(), _mm512_dpbf16_ps);
    peak!(int8, "avx512vnni", 16, _mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_dpbusd_epi32);
    #[target_feature(enable = "avx2,fma")]
    fn _mm256_fmadd(sum: __m256, a: __m256, b: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, sum)
    }
    #[target_feature(enable = "avx512f")]
    fn _mm512_fmadd(sum: __m512, a: __m512, b: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, sum)
    }
    #[target_feature(enable = "avx512bf16")]
    fn bf16_ones() -> __m512bh {
        // SAFETY: both are 512 bits, and any bits are valid; these are thirty-two ones.
        unsafe { transmute(_mm512_set1_epi16(0x3f80)) }
    }

    let mut peaks = Vec::new();
    let mut add = |there: bool, instruction, operations, run| {
        if there {
            peaks.push(Peak { instruction, operations, run });
        }
    };
    let avx512 = is_x86_feature_detected!("avx512f");
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    // SAFETY of the calls: each loop is only taken where its features were detected.
    add(avx512, "fma", 16 * 16 * 2, |rounds| unsafe { fma_avx512(rounds) });
    add(avx2 && !avx512, "fma", 12 * 8 * 2, |rounds| unsafe { fma_avx2(rounds) });
    add(is_x86_feature_detected!("avx512bf16"), "vdpbf16ps", 16 * 32 * 2, |rounds| unsafe { bf16(rounds) });
    add(is_x86_feature_detected!("avx512vnni"), "vpdpbusd", 16 * 64 * 2, |rounds| unsafe { int8(rounds) });
    // a tile instruction does 16 x 16 sums of 32 (bf16) or 64 (int8) products, and takes sixteen times as long
    let amx = amx::usable();
    add(amx, "tdpbf16ps", 6 * 16 * 16 * 32 * 2 / 16, |rounds| unsafe { amx::bf16(rounds / 16) });
    add(amx, "tdpbusd", 6 * 16 * 16 * 64 * 2 / 16, |rounds| unsafe { amx::int8(rounds / 16) });
    peaks
}

/// Tile products, which stable Rust has as assembly only. See `src/backend/cpu/x86_64/amx.rs`.
#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// The processor has tiles of bf16 and of bytes, and the system gives them to this process.
    pub fn usable() -> bool {
        const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        let leaf7 = __cpuid(0).eax >= 7;
        leaf7 && __cpuid_count(7, 0).edx & BF16_TILE_INT8 == BF16_TILE_INT8 && request()
    }

    #[cfg(target_os = "linux")]
    fn request() -> bool {
        // SAFETY: two numbers go in (ARCH_REQ_XCOMP_PERM, the tile data), a status comes out.
        unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023 as libc::c_long, 18 as libc::c_long) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn request() -> bool {
        false
    }

    /// The operand of `ldtilecfg`: eight full tiles.
    #[repr(C, align(64))]
    struct Config([u8; 64]);

    static CONFIG: Config = {
        let mut bytes = [0; 64];
        bytes[0] = 1; // the palette
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64; // bytes of a row
            bytes[48 + tile] = 16; // rows
            tile += 1;
        }
        Config(bytes)
    };

    macro_rules! tiles {
        ($name:ident, $step:literal) => {
            /// Six independent sums of tiles of zeros.
            ///
            /// # Safety
            /// [`usable`] said yes.
            pub unsafe fn $name(rounds: u64) {
                // SAFETY: the caller's contract; the operand is 64 bytes, and no other memory is touched.
                unsafe {
                    asm!(
                        "ldtilecfg [{config}]",
                        "2:",
                        concat!($step, " tmm0, tmm6, tmm7"),
                        concat!($step, " tmm1, tmm6, tmm7"),
                        concat!($step, " tmm2, tmm6, tmm7"),
                        concat!($step, " tmm3, tmm6, tmm7"),
                        concat!($step, " tmm4, tmm6, tmm7"),
                        concat!($step, " tmm5, tmm6, tmm7"),
                        "dec {rounds}",
                        "jnz 2b",
                        "tilerelease",
                        config = in(reg) &raw const CONFIG,
                        rounds = inout(reg) rounds.max(1) => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        };
    }
    tiles!(bf16, "tdpbf16ps");
    tiles!(int8, "tdpbusd");
}

/// The loops that this machine can run.
#[cfg(target_arch = "aarch64")]
fn peaks() -> Vec<Peak> {
    use std::arch::aarch64::*;

    peak!(fma, "neon", 24, vdupq_n_f32(0.0), vdupq_n_f32(1e-3), vfmaq_f32);
    // SAFETY: every AArch64 processor that Rust's standard targets name has NEON.
    vec![Peak { instruction: "fma", operations: 24 * 4 * 2, run: |rounds| unsafe { fma(rounds) } }]
}

/// The loops that this machine can run.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn peaks() -> Vec<Peak> {
    Vec::new()
}
