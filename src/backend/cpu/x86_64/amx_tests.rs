//! The AMX products against plain loops: natively where there is AMX, emulated elsewhere; and the emulator itself.
#![expect(unsafe_code, reason = "calls kernels on raw pointers, and bare AMX instructions")]

use std::arch::asm;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;

use half::{bf16, f16};

use super::amx::{self, BLOCK_ROWS, BLOCKS, COLUMNS, OUT_COLUMNS, RECORD_BYTES, TOKENS};
use super::amx_emulated::{self, emulated};

/// Whether the products can run here, emulated if need be.
fn ready() -> bool {
    if !amx::has_avx512() {
        println!("skipped: no AVX-512");
        return false;
    }
    if !amx::detect() {
        amx_emulated::install();
    }
    true
}

fn reports_amx() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("amx_tile")
}

/// A seeded source of values (xorshift).
struct Draws(u64);

impl Draws {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u32
    }

    /// From -2 to 2.
    fn value(&mut self) -> f32 {
        self.bits() as f32 / (1 << 30) as f32 - 2.0
    }

    /// Any byte, often an extreme one.
    fn byte(&mut self) -> u8 {
        match self.bits() % 8 {
            0 => 0,
            1 => 255,
            2 => 127,
            3 => 128,
            _ => self.bits() as u8,
        }
    }
}

/// Before and behind what a product may write.
const GUARD: f32 = -12345.0;

/// An output with guards around it, off alignment by `shift` values.
struct Out {
    values: Vec<f32>,
    start: usize,
}

impl Out {
    fn new(shift: usize) -> Self {
        Self { values: vec![GUARD; TOKENS * OUT_COLUMNS + 64], start: 16 + shift }
    }

    fn pointer(&mut self) -> *mut f32 {
        self.values[self.start..].as_mut_ptr()
    }

    /// The rows written; all else is untouched.
    fn rows(&self, tokens: usize) -> &[f32] {
        let end = self.start + tokens * OUT_COLUMNS;
        assert!(self.values[..self.start].iter().chain(&self.values[end..]).all(|&value| value == GUARD));
        &self.values[self.start..end]
    }
}

/// `weights[n][k]` in packed blocks.
fn pack_bf16(weights: &[Vec<bf16>], tiles: usize) -> Vec<Vec<u8>> {
    let mut blocks = vec![vec![0; tiles * 1024]; BLOCKS];
    for (n, row) in weights.iter().enumerate() {
        for (k, value) in row.iter().enumerate() {
            let (tile, line, half) = (k / COLUMNS, k % COLUMNS / 2, k % 2);
            let at = tile * 1024 + line * 64 + n % BLOCK_ROWS * 4 + half * 2;
            blocks[n / BLOCK_ROWS][at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    blocks
}

fn check_bf16(source: &mut Draws, tokens: usize, tiles: usize) {
    let cols = tiles * COLUMNS;
    let mut row = |_| (0..cols).map(|_| bf16::from_f32(source.value())).collect::<Vec<_>>();
    let weights: Vec<Vec<bf16>> = (0..OUT_COLUMNS).map(&mut row).collect();
    let x: Vec<Vec<bf16>> = (0..tokens).map(&mut row).collect();
    let packed = pack_bf16(&weights, tiles);
    // Rows behind the tokens are not numbers, nor is what is between the rows.
    let stride = 2 * cols + 6;
    let mut bytes = vec![0xff; TOKENS * stride];
    for (t, row) in x.iter().enumerate() {
        for (k, value) in row.iter().enumerate() {
            bytes[t * stride + 2 * k..][..2].copy_from_slice(&value.to_le_bytes());
        }
    }
    let mut out = Out::new(tiles % 2);
    // SAFETY: `ready`, and the sizes above.
    unsafe {
        let blocks = std::array::from_fn(|b| packed[b].as_ptr());
        amx::bf16_product(blocks, tiles, bytes.as_ptr(), stride, out.pointer());
    }
    for (t, out) in out.rows(TOKENS).chunks(OUT_COLUMNS).enumerate().take(tokens) {
        for (n, &out) in out.iter().enumerate() {
            let products = x[t].iter().zip(&weights[n]).map(|(x, w)| x.to_f64() * w.to_f64());
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + f64::abs(p)));
            let error = (f64::from(out) - sum).abs();
            assert!(error <= 1e-5 * size, "{tiles} tiles, ({t}, {n}): {out}, expected {sum}");
        }
    }
}

/// `weights[n][k]` with the bias already added, in packed blocks.
fn pack_int8<const BITS4: bool>(weights: &[Vec<u8>], groups: usize) -> Vec<Vec<u8>> {
    let group_bytes = if BITS4 { 256 } else { 512 };
    let mut blocks = vec![vec![0; groups * group_bytes]; BLOCKS];
    for (n, row) in weights.iter().enumerate() {
        for (k, &value) in row.iter().enumerate() {
            let (group, line, byte) = (k / COLUMNS, k % COLUMNS / 4, n % BLOCK_ROWS * 4 + k % 4);
            let block = &mut blocks[n / BLOCK_ROWS][group * group_bytes..];
            if BITS4 {
                block[line / 2 * 64 + byte] |= value << (line % 2 * 4);
            } else {
                block[line * 64 + byte] = value;
            }
        }
    }
    blocks
}

fn check_int8<const BITS4: bool>(source: &mut Draws, tokens: usize, groups: usize) {
    let bias = if BITS4 { 8 } else { 128 };
    let cols = groups * COLUMNS;
    let weights: Vec<Vec<u8>> = (0..OUT_COLUMNS)
        .map(|_| (0..cols).map(|_| source.byte() & if BITS4 { 15 } else { 255 }).collect())
        .collect();
    let scales: Vec<Vec<u16>> = (0..BLOCKS)
        .map(|_| (0..groups * BLOCK_ROWS).map(|_| f16::from_f32(source.value() / 8.0).to_bits()).collect())
        .collect();
    let packed = pack_int8::<BITS4>(&weights, groups);
    let stride = groups * RECORD_BYTES + 4;
    let mut x = vec![0xff; TOKENS * stride];
    for record in x.chunks_mut(stride).take(tokens).flat_map(|row| row.chunks_exact_mut(RECORD_BYTES)) {
        record[8..].fill_with(|| source.byte());
        let sum: i32 = record[8..].iter().map(|&byte| i32::from(byte as i8)).sum();
        record[..4].copy_from_slice(&(source.value() / 100.0).to_le_bytes());
        record[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    let mut out = Out::new(groups % 2);
    // SAFETY: `ready`, and the sizes above.
    unsafe {
        let blocks = std::array::from_fn(|b| packed[b].as_ptr());
        let scales = std::array::from_fn(|b| scales[b].as_ptr());
        amx::int8_product::<BITS4>(blocks, scales, groups, x.as_ptr(), stride, tokens, out.pointer());
    }
    for (t, out) in out.rows(tokens).chunks(OUT_COLUMNS).enumerate() {
        for (n, &out) in out.iter().enumerate() {
            let mut expected = 0.0_f32;
            for group in 0..groups {
                let record = &x[t * stride + group * RECORD_BYTES..][..RECORD_BYTES];
                let x_scale = f32::from_le_bytes(record[..4].try_into().unwrap());
                let sum = i32::from_le_bytes(record[4..8].try_into().unwrap());
                let row = &weights[n][group * COLUMNS..];
                let dot: i32 =
                    record[8..].iter().zip(row).map(|(&x, &w)| i32::from(x as i8) * i32::from(w)).sum();
                let scale = scales[n / BLOCK_ROWS][group * BLOCK_ROWS + n % BLOCK_ROWS];
                let scale = f16::from_bits(scale).to_f32() * x_scale;
                expected = ((dot - bias * sum) as f32).mul_add(scale, expected);
            }
            assert_eq!(
                out.to_bits(),
                expected.to_bits(),
                "{groups} groups, ({t}, {n}): {out}, not {expected}"
            );
        }
    }
}

/// Everything, on this thread.
fn check_all(seed: u64) {
    let mut source = Draws(seed);
    // SAFETY: `ready`.
    unsafe { amx::configure() };
    for tokens in [1, 3, 4, 5, 8, 9, 16] {
        for groups in 0..=5 {
            check_bf16(&mut source, tokens, groups);
            check_int8::<false>(&mut source, tokens, groups);
            check_int8::<true>(&mut source, tokens, groups);
        }
    }
    // SAFETY: `ready`.
    unsafe { amx::release() };
}

#[test]
fn products_equal_plain_loops() {
    if ready() {
        check_all(1);
        let (done, released) = emulated();
        assert!((done > 0) != amx::detect(), "run natively or emulated");
        assert!(released, "tiles keep nothing");
    }
}

#[test]
fn threads_have_their_own_tiles() {
    if ready() {
        thread::scope(|scope| {
            let threads = [2, 3, 4].map(|seed| scope.spawn(move || check_all(seed)));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}

#[test]
fn detection_needs_the_hardware() {
    let found = amx::detect();
    assert!(!found || reports_amx());
    // Emulation changes nothing about what is detected.
    amx_emulated::install();
    amx_emulated::install();
    assert_eq!(amx::detect(), found);
}

#[test]
fn the_self_test_passes() {
    if ready() {
        // SAFETY: `ready`.
        assert!(unsafe { amx::self_test() });
    }
}

/// One tile of each kind, on one element: sums, overflow, denormals, signs of bytes.
#[test]
fn arithmetic_is_the_manual_s() {
    if !ready() {
        return;
    }
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    config.0[0] = 1;
    for tile in 0..3 {
        (config.0[16 + 2 * tile], config.0[48 + tile]) = (4, 1);
    }
    macro_rules! dot {
        ($instruction:literal, $sum:expr, $a:expr, $b:expr) => {{
            let (mut sum, a, b): (u32, u32, u32) = ($sum, $a, $b);
            // SAFETY: `ready`; tiles of 4 bytes are loaded from and stored to 4 bytes.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]",
                    "tileloadd tmm0, [{sum} + {zero}*1]",
                    "tileloadd tmm1, [{a} + {zero}*1]",
                    "tileloadd tmm2, [{b} + {zero}*1]",
                    concat!($instruction, " tmm0, tmm1, tmm2"),
                    "tilestored [{sum} + {zero}*1], tmm0",
                    "tilerelease",
                    config = in(reg) &config, sum = in(reg) &mut sum, a = in(reg) &a, b = in(reg) &b,
                    zero = in(reg) 0_usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _,
                    options(nostack, preserves_flags),
                );
            }
            sum
        }};
    }
    // Bytes 1, 2, -1 (255), -128 (128) times 3, 255, 128, 2.
    let (a, b) = (0x80ff_0201, 0x0280_ff03);
    assert_eq!(dot!("tdpbssd", 10, a, b) as i32, 10 + 3 - 2 + 128 - 256);
    assert_eq!(dot!("tdpbsud", 10, a, b) as i32, 10 + 3 + 510 - 128 - 256);
    assert_eq!(dot!("tdpbusd", 10, a, b) as i32, 10 + 3 - 2 - 255 * 128 + 256);
    assert_eq!(dot!("tdpbuud", 10, a, b) as i32, 10 + 3 + 510 + 255 * 128 + 256);
    assert_eq!(dot!("tdpbuud", i32::MAX as u32, 1, 1) as i32, i32::MIN);
    let pair = |even: f32, odd: f32| even.to_bits() >> 16 | odd.to_bits() & 0xffff_0000;
    let of = |sum: f32, a, b| f32::from_bits(dot!("tdpbf16ps", sum.to_bits(), a, b));
    assert_eq!(of(1.0, pair(2.0, 3.0), pair(0.5, -4.0)), -10.0);
    // A denormal is zero as destination, as factor and as result.
    assert_eq!(of(1e-39, pair(1.0, 0.0), pair(0.0, 1.0)).to_bits(), 0);
    assert_eq!(of(0.0, pair(1e-39, 0.0), pair(1e30, 0.0)).to_bits(), 0);
    assert_eq!(of(0.0, pair(1e-30, 0.0), pair(1e-9, 0.0)).to_bits(), 0);
    assert_eq!(of(0.0, pair(f32::INFINITY, 0.0), pair(1.0, 1.0)), f32::INFINITY);
    assert!(of(0.0, pair(f32::INFINITY, 0.0), pair(0.0, 1.0)).is_nan());
}

/// Copies 16 bytes through tiles, with every form of address.
#[test]
fn addresses_are_decoded() {
    if !ready() {
        return;
    }
    let from: Vec<u8> = (0..=255).cycle().take(4096).collect();
    macro_rules! copies {
        ($load:literal, $base:tt, $index:tt, $scale:literal, $displacement:literal) => {{
            let mut to = [0_u8; 1024];
            let at: i64 = $displacement;
            // SAFETY: `ready`; tile 7 has 8 lines of 64 bytes, with room for them at both ends.
            unsafe {
                amx::configure();
                asm!(
                    concat!($load, " tmm7, [", $base, " + ", $index, "*", $scale, " + ", $displacement, "]"),
                    in($base) from.as_ptr().offset(2048 - at as isize),
                    in($index) 96_usize,
                    out("tmm7") _,
                    options(nostack, preserves_flags),
                );
                asm!(
                    concat!("tilestored [", $base, " + ", $index, "*", $scale, " + ", $displacement, "], tmm7"),
                    in($base) to.as_mut_ptr().wrapping_offset(-at as isize),
                    in($index) 64 / $scale,
                    out("tmm7") _,
                    options(nostack, preserves_flags),
                );
                amx::release();
            }
            for (row, line) in to.chunks(64).take(8).enumerate() {
                assert_eq!(line, &from[2048 + row * 96 * $scale..][..64], "{} {}", $base, $displacement);
            }
            assert!(to[512..].iter().all(|&byte| byte == 0));
        }};
    }
    copies!("tileloadd", "rax", "rcx", 1, 0);
    copies!("tileloaddt1", "rdx", "rsi", 1, 0);
    copies!("tileloadd", "r8", "r15", 1, 64);
    copies!("tileloadd", "r13", "r12", 1, 0);
    copies!("tileloadd", "r12", "r13", 2, -128);
    copies!("tileloadd", "rdi", "r9", 1, 128);
    copies!("tileloadd", "r10", "r11", 2, 1000);
    copies!("tileloadd", "r14", "rdi", 1, -1000);
}

const CHILD: &str = "AMX_TEST_CHILD";

/// What the emulator does not know must still end the process: so must AMX where it is not configured.
#[test]
fn other_illegal_instructions_end_the_process() {
    if let Ok(which) = std::env::var(CHILD) {
        amx_emulated::install();
        // SAFETY: none of these has an effect but the signal.
        unsafe {
            match which.as_str() {
                "ud2" => asm!("ud2"),
                "unconfigured" => asm!("tilezero tmm0", out("tmm0") _),
                _ => {
                    amx::configure();
                    asm!("tdpbuud tmm0, tmm4, tmm7", out("tmm0") _);
                }
            }
        }
        return;
    }
    for which in ["ud2", "unconfigured", "misfit"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = "backend::cpu::x86_64::amx_tests::other_illegal_instructions_end_the_process";
        let name = thread::current().name().filter(|name| name.contains("::")).unwrap_or(name).to_owned();
        let output = child.args(["--exact", &name]).env(CHILD, which).output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGILL), "{which}");
    }
}
