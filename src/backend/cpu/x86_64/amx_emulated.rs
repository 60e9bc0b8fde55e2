//! AMX in software, for tests: a handler of SIGILL that decodes the instruction, does it and steps over it.
//!
//! So the machine code that AMX hardware would run is tested on machines without it, if slowly.
//! Encodings, checks and arithmetic follow Intel's manual (SDM volume 2). What is not known, or not allowed in the
//! present configuration, takes the default action of SIGILL. Not modelled: a faulting load or store inside a tile
//! (`start_row` other than 0), tininess before rounding, hardware's choice of a NaN.
//!
//! The handler neither allocates nor locks: tiles are thread-locals without initialiser and destructor. It leaves
//! copies of tiles in dead stack below the thread's frames, as the kernel's signal frame does with all registers.
#![expect(unsafe_code, reason = "a signal handler that reads and writes the interrupted thread's registers")]

use std::cell::UnsafeCell;
use std::sync::Once;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

const ROWS: usize = 16;
const ROW_BYTES: usize = 64;
const TILES: usize = 8;

/// Takes over SIGILL for the whole process. Again is as once.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: zeros are a value of this C struct; the handler has the signature that SA_SIGINFO asks for.
        let status = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut())
        };
        assert_eq!(status, 0, "SIGILL is handled");
    });
}

/// Emulated instructions of this thread so far, and whether its tiles are released and zero.
pub fn emulated() -> (u64, bool) {
    UNIT.with(|unit| {
        // SAFETY: the handler runs on this thread only at an AMX instruction, and there is none here.
        let unit = unsafe { &*unit.get() };
        (unit.done, !unit.configured && unit.tiles.iter().flatten().flatten().all(|&byte| byte == 0))
    })
}

thread_local! {
    static UNIT: UnsafeCell<Unit> = const { UnsafeCell::new(Unit::INITIAL) };
}

extern "C" fn handle(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the interrupted thread's context, ours alone until we return; this thread was at an
    // instruction, not in `emulated`, so nothing else refers to its unit.
    let done = unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let decoded = Instruction::decode(registers);
        let done = decoded.as_ref().and_then(|it| UNIT.with(|unit| (*unit.get()).execute(it)));
        registers[RIP] += decoded.filter(|_| done.is_some()).map_or(0, |it| it.length as i64);
        done
    };
    if done.is_none() {
        // SAFETY: a handler may call `signal`. The instruction faults again, to the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

type Registers = [libc::greg_t; 23];
const RIP: usize = libc::REG_RIP as usize;

/// A general register by its number in encodings.
fn general(registers: &Registers, number: usize) -> u64 {
    use libc::*;
    const NUMBERED: [c_int; 16] = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10,
        REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    registers[NUMBERED[number] as usize] as u64
}

/// The prefix that a VEX encoding implies.
#[derive(Clone, Copy)]
enum Prefix {
    None,
    P66,
    F3,
    F2,
}

/// The operand of ModRM's `rm`.
#[derive(Clone, Copy)]
enum Operand {
    Tile(usize),
    /// `index` is scaled; it is there with a SIB byte only.
    Memory {
        base: u64,
        index: Option<u64>,
    },
}

/// An instruction of VEX.128.0F38.W0.
struct Instruction {
    prefix: Prefix,
    opcode: u8,
    reg: usize,
    /// VEX.vvvv.
    third: usize,
    rm: Operand,
    length: usize,
}

impl Instruction {
    /// # Safety
    /// An instruction is where RIP points to.
    unsafe fn decode(registers: &Registers) -> Option<Self> {
        let start = registers[RIP] as *const u8;
        let mut length = 0;
        let mut next = || {
            // SAFETY: what has been read so far says that the instruction goes on.
            let byte = unsafe { start.add(length).read() };
            length += 1;
            byte
        };
        if next() != 0xc4 {
            return None;
        }
        let (map, rest) = (next(), next());
        let (w, l) = (rest >> 7, rest >> 2 & 1);
        if map & 0x1f != 2 || w != 0 || l != 0 {
            return None;
        }
        let [r, x, b] = [7, 6, 5].map(|bit| usize::from(!map >> bit & 1) * 8);
        let prefix = [Prefix::None, Prefix::P66, Prefix::F3, Prefix::F2][usize::from(rest & 3)];
        let opcode = next();
        let modrm = next();
        let (mode, low) = (modrm >> 6, usize::from(modrm & 7));
        let rm = if mode == 3 {
            Operand::Tile(b + low)
        } else {
            let sib = (low == 4).then(&mut next);
            let base = sib.map_or(low, |sib| usize::from(sib & 7));
            let no_base = mode == 0 && base == 5;
            let displacement = match mode {
                1 => i64::from(next() as i8),
                2 => i64::from(i32::from_le_bytes([next(), next(), next(), next()])),
                _ if no_base => i64::from(i32::from_le_bytes([next(), next(), next(), next()])),
                _ => 0,
            };
            let index = sib.map(|sib| match x + usize::from(sib >> 3 & 7) {
                4 => 0,
                number => general(registers, number) << (sib >> 6),
            });
            let base = match (no_base, sib) {
                (true, None) => registers[RIP] as u64 + length as u64,
                (true, Some(_)) => 0,
                (false, _) => general(registers, b + base),
            };
            Operand::Memory { base: base.wrapping_add_signed(displacement), index }
        };
        let (reg, third) = (r + usize::from(modrm >> 3 & 7), usize::from(!rest >> 3 & 15));
        Some(Self { prefix, opcode, reg, third, rm, length })
    }
}

/// The tiles of a thread.
struct Unit {
    done: u64,
    configured: bool,
    rows: [usize; TILES],
    row_bytes: [usize; TILES],
    tiles: [[[u8; ROW_BYTES]; ROWS]; TILES],
}

impl Unit {
    const INITIAL: Self = Self {
        done: 0,
        configured: false,
        rows: [0; TILES],
        row_bytes: [0; TILES],
        tiles: [[[0; ROW_BYTES]; ROWS]; TILES],
    };

    /// # Safety
    /// The program meant the instruction: its memory operand is what it may read or write.
    unsafe fn execute(&mut self, it: &Instruction) -> Option<()> {
        use Operand::{Memory, Tile};
        use Prefix::{F2, F3, None as NP, P66};
        if !matches!(it.opcode, 0x5c | 0x5e) && it.third != 0 {
            return None;
        }
        // SAFETY: the caller's contract.
        unsafe {
            match (it.opcode, it.prefix, it.rm) {
                (0x49, NP, Tile(0)) if it.reg == 0 => self.release(),
                (0x49, NP, Memory { base, index }) if it.reg == 0 => {
                    let at = base.wrapping_add(index.unwrap_or(0)) as *const [u8; 64];
                    self.configure(&at.read_unaligned())?;
                }
                (0x49, F2, Tile(0)) => {
                    self.shape(it.reg)?;
                    self.tiles[it.reg] = [[0; ROW_BYTES]; ROWS];
                }
                // TILELOADD, and TILELOADDT1, which only hints.
                (0x4b, F2 | P66, Memory { base, index: Some(stride) }) => self.load(it.reg, base, stride)?,
                (0x4b, F3, Memory { base, index: Some(stride) }) => self.store(it.reg, base, stride)?,
                (0x5c, F3, Tile(a)) => self.multiply(it.reg, a, it.third, dot_bf16)?,
                (0x5e, F2, Tile(a)) => self.multiply(it.reg, a, it.third, dot_bytes::<true, true>)?,
                (0x5e, F3, Tile(a)) => self.multiply(it.reg, a, it.third, dot_bytes::<true, false>)?,
                (0x5e, P66, Tile(a)) => self.multiply(it.reg, a, it.third, dot_bytes::<false, true>)?,
                (0x5e, NP, Tile(a)) => self.multiply(it.reg, a, it.third, dot_bytes::<false, false>)?,
                _ => return None,
            }
        }
        self.done += 1;
        Some(())
    }

    fn release(&mut self) {
        let done = self.done;
        *self = Self::INITIAL;
        self.done = done;
    }

    /// LDTILECFG. Palette 0 releases.
    fn configure(&mut self, config: &[u8; 64]) -> Option<()> {
        if config[0] == 0 {
            self.release();
            return Some(());
        }
        let row_bytes =
            |tile: usize| usize::from(u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]));
        let rows = |tile: usize| usize::from(config[48 + tile]);
        let reserved = config[1..16].iter().chain(&config[32..48]).chain(&config[56..]);
        let allowed = |tile: usize| {
            rows(tile) <= ROWS && row_bytes(tile) <= ROW_BYTES && (rows(tile) == 0) == (row_bytes(tile) == 0)
        };
        if config[0] != 1 || reserved.into_iter().any(|&byte| byte != 0) || !(0..TILES).all(allowed) {
            return None;
        }
        self.release();
        self.configured = true;
        for tile in 0..TILES {
            (self.rows[tile], self.row_bytes[tile]) = (rows(tile), row_bytes(tile));
        }
        Some(())
    }

    /// Rows and bytes of each, of a tile that may be used.
    fn shape(&self, tile: usize) -> Option<(usize, usize)> {
        (self.configured && tile < TILES && self.rows[tile] > 0)
            .then(|| (self.rows[tile], self.row_bytes[tile]))
    }

    /// # Safety
    /// The tile's rows can be read.
    unsafe fn load(&mut self, tile: usize, base: u64, stride: u64) -> Option<()> {
        let (rows, row_bytes) = self.shape(tile)?;
        self.tiles[tile] = [[0; ROW_BYTES]; ROWS];
        for (row, to) in self.tiles[tile].iter_mut().enumerate().take(rows) {
            let from = base.wrapping_add(stride.wrapping_mul(row as u64)) as *const u8;
            // SAFETY: the caller's contract.
            unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), row_bytes) };
        }
        Some(())
    }

    /// # Safety
    /// The tile's rows can be written.
    unsafe fn store(&self, tile: usize, base: u64, stride: u64) -> Option<()> {
        let (rows, row_bytes) = self.shape(tile)?;
        for (row, from) in self.tiles[tile].iter().enumerate().take(rows) {
            let to = base.wrapping_add(stride.wrapping_mul(row as u64)) as *mut u8;
            // SAFETY: the caller's contract.
            unsafe { from.as_ptr().copy_to_nonoverlapping(to, row_bytes) };
        }
        Some(())
    }

    /// `c[m][n] = dot(c[m][n], a[m], column n of b)`, in elements of 4 bytes.
    fn multiply(&mut self, c: usize, a: usize, b: usize, dot: fn(u32, Pairs<'_>) -> u32) -> Option<()> {
        let ((rows, row_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) =
            (self.shape(c)?, self.shape(a)?, self.shape(b)?);
        let whole = row_bytes % 4 == 0 && a_bytes % 4 == 0;
        let fit = rows == a_rows && row_bytes == b_bytes && a_bytes / 4 == b_rows;
        if c == a || c == b || a == b || !whole || !fit {
            return None;
        }
        for m in 0..rows {
            for n in 0..row_bytes / 4 {
                let pairs = Pairs { a: &self.tiles[a][m], b: &self.tiles[b], column: n, k: 0, end: b_rows };
                let sum = dot(dword(&self.tiles[c][m], n), pairs);
                self.tiles[c][m][4 * n..4 * n + 4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        Some(())
    }
}

fn dword(row: &[u8; ROW_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([row[4 * at], row[4 * at + 1], row[4 * at + 2], row[4 * at + 3]])
}

/// The elements that meet in one dot product.
struct Pairs<'a> {
    a: &'a [u8; ROW_BYTES],
    b: &'a [[u8; ROW_BYTES]; ROWS],
    column: usize,
    k: usize,
    end: usize,
}

impl Iterator for Pairs<'_> {
    type Item = (u32, u32);
    fn next(&mut self) -> Option<(u32, u32)> {
        let k = self.k;
        self.k += 1;
        (k < self.end).then(|| (dword(self.a, k), dword(&self.b[k], self.column)))
    }
}

/// TDPBF16PS: even and odd products sum up apart, by FMA, from 0; then both are added, then to the destination.
/// Round to nearest even; denormals are zero, going in and coming out. (A product of two bf16 is exact in f32 unless
/// it leaves the range, so rounding it first would make no difference elsewhere.)
fn dot_bf16(sum: u32, pairs: Pairs<'_>) -> u32 {
    let (mut even, mut odd) = (0.0_f32, 0.0_f32);
    for (a, b) in pairs {
        let low = |pair: u32| flush(f32::from_bits(pair << 16));
        let high = |pair: u32| flush(f32::from_bits(pair & 0xffff_0000));
        even = flush(low(a).mul_add(low(b), even));
        odd = flush(high(a).mul_add(high(b), odd));
    }
    flush(flush(f32::from_bits(sum)) + flush(even + odd)).to_bits()
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

/// TDPB..D: four products of bytes, each signed or not, with a sum that wraps around.
fn dot_bytes<const A_SIGNED: bool, const B_SIGNED: bool>(sum: u32, pairs: Pairs<'_>) -> u32 {
    fn wide<const SIGNED: bool>(byte: u8) -> i32 {
        if SIGNED { i32::from(byte as i8) } else { i32::from(byte) }
    }
    let mut sum = sum as i32;
    for (a, b) in pairs {
        for (a, b) in a.to_le_bytes().into_iter().zip(b.to_le_bytes()) {
            sum = sum.wrapping_add(wide::<A_SIGNED>(a) * wide::<B_SIGNED>(b));
        }
    }
    sum as u32
}
