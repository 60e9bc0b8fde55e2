//! A process of its own sends canaries through every field of a request, every error, a panic and every public type's
//! `Debug` and `Display`; its parent searches all that it printed, logged or told.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use amnesic::clock::Clock;
use amnesic::forensics::{Gate, Needles};
use amnesic::privacy::{Alias, Anthropic, Disclosure, Event, Prices, ThirdPartyRequest};
use amnesic::testing::{LogitsTap, Scorer, Tokenizer};
use amnesic::{
    Builder, CancelToken, ConstrainFrom, Dry, EmbedRequest, Error, Message, Priority, Reply, Request,
    RerankRequest, ResponseFormat, Role, SealingKey, Session, Speculation, Tool, ToolCall, ToolCallParser,
    assistant, system, tool, user,
};

use crate::common::{Recipe, fixture};
use crate::needles::{self, word};
use crate::recorder::Recorder;
use crate::types;

/// So large that ids have six digits, which no count, size or time here happens to have.
const VOCAB: usize = 150_000;
/// How many words `word` has given out.
const WORDS: usize = 40;
const FOLDER: &str = "AMNESIC_TELEMETRY_CHILD";
const CONTROL: &str = "AMNESIC_TELEMETRY_CONTROL";

/// What was printed, logged and said by panics in the child.
static PRINTED: Mutex<String> = Mutex::new(String::new());
static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// Ids of the fields that take ids.
fn ids(field: u32) -> Vec<u32> {
    (0..6).map(|index| 100_003 + 7919 * field + 641 * index).collect()
}

const PROMPT_IDS: u32 = 0;
const BIAS_IDS: u32 = 1;
const STOP_IDS: u32 = 2;

/// Goes on by a millisecond whenever it is asked, so that no time has digits by chance.
#[derive(Debug)]
struct Steps(Instant, AtomicU64);

impl Clock for Steps {
    fn now(&self) -> Instant {
        self.0 + Duration::from_millis(self.1.fetch_add(1, Ordering::SeqCst))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

struct Log;

/// All there is to hear, but what holds every character of a text: while anybody hears that, none is read.
static ALL: AtomicBool = AtomicBool::new(false);

impl log::Log for Log {
    fn enabled(&self, of: &log::Metadata<'_>) -> bool {
        !of.target().starts_with("tokenizers") || of.level() < log::Level::Trace || ALL.load(Ordering::SeqCst)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        print(&format!("log {} {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}

fn print(text: &str) {
    let mut printed = PRINTED.lock().unwrap();
    printed.push_str(text);
    printed.push('\n');
}

/// Types whose `Debug`, and whose `Display`, was printed.
static SHOWN: Mutex<[BTreeSet<String>; 2]> = Mutex::new([BTreeSet::new(), BTreeSet::new()]);

/// Remembers that a type was shown: `amnesic::request::Request`, without references and parameters.
fn note<T: ?Sized>(way: usize) {
    let name = std::any::type_name::<T>().trim_start_matches('&').split('<').next().unwrap();
    SHOWN.lock().unwrap()[way].insert(name.to_owned());
}

fn show<T: Debug>(value: &T) {
    note::<T>(0);
    print(&format!("{value:?}"));
    print(&format!("{value:#?}"));
}

fn show_error(error: &Error) {
    show(error);
    note::<Error>(1);
    print(&format!("{error} ({})", error.kind()));
    show_both(&error.kind());
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        print(&format!("{inner} {inner:?}"));
        source = inner.source();
    }
}

fn show_event(event: &Event) {
    show(event);
    match event {
        Event::Accepted(inner) => {
            show(inner);
            show(&inner.asked);
        }
        Event::Refused(inner) => show(inner),
        Event::FirstToken(inner) => show(inner),
        Event::Ended(inner) => show(inner),
        Event::Failed(inner) => show(inner),
        Event::SessionOpened(inner) => show(inner),
        Event::SessionClosed(inner) => show(inner),
        _ => {}
    }
}

fn show_both<T: Debug + Display>(value: &T) {
    show(value);
    note::<T>(1);
    print(&value.to_string());
}

fn listen() {
    let recorder = RECORDER.get_or_init(Recorder::default).clone();
    tracing::subscriber::set_global_default(recorder).unwrap();
    log::set_logger(&Log).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    // before it comes the one that the standard library has, which writes to stderr
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(&format!("panic {info}"));
        before(info);
    }));
}

const TEMPLATE: &str = "\
{%- for message in messages %}
{%- if message.role == 'developer' %}{{ raise_exception('no ' ~ message.content ~ mood) }}{% endif %}
{%- if message.role == 'system' and message.name %}{{ message.content.nothing(message.name) }}{% endif %}
{{- message.role }}: {{ message.content }}{{ message.tool_calls }}{{ mood }}\n
{%- endfor %}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}";

fn write_checkpoint(folder: &Path) {
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["num_hidden_layers"] = 1.into();
    recipe.config["max_position_embeddings"] = 4096.into();
    recipe.write(folder, Some("byte_level"));
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
}

fn builder(folder: &Path) -> Builder {
    let prices =
        Prices::new().prompt_token_nano(2).cached_token_nano(1).completion_token_nano(3).request_nano(5);
    Session::builder(folder)
        .threads(2)
        .kv_tokens(4096)
        .prices(prices)
        .model_name(Alias::new("canary-model").unwrap())
        .clock(Steps(Instant::now(), AtomicU64::new(0)))
        .on_event(|event| {
            show_event(event);
            print(&serde_json::to_string(event).unwrap());
        })
}

/// A request through whose every field goes something that must not come out.
type Ask = Box<dyn Fn() -> Request>;

/// Requests that are right. `seed` is a number that may be told, so it is the same everywhere.
fn right() -> Vec<Ask> {
    let short = |request: Request| request.max_tokens(2).seed(7);
    let weather = || {
        let parameters = serde_json::json!({
            "type": "object", "properties": { word(3): { "enum": [word(4)] } }, "description": word(5),
        });
        Tool::new(word(6), word(7), parameters)
    };
    let messages = || {
        let call = || ToolCall::new(word(8), word(9), format!("{{\"{}\": \"{}\"}}", word(10), word(11)));
        [
            system(word(12)),
            user(word(13)).with_name(word(14)),
            assistant(word(15)).with_reasoning(word(16)).with_tool_calls(vec![call()]),
            tool(word(8), word(17)),
            user(word(18)),
        ]
    };
    vec![
        Box::new(move || short(Request::prompt(word(0)).stop(word(1)).stop(word(2)))),
        Box::new(move || {
            let biased = ids(BIAS_IDS)
                .into_iter()
                .fold(Request::tokens(ids(PROMPT_IDS)), |request, id| request.logit_bias(id, 1.25));
            let stops = ids(STOP_IDS).into_iter().fold(biased, Request::stop_token);
            short(stops.temperature(1.0).logprobs(3).prompt_logprobs(3))
        }),
        Box::new(move || short(Request::chat(messages()).tools([weather()]))),
        Box::new(move || {
            let chat = Request::chat([user(word(18))]);
            short(chat.template_variable("mood", word(19)).template_variable(word(20), 1))
        }),
        Box::new(move || short(Request::prompt(word(0)).dry(Dry::default()).dry_breakers([word(21)]))),
        Box::new(move || {
            let guessing = Speculation::PromptLookup { ngram: 2, tokens: 2 };
            short(Request::tokens(ids(PROMPT_IDS)).speculate(guessing).priority(Priority::High).n(2))
        }),
        // replies that are known
        Box::new(move || {
            short(Request::prompt("x")).max_tokens(99).response_format(ResponseFormat::regex(word(22)))
        }),
        Box::new(move || {
            let schema = serde_json::json!({ "enum": [word(23)], "description": word(24) });
            short(Request::prompt("x")).max_tokens(99).response_format(ResponseFormat::json_schema(schema))
        }),
        Box::new(move || {
            let grammar = ResponseFormat::lark(format!("start: \"{}\"", word(25)));
            short(Request::prompt("x")).max_tokens(99).response_format(grammar)
        }),
    ]
}

/// Requests that are wrong, each with the kind of its error.
fn wrong() -> Vec<(&'static str, Ask)> {
    let ask = || Request::prompt(word(0)).max_tokens(2).seed(7);
    let with =
        move |format: fn() -> ResponseFormat| -> Ask { Box::new(move || ask().response_format(format())) };
    let chat = |message: fn() -> Message| -> Ask {
        Box::new(move || Request::chat([message()]).max_tokens(2).seed(7).template_variable("mood", word(19)))
    };
    vec![
        ("request", Box::new(move || ask().temperature(9.0))),
        ("request", Box::new(move || ask().stop(word(1).repeat(99)))),
        ("request", Box::new(move || ask().dry_breakers([""]).stop(word(1)))),
        ("request", Box::new(move || ask().tools([Tool::new(word(6), word(7), serde_json::json!({}))]))),
        ("request", Box::new(move || ask().logit_bias(ids(BIAS_IDS)[0], 777.0))),
        ("request", Box::new(move || ask().logit_bias(u32::MAX - 123_456, 1.0))),
        ("request", Box::new(move || Request::tokens([ids(PROMPT_IDS)[0], 999_983]).seed(7))),
        ("request", Box::new(move || ask().speculate(Speculation::Draft { tokens: 2 }))),
        ("request", Box::new(move || Request::prompt("").stop(word(1)))),
        ("context_length", Box::new(move || Request::prompt(word(0).repeat(900)).seed(7))),
        ("context_length", Box::new(move || Request::tokens(ids(PROMPT_IDS).repeat(900)).seed(7))),
        ("request", Box::new(move || Request::prompt(word(0).repeat(90_000)).seed(7))),
        ("request", Box::new(move || Request::chat([user(word(18))]).chat_template(word(26)).seed(7))),
        ("request", chat(|| Message::new(Role::Developer, word(27)))),
        ("request", chat(|| Message::new(Role::System, word(27)).with_name(word(14)))),
        (
            "request",
            chat(|| {
                assistant("")
                    .with_tool_calls(vec![ToolCall::new(word(8), word(9), word(28)).with_object_arguments()])
            }),
        ),
        ("request", with(|| ResponseFormat::regex(format!("({}", word(29))))),
        ("request", with(|| ResponseFormat::regex(format!("{}(?=x)", word(29))))),
        ("request", with(|| ResponseFormat::lark(format!("start: {} nowhere", word(30))))),
        ("request", with(|| ResponseFormat::lark(format!("begin: \"{}\"", word(30))))),
        ("request", with(|| ResponseFormat::json_schema(serde_json::json!({ "type": word(31) })))),
        (
            "request",
            with(|| ResponseFormat::json_schema(serde_json::json!({ word(31): 1, "$ref": word(32) }))),
        ),
        (
            "request",
            with(|| ResponseFormat::json_schema(serde_json::json!({ "pattern": format!("({}", word(33)) }))),
        ),
        (
            "no_token",
            Box::new(move || {
                let one = ResponseFormat::regex("a");
                (0..704).fold(ask().response_format(one).stop(word(1)), |request, id| {
                    request.logit_bias(id, -100.0)
                })
            }),
        ),
    ]
}

/// Every public type that may hold something of a request.
fn show_reply(reply: &Reply) {
    show(reply);
    show_both(&reply.request_id);
    show_both(&reply.receipt);
    reply.receipt.devices.iter().for_each(show);
    show(reply.prompt_logprobs());
    for choice in reply.choices() {
        show(choice);
        show_both(&choice.finish_reason);
        show(choice.logprobs());
        choice.logprobs().iter().for_each(|one| show(&one));
        choice.tool_calls().iter().for_each(show);
        show(&choice.message());
    }
}

/// A reply that can only be a call, as it is streamed.
fn show_parts_of_a_call(session: &Session, keep: &mut dyn FnMut(&Reply)) {
    let call = format!(r#"<tool_call>\{{"name": "{}", "arguments": \{{\}}\}}</tool_call>"#, word(9));
    let request = Request::chat([user(word(18))])
        .tools([Tool::new(word(9), word(7), serde_json::json!({}))])
        .tool_call_parser(ToolCallParser::Hermes)
        .constrain_from(ConstrainFrom::WholeReply)
        .response_format(ResponseFormat::regex(call));
    let mut stream = session.stream(request.max_tokens(200).seed(7)).unwrap();
    let mut parts = 0;
    for piece in stream.by_ref() {
        let piece = piece.unwrap();
        piece.tool_call().into_iter().for_each(|part| {
            show(part);
            parts += 1;
        });
    }
    assert!(parts > 0, "the reply is a call");
    keep(&stream.finish().unwrap());
}

/// Serves all of it, and returns the ids and texts of replies.
fn serve(folder: &Path) -> (Vec<u32>, Vec<String>) {
    let session = builder(folder).open().unwrap();
    show(&builder(folder));
    show(&session);
    show(&session.memory());
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    let mut keep = |reply: &Reply| {
        show_reply(reply);
        ids.extend_from_slice(reply.tokens());
        texts.push(reply.text().to_owned());
    };
    show_what_goes_in();
    for ask in right() {
        show(&ask());
        keep(&session.generate(ask()).unwrap());
        let mut stream = session.stream(ask()).unwrap();
        show(&stream);
        for piece in stream.by_ref() {
            show(&piece.unwrap());
            // the mailbox is half read here
        }
        show(&stream);
        keep(&stream.finish().unwrap());
    }
    show_parts_of_a_call(&session, &mut keep);
    session.generate_batch(right().iter().map(|ask| ask())).unwrap().iter().for_each(&mut keep);
    for (kind, ask) in wrong() {
        show(&ask());
        let error = session.generate(ask()).unwrap_err();
        show_error(&error);
        assert_eq!(error.kind().as_str(), kind, "{error}");
        let batch = session.generate_batch([right()[0](), ask()]);
        show_error(&batch.unwrap_err());
    }
    ALL.store(true, Ordering::SeqCst);
    // our own tokenizer says nothing to anybody
    keep(&session.generate(Request::prompt(word(35)).max_tokens(1).seed(7)).unwrap());
    keep(&session.generate(Request::chat([user(word(35))]).max_tokens(1).seed(7)).unwrap());
    keep(&session.generate(right()[1]()).unwrap());
    ALL.store(false, Ordering::SeqCst);
    let tokens = session.tokenize(word(35)).unwrap();
    show(&tokens);
    show(&session.detokenize(tokens.ids(), true).unwrap());
    converse(&session, &mut keep);
    ends(&session, &mut keep);
    show(&session.load());
    show(&session.counters());
    show_both(&session.close().unwrap());
    (ids, texts)
}

/// What a request is made of, each with a canary wherever one can be.
fn show_what_goes_in() {
    show(&Tool::new(word(6), word(7), serde_json::json!({ word(3): word(4) })));
    show(&ToolCall::new(word(8), word(9), word(10)));
    show(&Message::new(Role::User, word(13)).with_name(word(14)).with_reasoning(word(16)));
    for format in [ResponseFormat::regex(word(22)), ResponseFormat::lark(word(25))] {
        show(&format);
    }
    show(&ResponseFormat::json_schema(serde_json::json!({ "enum": [word(23)] })));
    show(&EmbedRequest::new([word(0), word(1)]).prompt(word(2)));
    show(&EmbedRequest::new([word(0)]).prompt_name(word(2)));
    show(&RerankRequest::new(word(0), [word(1)]));
    let model =
        amnesic::privacy::Model::<amnesic::privacy::ThirdParty<Anthropic>>::new(Alias::new("a").unwrap());
    let disclosure = Disclosure::acknowledged(&model.policy(), SystemTime::UNIX_EPOCH).unwrap();
    show(&ThirdPartyRequest::new(&model, Request::prompt(word(0)).stop(word(1)), &disclosure));
    // what a test searches for is content, too
    let needles = Needles::new().text("canary", &word(0)).ids("ids", &[701_003, 9, 440_017, 23, 855_001, 77]);
    show(&needles);
    show_both(&needles.search_bytes(word(0).as_bytes()));
    show(needles.search_bytes(word(0).as_bytes()).iter().next().expect("it is there"));
}

/// Texts that are embedded and scored, and what comes of them.
fn encode() {
    let open = |name: &str| {
        let builder = Session::builder(fixture("encoders").join(name)).threads(2);
        builder.clock(Steps(Instant::now(), AtomicU64::new(0))).open().unwrap()
    };
    let embeddings =
        open("roberta").embed_with(EmbedRequest::new([word(0), word(1)]).prompt(word(2))).unwrap();
    show(&embeddings);
    show(&open("roberta").hidden_states(EmbedRequest::new([word(0), word(1)]).prompt(word(2))).unwrap());
    let error = open("roberta").embed_with(EmbedRequest::new([word(0)]).prompt_name(word(2))).unwrap_err();
    show_error(&error);
    show(&open("roberta_scores").rerank_with(RerankRequest::new(word(0), [word(1), word(2)])).unwrap());
}

fn converse(session: &Session, keep: &mut dyn FnMut(&Reply)) {
    let mut conversation = session.conversation();
    for ask in right().iter().skip(2).take(2) {
        keep(&conversation.generate(ask()).unwrap());
        show(&conversation);
        show(&conversation.messages());
        conversation.messages().iter().for_each(show);
        let mut key: [u8; 32] = std::array::from_fn(|i| word(18).as_bytes()[i % 8]);
        show(&SealingKey::new(&mut key));
        show(&amnesic::testing::SecretBytes::new(64));
    }
    show_error(&conversation.generate(Request::chat([Message::new(Role::Developer, word(27))])).unwrap_err());
    let mut stream = conversation.stream(right()[2]()).unwrap();
    show(&stream.next().unwrap().unwrap());
    show(&stream);
    drop(stream);
    show(&conversation);
    let public = session.publish(Request::prompt(format!("{} {}", word(34), word(34).repeat(9)))).unwrap();
    show(&public);
    show_error(&session.publish(Request::prompt("").stop(word(1))).unwrap_err());
    keep(&session.generate(Request::prompt(word(34)).shares(&public).max_tokens(1).seed(7)).unwrap());
    let named = conversation.generate(Request::prompt(word(34)).shares(&public).seed(7));
    show_error(&named.unwrap_err());
}

/// Ends that are neither replies nor errors of the request.
fn ends(session: &Session, keep: &mut dyn FnMut(&Reply)) {
    // most of its tokens have no text: with so little room they come as they are
    let long = || {
        let long = Request::tokens(ids(PROMPT_IDS)).max_tokens(500).ignore_eos(true).seed(7);
        long.temperature(1.0).stream_buffer(2)
    };
    let token = CancelToken::new();
    show(&token);
    keep(
        &session
            .generate_with(long().cancel_token(&token), |piece| {
                show(piece);
                token.cancel();
                ControlFlow::Continue(())
            })
            .unwrap(),
    );
    show(&token);
    keep(&session.generate_with(long(), |_| ControlFlow::Break(())).unwrap());
    keep(&session.generate(long().timeout(Duration::from_millis(9))).unwrap());
    let mut stream = session.stream(long()).unwrap();
    show(&stream.next().unwrap().unwrap());
    drop(stream);
    let tap = LogitsTap::default();
    show(&Gate::default());
    keep(&session.generate(long().max_tokens(1).tap_logits(&tap)).unwrap());
    show(&tap);
}

/// Errors for which a session of their own is needed.
fn fail(folder: &Path) {
    let long = || Request::prompt(word(0)).max_tokens(500).ignore_eos(true).seed(7);
    let session = builder(folder).max_requests(1).open().unwrap();
    let stream = session.stream(long().stream_buffer(1)).unwrap();
    show_error(&session.generate(right()[1]()).unwrap_err());
    drop(session);
    show_error(&stream.finish().unwrap_err());

    for step in [1, 2] {
        let session = builder(folder).panic_in_step(step).open().unwrap();
        show_error(&session.generate(long()).unwrap_err());
        show_error(&session.generate(long()).unwrap_err());
        show_error(&session.generate_batch([long(), long()]).unwrap_err());
        show(&session);
        show_both(&session.close().unwrap());
    }
    let plain = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["num_hidden_layers"] = 1.into();
    recipe.write(plain.path(), None);
    let session = builder(plain.path()).open().unwrap();
    show_error(&session.generate(long()).unwrap_err()); // no tokenizer
    show_error(&session.generate(Request::chat([user(word(18))])).unwrap_err()); // no template
    show_error(&builder(&plain.path().join("nowhere")).open().unwrap_err());
    unheard();
    show(&Tokenizer::open(folder, VOCAB).unwrap());
    show(&Scorer::open(Session::builder(folder), 8).unwrap());
}

/// A tokenizer that is left to its crate reads no text while a logger hears what that crate says of it.
fn unheard() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let split = serde_json::json!({"type": "Split", "pattern": {"Regex": r"\p{L}+(?=\s)|\P{L}+|\p{L}+"},
        "behavior": "Isolated", "invert": false});
    tokenizer["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel",
        "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    assert!(Tokenizer::open(folder.path(), VOCAB).unwrap().fallback().is_some());
    let session = builder(folder.path()).open().unwrap();
    ALL.store(true, Ordering::SeqCst);
    let public = session.publish(Request::prompt(word(35))).unwrap_err();
    let chat = session.generate(Request::chat([user(word(35))]).seed(7)).unwrap_err();
    let prompt = session.generate(Request::prompt(word(35)).seed(7)).unwrap_err();
    for error in [public, chat, prompt] {
        show_error(&error);
        assert!(matches!(error, Error::Logged { .. }), "{error}");
    }
    show(&session.generate(Request::tokens(ids(PROMPT_IDS)).max_tokens(1).seed(7)).unwrap()); // ids are not read by it
    ALL.store(false, Ordering::SeqCst);
    show(&session.generate(Request::prompt(word(35)).max_tokens(1).seed(7)).unwrap());
}

/// Says a canary on purpose, one in each way.
fn control() {
    tracing::info!(value = word(0), "content");
    tracing::info_span!("content", value = ?ids(PROMPT_IDS)).in_scope(|| ());
    log::info!("{}", word(1));
    println!("{}", word(2));
    eprintln!("{}", ids(BIAS_IDS)[5]);
    let hex: String = word(3).bytes().map(|byte| format!("{byte:02x}")).collect();
    tracing::debug!(hex);
    let _ = std::panic::catch_unwind(|| panic!("{}", word(4)));
    show(&user(word(5)).content());
}

/// The child, in the same program; does nothing where it is no child.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    listen();
    if std::env::var(CONTROL).is_ok() {
        control();
    }
    let (ids, texts) = serve(folder);
    encode();
    fail(folder);
    std::fs::write(folder.join("shown"), serde_json::to_vec(&*SHOWN.lock().unwrap()).unwrap()).unwrap();
    let told = RECORDER.get().unwrap().lines().join("\n");
    std::fs::write(folder.join("told"), told + "\n" + &PRINTED.lock().unwrap()).unwrap();
    std::fs::write(folder.join("replies"), serde_json::to_vec(&(ids, texts)).unwrap()).unwrap();
}

/// What the child printed and told, and what it must not have.
fn run(folder: &Path, control: bool) -> (String, Vec<(String, Vec<String>)>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "leaks::child", "--nocapture"]).env(FOLDER, folder).env("RUST_BACKTRACE", "0");
    if control {
        command.env(CONTROL, "1");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "the child failed: {}", String::from_utf8_lossy(&output.stderr));
    let told = std::fs::read(folder.join("told")).unwrap();
    let (ids, texts): (Vec<u32>, Vec<String>) =
        serde_json::from_slice(&std::fs::read(folder.join("replies")).unwrap()).unwrap();
    (
        [told, output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .join("\n"),
        needles(&ids, &texts),
    )
}

fn needles(reply_ids: &[u32], texts: &[String]) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for field in 0..WORDS {
        all.push((format!("word {field}"), needles::of_text(&word(field))));
    }
    for field in [PROMPT_IDS, BIAS_IDS, STOP_IDS] {
        all.push((format!("ids {field} as bytes"), needles::of_ids(&ids(field)[..3])));
        for id in ids(field) {
            all.push((format!("id {id} of {field}"), needles::of_id(id)));
        }
    }
    let long: Vec<u32> = reply_ids.iter().copied().filter(|&id| id >= 100_000).collect();
    assert!(long.len() > 5, "replies have too few long ids to look for: {}", long.len());
    all.extend(long.iter().map(|&id| (format!("id {id} of a reply"), needles::of_id(id))));
    let known = [22, 25].map(word);
    assert!(known.iter().all(|word| texts.contains(word)), "replies that were asked for");
    let texts = texts.iter().filter(|text| text.len() > 8);
    all.extend(texts.map(|text| ("a reply's text".into(), needles::of_text(text))));
    all
}

/// No logger heard anything, and no listener a target or a field that is not in the schema: a text could come in pieces
/// that no needle finds.
fn only_what_is_declared(captured: &str) {
    let schema = include_str!("../../src/privacy/mod.rs");
    let table: String = schema.lines().filter(|line| line.starts_with("//! | `")).collect();
    let (mut told, mut logged) = (0, 0);
    for line in captured.lines() {
        logged += usize::from(line.starts_with("log "));
        let words: Vec<&str> = line.split(' ').collect();
        let fields = match words[..] {
            [
                "span",
                _,
                "below",
                _,
                "amnesic",
                "generate" | "open_session" | "close_session",
                ref fields @ ..,
            ]
            | ["event", "below", _, "amnesic" | "amnesic::metrics", "INFO", ref fields @ ..]
            | ["record", _, ref fields @ ..] => fields,
            ["span" | "event", ..] => panic!("{line}"),
            _ => continue,
        };
        told += 1;
        for field in fields.iter().filter_map(|word| word.split_once('=').map(|(name, _)| name)) {
            let name = ["histogram.", "monotonic_counter."].iter().find_map(|kind| field.strip_prefix(kind));
            let name = name.unwrap_or(field);
            // a row of the table may name several of one kind: `gen_ai.request.temperature`, `.top_p`
            let last = format!("`.{}`", name.rsplit('.').next().unwrap());
            let declared = table.contains(&format!("`{name}`")) || table.contains(&last) || name == "message";
            assert!(declared, "{name} is not in the table of src/privacy/mod.rs");
        }
    }
    assert_eq!(logged, 0);
    assert!(told > 500, "{told}");
}

fn found(captured: &str, needles: &[(String, Vec<String>)]) -> Vec<String> {
    let holds =
        |(_, forms): &&(String, Vec<String>)| forms.iter().any(|form| captured.contains(form.as_str()));
    needles.iter().filter(holds).map(|(name, _)| name.clone()).collect()
}

#[test]
fn nothing_of_a_request_is_printed_logged_or_told() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let (captured, needles) = run(folder.path(), false);
    let leaked = found(&captured, &needles);
    assert!(leaked.is_empty(), "found in {} bytes: {leaked:?}", captured.len());
    types::all_are_shown(
        &serde_json::from_slice(&std::fs::read(folder.path().join("shown")).unwrap()).unwrap(),
    );
    only_what_is_declared(&captured);
    // what is allowed is there, so the listeners heard
    for expected in [
        "gen_ai.request.model=canary-model",
        "gen_ai.usage.input_tokens=6",
        "gen_ai.usage.output_tokens=2",
        "gen_ai.response.finish_reasons=[\"length\"]",
        "gen_ai.response.finish_reasons=[\"stop\"]",
        "gen_ai.response.finish_reasons=[\"cancelled\"]",
        "gen_ai.response.finish_reasons=[\"deadline\"]",
        "gen_ai.server.time_to_first_token=0.0",
        "amnesic.usage.cost_nano=23", // 5 + 6 * 2 + 2 * 3
        "histogram.gen_ai.server.request.duration=0.0",
        "\"event\":\"ended\"",
        "error.type=poisoned",
        "error.type=busy",
        "error.type=closed",
        "error.type=no_token",
        "error.type=no_tokenizer",
        "error.type=no_chat_template",
        "error.type=context_length",
        "error.type=in_batch",
        "error.type=logged",
        "panic panicked at",
        "a fault that a test asked for",
        "[REDACTED]",
        "content_bytes: ",
    ] {
        assert!(captured.contains(expected), "{expected} is not in {} bytes", captured.len());
    }

    // and what is said on purpose is found, in each way
    let (captured, needles) = run(folder.path(), true);
    let mut leaked = found(&captured, &needles);
    leaked.retain(|name| !name.contains("reply"));
    let mut expected: Vec<String> = (0..6).map(|field| format!("word {field}")).collect();
    expected.extend(ids(PROMPT_IDS).iter().map(|id| format!("id {id} of {PROMPT_IDS}")));
    expected.push(format!("id {} of {BIAS_IDS}", ids(BIAS_IDS)[5]));
    assert_eq!(leaked, expected);
}
