//! Reads bodies. A body is charged for what arrived of it, never for what its length announces, and it must come at a
//! rate: so whoever sends slowly holds little, and not for long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{ApiError, Result};
use crate::peer::{Full, Peer, Place};

/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Most bytes of bodies that are held at once.
const MAX_BODIES_BYTES: usize = 64 << 20;
/// Most bytes of one peer's bodies that are held at once.
const MAX_PEER_BYTES: usize = 32 << 20;
/// How long a body may take whatever its length, and at what rate it must come beyond that.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_BYTES_PER_S: usize = 64 << 10;
/// How long, and how much, a client may go on sending that was refused already.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 64 << 20;

/// The bytes of bodies that are held, of all peers and of each.
#[derive(Default)]
pub struct Bodies(Mutex<Held>);

#[derive(Default)]
struct Held {
    all: usize,
    peers: HashMap<Peer, usize>,
}

/// What one body is charged. Dropping it gives it back.
struct Charge {
    bodies: Arc<Bodies>,
    peer: Peer,
    bytes: usize,
}

impl Bodies {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Charge {
    fn add(&mut self, bytes: usize) -> std::result::Result<(), Full> {
        let mut held = self.bodies.held();
        let of_peer = held.peers.get(&self.peer).map_or(0, |held| *held);
        if of_peer + bytes > MAX_PEER_BYTES {
            return Err(Full::Peer);
        }
        if held.all + bytes > MAX_BODIES_BYTES {
            return Err(Full::All);
        }
        held.peers.insert(self.peer, of_peer + bytes);
        held.all += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut held = self.bodies.held();
        held.all -= self.bytes;
        if let Some(of_peer) = held.peers.get_mut(&self.peer) {
            *of_peer -= self.bytes;
            if *of_peer == 0 {
                held.peers.remove(&self.peer);
            }
        }
    }
}

/// A body that was read, while it is charged.
pub struct Received {
    bytes: Vec<u8>,
    charge: Charge,
}

impl Received {
    fn new(bodies: &Arc<Bodies>, peer: Peer) -> Self {
        Self { bytes: Vec::new(), charge: Charge { bodies: bodies.clone(), peer, bytes: 0 } }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn append(&mut self, part: &[u8]) -> Result<()> {
        if self.bytes.len() + part.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
        self.charge.add(part.len()).map_err(full)?;
        if self.bytes.capacity() - self.bytes.len() < part.len() {
            let room = self.bytes.len().min(MAX_BODY_BYTES - self.bytes.len());
            self.bytes.reserve_exact(room.max(part.len()));
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }
}

/// Reads the body of a request, which must be JSON.
///
/// # Errors
/// It is something else, too large or too slow, or too much is read at the moment.
pub async fn read(bodies: &Arc<Bodies>, request: Request) -> Result<Received> {
    let (head, mut body) = request.into_parts();
    let place: &Arc<Place> = head.extensions.get().ok_or_else(|| ApiError::internal("no connection"))?;
    let received = match check(&head.headers) {
        // which also keeps pages in a browser out: they cannot send this type without being asked for permission
        Err(error) => Err(error),
        Ok(()) => collect(&mut body, Received::new(bodies, place.peer)).await,
    };
    match received {
        Ok(received) => {
            place.is_served();
            Ok(received)
        }
        Err(error) => {
            drain(body).await;
            Err(error)
        }
    }
}

fn check(headers: &HeaderMap) -> Result<()> {
    if !is_json(headers) {
        let message = "the Content-Type header must be application/json";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let message = "the body must not be compressed: there must be no Content-Encoding header";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "compressed", message));
    }
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) { Err(too_large()) } else { Ok(()) }
}

/// Appends what comes to `received`.
async fn collect<B: BodyExt<Data = Bytes> + Unpin>(body: &mut B, mut received: Received) -> Result<Received> {
    let start = Instant::now();
    let slow = |_| {
        let message = format!(
            "the body came too slowly: after {} s it must come at {MIN_BYTES_PER_S} bytes a second",
            BODY_TIMEOUT.as_secs()
        );
        ApiError::refused(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    };
    loop {
        let earned = Duration::from_secs_f64(received.bytes.len() as f64 / MIN_BYTES_PER_S as f64);
        let frame = timeout_at(start + BODY_TIMEOUT + earned, body.frame()).await.map_err(slow)?;
        let Some(frame) = frame else { return Ok(received) };
        let frame = frame.map_err(|_| {
            ApiError::invalid("the body could not be read: it ended early, or its chunks are malformed")
        })?;
        frame.into_data().map_or(Ok(()), |part| received.append(&part))?; // trailers say nothing
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn too_large() -> ApiError {
    let message = format!("the body must have at most {MAX_BODY_BYTES} bytes");
    ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

fn full(full: Full) -> ApiError {
    match full {
        Full::Peer => {
            let message =
                format!("bodies from this address hold more than {MAX_PEER_BYTES} bytes: wait for some");
            ApiError::too_many(message)
        }
        Full::All => {
            ApiError::unavailable(format!("bodies hold more than {MAX_BODIES_BYTES} bytes: try again soon"))
        }
    }
}

/// Reads what a client sends that was refused, and throws it away: a connection that is closed on unread bytes is
/// reset, and the client never sees the error.
pub async fn drain(mut body: Body) {
    let read_all = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, read_all).await; // what comes later meets a closed connection
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::IpAddr;
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use axum::http::HeaderValue;
    use hyper::body::{Body as HttpBody, Frame};
    use tokio::time::{Sleep, sleep};

    use super::*;

    fn received(bodies: &Arc<Bodies>, last: u8) -> Received {
        Received::new(bodies, IpAddr::from([10, 0, 0, last]).into())
    }

    #[test]
    fn what_arrived_is_charged_and_given_back() {
        let bodies = Arc::new(Bodies::default());
        let part = vec![b' '; 1 << 20];
        let fill = |last| {
            let mut received = received(&bodies, last);
            (0..8).for_each(|_| received.append(&part).unwrap());
            assert_eq!(received.append(b" ").unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
            received
        };
        let mut first: Vec<_> = (0..4).map(|_| fill(1)).collect();
        assert_eq!(received(&bodies, 1).append(b" ").unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        let second: Vec<_> = (0..4).map(|_| fill(2)).collect();
        assert_eq!(received(&bodies, 3).append(b" ").unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        first.pop();
        assert!(received(&bodies, 3).append(b" ").is_ok() && received(&bodies, 1).append(b" ").is_ok());
        drop((first, second));
        assert!(bodies.held().all == 0 && bodies.held().peers.is_empty());
    }

    /// Gives `part` every so often, `left` times.
    struct Slow {
        part: &'static [u8],
        every: Duration,
        left: usize,
        next: Pin<Box<Sleep>>,
    }

    impl Slow {
        fn new(part: &'static [u8], every: Duration, left: usize) -> Self {
            Self { part, every, left, next: Box::pin(sleep(every)) }
        }
    }

    impl HttpBody for Slow {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
            ready!(self.next.as_mut().poll(context));
            self.next = Box::pin(sleep(self.every));
            let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
            self.left = left;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.part)))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_be_slow_at_first_and_must_come_at_a_rate() {
        let bodies = Arc::new(Bodies::default());
        let part: &[u8] = &[b' '; MIN_BYTES_PER_S];
        let second = Duration::from_secs(1);
        // as slow as it may be, for longer than a body may stand still
        let steady = collect(&mut Slow::new(part, second, 60), received(&bodies, 1)).await.unwrap();
        assert_eq!(steady.bytes().len(), 60 * MIN_BYTES_PER_S);
        drop(steady);
        for (part, every) in [(part, 11 * second), (&part[..MIN_BYTES_PER_S / 2], second), (b"x", second / 4)]
        {
            let start = Instant::now();
            let error = collect(&mut Slow::new(part, every, 600), received(&bodies, 1)).await.err().unwrap();
            assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
            assert!(start.elapsed() <= 2 * BODY_TIMEOUT, "{:?}", start.elapsed());
        }
        assert_eq!(bodies.held().all, 0);
    }

    #[test]
    fn json_comes_with_or_without_a_charset() {
        let with = |kind: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
        };
        assert!(is_json(&with("application/json")) && is_json(&with("Application/JSON; charset=utf-8")));
        assert!(
            !is_json(&with("text/plain"))
                && !is_json(&with("application/jsonx"))
                && !is_json(&HeaderMap::new())
        );
    }
}
