//! Ten thousand short requests of all kinds from several threads, many of them cancelled: in the end nothing runs,
//! nothing is held, memory has not grown, and no word of them is left in the process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use amnesic::forensics::Needles;
use amnesic::{CancelToken, Error, Priority, Public, Request, ResponseFormat, Session, Speculation};

use crate::common::{Random, Recipe, in_a_process_of_its_own};

const VOCAB: usize = 704;
const REQUESTS: usize = 10_000;
const THREADS: usize = 6;

/// In every prompt, inverted so that the program itself does not hold it.
const CANARY: [u8; 20] = [
    !b'Z', !b'e', !b'b', !b'u', !b'l', !b'o', !b'n', !b' ', !b'Q', !b'u', !b'a', !b'r', !b't', !b'z', !b'w',
    !b'i', !b'c', !b'k', !b' ', !b'7',
];

fn request(random: &mut Random, public: &Public) -> Request {
    let mut text = String::with_capacity(128);
    CANARY.iter().for_each(|&byte| text.push(char::from(!byte)));
    (0..random.below(60)).for_each(|_| text.push(char::from(b'a' + random.below(26) as u8)));
    // one tenant's, or none would guess beside others
    let mut request = Request::prompt(text).max_tokens(1 + random.below(12)).temperature(1.0).tenant("soak");
    if random.below(20) == 0 {
        request = request.max_tokens(120);
    }
    request = match random.below(9) {
        0 => request.n(2 + random.below(3)),
        1 => request.top_p(0.9).stop("e"),
        2 => request.repetition_penalty(1.2).logprobs(2),
        3 => request.speculate(Speculation::PromptLookup { ngram: 2, tokens: 3 }),
        4 => request.shares(public),
        5 => request.priority(Priority::Low).timeout(Duration::from_millis(random.below(30) as u64)),
        6 if random.below(10) == 0 => request.response_format(ResponseFormat::regex("[a-z ]{1,8}")),
        _ => request,
    };
    request
}

/// One request, in one of the ways that callers have. Ends that somebody asked for are no failures.
fn serve(session: &Session, random: &mut Random, public: &Public) -> Result<(), Error> {
    let request = request(random, public);
    match random.below(8) {
        0 => {
            let mut stream = session.stream(request.stream_buffer(1 + random.below(4)))?;
            for piece in stream.by_ref().take(random.below(4)) {
                piece?;
            }
            // dropped, most often before its end
        }
        1 => {
            let token = CancelToken::new();
            let stream = session.stream(request.cancel_token(&token))?;
            std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
            token.cancel();
            stream.finish()?;
        }
        2 => {
            let mut conversation = session.conversation();
            match conversation.generate(request) {
                Err(Error::Request { field: "shares", .. }) => return Ok(()), // a conversation shares nothing
                first => drop(first?),
            }
            conversation.generate(Request::prompt("and then").max_tokens(3))?;
        }
        3 => {
            let wrong = session.generate(request.logit_bias(VOCAB as u32, 1.0));
            assert!(matches!(wrong, Err(Error::Request { field: "logit_bias", .. })));
        }
        _ => drop(session.generate(request)?),
    }
    Ok(())
}

#[test]
fn ten_thousand_requests_leave_nothing() {
    in_a_process_of_its_own(module_path!(), "ten_thousand_requests_leave_nothing", ten_thousand_requests);
}

fn ten_thousand_requests() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["tie_word_embeddings"] = false.into();
    recipe.write(folder.path(), Some("byte_level"));
    let session = Session::builder(folder.path())
        .threads(2)
        .context_length(320)
        .kv_tokens(640)
        .max_sequences(8)
        .step_tokens(48)
        .open()
        .unwrap();
    let public = session.publish(Request::prompt("x".repeat(300))).unwrap();
    let (served, warm) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (session, public, served, warm) = (&session, &public, &served, &warm);
            scope.spawn(move || {
                let mut random = Random(thread as u64 * 7919 + 1);
                while let count = served.fetch_add(1, Ordering::Relaxed)
                    && count < REQUESTS
                {
                    if count == REQUESTS / 4 {
                        warm.store(crate::common::resident(), Ordering::Relaxed);
                    }
                    serve(session, &mut random, public).unwrap();
                }
            });
        }
    });
    drop(public);
    session.generate(Request::tokens([1]).max_tokens(1)).unwrap(); // all that was sent before it is done
    let load = session.load();
    assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0));
    assert!(load.preemptions > 50, "memory was hardly ever short: {load:?}");
    let grown = crate::common::resident().saturating_sub(warm.into_inner());
    assert!(grown < 4 << 20, "{grown} bytes more than after the first quarter");
    let mut word = String::with_capacity(CANARY.len());
    CANARY[..18].iter().for_each(|&byte| word.push(char::from(!byte)));
    let needles = Needles::new().text("canary", &word);
    drop(word); // the allocator overwrites it
    let findings = needles.search_self().unwrap();
    assert!(findings.is_empty(), "a word of some prompt is left: {findings}");
    let report = session.close().unwrap();
    assert!(report.requests() > REQUESTS as u64 && report.verified_bytes() > 0, "{report}");
    // the search finds what is there
    let left: Vec<u8> = CANARY.iter().map(|&byte| !byte).collect();
    assert!(needles.search_self().unwrap().has("canary (UTF-8)"), "{}", left.len());
}
