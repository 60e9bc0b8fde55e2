//! What a device may do wrong, and steps that are recorded. Kernels are tested with the CPU's, in `backend/conformance`; what
//! steps leave behind in `model/tests.rs`.

use std::path::Path;
use std::sync::Arc;

use super::Cuda;
use super::driver::{Driver, Host};
use super::emulated::Emulated;
use super::sampling::Sampling;
use super::weight::Weight;
use crate::Session;
use crate::backend::{
    Batch, Buf, DeviceMemory, EmbedBy, Kv, KvShape, Mask, OperandType, Ops, Projection, Span,
};
use crate::memory::ledger::NotCovered;
use crate::memory::{BufferLimits, Layout};
use crate::model::decoder::Decoder;
use crate::weights::dtype::f8_e4m3;
use crate::weights::{Checkpoint, Dtype};

/// What tests look at.
impl<D: Driver> Cuda<D> {
    /// A backend that does without wgmma.
    pub fn plain(driver: Arc<D>) -> Self {
        Self { plain: true, ..Self::new(driver) }
    }

    /// Whether all that it holds of requests is zeros.
    pub fn is_zero(&mut self) -> bool {
        self.flush();
        let arena = self.arena();
        let bytes = arena.memory.bytes();
        let all = Host::new(&self.driver, bytes).unwrap();
        // SAFETY: both have the bytes; they are there when `synchronize` returns.
        let all = unsafe {
            self.driver.read(arena.memory.at(), all.at(), bytes);
            self.driver.synchronize();
            std::slice::from_raw_parts(all.at(), bytes).to_vec()
        };
        let status = (self.address(arena.status) - arena.memory.at()) as usize;
        // behind the status are counted bytes of weights
        let rest = all[..status + 8].iter().chain(&all[status + 16..]);
        // SAFETY: ours alone.
        let read = unsafe { std::slice::from_raw_parts(arena.host.at(), arena.host.bytes()) };
        let told = arena.sampling.as_ref().map_or(&[][..], Sampling::told);
        rest.chain(read).chain(told).all(|&byte| byte == 0) && self.inputs.is_zero()
    }

    /// Writes rows of an operand.
    pub fn set_operand(&mut self, buf: Buf, values: &[f32]) {
        let (rows, stride) = (values.len() / buf.cols, buf.row_bytes());
        let host = Host::new(&self.driver, rows * stride).unwrap();
        // SAFETY: ours alone.
        let bytes = unsafe { std::slice::from_raw_parts_mut(host.at(), rows * stride) };
        for (values, row) in values.chunks(buf.cols).zip(bytes.chunks_mut(stride)) {
            for (col, &value) in values.iter().enumerate() {
                match buf.form {
                    OperandType::F32 => row[4 * col..][..4].copy_from_slice(&value.to_le_bytes()),
                    OperandType::Bf16 => {
                        row[2 * col..][..2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes())
                    }
                    OperandType::F16 => {
                        row[2 * col..][..2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes())
                    }
                    OperandType::Bytes => unreachable!("as in `form`"),
                }
            }
        }
        // SAFETY: both have the rows.
        unsafe { self.driver.write(self.at(buf, rows), host.at(), rows * stride) };
    }

    /// One row of an operand.
    pub fn get_operand(&mut self, buf: Buf, row: usize) -> Vec<f32> {
        self.flush();
        let stride = buf.row_bytes();
        let host = Host::new(&self.driver, stride).unwrap();
        let from = self.at(buf, row + 1) + (row * stride) as u64;
        // SAFETY: both have the row; it is there when `synchronize` returns.
        let bytes = unsafe {
            self.driver.read(from, host.at(), stride);
            self.driver.synchronize();
            std::slice::from_raw_parts(host.at(), stride)
        };
        let padded = buf.cols..stride / if buf.form == OperandType::F32 { 4 } else { 2 };
        let value = |col| crate::backend::cpu::operand::value(buf.form, bytes, col);
        assert!(padded.into_iter().all(|col| value(col) == 0.0), "what is behind an operand is not zero");
        (0..buf.cols).map(value).collect()
    }
}

fn embed(backend: &mut Cuda<Emulated>, ids: &[u32], table: &Weight<Emulated>, out: Buf) {
    backend.embed(&Batch { ids, ..Batch::default() }, EmbedBy::Token, table, 1.0, false, out);
}

/// A device with one buffer that holds something.
fn filled(driver: Emulated) -> (Cuda<Emulated>, Buf) {
    let mut backend = Cuda::new(Arc::new(driver));
    let mut layout = Layout::default();
    let buf = Buf::plan(&mut layout, 5, 40).unwrap();
    let kv = Kv::plan::<Cuda<Emulated>>(&mut layout, KvShape::SMALLEST, 1).unwrap();
    let table = backend.upload_table(vec![7.0; 5 * 40], 40).unwrap();
    backend.reserve(layout, kv, None).unwrap();
    embed(&mut backend, &[0, 1, 2, 3, 4], &table, buf);
    (backend, buf)
}

#[test]
fn a_scrub_that_does_nothing_is_seen() {
    let (mut backend, buf) = filled(Emulated::default());
    let (_, proof) = backend.scrub_steps([(buf, 5)].into_iter());
    assert!(!proof.is_dirty() && proof.samples() > 3 && backend.is_zero());
    let closed = backend.close().unwrap();
    assert!(closed.verified > 5 * 40 * 4 && closed.verified == closed.scrubbed.bytes());

    let (mut backend, buf) = filled(Emulated::without("scrub"));
    let (_, proof) = backend.scrub_steps([(buf, 5)].into_iter());
    assert!(proof.is_dirty() && !backend.is_zero());
    let closed = backend.close().unwrap();
    assert!(closed.scrubbed.is_dirty() && closed.verified < closed.scrubbed.bytes());
}

#[test]
fn what_is_read_back_at_the_close_is_all_of_it() {
    // one that overwrites what is asked for, and nothing when all is: only reading it all shows that
    let (mut backend, buf) = filled(Emulated::default());
    let address = backend.at(buf, 5) + 4 * 40;
    let _ = backend.scrub_steps([(buf, 1)].into_iter());
    assert!(!backend.is_zero());
    let status = backend.address(backend.arena().status);
    let args = super::args::VerifyArgs { at: address - 160, bytes: 160, dirty: status };
    backend.launch("verify", super::shape([1, 1, 1], 256, 0), &args);
    assert!(!backend.finish_scrub(), "the first row is zero");
    backend.launch(
        "verify",
        super::shape([1, 1, 1], 256, 0),
        &super::args::VerifyArgs { bytes: 176, ..args },
    );
    assert!(backend.finish_scrub(), "the second one is not");
}

/// Wherever a device fails, nothing panics, and nothing claims to be overwritten.
#[test]
fn a_device_that_fails_gives_no_proof() {
    let mut failed = 0;
    for calls in 0..40 {
        let (mut backend, buf) = filled(Emulated::failing_after(calls));
        let fence = backend.submit(&Batch::default(), |_| ());
        let row = backend.read(&fence, buf, 0).to_vec();
        let (_, proof) = backend.scrub_steps([(buf, 5)].into_iter());
        assert_eq!(backend.failed(), proof.is_dirty(), "after {calls} calls");
        let (_, gaps) = backend.protection();
        let told = gaps.iter().any(|gap| matches!(gap, NotCovered::DeviceFailed { .. }));
        assert_eq!(told, backend.failed(), "after {calls} calls");
        if backend.failed() {
            assert!(row.iter().all(|&value| value == 0.0 || value == 7.0), "after {calls} calls");
            let closed = backend.close().unwrap();
            assert!(closed.scrubbed.is_dirty() && closed.verified == 0, "after {calls} calls");
            failed += 1;
        }
    }
    assert!((5..40).contains(&failed), "{failed}");
}

/// Steps of one token for each request are recorded when they come for the second time, and give the same from then on;
/// one that ends in the middle leaves no record open, which would take in what overwrites.
#[test]
fn steps_are_recorded_and_done_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/phi3_longrope");
    let logits = |again: bool, filled: bool| {
        let builder = Session::builder(&folder).max_sequences(4).step_tokens(8).kv_tokens(640);
        let parts = builder.parts().unwrap();
        let mut backend = Cuda::new(Arc::new(Emulated::default()));
        let plan = parts.plan::<Cuda<Emulated>>(BufferLimits::default()).unwrap();
        let decoder = Decoder::new(parts.arch, &parts.weights, plan, None, &mut backend, |_| ()).unwrap();
        let mut all = Vec::new();
        for position in 0..300 {
            // three requests, two behind the first; past 256 positions there is one more split
            let positions = [position, position / 2, position / 3];
            let table: Vec<u32> = (0..10).collect();
            // and a copy of the last one
            let of = |row: usize| row.min(2);
            let spans = [0, 1, 2, 3].map(|row| Span {
                row,
                rows: 1,
                position: positions[of(row)] as usize,
                table: [0, 5, 8][of(row)],
                adapter: None,
                mask: Mask::Causal,
            });
            let mut slots = [0, 1, 2, 3].map(|row| table[spans[row].table] * 64 + positions[of(row)]);
            slots[3] = Batch::NOWHERE;
            let ids = [3 + position % 50, 4, 5 + position % 7, 5 + position % 7];
            let positions = [0, 1, 2, 3].map(|row| positions[of(row)]);
            let rows = if filled { backend.padded_rows(3) } else { 3 };
            let batch = Batch {
                ids: &ids[..rows],
                positions: &positions[..rows],
                slots: &slots[..rows],
                spans: &spans[..rows],
                blocks: &table,
                outputs: &[0, 1, 2, 3][..rows],
                position_types: &[],
            };
            if !again {
                backend.graphs = super::graphs::Graphs::default();
            }
            let fence = decoder.forward(&mut backend, &batch);
            all.extend((0..3).flat_map(|row| decoder.logits(&mut backend, &fence, row).to_vec()));
        }
        assert_eq!(backend.graphs.count(), if again { 2 } else { 0 });
        assert_eq!((backend.counters().steps, backend.counters().tokens), (300, 900));
        let bytes = backend.counters().weight_bytes;
        // a step begins, and does not end
        let all_bits: Vec<u32> = all.into_iter().map(f32::to_bits).collect();
        let batch = Batch {
            ids: &[9],
            positions: &[0],
            slots: &[0],
            spans: &[Span { row: 0, rows: 1, position: 0, table: 0, adapter: None, mask: Mask::Causal }],
            blocks: &[0],
            outputs: &[0],
            position_types: &[],
        };
        let _ = backend.submit(&batch, |_| ());
        let panics = std::panic::AssertUnwindSafe(|| backend.submit(&batch, |_| panic!("in the middle")));
        assert!(std::panic::catch_unwind(panics).is_err(), "it was recorded, and not done again");
        let _ = backend.scrub_all();
        assert!(backend.is_zero());
        (all_bits, bytes)
    };
    let all = logits(true, false);
    assert!(all == logits(false, false));
    assert!(all.0 == logits(true, true).0);
    assert_eq!([1, 2, 3, 5, 8, 9, 17, 256].map(super::graphs::bucket), [1, 2, 4, 8, 8, 16, 24, 256]);
}

/// Every number of eight bits, multiplied with one, comes out as it was published: by each kernel, and by the embedding.
#[test]
fn floats_of_eight_bits_stay_exact() {
    const ROWS: usize = 150;
    const COLS: usize = 192;
    let folder = tempfile::tempdir().unwrap();
    let code = |row: usize, col: usize| {
        let code = (row * 37 + col * 11) as u8;
        if code & 0x7f == 0x7f { 0 } else { code }
    };
    let scale = |row: usize, col: usize| 0.01 + (row / 30 * 3 + col / 64) as f32;
    let codes: Vec<u8> = (0..ROWS * COLS).map(|i| code(i / COLS, i % COLS)).collect();
    let scales: Vec<u8> = (0..15).flat_map(|i| scale(i / 3 * 30, i % 3 * 64).to_le_bytes()).collect();
    let view = |dtype, shape, bytes| safetensors::tensor::TensorView::new(dtype, shape, bytes).unwrap();
    let all = [
        ("m.weight", view(safetensors::Dtype::F8_E4M3, vec![ROWS, COLS], &codes)),
        ("m.weight_scale_inv", view(safetensors::Dtype::F32, vec![5, 3], &scales)),
    ];
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(all, None).unwrap())
        .unwrap();
    let config = r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [30, 64]}}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let matrix = Checkpoint::open(folder.path()).unwrap().matrix("m", ROWS, COLS).unwrap();
    assert_eq!(matrix.dtype, Dtype::F8);

    let mut backend = Cuda::new(Arc::new(Emulated::default()));
    let weight = backend.upload(&matrix, None).unwrap();
    assert_eq!(weight.bytes(), (ROWS.div_ceil(16) * COLS / 32 * (512 + 64)) as u64);
    let ones = (0..COLS * COLS).map(|i| f32::from(i / COLS == i % COLS)).collect();
    let ones = backend.upload_table(ones, COLS).unwrap();
    let mut layout = Layout::default();
    let [rows, x] =
        [Buf::plan(&mut layout, COLS, COLS), Buf::plan_operand(&mut layout, COLS, COLS)].map(Option::unwrap);
    let out = Buf::plan(&mut layout, COLS, ROWS).unwrap();
    let kv = Kv::plan::<Cuda<Emulated>>(&mut layout, KvShape::SMALLEST, 1).unwrap();
    backend.reserve(layout, kv, None).unwrap();
    let x = x.of(backend.operand_type(&[&weight]));
    for (first, count) in [(0, 8), (100, 16), (8, 32), (30, 64), (64, 128), (0, 192)] {
        let ids: Vec<u32> = (first as u32..(first + count) as u32).collect();
        embed(&mut backend, &ids, &ones, rows);
        backend.norm(count, rows, &crate::backend::Norm::identity(), COLS, x);
        backend.linear(count, x, &[Projection { weight: &weight, bias: None, out, add: None }]);
        let fence = backend.submit(&Batch::default(), |_| ());
        for token in 0..count {
            let column: Vec<f32> =
                (0..ROWS).map(|row| scale(row, first + token) * f8_e4m3(code(row, first + token))).collect();
            assert_eq!(backend.read(&fence, out, token), column, "column {} of {count}", first + token);
        }
    }
    embed(&mut backend, &[149], &weight, rows);
    let fence = backend.submit(&Batch::default(), |_| ());
    let row: Vec<f32> = (0..COLS).map(|col| scale(149, col) * f8_e4m3(code(149, col))).collect();
    assert_eq!(backend.read(&fence, rows, 0), row);
}
