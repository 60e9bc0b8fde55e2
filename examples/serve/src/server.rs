//! The listener: connections in, signals, and an end that waits for those who are served.
//!
//! A connection serves one request. Buffers that a connection keeps hold what was read last; so they are freed, and the
//! allocator overwrites them, when the request is over.

use std::io::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::app::{App, router};
use crate::connection::Patient;
use crate::log::say;

/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: u32 = 512;
/// How long a client may take to send its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 64 << 10;
/// How long those who are served may take once the server shuts down.
pub const GRACE: Duration = Duration::from_secs(10);
/// Before another attempt, when the system has no room for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until SIGINT or SIGTERM, then ends what runs and lets its replies out.
///
/// # Errors
/// The address cannot be had, or signals cannot be watched.
pub async fn serve(app: &Arc<App>, address: SocketAddr) -> Result<()> {
    let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let listener = TcpListener::bind(address).await?;
    say(&format!("listening on http://{}", listener.local_addr()?));
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let (closing, closed) = watch::channel(false);
    tokio::select! {
        () = accept(listener, router(app.clone()), room.clone(), closed) => {}
        () = either(interrupt, terminate) => {}
    }
    say("closing");
    app.stop.cancel();
    closing.send_replace(true);
    if timeout(GRACE, room.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        say("some clients did not take their replies in time");
    }
    Ok(())
}

async fn either(mut first: Signal, mut second: Signal) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

async fn accept(listener: TcpListener, router: Router, room: Arc<Semaphore>, closing: watch::Receiver<bool>) {
    while let Ok(place) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), closing.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(_) => sleep(PAUSE).await, // out of file descriptors: some connection will end
        }
    }
}

/// Serves one request.
async fn connection(stream: TcpStream, router: Router, mut closing: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true); // slower without
    let io = TokioIo::new(Patient::new(stream));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(io, TowerToHyperService::new(router));
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
