//! Connections of clients: none stands still for long, and none ends before its last answer could be read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, timeout};

/// How exactly the limit is kept: moving a timer at every read would cost more than the read.
const GRAIN: Duration = Duration::from_secs(1);

/// How long a client may take to close its side once ours is closed, and how many bytes it may send meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// A connection in a place of a server's: it fails when it neither reads nor writes for long, and when it is dropped, what
/// the client still sends is read for a second, so that the last answer reaches it.
pub struct Seat {
    stream: Option<TcpStream>,
    limit: Duration,
    idle: Pin<Box<Sleep>>,
    moved: Instant,
    permit: Option<OwnedSemaphorePermit>,
}

impl Seat {
    /// `limit` is how long the connection may stand still, to a second; `permit` is given back with it.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time.
    pub fn new(stream: TcpStream, limit: Duration, permit: OwnedSemaphorePermit) -> Self {
        let idle = Box::pin(sleep(limit));
        Self { stream: Some(stream), limit, idle, moved: Instant::now(), permit: Some(permit) }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        // It is there until the drop.
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Passes on what the stream says, and ends the connection when it said nothing for too long.
    fn watched<T>(&mut self, context: &mut Context<'_>, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if said.is_ready() {
            let now = Instant::now();
            if now.duration_since(self.moved) > GRAIN {
                self.moved = now;
                self.idle.as_mut().reset(now + self.limit);
            }
            return said;
        }
        ready!(self.idle.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Seat {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = self.stream()?.poll_read(context, buffer);
        self.watched(context, said)
    }
}

impl AsyncWrite for Seat {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let said = self.stream()?.poll_write(context, bytes);
        self.watched(context, said)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let said = self.stream()?.poll_write_vectored(context, slices);
        self.watched(context, said)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(TcpStream::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

/// To close a connection with bytes that nobody has read resets it, and the reset may overtake the answer: an error that
/// was answered before the whole request was read would not be seen (RFC 9112 §9.6). So our side is closed, and what
/// still comes is thrown away until the client closes its own, for a while.
impl Drop for Seat {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        let closed = matches!(stream.try_read(&mut [0]), Ok(0));
        let Ok(runtime) = Handle::try_current() else { return };
        if closed {
            return;
        }
        let permit = self.permit.take();
        runtime.spawn(async move {
            let _ = timeout(LINGER, discard(&mut stream)).await;
            drop(permit);
        });
    }
}

async fn discard(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let (mut bytes, mut left) = ([0; 4096], LINGER_BYTES);
    while left > 0 {
        match stream.read(&mut bytes).await? {
            0 => return Ok(()),
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;

    async fn pair(places: &Arc<Semaphore>) -> (Seat, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
        let permit = places.clone().acquire_owned().await.expect("a place");
        let seat = Seat::new(accepted.expect("a connection").0, Duration::from_secs(75), permit);
        (seat, connected.expect("a connection"))
    }

    #[tokio::test]
    async fn a_connection_that_stands_still_ends() {
        let (mut seat, mut other) = pair(&Arc::new(Semaphore::new(1))).await;
        other.write_all(b"ab").await.expect("bytes");
        let mut byte = [0];
        seat.read_exact(&mut byte).await.expect("the first");
        tokio::time::pause();
        seat.read_exact(&mut byte).await.expect("what is there comes at any time");
        tokio::time::advance(Duration::from_secs(75) + GRAIN).await;
        let error = seat.read_exact(&mut byte).await.expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn what_was_written_is_read_though_not_everything_was_taken() {
        let places = Arc::new(Semaphore::new(1));
        let (mut seat, mut other) = pair(&places).await;
        other.write_all(&[7; 100_000]).await.expect("bytes");
        seat.write_all(b"refused").await.expect("an answer");
        drop(seat);
        let mut said = Vec::new();
        other.read_to_end(&mut said).await.expect("no reset");
        assert_eq!(said, b"refused");
        assert_eq!(places.available_permits(), 0, "its place is taken until the client has gone");
        drop(other);
        places.acquire().await.expect("a place").forget();
    }
}
