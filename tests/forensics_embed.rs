//! What requests for embeddings and scores leave in memory: nothing, with `amnesic::alloc::Scrubbing` installed; and a
//! search that is told to find what is there finds it.

mod common;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use amnesic::testing::Tokenizer;
use amnesic::testing::forensics::{Findings, Needles, Tolerance};
use amnesic::{Builder, CancelToken, EmbedRequest, Error, RerankRequest, Session, testing};
use common::fixture;

#[global_allocator]
static ALLOCATOR: amnesic::alloc::Scrubbing = amnesic::alloc::Scrubbing;

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
const SCENES: [(&str, bool); 9] = [
    ("embed", false),
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

fn child(scene: &str, needles: &Path) {
    let needles = serde_json::from_slice::<Needles>(&std::fs::read(needles).unwrap()).unwrap().prepare();
    if scene == "no-op scrub" {
        testing::disable_scrub();
    }
    let session = builder(scene).open().unwrap();
    act(scene, &session);
    let open = needles.search_self().unwrap();
    let _ = session.close(); // a session without its scrub finds out
    let closed = needles.search_self().unwrap();
    println!("{}", serde_json::to_string(&open.and(closed)).unwrap());
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
        child(&scene, needles.as_ref());
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut failed = 0;
    for (scene, there) in SCENES {
        let file = folder.path().join("needles.json");
        let needles = needles(scene);
        std::fs::write(&file, serde_json::to_vec(&needles).unwrap()).unwrap();
        let exe = std::env::current_exe().unwrap();
        let child = Command::new(exe).args(["--scene", scene]).arg(&file).output().unwrap();
        let told = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{scene}: the child failed: {told}");
        let findings: Findings = serde_json::from_slice(&child.stdout).unwrap();
        let logged = needles.search_bytes(&child.stderr);
        let good = if there { findings.has("ids") && findings.has("embedding") } else { findings.is_empty() };
        let good = good && logged.is_empty();
        println!("{} {scene}: {findings}", if good { "ok    " } else { "FAILED" });
        failed += usize::from(!good);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
