//! Where content lies in the server's memory while it is served, and that none is left afterwards.

use serde_json::json;

use crate::common::{Connection, Server, can_lock, chat_model, post};
use crate::{CHAT, COMPLETIONS, body, endless};

/// Buffers of hyper and serde_json, events, headers, the engine: nothing keeps what was said.
#[test]
fn nothing_of_a_request_stays_in_the_process() {
    let mut server = Server::start(&[]);
    let canaries =
        ["a-canary-that-ran", "a-canary-that-was-streamed", "a-canary-that-left", "a-canary-that-was-wrong"];
    let [ran, streamed, left, wrong] =
        canaries.map(|canary| json!({"prompt": canary, "stop": [canary], "logprobs": 1}));
    let reply = server.post(COMPLETIONS, &body(ran)).json();
    let text = reply["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() > 12, "long enough to be told from anything else: {text}");
    let mut streamed = body(streamed);
    streamed["stream"] = true.into();
    assert_eq!(server.post(COMPLETIONS, &streamed).events().last(), Some(&"[DONE]"));
    let mut wrong = body(wrong);
    wrong["temperature"] = 3.into();
    assert_eq!(
        server
            .send(post(COMPLETIONS, "X-Key: a-canary-in-a-header\r\n", &wrong.to_string()))
            .response()
            .status,
        400
    );
    let mut leaving = endless(true);
    leaving.as_object_mut().unwrap().extend(left.as_object().unwrap().clone());
    let mut leaving = server.send(post(COMPLETIONS, "", &leaving.to_string()));
    leaving.read_until("data: ");
    assert!(server.holds(canaries[2]), "it is there while it runs, so the search would find it");
    drop(leaving);
    server.wait_for("finish=disconnected");
    // a response is sent before its connection's buffers are freed
    let start = std::time::Instant::now();
    for gone in canaries.into_iter().chain(["a-canary-in-a-header", text]) {
        while server.holds(gone) {
            assert!(start.elapsed() < std::time::Duration::from_secs(20), "{gone:?} is still there");
        }
    }
}

/// From the first byte that arrives to the last that is sent: nothing lies where a core dump, a forked child or a swap
/// device could get it.
#[test]
fn content_lies_in_protected_memory_alone() {
    let model = chat_model();
    let server = Server::start(&["--model", model.path().to_str().unwrap(), "--name", "default"]);
    let start = std::time::Instant::now();
    // out of core dumps, zeros in forked children and, where the system lets it lock memory, locked
    let protected = if can_lock() { &["dd", "wf", "lo"][..] } else { &["dd", "wf"] };
    // whoever is too slow is given up, so it may have to begin again
    let wait_for = |needle: &str, mut begin: Option<&mut dyn FnMut() -> Connection>| {
        let mut begun = begin.as_mut().map(|begin| begin());
        loop {
            match server.protects(needle, protected) {
                Ok(()) => return,
                Err(why) => assert!(why.ends_with("is nowhere"), "{why}"),
            }
            assert!(start.elapsed() < std::time::Duration::from_secs(120), "{needle} does not arrive");
            if begun.as_mut().is_some_and(Connection::has_ended) {
                begun = begin.as_mut().map(|begin| begin());
            }
        }
    };
    // half a head, with a target and a header that are content
    let half = "POST /v1/completions?q=canary-in-a-target HTTP/1.1\r\nHost: localhost\r\n\
        Authorization: Bearer canary-in-a-header\r\nContent-Type: application/json\r\nContent-Le";
    for needle in ["canary-in-a-target", "canary-in-a-header"] {
        wait_for(needle, Some(&mut || server.send(half)));
    }

    // half a body: what came with the head, and what came later
    let filler = "and so on, ".repeat(20_000);
    let text = format!("canary-in-the-first-read {filler} canary-in-a-later-read {filler}");
    let whole = post(COMPLETIONS, "", &body(json!({"prompt": text})).to_string());
    let half = &whole[..whole.find("canary-in-a-later-read").unwrap() + 40];
    for needle in ["canary-in-the-first-read", "canary-in-a-later-read"] {
        wait_for(needle, Some(&mut || server.send(half)));
    }
    let wait_for = |needle: &str| wait_for(needle, None);

    // requests that run, with replies that nobody reads
    let mut running = endless(true);
    running["prompt"] = "canary-in-a-prompt-that-runs".into();
    (running["echo"], running["n"]) = (true.into(), 1.into());
    let running = server.send(post(COMPLETIONS, "", &running.to_string()));
    wait_for("canary-in-a-prompt-that-runs");
    let chat = json!({
        "model": "default", "stream": true, "max_tokens": 900, "ignore_eos": true, "n": 16, "temperature": 1,
        "logprobs": true, "top_logprobs": 20,
        "stop": ["canary-in-a-stop-string"],
        "messages": [
            {"role": "user", "content": "hello"},
        ],
    });
    let mut chat = server.send_without_room(post(CHAT, "", &chat.to_string()));
    let event = chat.read_until("\"content\":\"");
    let id = event.split("chatcmpl-").nth(1).unwrap().split('"').next().unwrap().to_owned();
    wait_for("canary-in-a-stop-string");
    // events that wait to be sent: their id tells them from what the engine holds
    wait_for(&format!("chatcmpl-{id}\",\"object\""));
    drop((running, chat));

    // JSON that is parsed, templates and tokens that are made of it, whole replies: wherever they are at the moment
    let text = "canary-in-a-message ".repeat(400);
    let tool = json!({"type": "function", "function": {
        "name": "f", "description": text, "parameters": {"type": "object", "properties": {"x": {"description": text}}},
    }});
    let long = json!({
        "model": "default", "max_tokens": 1, "stop": ["canary-in-a-message"], "tools": [tool],
        "messages": [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "text", "text": text}]}],
    });
    let long = post(CHAT, "", &long.to_string());
    let mut seen = 0;
    // on a busy machine most looks come too early or too late
    for _ in 0..400 {
        let asked: Vec<Connection> = (0..8).map(|_| server.send(&long)).collect();
        // a block may be freed and taken again while its mapping is looked up, and is not locked in between
        match server.protects("canary-in-a-message", &["dd", "wf"]) {
            Ok(()) => seen += 1,
            Err(why) => assert!(why.ends_with("is nowhere"), "{why}"),
        }
        if seen == 3 {
            return;
        }
        for connection in asked {
            assert_eq!(connection.response().status, 400, "it is longer than the context");
        }
    }
    panic!("it was hardly ever there when it was looked for");
}
