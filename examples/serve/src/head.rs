//! Reads the head of a request, and refuses what two programs could read differently: a proxy that sees one request
//! where this server sees another, or another host, lets strangers in. hyper reads the head again afterwards; it takes
//! more than what passes here.

use axum::http::StatusCode;
use httparse::{Header, Request, Status};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{ApiError, Result};

const MAX_HEADERS: usize = 64;
pub const MAX_HEAD_BYTES: usize = 64 << 10;
/// Bytes that are asked for at a time.
const READ_BYTES: usize = 4 << 10;

/// Reads up to the head's end or beyond; all that was read, what came of the body included. None if the client left
/// before that.
///
/// # Errors
/// It is no head of HTTP/1, or one that could be read in two ways.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut scanned = 0;
    loop {
        if let Some(end) = find_end(&bytes, &mut scanned)? {
            check(&bytes[..end])?;
            return Ok(Some(bytes));
        }
        if bytes.len() >= MAX_HEAD_BYTES {
            return Err(too_large(format!("more than {MAX_HEAD_BYTES} bytes")));
        }
        bytes.reserve(READ_BYTES);
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

fn wrong(message: impl std::fmt::Display) -> ApiError {
    ApiError::refused(StatusCode::BAD_REQUEST, "bad_request", format!("the request's head: {message}"))
}

fn too_large(what: String) -> ApiError {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    ApiError::refused(status, "headers_too_large", format!("the request's head has {what}"))
}

/// Where the head ends; looks at each byte once, from `scanned` on. A line ends with both CR and LF: some programs take
/// one alone for an end and some do not.
fn find_end(bytes: &[u8], scanned: &mut usize) -> Result<Option<usize>> {
    while let Some(&byte) = bytes.get(*scanned) {
        let before = scanned.checked_sub(1).map(|index| bytes[index]);
        if (byte == b'\n') != (before == Some(b'\r')) {
            return Err(wrong("a line must end with CR and LF, and neither may stand alone"));
        }
        *scanned += 1;
        if bytes[..*scanned].ends_with(b"\r\n\r\n") {
            return Ok(Some(*scanned));
        }
    }
    Ok(None)
}

fn check(head: &[u8]) -> Result<()> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(end)) if end == head.len() => {}
        Ok(_) => return Err(wrong("it is empty")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(too_large(format!("more than {MAX_HEADERS} headers")));
        }
        Err(error) => return Err(wrong(error)), // names the part
    }
    let is_old = request.version == Some(0);
    let host = host(request.headers, is_old)?;
    check_length(request.headers, is_old)?;
    check_target(request.method.unwrap_or_default(), request.path.unwrap_or_default(), host)
}

/// The value of the header `name`, if it is there once.
fn single<'a>(headers: &[Header<'a>], name: &str) -> Result<Option<&'a [u8]>> {
    let mut values = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    match (values.next(), values.next()) {
        (Some(_), Some(_)) => Err(wrong(format!("there must be one {name} header only"))),
        (header, _) => Ok(header.map(|header| header.value)),
    }
}

fn host<'a>(headers: &[Header<'a>], is_old: bool) -> Result<Option<&'a str>> {
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte);
    match single(headers, "Host")? {
        None if is_old => Ok(None),
        None => Err(wrong("HTTP/1.1 asks for a Host header")),
        Some(host) if host.iter().all(|&byte| is_host(byte)) => {
            Ok(Some(str::from_utf8(host).expect("it is ASCII")))
        }
        Some(_) => Err(wrong("the Host header must be one host, with or without a port")),
    }
}

/// How long the body is must be said once and in one way.
fn check_length(headers: &[Header<'_>], is_old: bool) -> Result<()> {
    let length = single(headers, "Content-Length")?;
    let coding = single(headers, "Transfer-Encoding")?;
    let is_number = |value: &[u8]| (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    match (length, coding) {
        (Some(_), Some(_)) => Err(wrong("Content-Length and Transfer-Encoding exclude each other")),
        (Some(length), None) if !is_number(length) => Err(wrong("Content-Length must be a number of bytes")),
        (None, Some(_)) if is_old => Err(wrong("HTTP/1.0 has no Transfer-Encoding")),
        (None, Some(coding)) if !coding.eq_ignore_ascii_case(b"chunked") => {
            Err(wrong("Transfer-Encoding must be chunked"))
        }
        _ => Ok(()),
    }
}

/// A path, or a whole URL of the same host.
fn check_target(method: &str, target: &str, host: Option<&str>) -> Result<()> {
    let (scheme, rest) = target.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    match target {
        _ if target.starts_with('/') => Ok(()),
        "*" if method == "OPTIONS" => Ok(()),
        _ if !is_http => Err(wrong("the target must be a path")),
        _ if host.is_some_and(|host| host.eq_ignore_ascii_case(authority)) => Ok(()),
        _ => Err(wrong("the target names another host than the Host header")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn status(bytes: &[u8]) -> u16 {
        match read(&mut &*bytes).await {
            Ok(Some(read)) => {
                assert_eq!(read, bytes);
                200
            }
            Ok(None) => 0,
            Err(error) => error.status.as_u16(),
        }
    }

    /// What is refused is tried over TCP, in `tests/api/hostile.rs`.
    #[tokio::test]
    async fn heads_that_say_one_thing_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET http://LOCALHOST:80/x?y HTTP/1.1\r\nhost:localhost:80\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}\n\r",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost:\r\nX: a\tb \u{fc}\r\n\r\n",
        ] {
            assert_eq!(status(head.as_bytes()).await, 200, "{head}");
        }
        assert_eq!(status(b"").await, 0);
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost: loc").await, 0);
    }

    #[tokio::test]
    async fn a_head_is_bounded() {
        let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        assert_eq!(status(long.as_bytes()).await, 431);
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: x\r\n".repeat(MAX_HEADERS));
        assert_eq!(status(many.as_bytes()).await, 431);
    }
}
