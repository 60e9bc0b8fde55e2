//! What requests for embeddings and scores leave in memory: nothing, with `amnesic::alloc::Scrubbing` installed; and a
//! search that is told to find what is there finds it.

mod common;
#[path = "forensics/stacks.rs"]
mod stacks;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use amnesic::testing::Tokenizer;
use amnesic::testing::forensics::{Findings, Needles, Tolerance};
use amnesic::{Builder, CancelToken, EmbedRequest, Error, RerankRequest, Session, testing};
use common::fixture;
use serde::{Deserialize, Serialize};

amnesic::install_scrubbing_allocator!();

/// No plain copy of it may be in the program itself: each byte is inverted at compile time.
const CANARY: [u8; 58] = {
    let mut bytes = *b"zebulon quartzwick says the vault opens by jackdaw moonlig";
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = !bytes[i];
        i += 1;
    }
    bytes
};

fn canary() -> String {
    let mut text = String::with_capacity(CANARY.len()); // does not move while it grows
    CANARY.iter().for_each(|byte| text.push(char::from(!byte)));
    text
}

/// A request whose texts were canaries only before it was made.
fn texts() -> EmbedRequest {
    let canary = canary();
    EmbedRequest::new([canary.as_str(), &canary[3..], &canary[..20]])
}

fn pairs() -> RerankRequest {
    let canary = canary();
    RerankRequest::new(&canary, ["a", &canary[3..], "b"])
}

/// What happens in a child process, and whether its canary is then to be found.
const SCENES: [(&str, bool); 10] = [
    ("embed", false),
    ("hidden states", false),
    ("in many steps", false),
    ("rerank", false),
    ("no text", false),
    ("too long", false),
    ("late", false),
    ("cancelled", false),
    ("panic", false),
    ("no-op scrub", true),
];

fn builder(scene: &str) -> Builder {
    let name = if scene == "rerank" { "roberta_scores" } else { "roberta" };
    let builder = Session::builder(fixture(&format!("encoders/{name}"))).threads(2);
    match scene {
        "panic" => builder.panic_in_step(1),
        "in many steps" => builder.step_tokens(1),
        _ => builder,
    }
}

fn act(scene: &str, session: &Session) {
    match scene {
        "embed" | "in many steps" | "no-op scrub" => {
            let done = session.embed_with(texts());
            // memory that is not zero when it is read back poisons
            assert!(scene == "no-op scrub" || done.unwrap().len() == 3);
        }
        "hidden states" => assert_eq!(session.hidden_states(texts()).unwrap().len(), 3),
        "rerank" => assert_eq!(session.rerank_with(pairs()).unwrap().scores().len(), 3),
        "no text" => {
            let error = session.embed_with(texts().prompt_name(canary())).unwrap_err();
            assert!(matches!(error, Error::Request { field: "prompt_name", .. }), "{error}");
        }
        "too long" => {
            let long = EmbedRequest::new([canary().repeat(9)]).refuse_long_texts();
            assert!(matches!(session.embed_with(long), Err(Error::InBatch { index: 0, .. })));
        }
        "late" => {
            let error = session.embed_with(texts().timeout(Duration::ZERO)).unwrap_err();
            assert!(matches!(error, Error::Interrupted { .. }), "{error}");
        }
        "cancelled" => {
            let (token, canary) = (CancelToken::new(), canary());
            let request = EmbedRequest::new(std::iter::repeat_n(&canary, 5_000)).cancel_token(&token);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    token.cancel();
                });
                assert!(matches!(session.embed_with(request), Err(Error::Interrupted { .. })));
            });
        }
        "panic" => assert!(matches!(session.embed_with(texts()), Err(Error::Poisoned(_)))),
        _ => unreachable!("no scene {scene}"),
    }
}

fn child(scene: &str, needles: &Path, mode: Option<&str>) {
    let needles = serde_json::from_slice::<Needles>(&std::fs::read(needles).unwrap()).unwrap().prepare();
    match mode {
        Some("list") => testing::watch_scrubs(),
        Some(place) => testing::leave_out_scrub(place),
        None if scene == "no-op scrub" => testing::disable_scrub(),
        None => {}
    }
    let session = builder(scene).open().unwrap();
    act(scene, &session);
    let open = needles.search_self().unwrap();
    let dirty = stacks::dirty(); // it takes memory, perhaps some that was freed a moment ago
    let _ = session.close(); // a session without its scrub finds out
    let closed = needles.search_self().unwrap();
    let told = Told { findings: open.and(closed), dirty, calls: testing::scrubs_seen() };
    println!("{}", serde_json::to_string(&told).unwrap());
}

/// What a child says.
#[derive(Serialize, Deserialize)]
struct Told {
    findings: Findings,
    /// Threads of the session that wait on stacks which are not clean.
    dirty: Vec<String>,
    /// Calls of the scrub, where they were to be listed.
    calls: BTreeSet<String>,
}

/// Runs a scene in a process of its own.
fn run(scene: &str, mode: Option<&str>, folder: &Path) -> Told {
    let file = folder.join("needles.json");
    let needles = needles(scene);
    std::fs::write(&file, serde_json::to_vec(&needles).unwrap()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--scene", scene]).arg(&file).args(mode);
    let child = command.output().unwrap();
    let log = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{scene}: the child failed: {log}");
    assert!(needles.search_bytes(&child.stderr).is_empty(), "{scene}: its log holds content");
    serde_json::from_slice(&child.stdout).unwrap()
}

/// Calls that leave nothing to find here: file, text of the line, and who notices.
const UNSEEN: [(&str, &str, &str); 10] = [
    // texts are tokenized in secrets: what other crates allocate holds none
    (
        "src/alloc.rs",
        "heap::free(block, layout.size(), layout.align())",
        "the matrix: templates and grammars",
    ),
    // seen where the team took part, which it does not always in a step as small as this one
    ("src/backend/cpu/fast.rs", "let scrubbed = stack::scrub_below();", "the matrix"),
    // found as long as nobody takes the memory, so not always
    ("src/alloc.rs", "crate::memory::scrub::overwrite(bytes);", "the matrix"),
    ("src/backend/cpu/fast.rs", "self.memory.arena().scrub(scratch)", "src/model/tests.rs, and the matrix"),
    ("src/backend/cpu/memory.rs", "arena.scrub(kv.block(block))", "src/model/tests.rs, and the matrix"),
    ("src/memory/arena.rs", "self.scrub_all()", "as in tests/forensics_mutants.rs"),
    ("src/memory/secret.rs", "let _ = scrub(rest);", "as there"),
    ("src/memory/thread.rs", "Depth::Kernels => stack::scrub_below(),", "as there"),
    ("src/memory/thread.rs", "Depth::Parsers => stack::scrub_deep(),", "as there"),
    ("src/testing/forensics/search.rs", "let _ = scrub(&mut self.0);", "the search's own"),
];

/// Whether a call, `file:line:column`, is one of those.
fn is_unseen(call: &str) -> bool {
    let mut parts = call.split(':');
    let (file, line) = (parts.next().unwrap(), parts.next().unwrap().parse::<usize>().unwrap());
    let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let text = source.lines().nth(line - 1).unwrap();
    UNSEEN.iter().any(|(of, what, _)| *of == file && text.contains(what))
}

fn needles(scene: &str) -> Needles {
    let folder = fixture(if scene == "rerank" { "encoders/roberta_scores" } else { "encoders/roberta" });
    let ids = Tokenizer::open(&folder, 96).unwrap().encode(&canary(), true);
    let needles = Needles::new().text("text", &canary()).ids("ids", &ids);
    if scene == "rerank" {
        return needles;
    }
    let embeddings = Session::open(folder).unwrap().embed_with(texts()).unwrap();
    needles.row("embedding", &embeddings[0], Tolerance::Exact)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--scene") {
        let (scene, needles) = (arguments.next().unwrap(), arguments.next().unwrap());
        child(&scene, needles.as_ref(), arguments.next().as_deref());
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut failed = 0;
    for (scene, there) in SCENES {
        let Told { findings, dirty, .. } = run(scene, None, folder.path());
        let good = match there {
            true => findings.has("ids") && findings.has("embedding"),
            false => findings.is_empty() && dirty.is_empty(),
        };
        println!("{} {scene}: {findings}, {dirty:?}", if good { "ok    " } else { "FAILED" });
        failed += usize::from(!good);
    }
    // each call of the scrub is noticed when it is left out
    let calls = run("embed", Some("list"), folder.path()).calls;
    assert!(calls.len() > 9, "calls of the scrub: {calls:?}");
    for call in &calls {
        let Told { findings, dirty, .. } = run("embed", Some(call), folder.path());
        let noticed = !findings.is_empty() || !dirty.is_empty();
        println!("{} without {call}: {findings}, {dirty:?}", if noticed { "ok    " } else { "unseen" });
        failed += usize::from(!noticed && !is_unseen(call));
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
