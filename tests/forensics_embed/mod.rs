//! Scenes of requests for embeddings and scores, each in a process of its own that searches all of its memory.
//!
//! Lives here: what happens in a scene, its canary, what a child tells. Never will: what may be found.

#[path = "../forensics/stacks.rs"]
mod stacks;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use amnesic::forensics::{Findings, Needles, Tolerance};
use amnesic::testing::Tokenizer;
use amnesic::{Builder, CancelToken, EmbedRequest, Error, RerankRequest, Session};
use serde::{Deserialize, Serialize};

use crate::common::fixture;

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

/// What happens in a child process, after which nothing is to be found.
pub const SCENES: [&str; 9] = [
    "embed",
    "hidden states",
    "in many steps",
    "rerank",
    "no text",
    "too long",
    "late",
    "cancelled",
    "panic",
];

/// A scene in which the application holds a request and what came of one: both are to be found.
pub const HELD: &str = "held";

/// A scene of a build with faults: nothing is overwritten, so all is to be found.
pub const NO_OP_SCRUB: &str = "no-op scrub";

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
        "embed" | "in many steps" => assert_eq!(session.embed_with(texts()).unwrap().len(), 3),
        NO_OP_SCRUB => drop(session.embed_with(texts())), // memory that is not zero when it is read back poisons
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

/// If this process is a child: does its work, and is over. Arguments: `--scene SCENE NEEDLES`, and in a build with faults
/// perhaps `list` or the call of the scrub, `file:line:column`, that is to be left out.
pub fn is_child() -> bool {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("--scene") {
        return false;
    }
    let (scene, needles) = (arguments.next().unwrap(), arguments.next().unwrap());
    child(&scene, needles.as_ref(), arguments.next().as_deref());
    true
}

#[cfg(amnesic_faults)]
fn set_faults(scene: &str, mode: Option<&str>) {
    match mode {
        Some("list") => amnesic::faults::watch_scrubs(),
        Some(place) => amnesic::faults::leave_out_scrub(place),
        None if scene == NO_OP_SCRUB => amnesic::faults::disable_scrub(),
        None => {}
    }
}

#[cfg(amnesic_faults)]
use amnesic::faults::scrubs_seen;

#[cfg(not(amnesic_faults))]
fn set_faults(scene: &str, mode: Option<&str>) {
    assert!(mode.is_none() && scene != NO_OP_SCRUB, "this build has no faults to ask for");
}

#[cfg(not(amnesic_faults))]
fn scrubs_seen() -> BTreeSet<String> {
    BTreeSet::new()
}

fn child(scene: &str, needles: &Path, mode: Option<&str>) {
    let needles = serde_json::from_slice::<Needles>(&std::fs::read(needles).unwrap()).unwrap().prepare();
    set_faults(scene, mode);
    let session = builder(scene).open().unwrap();
    let held = (scene == HELD).then(|| (texts(), session.embed_with(texts()).unwrap()));
    if held.is_none() {
        act(scene, &session);
    }
    let open = needles.search_self().unwrap();
    drop(held);
    let dirty = stacks::dirty(); // it takes memory, perhaps some that was freed a moment ago
    let _ = session.close(); // a session without its scrub finds out
    let closed = needles.search_self().unwrap();
    let told = Told { findings: open.and(closed), dirty, calls: scrubs_seen() };
    println!("{}", serde_json::to_string(&told).unwrap());
}

/// What a child says.
#[derive(Serialize, Deserialize)]
pub struct Told {
    pub findings: Findings,
    /// Threads of the session that wait on stacks which are not clean.
    pub dirty: Vec<String>,
    /// Calls of the scrub, where they were to be listed.
    pub calls: BTreeSet<String>,
}

/// Runs a scene in a process of its own.
pub fn run(scene: &str, mode: Option<&str>, folder: &Path) -> Told {
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
