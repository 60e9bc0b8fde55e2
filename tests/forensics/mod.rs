//! Searches a whole process for what a request left behind.
//!
//! The parent makes a checkpoint, learns by a run of its own what a canary request gives (ids, reply, cache rows,
//! logits), and starts a child for each scenario. The child runs the canary request, then searches all of its
//! writable memory: every writable mapping of /proc/self/maps, so heap with its free lists, arenas, all thread stacks
//! and thread-locals. Needles reach the child inverted and are compared inverted, so that the search does not find
//! itself.

use std::path::Path;
use std::process::Command;

use amnesic::testing::{self, LogitsTap};
use amnesic::{
    CancelToken, Error, FinishReason, PoisonReason, Reply, Request, ResponseFormat, Session, Speculation,
};
use serde::{Deserialize, Serialize};

use crate::common::Recipe;

const VOCAB: usize = 704;
const REPLY_TOKENS: usize = 48;

/// The canary prompt, inverted at compile time: no plain copy is in the program.
const PROMPT: [u8; 71] =
    inverted(*b"The patient Zebulon Quartzwick of Kraehwinkel has acute spectrophobia, ");

const fn inverted<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    let mut i = 0;
    while i < N {
        bytes[i] = !bytes[i];
        i += 1;
    }
    bytes
}

/// What to look for.
#[derive(Clone, Serialize, Deserialize)]
pub struct Needle {
    name: String,
    inverted: Vec<u8>,
    /// bf16 values that may differ by one unit in the last place: recomputed in another order of additions.
    near: bool,
    /// Pieces of so many bytes, so many bytes apart: how a row lies in the cache, among other rows.
    piece: usize,
    stride: usize,
}

/// In a cache of bf16, two values of a key in each line of 64 bytes.
const K_IN_CACHE: (usize, usize) = (4, 64);
/// In a cache of bf16, a value of a V row in every other place, sixteen of them.
const V_IN_CACHE: (usize, usize) = (2, 4);

impl Needle {
    pub fn exact(name: &str, bytes: impl IntoIterator<Item = u8>) -> Self {
        let inverted: Vec<u8> = bytes.into_iter().map(|byte| !byte).collect();
        let whole = inverted.len();
        Self { name: name.into(), inverted, near: false, piece: whole, stride: whole }
    }

    fn near(name: &str, values: &[f64], (piece, stride): (usize, usize)) -> Self {
        let bytes = values.iter().flat_map(|&value| half::bf16::from_f64(value).to_le_bytes());
        Self { near: true, piece, stride, ..Self::exact(name, bytes) }
    }

    /// Bytes from its first to its last.
    fn span(&self) -> usize {
        (self.inverted.len() / self.piece - 1) * self.stride + self.piece
    }

    /// Whether it stands at the start of `memory`, which is at least as long.
    fn stands_at(&self, memory: &[u8]) -> bool {
        let pieces = self.inverted.chunks_exact(self.piece).zip(memory.chunks(self.stride));
        if !self.near {
            return pieces.flat_map(|(wanted, found)| wanted.iter().zip(found)).all(|(a, b)| !a == *b);
        }
        pieces.flat_map(|(wanted, found)| wanted.as_chunks::<2>().0.iter().zip(found.as_chunks::<2>().0)).all(
            |(wanted, found)| {
                let (wanted, found) = (!u16::from_le_bytes(*wanted), u16::from_le_bytes(*found));
                wanted >> 15 == found >> 15 && wanted.abs_diff(found) <= 1
            },
        )
    }
}

/// What a child tells its parent.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Findings {
    /// Found while the request was running.
    alive: Vec<String>,
    /// Found after its end, the session still open.
    after: Vec<String>,
    /// Found after the session dropped.
    dropped: Vec<String>,
}

/// The names of all needles that stand anywhere in this process's writable memory.
pub fn search(needles: &[Needle]) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut found = vec![false; needles.len()];
    let mut searched = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).unwrap());
        searched += end - start;
        // SAFETY: a mapping that this process may read and write, and that nobody unmaps now. Other threads may
        // write to it meanwhile; what is read is only compared.
        let memory = unsafe { std::slice::from_raw_parts(start as *const u8, end - start) };
        search_mapping(memory, needles, &mut found);
    }
    assert!(searched > 1 << 20, "only {searched} bytes searched");
    needles.iter().zip(found).filter(|(_, found)| *found).map(|(needle, _)| needle.name.clone()).collect()
}

fn search_mapping(memory: &[u8], needles: &[Needle], found: &mut [bool]) {
    const PAGE: usize = 4096;
    for (page, bytes) in memory.chunks(PAGE).enumerate() {
        if bytes.as_chunks::<16>().0.iter().all(|word| u128::from_le_bytes(*word) == 0) {
            continue; // needles that begin with a zero byte in an empty page are not made
        }
        let rest = &memory[page * PAGE..];
        for at in 0..bytes.len() {
            for (needle, found) in needles.iter().zip(found.iter_mut()) {
                let maybe = needle.near || needle.inverted[0] == !rest[at];
                if maybe && rest.len() - at >= needle.span() && needle.stands_at(&rest[at..]) {
                    *found = true;
                }
            }
        }
    }
}

fn canary() -> Request {
    let mut prompt = String::with_capacity(PROMPT.len());
    PROMPT.iter().for_each(|&byte| prompt.push(char::from(!byte)));
    Request::prompt(prompt).temperature(0.0)
}

fn recipe() -> Recipe {
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["num_hidden_layers"] = 1.into(); // the rows below are those of the first layer
    recipe.config["max_position_embeddings"] = 65_536.into();
    recipe.config["tie_word_embeddings"] = false.into(); // tied random weights repeat one token
    recipe
}

fn open(folder: &Path) -> amnesic::Builder {
    Session::builder(folder).threads(2).kv_tokens(65_536).max_sequences(4).step_tokens(16)
}

/// What the child runs.
fn child(scenario: &str, folder: &Path) -> Findings {
    let needles: Vec<Needle> =
        serde_json::from_slice(&std::fs::read(folder.join("needles.json")).unwrap()).unwrap();
    let mut findings = Findings::default();
    let builder = open(folder);
    let session = match scenario {
        "panic" => builder.panic_in_step(8),
        "no-op scrub" => {
            testing::disable_scrub();
            builder
        }
        "one sampled token" => builder.step_tokens(512),
        "preempted" => builder.context_length(256).kv_tokens(320),
        "draft" => builder.draft(folder),
        _ => builder,
    }
    .open()
    .unwrap();
    match scenario {
        "success" | "no-op scrub" => drop(run_to_the_end(&session, &needles)),
        // The prompt in one step and one draw: what the buffers of a step hold is still that at the end.
        "one sampled token" => {
            // top-k has the sampler make keys, and a bias a copy of the logits
            let request = canary().max_tokens(1).temperature(1.0).seed(3).top_k(40).logit_bias(99, -1.0);
            assert_eq!(session.generate(request).unwrap().usage.completion_tokens, 1);
        }
        "batch" => {
            let others = (0..5).map(|i| Request::tokens(vec![i, 3, 9]).max_tokens(10 + i as usize));
            let requests = std::iter::once(canary().max_tokens(REPLY_TOKENS)).chain(others);
            assert_eq!(session.generate_batch(requests).unwrap().len(), 6);
        }
        "error: context" => {
            let error = session.generate(canary().max_tokens(1 << 20)).unwrap_err();
            assert!(matches!(error, Error::ContextLength { .. }), "{error}");
        }
        "error: in batch" => {
            let bad = Request::tokens(vec![VOCAB as u32]);
            let error = session.generate_batch([canary(), bad]).unwrap_err();
            assert!(matches!(error, Error::InBatch { index: 1, .. }), "{error}");
        }
        "cancelled" => {
            let mut stream = session.stream(canary().max_tokens(60_000)).unwrap();
            let text: usize = stream.by_ref().take(30).map(|piece| piece.unwrap().text().len()).sum();
            assert!(text > 20, "the stream must have given text");
            // The reply's text moves while it grows, perhaps behind the search: so more than one look.
            for _ in 0..5 {
                findings.alive.extend(search(&needles));
            }
            drop(stream);
        }
        "panic" => {
            let error = session.generate(canary().max_tokens(REPLY_TOKENS)).unwrap_err();
            assert!(matches!(error, Error::Poisoned(_)), "{error}");
            let again = session.generate(canary()).unwrap_err();
            assert!(matches!(again, Error::Poisoned(_)), "{again}");
        }
        "drop" => {
            let mut stream = session.stream(canary().max_tokens(60_000)).unwrap();
            assert!(stream.next().unwrap().is_ok());
            std::mem::forget(stream); // so that the request runs when the session drops
            drop(session);
            findings.dropped = search(&needles);
            return findings;
        }
        "choices" => {
            let reply = session.generate(canary().max_tokens(REPLY_TOKENS).temperature(0.9).n(3)).unwrap();
            assert_eq!(reply.choices().len(), 3);
        }
        "preempted" => {
            let others = (0..6).map(|i| Request::tokens(vec![i; 40]).max_tokens(60));
            let requests = std::iter::once(canary().max_tokens(REPLY_TOKENS)).chain(others);
            assert_eq!(session.generate_batch(requests).unwrap().len(), 7);
            assert!(session.load().preemptions > 0, "nobody gave way");
        }
        "conversation" => {
            let mut conversation = session.conversation();
            conversation.generate(canary().max_tokens(REPLY_TOKENS)).unwrap();
            let reply = conversation.generate(canary().max_tokens(REPLY_TOKENS)).unwrap();
            assert!(reply.usage.cached_tokens > 0);
            findings.alive = search(&needles);
            drop(reply);
            drop(conversation);
        }
        "speculative" => {
            let speculation = Speculation::PromptLookup { ngram: 2, tokens: 4 };
            let reply = session.generate(canary().max_tokens(REPLY_TOKENS).speculate(speculation)).unwrap();
            assert!(reply.usage.drafted_tokens > 0);
        }
        "draft" => {
            let speculation = Speculation::Draft { tokens: 3 };
            let reply = session.generate(canary().max_tokens(REPLY_TOKENS).speculate(speculation)).unwrap();
            assert!(reply.usage.accepted_tokens > 20, "the draft is the model itself");
        }
        // the grammar holds the words, and so does the reply
        "structured" => {
            let mut words = String::with_capacity(64);
            PROMPT[12..42].iter().for_each(|&byte| words.push(char::from(!byte)));
            let request = canary().response_format(ResponseFormat::regex(words));
            let reply = session.generate(request.max_tokens(REPLY_TOKENS)).unwrap();
            assert_eq!((reply.text().len(), reply.finish_reason()), (30, FinishReason::Stop));
        }
        "interrupted" => {
            let token = CancelToken::new();
            let mut stream = session.stream(canary().max_tokens(60_000).cancel_token(&token)).unwrap();
            assert!(stream.next().unwrap().is_ok());
            token.cancel();
            assert_eq!(stream.finish().unwrap().finish_reason(), FinishReason::Cancelled);
        }
        other => panic!("no scenario {other}"),
    }
    findings.after = search(&needles);
    match session.close() {
        Ok(report) => assert!(report.verified_bytes() > 0 && report.requests() > 0, "{report}"),
        Err(error) => {
            assert_eq!(scenario, "no-op scrub", "{error}");
            assert!(matches!(error, Error::Poisoned(PoisonReason::ScrubFailed)), "{error}");
        }
    }
    findings.dropped = search(&needles);
    findings
}

/// The reply must be the one that the needles were made from, else nothing that follows means anything.
fn run_to_the_end(session: &Session, needles: &[Needle]) -> Reply {
    let reply = session.generate(canary().max_tokens(REPLY_TOKENS)).unwrap();
    let ids = needles.iter().find(|needle| needle.name == "reply ids u32").unwrap();
    let words = ids.inverted.as_chunks::<4>().0.iter().map(|word| !u32::from_le_bytes(*word));
    assert!(words.eq(reply.tokens()[..12].iter().copied()), "the child's reply differs from its parent's");
    reply
}

/// Runs the canary request once to learn what it gives.
fn learn(folder: &Path, recipe: &Recipe) -> Vec<Needle> {
    let prompt: String = PROMPT.iter().map(|&byte| char::from(!byte)).collect();
    let ids = testing::Tokenizer::open(folder, VOCAB).unwrap().encode(&prompt, true);
    let tap = LogitsTap::default();
    let session = open(folder).open().unwrap();
    let reply = session.generate(canary().max_tokens(REPLY_TOKENS).tap_logits(&tap)).unwrap();
    let rows = Rows::new(recipe, session.device());
    let u32s = |ids: &[u32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>();
    let i64s = |ids: &[u32]| ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect::<Vec<_>>();
    let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let logits = tap.values();
    let (first, last) = (&logits[..VOCAB], &logits[logits.len() - VOCAB..]);
    // the sampler's keys of the likeliest tokens: logits made monotonous and inverted, above the token id
    let rising = |logit: f32| if logit < 0.0 { !logit.to_bits() } else { logit.to_bits() | 1 << 31 };
    let mut keys: Vec<u64> = (0..VOCAB).map(|id| u64::from(!rising(first[id])) << 32 | id as u64).collect();
    keys.sort_unstable();
    let keys = keys[..8].iter().flat_map(|key| key.to_le_bytes()).collect::<Vec<_>>();
    let text = reply.text().as_bytes();
    let distinct = reply.tokens()[..12].iter().collect::<std::collections::HashSet<_>>().len();
    assert!(
        distinct > 6 && text.len() > 24,
        "the reply is no canary: {distinct} tokens, {} bytes",
        text.len()
    );
    let (here, there) = (9, ids.len() + 3);
    vec![
        Needle::exact("text: prompt", prompt[12..40].bytes()),
        Needle::exact("text: one word", prompt[56..69].bytes()),
        Needle::exact("text: another word", prompt[20..30].bytes()),
        Needle::exact("reply text", text[..text.len().min(24)].iter().copied()),
        Needle::exact("prompt ids u32", u32s(&ids[2..14])),
        Needle::exact("prompt ids i64", i64s(&ids[2..14])),
        Needle::exact("reply ids u32", u32s(&reply.tokens()[..12])),
        Needle::exact("reply ids i64", i64s(&reply.tokens()[..12])),
        Needle::exact("embedding row", f32s(&rows.embedding(ids[here])[..16])),
        Needle::near("K row of the prompt", &rows.k(ids[here], here), K_IN_CACHE),
        Needle::near("V row of the prompt", &rows.v(ids[here])[..16], V_IN_CACHE),
        Needle::near("K row of the reply", &rows.k(reply.tokens()[3], there), K_IN_CACHE),
        Needle::near("V row of the reply", &rows.v(reply.tokens()[3])[..16], V_IN_CACHE),
        rows.query("query row in scratch", reply.tokens()[REPLY_TOKENS - 2], ids.len() + REPLY_TOKENS - 2),
        Needle::exact("logits", f32s(&last[..16])),
        Needle::exact("logits of the prompt", f32s(&first[..16])),
        Needle::exact("sampler keys", keys),
    ]
}

/// Rows of the first layer, recomputed from the weights alone.
struct Rows<'a> {
    recipe: &'a Recipe,
    /// Whether the device multiplies bf16 by bf16: then what enters a product is rounded.
    bf16: bool,
}

impl<'a> Rows<'a> {
    fn new(recipe: &'a Recipe, device: &str) -> Self {
        Self { recipe, bf16: device.contains("bf16") || device.contains("amx") }
    }

    fn matrix(&self, name: &str) -> Vec<f64> {
        let shape = self.recipe.shapes().into_iter().find(|(other, _)| other == name).unwrap().1;
        self.recipe.values(name, &shape).into_iter().map(f64::from).collect()
    }

    fn embedding(&self, id: u32) -> Vec<f32> {
        let hidden = self.recipe.size("hidden_size");
        let table = self.matrix("model.embed_tokens.weight");
        table[id as usize * hidden..][..hidden].iter().map(|&value| value as f32).collect()
    }

    /// One head of a projection of the normed embedding.
    fn head(&self, projection: &str, index: usize, id: u32) -> Vec<f64> {
        let (hidden, dim) = (self.recipe.size("hidden_size"), self.recipe.size("head_dim"));
        let x: Vec<f64> = self.embedding(id).into_iter().map(f64::from).collect();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
        let norm = self.matrix("model.layers.0.input_layernorm.weight");
        let entering = |x: f64| if self.bf16 { half::bf16::from_f64(x).to_f64() } else { x };
        let normed: Vec<f64> =
            x.iter().zip(norm).map(|(x, norm)| entering(x / (mean + 1e-5).sqrt() * norm)).collect();
        let weight = self.matrix(&format!("model.layers.0.self_attn.{projection}.weight"));
        let row = |row: usize| weight[row * hidden..][..hidden].iter().zip(&normed).map(|(w, x)| w * x).sum();
        (index * dim..(index + 1) * dim).map(row).collect()
    }

    fn v(&self, id: u32) -> Vec<f64> {
        self.head("v_proj", 1, id)
    }

    fn k(&self, id: u32, position: usize) -> Vec<f64> {
        self.turned(self.head("k_proj", 1, id), position)
    }

    /// The last head's query, as an operand of the scores.
    fn query(&self, name: &str, id: u32, position: usize) -> Needle {
        let heads = self.recipe.size("num_attention_heads");
        let query = self.turned(self.head("q_proj", heads - 1, id), position);
        match self.bf16 {
            true => Needle::near(name, &query, (2 * query.len(), 2 * query.len())),
            // the upper halves of f32, which are cut off and not rounded: off by one at most
            false => Needle::near(name, &query, (2, 4)),
        }
    }

    fn turned(&self, row: Vec<f64>, position: usize) -> Vec<f64> {
        let dim = self.recipe.size("head_dim");
        let angle = |i: usize| position as f64 * 10_000_f64.powf(-2.0 * (i % (dim / 2)) as f64 / dim as f64);
        let other = |i: usize| if i < dim / 2 { -row[i + dim / 2] } else { row[i - dim / 2] };
        (0..dim).map(|i| row[i] * angle(i).cos() + other(i) * angle(i).sin()).collect()
    }
}

/// The whole test: all scenarios, each in a process of its own. `with_allocator` says whether this program frees
/// through `amnesic::alloc::Scrubbing`; only then are the tokenizer's copies of the text covered.
pub fn main(with_allocator: bool) {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, scenario, folder] = &arguments[..]
        && flag == "--child"
    {
        println!("{}", serde_json::to_string(&child(scenario, Path::new(folder))).unwrap());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe();
    recipe.write(folder.path(), Some("byte_level"));
    let needles = learn(folder.path(), &recipe);
    std::fs::write(folder.path().join("needles.json"), serde_json::to_vec(&needles).unwrap()).unwrap();

    let scenarios = [
        "success",
        "one sampled token",
        "batch",
        "error: context",
        "error: in batch",
        "cancelled",
        "panic",
        "drop",
        "choices",
        "preempted",
        "conversation",
        "speculative",
        "draft",
        "structured",
        "interrupted",
        "no-op scrub",
    ];
    println!("\nrunning {} tests", scenarios.len());
    let mut failed = 0;
    for scenario in scenarios {
        let findings = run(scenario, folder.path());
        let complaint = judge(scenario, &findings, with_allocator);
        println!("test forensics: {scenario} ... {}", if complaint.is_none() { "ok" } else { "FAILED" });
        if let Some(complaint) = complaint {
            failed += 1;
            println!("    {complaint}");
        }
    }
    let (passed, verdict) = (scenarios.len() - failed, if failed == 0 { "ok" } else { "FAILED" });
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n"
    );
    std::process::exit(i32::from(failed > 0));
}

fn run(scenario: &str, folder: &Path) -> Findings {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).args(["--child", scenario]).arg(folder).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scenario}: the child failed:\n{printed}");
    // The panic message is on stderr, and nothing of the request may be in it.
    assert!(!printed.contains("Quartzwick"), "{scenario}: content on stderr");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn judge(scenario: &str, findings: &Findings, with_allocator: bool) -> Option<String> {
    let covered = |names: &[String]| -> Vec<String> {
        names.iter().filter(|name| with_allocator || !name.starts_with("text:")).cloned().collect()
    };
    let left = [covered(&findings.after), covered(&findings.dropped)].concat();
    if scenario == "no-op scrub" {
        // of freed heap blocks the allocator itself may have reused some: the prompt's ids are not asked for
        let wanted =
            ["reply ids u32", "K row of the prompt", "V row of the reply", "query row in scratch", "logits"];
        let missed: Vec<_> =
            wanted.iter().filter(|name| !findings.after.iter().any(|found| found == *name)).collect();
        return (!missed.is_empty())
            .then(|| format!("a build that does not scrub would pass for {missed:?}"));
    }
    if !left.is_empty() {
        return Some(format!(
            "left in memory: after the end {:?}, after the drop {:?}",
            findings.after, findings.dropped
        ));
    }
    if scenario == "conversation" {
        let wanted = ["prompt ids u32", "K row of the prompt", "V row of the prompt", "V row of the reply"];
        let missed: Vec<_> =
            wanted.iter().filter(|name| !findings.alive.iter().any(|found| found == *name)).collect();
        return (!missed.is_empty()).then(|| format!("the conversation kept nothing: {missed:?}"));
    }
    if scenario == "cancelled" {
        let wanted =
            ["prompt ids u32", "reply ids u32", "reply text", "K row of the prompt", "V row of the reply"];
        let missed: Vec<_> =
            wanted.iter().filter(|name| !findings.alive.iter().any(|found| found == *name)).collect();
        return (!missed.is_empty()).then(|| format!("the search misses what is there: {missed:?}"));
    }
    None
}
