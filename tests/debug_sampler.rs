//! The debug sampler leaves nothing on the heap: an allocator looks into every block that is freed meanwhile.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use amnesic::privacy::debug_sampler::{
    CaptureError, Captured, DebugSampler, Folder, Fraction, Purpose, Recipient, Sealed, Sink,
};

/// As it stands in the sealed JSON, of text and of ids; and an id as it lies in memory.
const NEEDLES: [&[u8]; 3] = [b"kanarienvogel", b"1234567890,1234567890", &[0xd2, 0x02, 0x96, 0x49]];

struct Watching;

static WATCH: AtomicBool = AtomicBool::new(false);
static FOUND: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work. `realloc` is the trait's own, so that what moves is looked at too.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same. Zeroed: spare room then holds what this block was given only.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if WATCH.load(SeqCst) {
            // SAFETY: the block is still ours, and was zeroed when it was made.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            FREED.fetch_add(1, SeqCst);
            if NEEDLES.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == *needle)) {
                FOUND.fetch_add(1, SeqCst);
            }
        }
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Blocks freed with content in them, and blocks freed, while `act` ran.
fn watched<T>(act: impl FnOnce() -> T) -> (T, usize, usize) {
    FOUND.store(0, SeqCst);
    FREED.store(0, SeqCst);
    WATCH.store(true, SeqCst);
    let value = act();
    WATCH.store(false, SeqCst);
    (value, FOUND.load(SeqCst), FREED.load(SeqCst))
}

/// Looks for content in what it is given.
struct Suspicious;

impl Sink for Suspicious {
    fn store(&mut self, sealed: Sealed) -> std::io::Result<()> {
        let bytes = sealed.bytes();
        let found = NEEDLES.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == *needle));
        if found { Err(std::io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }
}

fn sampler(sink: impl Sink + 'static) -> DebugSampler {
    let recipient = Recipient::parse(&age::x25519::Identity::generate().to_public().to_string()).unwrap();
    DebugSampler::new(Purpose::FailureAnalysis, Fraction::new(0.01).unwrap(), 3600, recipient, sink).unwrap()
}

/// Ends requests until one is captured.
fn capture(sampler: &mut DebugSampler, ids: &[u32], text: &[u8]) -> Result<Captured, CaptureError> {
    // Numbers are never given twice, as in a session: a capture's file bears the request's.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = Instant::now();
    std::iter::repeat_with(|| NEXT.fetch_add(1, SeqCst))
        .take(5_000)
        .find_map(|number| sampler.request_ended(now, number, ids, ids, text))
        .expect("one in a hundred")
}

// One test: the allocator is the process's.
#[test]
fn no_freed_block_holds_content() {
    let text = "kanarienvogel ".repeat(20_000);
    let (_, found, _) = watched(|| drop(text[..100].to_owned()));
    assert_eq!(found, 1, "the allocator sees text that is freed");
    let (_, found, _) = watched(|| drop(vec![1_234_567_890_u32; 3]));
    assert_eq!(found, 1, "the allocator sees ids that are freed");

    let folder = tempfile::tempdir().unwrap();
    let ids = vec![1_234_567_890; 30_000];
    let mut samplers = [sampler(Suspicious), sampler(Folder::open(folder.path()).unwrap())];
    // Captures of less than a chunk of age's, of about a chunk, and of many.
    for (ids_len, text_len) in [(3, 14), (3, 65_500), (3, 65_536), (5_000, 0), (30_000, 280_000)] {
        for sampler in &mut samplers {
            let outcome = watched(|| capture(sampler, &ids[..ids_len], &text.as_bytes()[..text_len]));
            let (told, found, freed) = outcome;
            assert_eq!(told.unwrap().failed, 0);
            assert!(freed > 10, "{freed} blocks: age was not at work");
            assert_eq!(
                found, 0,
                "of {freed} freed blocks held content; {ids_len} ids, {text_len} bytes of text"
            );
        }
    }
    let (_, found, _) = watched(|| drop(samplers));
    assert_eq!(found, 0, "a sampler keeps nothing");
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(bytes.len() > 128 << 10);
        assert!(!NEEDLES.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == *needle)));
    }
}
