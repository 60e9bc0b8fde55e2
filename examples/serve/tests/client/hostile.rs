//! Clients that mean harm: requests that two programs would read differently, and clients that take their time. None of
//! this measures time; what is shown is the order in which things happen.

use serde_json::json;

use crate::common::{Connection, Response, Server, post};
use crate::{COMPLETIONS, body, endless, error};

/// Most bytes of a body.
const MAX_BODY_BYTES: usize = 8 << 20;

fn refused(server: &Server, request: &[u8], code: &str) {
    let mut connection = server.send(request);
    connection.end();
    let response = connection.response();
    let request = String::from_utf8_lossy(request);
    assert_eq!(response.status, 400, "{request:?}: {}", response.body);
    assert_eq!(error(&response).2.unwrap_or_default(), code, "{request:?}: {}", response.body);
    assert!(response.head.contains("connection: close"), "{request:?}: {}", response.head);
    assert!(!response.body.contains("canary"), "{request:?}: {}", response.body);
}

#[test]
fn heads_that_could_be_read_in_two_ways_are_refused() {
    let server = Server::start(&[]);
    let get = |lines: &str| format!("GET /health HTTP/1.1\r\n{lines}\r\n");
    let body = |lines: &str| {
        format!(
            "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n{{}}"
        )
    };
    let host = "Host: localhost\r\n";
    let heads = [
        // whose host is it?
        get("Host: localhost\r\nHost: localhost\r\n"),
        get("Host: localhost\r\nX: y\r\nhost: canary.example\r\n"),
        get("Host: localhost, canary.example\r\n"),
        get("Host: canary@localhost\r\n"),
        get("Host: localhost/canary\r\n"),
        get("X: y\r\n"),
        format!("GET http://canary.example/health HTTP/1.1\r\n{host}\r\n"),
        format!("GET http://canary@localhost/health HTTP/1.1\r\n{host}\r\n"),
        format!("GET http://localhost:81/health HTTP/1.1\r\n{host}\r\n"),
        format!("GET localhost/health HTTP/1.1\r\n{host}\r\n"),
        format!("CONNECT localhost:80 HTTP/1.1\r\n{host}\r\n"),
        // where does its body end?
        body("Content-Length: 2\r\nContent-Length: 2\r\n"),
        body("Content-Length: 2\r\nContent-Length: 3\r\n"),
        body("Content-Length: 2, 2\r\n"),
        body("Content-Length: +2\r\n"),
        body("Content-Length: 0x2\r\n"),
        body("Content-Length: -2\r\n"),
        body("Content-Length: 2 2\r\n"),
        body("Content-Length:\r\n"),
        body("Content-Length: 99999999999999999999\r\n"),
        body("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        body("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n"),
        body("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        body("Transfer-Encoding: chunked, chunked\r\n"),
        body("Transfer-Encoding: canary, chunked\r\n"),
        body("Transfer-Encoding: chunked, identity\r\n"),
        body("Transfer-Encoding: canary\r\n"),
        body("Transfer-Encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0"),
        // where does a line end, and a name?
        get("Host: localhost\r\n X: canary\r\n"),
        get("Host: localhost\r\nX: y\r\n\tcanary\r\n"),
        get(" Host: localhost\r\n"),
        get("Host : localhost\r\n"),
        body("Content-Length : 2\r\n"),
        body("Transfer-Encoding : chunked\r\n"),
        get("Host: localhost\nX: y\r\n"),
        get("Host: localhost\r\nX: a\rContent-Length: 5\r\n"),
        get("Host: localhost\r\nX: a\nContent-Length: 5\r\n"),
        get("Host: localhost\r\r\n"),
        get("Host: localhost\r\nX: a\0b\r\n"),
        get("Host: localhost\r\n: canary\r\n"),
        get("Host: localhost\r\ncanary\r\n"),
        get("Host: localhost\r\nca nary: y\r\n"),
        get("Host: localhost\r\nca\u{e9}nary: y\r\n"),
        format!("GET /health HTTP/1.1\n{host}\r\n"),
        "GET /health HTTP/1.1\nHost: localhost\n\n".into(),
        // what protocol is it?
        format!("GET /health HTTP/1.2\r\n{host}\r\n"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n{host}\r\n"),
        format!("GET /health\r\n{host}\r\n"),
        format!("GET  /health HTTP/1.1\r\n{host}\r\n"),
        format!("GET /health HTTP/1.1 \r\n{host}\r\n"),
        format!("GET /can ary HTTP/1.1\r\n{host}\r\n"),
        "\u{16}\u{3}\u{1}canary\r\n\r\n".into(),
    ];
    for head in heads {
        refused(&server, head.as_bytes(), "bad_request");
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(
        server.send(format!("GET http://localhost/health HTTP/1.1\r\n{host}\r\n")).response().status,
        200
    );
}

#[test]
fn malformed_chunks_are_refused() {
    let server = Server::start(&[]);
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let whole = body(json!({"max_tokens": 1})).to_string();
    let (size, rest) = (whole.len(), format!("\r\n{whole}\r\n0\r\n\r\n"));
    let good = [format!("{size:x}{rest}"), format!("{size:X};canary=1{rest}"), format!("000{size:x}{rest}")];
    for chunks in good {
        assert_eq!(server.send(format!("{head}{chunks}")).response().status, 200, "{chunks}");
    }
    for chunks in [
        format!("canary{rest}"),
        format!("-{size:x}{rest}"),
        format!("+{size:x}{rest}"),
        format!("0x{size:x}{rest}"),
        format!(" {size:x}{rest}"),
        format!("{size:x} 1{rest}"),
        format!("ffffffffffffffff{size:x}{rest}"),
        rest.clone(),
        format!("{size:x}\n{whole}\r\n0\r\n\r\n"),
        format!("{size:x}\r{whole}\r\n0\r\n\r\n"),
        format!("{size:x};canary\n1{rest}"),
        format!("{size:x}\r\n{whole}0\r\n\r\n"),
        format!("{size:x}\r\n{whole}\n0\r\n\r\n"),
        format!("{:x}{rest}", size - 1),
        format!("{:x}{rest}", size + 1),
        format!("{size:x}\r\n{whole}\r\n"),
        format!("{size:x}\r\n{}", &whole[1..]),
    ] {
        refused(&server, format!("{head}{chunks}").as_bytes(), "");
    }
    refused(&server, format!("{}{whole}", with_length(size + 1)).as_bytes(), "");
}

/// The head of a request whose body has so many bytes.
fn with_length(bytes: usize) -> String {
    let request = post(COMPLETIONS, "", "");
    request.replace("Content-Length: 0", &format!("Content-Length: {bytes}"))
}

/// A request whose body is as long as a body may be.
fn long_request() -> String {
    let whole = body(json!({"max_tokens": 1})).to_string();
    with_length(MAX_BODY_BYTES) + &" ".repeat(MAX_BODY_BYTES - whole.len()) + &whole
}

#[test]
fn slow_bodies_hold_what_they_sent_and_nobody_up() {
    let server = Server::start(&[]);
    // more than all bodies together may hold, if what they announce counted
    let request = long_request();
    let (start, rest) = request.split_at(4096);
    let mut slow: Vec<Connection> = (0..9).map(|_| server.send(start)).collect();
    for _ in 0..3 {
        assert_eq!(server.post(COMPLETIONS, &body(json!({"max_tokens": 1}))).status, 200);
    }
    // none of them had to be given up for that
    let mut first = slow.swap_remove(0);
    first.send(rest);
    assert_eq!(first.response().status, 200);
    drop(slow);
}

#[cfg(target_os = "linux")]
#[test]
fn bodies_are_charged_to_their_peer_and_to_all() {
    let server = Server::start(&[]);
    // four bodies as long as they may be, all but their last byte, which the server has read
    let fill = |last: u8| {
        [0, 1, 2, 3].map(|number| {
            let mark = format!("canary-{last}-{number}");
            let whole = body(json!({"max_tokens": 1, "prompt": mark})).to_string();
            let request = with_length(MAX_BODY_BYTES) + &" ".repeat(MAX_BODY_BYTES - whole.len()) + &whole;
            let connection = server.send_from(last, &request[..request.len() - 1]);
            server.wait_until_it_holds(&mark);
            connection
        })
    };
    let small = post(COMPLETIONS, "", &body(json!({"max_tokens": 1})).to_string());
    let ask = |last: u8| server.send_from(last, &small).response();
    let mut first = fill(1);
    let busy = ask(1);
    assert_eq!((busy.status, error(&busy).2.as_deref()), (429, Some("rate_limit_exceeded")));
    assert!(busy.head.contains("retry-after: 1") && busy.body.contains("from this address"), "{}", busy.body);
    assert_eq!(ask(2).status, 200, "another peer has room of its own");
    let second = fill(2);
    let busy = ask(3);
    assert_eq!((busy.status, error(&busy).0.as_str()), (503, "server_error"), "{}", busy.body);
    // whoever was let in is served, and makes room
    first.iter_mut().for_each(|connection| connection.send("}"));
    assert!(first.into_iter().all(|connection| connection.response().status == 200));
    assert_eq!((ask(1).status, ask(3).status), (200, 200));
    drop(second);
}

/// More connections than there may be, none of which has said all that it has to say: `half` of a request each.
fn crowd(server: &Server, half: &str) -> Vec<Connection> {
    (0..560).map(|_| server.send(half)).collect()
}

#[test]
fn slow_heads_and_slow_bodies_keep_nobody_out() {
    let server = Server::start(&[]);
    let whole = post(COMPLETIONS, "", &body(json!({"max_tokens": 1})).to_string());
    for split in [whole.find("Content-Length").unwrap(), whole.len() - 1] {
        let (half, rest) = whole.split_at(split);
        let mut crowd = crowd(&server, half);
        assert_eq!(server.get("/health").status, 200);
        assert_eq!(server.send(&whole).response().status, 200);
        // the oldest made room, the others may still go on
        let mut late = crowd.swap_remove(500);
        late.send(rest);
        assert_eq!(late.response().status, 200);
        assert!(crowd.swap_remove(0).ends_silently());
    }
}

#[test]
fn who_does_not_read_its_reply_keeps_nobody_up() {
    let server = Server::start(&[]);
    let mut long = endless(true);
    long["n"] = 1.into();
    let deaf: Vec<Connection> =
        (0..16).map(|_| server.send_without_room(post(COMPLETIONS, "", &long.to_string()))).collect();
    let whole: Response = server.post(COMPLETIONS, &body(json!({})));
    assert_eq!(whole.status, 200);
    let mut streamed = body(json!({"stream": true}));
    streamed["n"] = 2.into();
    assert_eq!(server.post(COMPLETIONS, &streamed).events().last(), Some(&"[DONE]"));
    drop(deaf);
}
