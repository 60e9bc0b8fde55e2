//! What earlier requests leave that a later one of another tenant could see: in texts that the tokenizer saw, their script,
//! grammars that were compiled, adapters that were used.

use std::sync::Mutex;
use std::time::Instant;

use amnesic::{Builder, Request, ResponseFormat, Session, user};

use super::common::{Random, Recipe, fixture};
use super::{assert_told, assert_untold, distances};

const VOCAB: usize = 1024;

/// A small checkpoint with a tokenizer whose words are split by a pattern of letters of all scripts.
fn checkpoint() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Recipe::small(VOCAB).write(folder.path(), Some("llama3_style"));
    folder
}

fn builder(folder: &tempfile::TempDir) -> Builder {
    Session::builder(folder.path()).threads(1)
}

const LATIN: &str = "abcdefghijklmnopqrstuvwxyz";
const GEORGIAN: &str = "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ";
const THAI: &str = "กขคงจฉชซญดตถทนบปผฝพฟมยรลวสหอ";

/// Random words in an alphabet.
fn words(random: &mut Random, alphabet: &str, count: usize) -> String {
    let letters: Vec<char> = alphabet.chars().collect();
    let mut word = || -> String { (0..4).map(|_| letters[random.below(letters.len())]).collect() };
    (0..count).map(|_| word()).collect::<Vec<_>>().join(" ")
}

/// Puts something else into the processor's caches. What they hold is no library's to forget (SECURITY.md, "Not
/// guaranteed"), and what was read just now is faster.
fn sweep_caches() {
    static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    let mut lines = LINES.lock().unwrap();
    lines.resize(16 << 20, 0);
    lines.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
    std::hint::black_box(&mut lines[..]);
}

/// Seconds until the only token of a request.
fn seconds(session: &Session, request: Request) -> f64 {
    sweep_caches();
    let began = Instant::now();
    session.generate(request.max_tokens(1)).unwrap();
    began.elapsed().as_secs_f64()
}

/// Opens a session and measures the seconds until the first or the fifth token of a request, which comes after another tenant's
/// request of its kind (where that was `used`) or a plain one.
///
/// Code that the processor ran just now is faster, whoever ran it: its branches are predicted, and its instructions are in a
/// cache that no reading of data sweeps. So `elsewhere`, a session of the same process, does five times what is measured, in
/// either case: what is told then is what the session itself keeps.
fn seconds_of_first(
    folder: &tempfile::TempDir,
    elsewhere: &Session,
    (used, tokens): (bool, usize),
    first: impl Fn() -> Request,
) -> f64 {
    let session = builder(folder).open().unwrap();
    let before = if used { first() } else { Request::prompt("abc") };
    session.generate(before.ignore_eos(true).max_tokens(tokens)).unwrap();
    let request = || first().ignore_eos(true).max_tokens(tokens);
    for _ in 0..5 {
        elsewhere.generate(request()).unwrap();
    }
    sweep_caches();
    let began = Instant::now();
    session.generate(request()).unwrap();
    began.elapsed().as_secs_f64()
}

const SEEN: [&str; 1] = ["time to the first token"];

#[test]
fn texts_that_another_tenant_sent_do_not_show() {
    let folder = checkpoint();
    let session = builder(&folder).open().unwrap();
    let random = &mut Random(81);
    let apart = distances("texts sent before, two tenants", SEEN, random, |random, sent| {
        let known = words(random, LATIN, 20);
        session.generate(Request::prompt(known.as_str()).max_tokens(1)).unwrap();
        let asked = if sent { known } else { words(random, LATIN, 20) };
        [seconds(&session, Request::prompt(asked))]
    });
    assert_untold(apart);
    let within = distances("texts sent before, one conversation", SEEN, random, |random, sent| {
        let known = words(random, LATIN, 60);
        let mut conversation = session.conversation();
        conversation.generate(Request::prompt(known.as_str()).max_tokens(1)).unwrap();
        let began = Instant::now();
        let next = match sent {
            true => conversation.generate(Request::prompt(" and").max_tokens(1)),
            false => session.generate(Request::prompt(known).max_tokens(1)),
        };
        assert_eq!(next.unwrap().usage.cached_tokens > 0, sent);
        [began.elapsed().as_secs_f64()]
    });
    assert_told(within);
}

#[test]
fn the_script_of_another_tenants_prompt_does_not_show() {
    let folder = checkpoint();
    let session = builder(&folder).open().unwrap();
    let random = &mut Random(82);
    for (script, alphabet) in [("Georgian", GEORGIAN), ("Thai", THAI)] {
        let channel = format!("{script} or Latin before, two tenants");
        let apart = distances(&channel, SEEN, random, |random, other| {
            let before = words(random, if other { alphabet } else { LATIN }, 20);
            session.generate(Request::prompt(before).max_tokens(1)).unwrap();
            [seconds(&session, Request::prompt(words(random, alphabet, 20)))]
        });
        assert_untold(apart);
    }
    let own = distances("script of the own prompt", SEEN, random, |random, other| {
        [seconds(&session, Request::prompt(words(random, if other { GEORGIAN } else { LATIN }, 30)))]
    });
    assert_told(own);
}

/// The mask of the first token is there when the grammar is compiled; the later ones are made by other threads.
#[test]
fn the_first_grammar_of_a_session_does_not_show() {
    let folder = checkpoint();
    let random = &mut Random(83);
    let elsewhere = builder(&folder).open().unwrap();
    let first = || Request::prompt("abc").response_format(ResponseFormat::regex("[a-z]{9,90}"));
    for (tokens, seen) in [(1, SEEN), (5, ["time to the fifth token"])] {
        let apart = distances("first grammar of the session, two tenants", seen, random, |_, used| {
            [seconds_of_first(&folder, &elsewhere, (used, tokens), first)]
        });
        assert_untold(apart);
    }
}

/// A template as long as the longest that are published: what it teaches is read when the session opens.
#[test]
fn the_first_chat_of_a_session_does_not_show() {
    let folder = checkpoint();
    let unused =
        "{%- if messages[0].content == 'x' and tools is not none %}{{ messages[0].role ~ 'y' }}{%- endif %}";
    let template = format!("{}{{{{ messages[0].content }}}}", unused.repeat(200));
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let random = &mut Random(86);
    let elsewhere = builder(&folder).open().unwrap();
    let apart = distances("first chat of the session, two tenants", SEEN, random, |_, used| {
        [seconds_of_first(&folder, &elsewhere, (used, 1), || Request::chat([user("abc")]))]
    });
    assert_untold(apart);
}

#[test]
fn grammars_that_another_tenant_used_do_not_show() {
    let folder = checkpoint();
    let session = builder(&folder).open().unwrap();
    let random = &mut Random(84);
    let apart = distances("the same grammar before, two tenants", SEEN, random, |random, used| {
        let mine = words(random, LATIN, 3);
        let other = if used { mine.clone() } else { words(random, LATIN, 3) };
        let request =
            |text: &str| Request::prompt("abc").response_format(ResponseFormat::regex(format!("({text})+")));
        session.generate(request(&other).max_tokens(1)).unwrap();
        [seconds(&session, request(&mine))]
    });
    assert_untold(apart);
    let own = distances("a grammar of one's own", SEEN, random, |_, used| {
        let request = Request::prompt("abc");
        [seconds(
            &session,
            if used { request.response_format(ResponseFormat::json_object()) } else { request },
        )]
    });
    assert_told(own);
}

#[test]
fn adapters_that_another_tenant_used_do_not_show() {
    let folder = fixture("adapters/qwen3");
    let builder = Session::builder(fixture("families/qwen3")).context_length(128).kv_tokens(1024).threads(1);
    let session =
        builder.adapter("all", folder.join("all")).adapter("some", folder.join("some")).open().unwrap();
    let random = &mut Random(85);
    let vocab = session.vocab_size();
    let request = |random: &mut Random| {
        Request::tokens((0..48).map(|_| random.below(vocab) as u32).collect::<Vec<_>>())
    };
    let apart = distances("the same adapter before, two tenants", SEEN, random, |random, used| {
        let before = request(random).adapter(if used { "all" } else { "some" });
        session.generate(before.max_tokens(1)).unwrap();
        [seconds(&session, request(random).adapter("all"))]
    });
    assert_untold(apart);
    let own = distances("an adapter of one's own", SEEN, random, |random, used| {
        let asked = request(random);
        [seconds(&session, if used { asked.adapter("all") } else { asked })]
    });
    println!("| an adapter of one's own | whether it is told | {} |", own[0] >= super::DETECTED);
}
