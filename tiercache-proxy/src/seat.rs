//! Connections of clients: none stands still for long, and none ends before its last answer could be read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep, timeout};

/// In how many parts a standstill is counted, and so how exactly its limit is kept: moving a timer at every read, or even
/// asking for the time, would be a good part of what a hit costs.
const PARTS: u32 = 8;

/// How long a client may take to close its side once ours is closed, and how many bytes it may send meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// A connection in a place of a server's: it fails when it neither reads nor writes for long, and when it is dropped, what
/// the client still sends is read for a second, so that the last answer reaches it.
pub struct Seat {
    stream: Option<TcpStream>,
    part: Duration,
    tick: Pin<Box<Sleep>>,
    /// Ticks since something moved.
    still: u32,
    permit: Option<OwnedSemaphorePermit>,
}

impl Seat {
    /// `limit` is how long the connection may stand still, to an eighth of that more; `permit` is given back with it.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time.
    pub fn new(stream: TcpStream, limit: Duration, permit: OwnedSemaphorePermit) -> Self {
        let part = limit / PARTS;
        Self { stream: Some(stream), part, tick: Box::pin(sleep(part)), still: 0, permit: Some(permit) }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        // It is there until the drop.
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Passes on what the stream says, and ends the connection when it said nothing for too long.
    fn watched<T>(&mut self, context: &mut Context<'_>, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if said.is_ready() {
            self.still = 0;
            return said;
        }
        loop {
            ready!(self.tick.as_mut().poll(context));
            // The first tick may be of a part that was half over when it began to stand still.
            if self.still == PARTS {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.still += 1;
            let next = self.tick.deadline() + self.part;
            self.tick.as_mut().reset(next);
        }
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
        let (began, limit) = (tokio::time::Instant::now(), Duration::from_secs(75));
        let error = seat.read_exact(&mut byte).await.expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Timers are of whole milliseconds.
        let latest = limit + limit / PARTS + Duration::from_millis(2);
        assert!((limit..latest).contains(&began.elapsed()), "{:?}", began.elapsed());
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
