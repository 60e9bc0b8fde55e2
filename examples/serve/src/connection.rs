//! A connection's bytes: what was read of it before hyper reads, and an end for clients that stop reading.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long nothing may be taken of what is sent.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long writes may wait in all, and at what rate what is sent must be taken beyond that.
const WAIT_TIMEOUT: Duration = Duration::from_secs(300);
const MIN_BYTES_PER_S: u64 = 1 << 10;

/// Bytes in and out. A write that waits for longer than [`WRITE_TIMEOUT`] fails, and so does one of a client that takes
/// a byte now and then: whoever does not read would hold its connection, and what was generated for it, for ever.
pub struct Patient<T> {
    io: T,
    /// What was read of the connection already, and how much of that was given out.
    first: Vec<u8>,
    given: usize,
    /// Since when a write waits, and what ends it.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    waited: Duration,
    written: u64,
}

impl<T> Patient<T> {
    /// Of `io`, whose first bytes were read.
    pub fn new(io: T, first: Vec<u8>) -> Self {
        Self { io, first, given: 0, waiting: None, waited: Duration::ZERO, written: 0 }
    }

    fn or_too_late<R>(&mut self, written: Poll<Result<R>>, context: &mut Context<'_>) -> Poll<Result<R>> {
        if written.is_ready() {
            self.waited += self.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
            return written;
        }
        let allowed = WAIT_TIMEOUT + Duration::from_secs(self.written / MIN_BYTES_PER_S);
        let left = WRITE_TIMEOUT.min(allowed.saturating_sub(self.waited));
        let waiting = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        waiting.1.as_mut().poll(context).map(|()| Err(Error::from(ErrorKind::TimedOut)))
    }

    fn count(&mut self, written: Poll<Result<usize>>, context: &mut Context<'_>) -> Poll<Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written += bytes as u64;
        }
        self.or_too_late(written, context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let this = self.get_mut();
        let first = &this.first[this.given..];
        if first.is_empty() {
            this.first = Vec::new(); // freed, and so overwritten
            this.given = 0;
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        let bytes = first.len().min(buffer.remaining());
        buffer.put_slice(&first[..bytes]);
        this.given += bytes;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.count(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(context, slices);
        this.count(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(context);
        this.or_too_late(flushed, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(context);
        this.or_too_late(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_reader_may_be_slow_but_not_gone() {
        let (mut client, server) = duplex(4);
        let mut server = Patient::new(server, Vec::new());
        let start = Instant::now();
        let (sent, read) = tokio::join!(server.write_all(&[7; 12]), async {
            sleep(WRITE_TIMEOUT / 2).await;
            client.read_exact(&mut [0; 4]).await.unwrap();
            sleep(WRITE_TIMEOUT / 2).await;
            client.read_exact(&mut [0; 4]).await
        });
        assert!(sent.is_ok() && read.is_ok());
        assert_eq!(start.elapsed(), WRITE_TIMEOUT);
        let error = server.write_all(&[7]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed()), (ErrorKind::TimedOut, 2 * WRITE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_byte_now_and_then_is_given_up() {
        let (mut client, server) = duplex(1);
        let mut server = Patient::new(server, Vec::new());
        let start = Instant::now();
        let reads = async {
            loop {
                sleep(WRITE_TIMEOUT * 9 / 10).await;
                if client.read_exact(&mut [0]).await.is_err() {
                    return;
                }
            }
        };
        let error = tokio::select! {
            sent = server.write_all(&[7; 1000]) => sent.unwrap_err(),
            () = reads => unreachable!("the server keeps its side open"),
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(
            (WAIT_TIMEOUT..WAIT_TIMEOUT + WRITE_TIMEOUT).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first() {
        let (mut client, server) = duplex(64);
        client.write_all(b"third").await.unwrap();
        drop(client);
        let mut server = Patient::new(server, b"first, second, ".to_vec());
        let mut read = String::new();
        server.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "first, second, third");
    }
}
