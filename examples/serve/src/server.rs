//! The listener: connections in, signals, and an end that waits for those who are served.
//!
//! All connections are served by one thread, whose memory is protected: the first byte of a request is read into it.
//! Nothing that it does waits for one client; what takes long is done elsewhere ([`crate::app::work`]).
//!
//! A connection serves one request. Buffers that a connection keeps hold what was read last; so they are freed, and the
//! allocator overwrites them, when the request is over.

use std::convert::Infallible;
use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::app::{App, router};
use crate::connection::Patient;
use crate::error::ApiError;
use crate::head;
use crate::log::{Record, say};
use crate::peer::{Connections, Full, Peer, Place};

/// How long a client may take to send its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long those who are served may take once the server shuts down.
pub const GRACE: Duration = Duration::from_secs(10);
/// Before another attempt, when the system has no room for a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// How long, and how much, a client may go on sending that was refused already, and how many such clients are heard:
/// one whose connection is closed on what it sends sees a reset in place of the error.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 << 20;
const MAX_LINGERING: usize = 64;

/// Serves until SIGINT or SIGTERM, then ends what runs and lets its replies out; a second signal cuts them off.
///
/// # Errors
/// Signals or the listener cannot be watched.
pub async fn serve(app: &Arc<App>, listener: std::net::TcpListener) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    say(&format!("listening on http://{}", listener.local_addr()?));
    // every connection has a receiver while it is open
    let (closing, closed) = watch::channel(false);
    tokio::select! {
        () = accept(listener, router(app.clone()), closed) => {}
        () = either(&mut interrupt, &mut terminate) => {}
    }
    say("closing: replies end where they are (a second signal cuts them off)");
    app.stop.cancel();
    closing.send_replace(true);
    tokio::select! {
        ended = timeout(GRACE, closing.closed()) => {
            if ended.is_err() {
                say("some clients did not take their replies in time");
            }
        }
        () = either(&mut interrupt, &mut terminate) => say("cut off"),
    }
    Ok(())
}

async fn either(first: &mut Signal, second: &mut Signal) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

/// Takes connections in. Waits for nobody: one for which there is no place is told so and closed.
async fn accept(listener: TcpListener, router: Router, closing: watch::Receiver<bool>) {
    let connections = Arc::new(Connections::default());
    let lingering = Arc::new(Semaphore::new(MAX_LINGERING));
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            sleep(PAUSE).await; // out of file descriptors: some connection will end
            continue;
        };
        match connections.enter(Peer::from(address.ip())) {
            Ok(place) => {
                let place = Arc::new(place);
                tokio::spawn(connection(stream, router.clone(), place, closing.clone()));
            }
            Err(full) => {
                if let Ok(permit) = lingering.clone().try_acquire_owned() {
                    tokio::spawn(async move {
                        refuse(stream, &too_many(full)).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

fn too_many(full: Full) -> ApiError {
    match full {
        Full::Peer => ApiError::too_many("too many requests of this address are served at the moment"),
        Full::All => ApiError::unavailable("too many requests are served at the moment"),
    }
}

/// Serves one request, unless the place is wanted for somebody else before the client has sent all of it.
async fn connection(stream: TcpStream, router: Router, place: Arc<Place>, closing: watch::Receiver<bool>) {
    let closed = place.clone();
    tokio::select! {
        () = closed.closed() => {}
        () = request(stream, router, place, closing) => {}
    }
    ENDED.store(true, Ordering::Relaxed);
}

static ENDED: AtomicBool = AtomicBool::new(false);

/// Whether a connection has ended since the last call.
pub fn has_connection_ended() -> bool {
    ENDED.swap(false, Ordering::Relaxed)
}

async fn request(
    mut stream: TcpStream,
    router: Router,
    place: Arc<Place>,
    mut closing: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true); // slower without
    let read = tokio::select! {
        read = timeout(HEAD_TIMEOUT, head::read(&mut stream)) => read,
        _ = closing.wait_for(|closing| *closing) => return,
    };
    let late = |_| {
        let message = format!("the request's head must come within {} s", HEAD_TIMEOUT.as_secs());
        Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "timeout", message))
    };
    match read.unwrap_or_else(late) {
        Ok(Some(first)) => serve_http(Patient::new(stream, first), router, place, closing.clone()).await,
        Ok(None) => {} // the client left
        Err(error) => {
            Record::new("-").status(error.status.as_u16());
            refuse(stream, &error).await;
        }
    }
}

/// Tells a client why it is not served, and hears the rest of what it has to say.
async fn refuse(mut stream: TcpStream, error: &ApiError) {
    let tell = async {
        stream.write_all(&error.http()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(LINGER, tell).await; // it may have left
}

async fn serve_http(
    io: Patient<TcpStream>,
    router: Router,
    place: Arc<Place>,
    mut closing: watch::Receiver<bool>,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| serve_routes(&router, request, place.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // it is there
        .max_buf_size(head::MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let closing = async move { closing.wait_for(|closing| *closing).await.is_ok() };
    // errors are the client's: it sent no HTTP, or left
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = closing => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Hands a request to its route, which finds out from the request whose it is.
fn serve_routes(
    router: &TowerToHyperService<Router>,
    mut request: Request<Incoming>,
    place: Arc<Place>,
) -> impl Future<Output = std::result::Result<Response<Body>, Infallible>> + use<> {
    if request.body().is_end_stream() {
        place.is_served();
    }
    request.extensions_mut().insert(place);
    router.call(request)
}
