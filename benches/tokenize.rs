//! Our tokenizer beside the `tokenizers` crate: a megabyte of prose, of code and of many scripts, on one thread.
//!
//! `cargo bench -p amnesic-benches --all-features --bench tokenize`. Takes `AMNESIC_TOKENIZERS` (`tools/fetch_tokenizers`), else the
//! tokenizers of the repository. Asserts first that the ids are equal. The crate is measured as it comes, with its
//! cache of words, and without, as a session that must keep nothing would have to use it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amnesic::testing::Tokenizer;

amnesic::install_scrubbing_allocator!();

const BYTES: usize = 1 << 20;

fn main() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let folders: Vec<PathBuf> = match std::env::var_os("AMNESIC_TOKENIZERS") {
        Some(folder) => {
            let mut folders: Vec<_> =
                std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            folders.sort();
            folders
        }
        None => ["models/default", "tests/fixtures/tokenizers/llama2_style", "tests/fixtures/encoders/bert"]
            .map(|folder| root.join(folder))
            .into(),
    };
    let texts = [("prose", prose(root)), ("code", code(&root.join("src"))), ("scripts", scripts())];
    println!("| tokenizer | text | MB/s | times the crate | times the crate without its cache |");
    println!("|---|---|---|---|---|");
    for folder in folders {
        let name = folder.file_name().unwrap().display();
        let ours = Tokenizer::open_to_read(&folder, 1 << 20).unwrap();
        let cached = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
        let mut uncached = cached.clone();
        let mut model = cached.get_model().clone();
        model.resize_cache(0);
        uncached.with_model(model);
        for (what, text) in &texts {
            let expected = cached.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(ours.encode(text, false), expected.get_ids(), "{name}: {what}");
            let own = best(|| _ = ours.count(text).unwrap());
            let crates = [&cached, &uncached]
                .map(|tokenizer| best(|| _ = tokenizer.encode_fast(text.as_str(), false).unwrap()));
            let [with, without] = crates.map(|took| took.as_secs_f64() / own.as_secs_f64());
            let speed = text.len() as f64 / own.as_secs_f64() / 1e6;
            println!("| {name} | {what} | {speed:.1} | {with:.1} | {without:.1} |");
        }
    }
}

/// The shortest of three means, in time on a processor where the system tells it: neighbours do not count. Each mean is of
/// a fifth of a second or more, since that time is told in ticks of some milliseconds.
fn best(mut run: impl FnMut()) -> Duration {
    let took = (0..3).map(|_| {
        let (start, on_processor) = (Instant::now(), processor_time());
        let mut runs = 0;
        loop {
            run();
            runs += 1;
            let took = match (on_processor, processor_time()) {
                (Some(start), Some(end)) => end - start,
                _ => start.elapsed(),
            };
            if took >= Duration::from_millis(200) {
                return took / runs;
            }
        }
    });
    took.min().expect("three means")
}

fn processor_time() -> Option<Duration> {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    times.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// The words of this repository's pages in random order: a text that repeated itself would flatter a cache.
fn prose(root: &Path) -> String {
    let pages = ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"];
    let pages: String = pages.iter().map(|page| std::fs::read_to_string(root.join(page)).unwrap()).collect();
    let words: Vec<&str> = pages.split_whitespace().collect();
    let (mut text, mut state) = (String::new(), 1_u64);
    while text.len() < BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(words[(state >> 33) as usize % words.len()]);
        text.push(if state >> 60 == 0 { '\n' } else { ' ' });
    }
    text
}

/// The library's own source.
fn code(folder: &Path) -> String {
    let (mut left, mut text) = (vec![folder.to_owned()], String::new());
    while let Some(path) = left.pop().filter(|_| text.len() < BYTES) {
        match path.is_dir() {
            true => left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path())),
            false => text.push_str(&std::fs::read_to_string(path).unwrap_or_default()),
        }
    }
    fill(&text)
}

/// The first article of the Universal Declaration of Human Rights, in part, in twelve scripts.
fn scripts() -> String {
    fill(
        "All human beings are born free and equal. Все люди рождаются свободными и равными. 人人生而自由,在尊严和权利上一律平等。\
         すべての人間は、生まれながらにして自由である。모든 인간은 태어날 때부터 자유롭다. सभी मनुष्यों को गौरव और अधिकारों के मामले में \
         ყველა ადამიანი იბადება თავისუფალი. มนุษย์ทั้งหลายเกิดมามีอิสระ כל בני האדם נולדו בני חורין יולד جميع الناس أحرارًا \
         Όλοι οι άνθρωποι γεννιούνται ελεύθεροι. Բոլոր մարդիկ ծնվում են ազատ 🙂👩\u{200d}👧 1948-12-10, Art. 1\n",
    )
}

fn fill(text: &str) -> String {
    let mut filled = text.repeat(BYTES / text.len() + 1);
    filled.truncate(filled.floor_char_boundary(BYTES));
    filled
}
