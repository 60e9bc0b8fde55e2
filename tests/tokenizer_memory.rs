//! What the tokenizer leaves in a process *without* the scrubbing allocator: no word of a text, and no byte that tells
//! which text was last. A tokenizer that the `tokenizers` crate runs leaves both, which shows that the searches find it.
//!
//! The parent makes the needles; a child of its own encodes and searches itself.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use amnesic::forensics::{Findings, Needles};
use amnesic::testing::Tokenizer;
use memmap2::MmapMut;
use serde_json::{Value, json};

/// Each text twice as long as the next thing that is looked for: parts of 12 characters. Every byte is inverted at
/// compile time, so that the program holds none of them.
macro_rules! inverted {
    ($text:literal) => {{
        const BYTES: [u8; $text.len()] = {
            let (mut bytes, text) = ([0; $text.len()], $text.as_bytes());
            let mut i = 0;
            while i < bytes.len() {
                bytes[i] = !text[i];
                i += 1;
            }
            bytes
        };
        &BYTES
    }};
}

const CANARIES: [(&str, &[u8]); 6] = [
    (
        "latin",
        inverted!(
            "The patient Zebulon Quartzwick of Kraehwinkel has acute spectrophobia, ÀÉÎÕÜ naïve façade"
        ),
    ),
    ("georgian", inverted!("პაციენტი ზებულონ კვარცვიკი მწვავე სპექტროფობიით იტანჯება კრეჰვინკელში")),
    ("thai", inverted!("ผู้ป่วยชื่อเซบูลอนควอตซ์วิกมีอาการกลัวผีเฉียบพลันอยู่ที่เมืองเครวิงเคิล")),
    ("hebrew", inverted!("המטופל זבולון קוורצוויק מקרהווינקל סובל מספקטרופוביה חריפה מאוד")),
    (
        "mixed",
        inverted!(
            "Пациент Зебулон 病人はゼブロン・クヴァルツヴィック 환자제불론쿼츠윅 👩‍⚕️ 1948-12-10 #### ÅÅÅ ﬁﬁﬁ"
        ),
    ),
    (
        "long",
        inverted!(
            "zebulonquartzwickkraehwinkelspectrophobiazebulonquartzwickkraehwinkelspectrophobiaqqqqqqqqqqqqqqqqqqqq"
        ),
    ),
];

/// Folders of `tests/fixtures`, and whether the crate has to encode.
const OWN: [&str; 5] = [
    "tokenizers/byte_level",
    "tokenizers/llama3_style",
    "tokenizers/llama2_style",
    "tokenizers/metaspace",
    "encoders/bert",
];

fn main() -> Result<(), Box<dyn Error>> {
    assert!(!amnesic::alloc::is_installed());
    // what lies in memfd_secret could not be read through /proc/self/mem
    amnesic::testing::without_secret_memory();
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("words") => return search_for_words(arguments[2].as_ref(), arguments[3].as_ref()),
        Some("state") => return search_for_state(arguments[2].as_ref()),
        _ => {}
    }
    if !Path::new("/proc/self/mem").exists() {
        println!("SKIPPED: 1 test, since this system does not show a process its memory");
        return Ok(());
    }
    let temporary = tempfile::tempdir()?;
    let needles = temporary.path().join("needles.json");
    let all =
        CANARIES.iter().fold(Needles::new(), |needles, (name, inverted)| needles.text(name, &text(inverted)));
    std::fs::write(&needles, serde_json::to_vec(&all)?)?;
    let run = |how: &str, folder: &Path| -> Result<Vec<u8>, Box<dyn Error>> {
        let child = Command::new(std::env::current_exe()?).args([how.as_ref(), folder, &needles]).output()?;
        if !child.status.success() {
            return Err(
                format!("{how}, {}: {}", folder.display(), String::from_utf8_lossy(&child.stderr)).into()
            );
        }
        Ok(child.stdout)
    };

    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let crates = crates_own(&fixtures, temporary.path())?;
    let mut folders: Vec<(PathBuf, bool)> = OWN.iter().map(|folder| (fixtures.join(folder), true)).collect();
    folders.push((crates, false));
    for (folder, own) in folders {
        let findings: Findings = serde_json::from_slice(&run("words", &folder)?)?;
        let changed: [usize; 2] = serde_json::from_slice(&run("state", &folder)?)?;
        println!("{}: {} bytes searched, {changed:?} changed", folder.display(), findings.bytes());
        match own {
            true => {
                assert!(findings.is_empty(), "{}: {findings}", folder.display());
                // the count of scrubs, and the order in which the heap for secrets will give its free blocks away
                assert!(changed[0] <= 256 && changed[1] == 0, "{}: {changed:?}", folder.display());
            }
            false => {
                // later texts are written over some of the first one
                assert!(
                    findings.has("georgian") && findings.has("thai") && findings.has("hebrew"),
                    "the search misses what is there: {findings}"
                );
                assert!(changed[0] > 500, "the comparison misses what is there: {changed:?}");
            }
        }
    }
    Ok(())
}

/// A tokenizer that the crate has to run: its split looks around.
fn crates_own(fixtures: &Path, temporary: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let file = std::fs::read_to_string(fixtures.join("tokenizers/byte_level/tokenizer.json"))?;
    let mut tokenizer: Value = serde_json::from_str(&file)?;
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{L}+(?=\s)|[^\s\p{L}]+|\p{L}+|\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    let folder = temporary.join("crate");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    assert!(Tokenizer::open_to_read(&folder, 1 << 16)?.fallback().is_some());
    Ok(folder)
}

/// A text in one allocation that does not move.
fn text(inverted: &[u8]) -> String {
    let bytes: Vec<u8> = inverted.iter().map(|&byte| !black_box(byte)).collect();
    String::from_utf8(bytes).expect("each was text")
}

/// The child: encodes all canaries, overwrites its own copies, and looks for their words in all its memory.
fn search_for_words(folder: &Path, needles: &Path) -> Result<(), Box<dyn Error>> {
    let needles = serde_json::from_slice::<Needles>(&std::fs::read(needles)?)?.prepare();
    let tokenizer = Tokenizer::open_to_read(folder, 1 << 16)?;
    for (_, inverted) in CANARIES {
        let text = text(inverted);
        black_box(tokenizer.count(&text)?);
        let mut bytes = text.into_bytes();
        black_box(&mut bytes).fill(0);
        black_box(&bytes);
    }
    println!("{}", serde_json::to_string(&needles.search_self()?)?);
    Ok(())
}

/// The child: how many bytes of its memory differ after texts in three scripts were encoded for the first time and an
/// earlier one again; and how many tell which of two texts of equal shape was last.
fn search_for_state(folder: &Path) -> Result<(), Box<dyn Error>> {
    let tokenizer = Tokenizer::open_to_read(folder, 1 << 16)?;
    // all of them stay where they are
    let latin = "a bc déf 界".repeat(12);
    let first: Vec<String> = CANARIES[1..4].iter().map(|(_, inverted)| text(inverted)).collect();
    let second: Vec<String> = first.iter().map(|text| text.chars().map(neighbor).collect()).collect();
    let encode = |text: &str| -> Result<(), Box<dyn Error>> {
        for _ in 0..3 {
            black_box(tokenizer.count(text)?);
        }
        Ok(())
    };
    // blocks of all sizes are there, so that the heap for secrets has nothing left to set up
    for letter in ["a", "é", "界", "a é 界 "] {
        let many = letter.repeat(400);
        (0..many.len()).filter(|&len| many.is_char_boundary(len)).try_for_each(|len| encode(&many[..len]))?;
    }
    encode(&latin)?;
    let mut snapshots = Snapshots::new(6)?;
    snapshots.take(0)?;
    encode(&latin)?;
    snapshots.take(0)?;
    // in this order nothing that only alternates from call to call can be taken for what tells the texts apart
    for (at, texts) in [&first, &second, &second, &first].into_iter().enumerate() {
        texts.iter().try_for_each(|text| encode(text))?;
        snapshots.take(1 + at)?;
    }
    encode(&latin)?;
    snapshots.take(5)?;
    println!("[{}, {}]", snapshots.differences(0, 5), snapshots.telling([1, 2, 4, 3]));
    Ok(())
}

/// Another letter of the same script, so that a text is another one and is cut and written in the same way.
fn neighbor(letter: char) -> char {
    let within = |first: u32, last: u32| {
        let code = u32::from(letter);
        (first..=last).contains(&code).then(|| if code == last { first } else { code + 1 })
    };
    let code = within(0x10d0, 0x10f0).or_else(|| within(0xe01, 0xe2e)).or_else(|| within(0x5d0, 0x5ea));
    code.and_then(char::from_u32).unwrap_or(letter)
}

/// Copies of all writable memory, but for the stack, which threads of a session overwrite, and the copies themselves.
struct Snapshots {
    memory: File,
    ranges: Vec<(u64, u64)>,
    copies: Vec<MmapMut>,
}

const PAGE: usize = 4096;

impl Snapshots {
    fn new(count: usize) -> Result<Self, Box<dyn Error>> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let mut ranges = Vec::with_capacity(1024);
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
            let special = line.contains("[stack") || line.contains("[v");
            if !rights.starts_with("rw") || special {
                continue;
            }
            let (start, end) = range.split_once('-').ok_or("a range")?;
            ranges.push((u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?));
        }
        let bytes: u64 = ranges.iter().map(|(start, end)| end - start).sum();
        let copies = (0..count).map(|_| MmapMut::map_anon(bytes as usize)).collect::<Result<_, _>>()?;
        Ok(Self { memory: File::open("/proc/self/mem")?, ranges, copies })
    }

    fn take(&mut self, at: usize) -> Result<(), Box<dyn Error>> {
        let mut rest = &mut self.copies[at][..];
        for &(start, end) in &self.ranges {
            let (here, behind) = rest.split_at_mut((end - start) as usize);
            // what the allocator gave back in the meantime reads as zeros
            for (at, page) in here.chunks_mut(PAGE).enumerate() {
                if self.memory.read_exact_at(page, start + (at * PAGE) as u64).is_err() {
                    page.fill(0);
                }
            }
            rest = behind;
        }
        Ok(())
    }

    /// Bytes that are the same whenever the one text was last, and another whenever the other was.
    fn telling(&self, [first, second, again, second_again]: [usize; 4]) -> usize {
        let [first, second, again, second_again] =
            [first, second, again, second_again].map(|at| &self.copies[at][..]);
        let tells =
            |&at: &usize| first[at] == again[at] && second[at] == second_again[at] && first[at] != second[at];
        (0..first.len()).filter(tells).count()
    }

    fn differences(&self, first: usize, second: usize) -> usize {
        self.copies[first]
            .iter()
            .zip(&self.copies[second][..])
            .filter(|(first, second)| first != second)
            .count()
    }
}
