//! The server as a process of its own, over plain TCP: errors, events, clients that leave, logs, the end.
//! What the official client makes of it is in `client.py`.

mod common;
mod hostile;
#[cfg(target_os = "linux")]
mod memory;
mod obfuscation;
mod texts;

use common::{Response, Server, default_model, post};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn body(with: Value) -> Value {
    let mut body = json!({"model": "default", "prompt": "Ownership is", "max_tokens": 8});
    body.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
    body
}

/// Goes on for seconds at least, unless it is cancelled. Leaves no room for others.
fn endless(stream: bool) -> Value {
    body(json!({"max_tokens": 1000, "n": 128, "ignore_eos": true, "temperature": 1, "stream": stream}))
}

/// The error's type, param and code.
fn error(response: &Response) -> (String, Option<String>, Option<String>) {
    let json = response.json();
    let error = &json["error"];
    assert_eq!(error.as_object().unwrap().len(), 4, "{json}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{json}");
    let text = |name: &str| error[name].as_str().map(str::to_owned);
    (text("type").unwrap(), text("param"), text("code"))
}

#[test]
fn the_model_and_the_health_are_told() {
    let server = Server::start(&["--name", "org/small"]);
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let list = server.get("/v1/models").json();
    assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 1));
    let model = server.get("/v1/models/org/small");
    assert_eq!((model.status, &model.json()), (200, &list["data"][0]));
    assert_eq!(model.json()["id"], "org/small");
    assert_eq!(model.json()["max_model_len"], 1024);
    assert!(
        model.head.contains("cache-control: no-store") && model.head.contains("connection: close"),
        "{}",
        model.head
    );
    assert_eq!(server.get("/v1/models/org").status, 404);
}

#[test]
fn errors_have_openais_shape_and_no_content() {
    let server = Server::start(&[]);
    let refused = |path: &str, with: Value, status: u16, param: &str, code: &str| {
        let body = body(with);
        let response = server.post(path, &body);
        let (kind, told, with) = error(&response);
        assert_eq!(
            (response.status, kind.as_str()),
            (status, "invalid_request_error"),
            "{body}: {}",
            response.body
        );
        assert_eq!((told.as_deref().unwrap_or(""), with.as_deref().unwrap_or("")), (param, code), "{body}");
        assert!(!response.body.contains("canary"), "{}", response.body);
    };
    let wrong = |field: &str, value: Value| refused(COMPLETIONS, json!({field: value}), 400, field, "");
    wrong("temperature", json!(2.5));
    wrong("temperature", json!("canary"));
    wrong("top_p", json!(0));
    wrong("top_k", json!(-2));
    wrong("n", json!(129));
    wrong("n", json!(-1));
    wrong("max_tokens", json!(0));
    wrong("stop", json!([1]));
    wrong("stop", json!(vec!["canary"; 17]));
    wrong("stop_token_ids", json!(["canary"]));
    wrong("seed", json!(0.5));
    wrong("logit_bias", json!({"canary": 1}));
    wrong("logit_bias", json!({"1": 101}));
    wrong("logit_bias", json!({"4096": 1}));
    wrong("logprobs", json!(21));
    wrong("prompt", Value::Null);
    wrong("prompt", json!(""));
    wrong("prompt", json!([]));
    wrong("prompt", json!([1, "canary"]));
    wrong("prompt", json!([4096]));
    wrong("prompt", json!([["canary"]]));
    wrong("stream", json!("canary"));
    wrong("stream_options", json!({"include_usage": true}));
    wrong("model", json!(7));
    refused(COMPLETIONS, json!({"model": "canary"}), 404, "model", "model_not_found");
    refused(COMPLETIONS, json!({"max_tokens": 1024}), 400, "prompt", "context_length_exceeded");
    for (field, value) in [
        ("store", json!(true)),
        ("suffix", json!("canary")),
        ("best_of", json!(2)),
        ("response_format", json!({"type": "text"})),
        ("guided_regex", json!("canary")),
        ("skip_special_tokens", json!(false)),
    ] {
        refused(COMPLETIONS, json!({field: value}), 400, field, "unsupported_parameter");
    }
    // only /v1/completions continues texts
    refused(CHAT, json!({}), 400, "messages", "");
    let chat = json!({"model": "default", "messages": [{"role": "user", "content": "canary"}]});
    let response = server.post(CHAT, &chat);
    assert_eq!((response.status, error(&response).2.as_deref()), (400, Some("no_chat_template")));
    assert!(
        !response.body.contains("models/default") && !response.body.contains("canary"),
        "{}",
        response.body
    );
    // what says nothing, or what is so anyway, is no error
    let harmless = json!({"store": false, "user": "u", "metadata": {"a": "b"}, "best_of": 1, "suffix": null});
    let response = server.post(COMPLETIONS, &body(harmless));
    assert_eq!((response.status, response.header("x-amnesic-ignored")), (200, None));
}

#[test]
fn unknown_fields_are_ignored_and_named() {
    let server = Server::start(&[]);
    let plain = server.post(COMPLETIONS, &body(json!({}))).json();
    let response = server.post(COMPLETIONS, &body(json!({"frobnicate": "canary", "a b": 1, "c": null})));
    assert_eq!(response.status, 200, "{}", response.body);
    // `c` says nothing; a name that is no word is told by its number
    assert_eq!(response.header("x-amnesic-ignored"), Some("frobnicate, #5"));
    assert_eq!(response.json()["choices"], plain["choices"]);
    let mut stream = body(json!({"frobnicate": 1, "stream": true}));
    stream["max_tokens"] = 2.into();
    assert_eq!(server.post(COMPLETIONS, &stream).header("x-amnesic-ignored"), Some("frobnicate"));
}

#[test]
fn names_of_control_tokens_are_text_where_the_program_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(default_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let template = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = folder.path().to_str().unwrap();
    let said = json!({"model": "m", "messages": [{"role": "user", "content": "a<|endoftext|>b"}]});
    let ids = |args: &[&str]| {
        let server = Server::start(&[&["--model", model, "--name", "m"], args].concat());
        let response = server.post("/tokenize", &said);
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert!(ids(&[]).contains(&0));
    assert!(!ids(&["--literal-text"]).contains(&0));
}

#[test]
fn what_is_no_request_is_refused() {
    let server = Server::start(&[]);
    let told = |request: &str| {
        let response = server.send(request).response();
        (response.status, error(&response).2.unwrap_or_default())
    };
    assert_eq!(told("GET /canary HTTP/1.1\r\nHost: localhost\r\n\r\n"), (404, "unknown_url".into()));
    assert_eq!(told(&post("/v1/images/generations", "", "{}")), (404, "unknown_url".into()));
    let embed = r#"{"model": "default", "input": "x"}"#;
    assert_eq!(told(&post("/v1/embeddings", "", embed)), (400, "unsupported_task".into()));
    assert_eq!(
        told("GET /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (405, "method_not_allowed".into())
    );
    for body in ["", "[]", "{\"prompt\"", "\u{0}", &"[".repeat(100_000), "{\"prompt\": \"\\ud800\"}"] {
        assert_eq!(told(&post(COMPLETIONS, "", body)), (400, String::new()), "{body:.20}");
    }
    let form = post(COMPLETIONS, "", "{}").replace("application/json", "text/plain");
    assert_eq!(told(&form), (415, "not_json".into()));
    let compressed = post(COMPLETIONS, "Content-Encoding: gzip\r\n", "{}");
    assert_eq!(told(&compressed), (415, "compressed".into()));
    for host in ["example.com", "example.com:8080", "127.0.0.1.example.com"] {
        let rebound = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(told(&rebound), (403, "host_not_allowed".into()), "{host}");
    }
    assert_eq!(told("GET /v1/models HTTP/1.0\r\n\r\n"), (403, "host_not_allowed".into()));

    let large = 9 << 20;
    assert_eq!(told(&post(COMPLETIONS, "", &" ".repeat(large))), (413, "request_too_large".into()));
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let chunked =
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{large:x}\r\n{}\r\n0\r\n\r\n", " ".repeat(large));
    assert_eq!(told(&chunked), (413, "request_too_large".into()));
    // these never reach a route
    let headers = (0..100).map(|number| format!("X-{number}: x\r\n")).collect::<String>();
    let request = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    assert_eq!(server.send(request).response().status, 431);
    assert_eq!(server.send("canary\r\n\r\n").response().status, 400);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn events_add_up_to_the_whole_reply() {
    let server = Server::start(&[]);
    let prompts = json!(["Ownership is", "A trait"]);
    let ask = json!({"prompt": prompts, "n": 2, "max_tokens": 24, "temperature": 1, "seed": 5, "echo": true});
    let whole = server.post(COMPLETIONS, &body(ask.clone())).json();
    let mut streamed = body(ask);
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let response = server.post(COMPLETIONS, &streamed);
    let mut events = response.events();
    assert_eq!(events.pop(), Some("[DONE]"));
    let events: Vec<Value> = events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (usage, events) = events.split_last().unwrap();
    assert_eq!((&usage["usage"], usage["choices"].as_array().unwrap().len()), (&whole["usage"], 0));
    let mut texts = vec![String::new(); 4];
    let mut reasons = vec![Vec::new(); 4];
    for event in events {
        assert_eq!((&event["object"], &event["usage"]), (&json!("text_completion"), &Value::Null));
        assert_eq!(event["id"], events[0]["id"]);
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        assert!(reasons[index].is_empty(), "a finish reason comes last");
        texts[index].push_str(choice["text"].as_str().unwrap());
        reasons[index].extend(choice["finish_reason"].as_str());
    }
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            (&choice["index"], choice["text"].as_str().unwrap()),
            (&json!(index), texts[index].as_str())
        );
        assert_eq!(reasons[index], [choice["finish_reason"].as_str().unwrap()]);
    }
    assert!(texts[1].starts_with("Ownership is") && texts[2].starts_with("A trait"), "{texts:?}");
    assert_ne!(texts[0], texts[1]);
}

#[test]
fn a_client_that_leaves_ends_its_request() {
    let mut server = Server::start(&[]);
    let mut streaming = server.send(post(COMPLETIONS, "", &endless(true).to_string()));
    streaming.read_until("data: ");
    drop(streaming);
    let line = server.wait_for("route=/v1/completions");
    assert!(line.contains("status=200 finish=disconnected"), "{line}");
    let mut whole = endless(false);
    whole["n"] = 24.into(); // of the 32 that run at once
    let whole = server.send(post(COMPLETIONS, "", &whole.to_string()));
    // it runs once another one that came later was served
    assert_eq!(server.post(COMPLETIONS, &body(json!({"max_tokens": 1}))).status, 200);
    drop(whole);
    let line = server.wait_for("finish=disconnected");
    assert!(line.contains("route=/v1/completions finish=disconnected"), "{line}");
}

#[test]
fn a_full_server_says_so() {
    let mut server = Server::start(&["--max-requests", "1"]);
    let mut running = server.send(post(COMPLETIONS, "", &endless(true).to_string()));
    running.read_until("data: ");
    let busy = server.post(COMPLETIONS, &body(json!({})));
    assert_eq!((busy.status, error(&busy).2.as_deref()), (429, Some("rate_limit_exceeded")));
    assert!(busy.head.contains("retry-after: 1"), "{}", busy.head);
    drop(running);
    server.wait_for("finish=disconnected");
    // the line is written when the request is told to end, which takes up to a step
    let mut answers = std::iter::repeat_with(|| server.post(COMPLETIONS, &body(json!({}))).status);
    assert!(answers.by_ref().take(1000).any(|status| status == 200));
}

#[test]
fn a_deadline_cuts_a_reply_off() {
    let server = Server::start(&["--timeout", "0"]);
    let reply = server.post(COMPLETIONS, &body(json!({"max_tokens": 1000, "ignore_eos": true}))).json();
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() < 1000, "{}", reply["usage"]);
}

#[test]
fn a_key_is_asked_for() {
    let server = Server::with_key(&[], Some("sesame"));
    let with = |header: &str| server.send(post(COMPLETIONS, header, &body(json!({})).to_string())).response();
    for header in [
        "",
        "Authorization: Bearer sesam\r\n",
        "Authorization: sesame\r\n",
        "Authorization: Bearer Sesame\r\n",
    ] {
        let response = with(header);
        assert_eq!(
            (response.status, error(&response).2.as_deref()),
            (401, Some("invalid_api_key")),
            "{header}"
        );
    }
    assert_eq!(with("Authorization: Bearer sesame\r\n").status, 200);
    assert_eq!((server.get("/v1/models").status, server.get("/health").status), (401, 200));
}

#[test]
fn the_log_holds_no_content() {
    let mut server = Server::start(&[]);
    let text = "canary one two";
    let said = json!({"prompt": text, "stop": ["canary"], "user": "canary", "logprobs": 2, "echo": true});
    let reply = server.post(COMPLETIONS, &body(said)).json();
    let generated =
        reply["choices"][0]["text"].as_str().unwrap().strip_prefix(text).unwrap().trim().to_owned();
    assert!(generated.len() > 8, "long enough to be told from anything else: {generated}");
    let mut streamed = server.send(post(
        &format!("{COMPLETIONS}?q=canary"),
        "X-Canary: canary\r\n",
        &endless(true).to_string(),
    ));
    streamed.read_until("data: ");
    drop(streamed);
    for request in [
        post("/canary", "", "{}"),
        post("/v1/models/canary", "", "{}"),
        post(COMPLETIONS, "User-Agent: canary\r\n", "{\"canary\": canary}"),
        post(COMPLETIONS, "", &body(json!({"guided_regex": "canary"})).to_string()),
        post(COMPLETIONS, "", &body(json!({"model": "canary"})).to_string()),
        post(CHAT, "", r#"{"model": "default", "messages": [{"role": "user", "content": "canary"}]}"#),
        "CANARY / HTTP/1.1\r\nHost: localhost\r\n\r\n".into(),
        "GET /canary HTTP/1.1\r\nHost: canary\r\n\r\n".into(),
        "GET canary\r\n\r\n".into(),
    ] {
        assert!((400..500).contains(&server.send(&request).response().status), "{request}");
    }
    server.terminate();
    assert!(server.wait().success());
    let lines: Vec<_> = server.said.iter().filter(|line| line.starts_with("time=")).collect();
    assert_eq!(lines.len(), 11, "one for each request, also for the last, which was no HTTP: {lines:#?}");
    for line in &server.said {
        let lower = line.to_lowercase();
        assert!(!lower.contains("canary") && !line.contains(&generated), "{line}");
    }
    for line in lines {
        let names: Vec<_> = line.split(' ').map(|pair| pair.split('=').next().unwrap()).collect();
        assert!(!line.contains("127.0.0.1"), "{line}");
        let known = [
            "time",
            "id",
            "route",
            "status",
            "prompt_tokens",
            "completion_tokens",
            "cached_tokens",
            "finish",
            "ms",
        ];
        assert!(names.iter().all(|name| known.contains(name)), "{line}");
    }
}

#[test]
fn a_signal_ends_replies_where_they_are_and_scrubs() {
    let mut server = Server::start(&[]);
    let mut streaming = server.send(post(COMPLETIONS, "", &endless(true).to_string()));
    streaming.read_until("data: ");
    server.terminate();
    server.wait_for("closing");
    let last = streaming.read_until("\"finish_reason\":\"length\"");
    assert!(last.contains("\"index\":0"), "{last}");
    streaming.read_until("[DONE]");
    drop(streaming);
    assert!(server.wait().success());
    let report = server.said.last().unwrap();
    assert!(report.contains("1 requests; scrubbed") && report.contains("read back as zero"), "{report}");
    assert!(std::net::TcpStream::connect(&server.address).is_err());
}

#[test]
fn a_second_signal_does_not_wait_for_clients() {
    let mut server = Server::start(&[]);
    // it would have ten seconds to go on
    let mut slow = post(COMPLETIONS, "", &body(json!({})).to_string());
    slow.truncate(slow.len() - 1);
    let slow = server.send(slow);
    server.get("/health");
    server.terminate();
    server.wait_for("closing");
    server.terminate();
    server.wait_for("cut off");
    assert!(server.wait().success());
    assert!(server.said.last().unwrap().contains("read back as zero"), "{:?}", server.said);
    drop(slow);
}

#[test]
fn a_wrong_command_line_is_told() {
    let run = |args: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_amnesic-serve")).args(args).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, told, _) = run(&["--host", "0.0.0.0"]);
    assert!(code == Some(2) && told.contains("--allow-remote"), "{told}");
    let (code, told, _) = run(&["--port", "x"]);
    assert!(code == Some(2) && told.contains("--port"), "{told}");
    // before the model is loaded
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, told, _) = run(&["--port", &taken.local_addr().unwrap().port().to_string()]);
    assert!(code == Some(1) && told.starts_with("error: 127.0.0.1:") && told.contains("in use"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    let missing = default_model().join("nowhere");
    let (code, told, _) = run(&["--port", "0", "--model", missing.to_str().unwrap()]);
    assert!(code == Some(1) && told.contains("error: "), "{told}");
    let (code, _, help) = run(&["--help"]);
    assert!(code == Some(0) && help.contains("AMNESIC_API_KEY"), "{help}");
}
