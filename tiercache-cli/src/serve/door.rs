//! Connections: so many at a time, and none that stands still for long.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// How many connections there may be; further ones wait in the system's queue.
const CONNECTIONS: usize = 1024;
/// How long one may neither read nor write.
const IDLE: Duration = Duration::from_secs(75);
/// How exactly that is kept: moving a timer at every read would cost more than the read.
const GRAIN: Duration = Duration::from_secs(1);

/// Lets connections in.
pub(crate) struct Door {
    listener: TcpListener,
    seats: Arc<Semaphore>,
}

impl Door {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self { listener, seats: Arc::new(Semaphore::new(CONNECTIONS)) }
    }
}

impl Listener for Door {
    type Io = Seat;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Seat, SocketAddr) {
        let Ok(seat) = self.seats.clone().acquire_owned().await else {
            // The semaphore is never closed.
            return std::future::pending().await;
        };
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Answers are written whole: waiting to fill a packet would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        (Seat { stream, idle: Box::pin(sleep(IDLE)), moved: Instant::now(), _seat: seat }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection.
pub(crate) struct Seat {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    moved: Instant,
    _seat: OwnedSemaphorePermit,
}

impl Seat {
    /// Passes on what the stream says, and ends the connection when it said nothing for too long.
    fn watched<T>(&mut self, context: &mut Context<'_>, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if said.is_ready() {
            let now = Instant::now();
            if now.duration_since(self.moved) > GRAIN {
                self.moved = now;
                self.idle.as_mut().reset(now + IDLE);
            }
            return said;
        }
        std::task::ready!(self.idle.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Seat {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watched(context, said)
    }
}

impl AsyncWrite for Seat {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, said)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, said)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, said)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watched(context, said)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn pair() -> (Seat, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut door = Door::new(listener);
        let (accepted, connected) = tokio::join!(door.accept(), TcpStream::connect(address));
        (accepted.0, connected.expect("a connection"))
    }

    #[tokio::test]
    async fn a_connection_that_stands_still_ends() {
        let (mut seat, mut other) = pair().await;
        other.write_all(b"ab").await.expect("bytes");
        let mut byte = [0];
        seat.read_exact(&mut byte).await.expect("the first");
        tokio::time::pause();
        seat.read_exact(&mut byte).await.expect("what is there comes at any time");
        tokio::time::advance(IDLE + GRAIN).await;
        let error = seat.read_exact(&mut byte).await.expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn there_are_so_many_seats_and_one_is_free_again_when_its_connection_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut door = Door { listener, seats: Arc::new(Semaphore::new(1)) };
        let _clients = (TcpStream::connect(address).await, TcpStream::connect(address).await);
        let (first, _) = door.accept().await;
        let full = tokio::time::timeout(Duration::from_millis(50), door.accept()).await;
        assert!(full.is_err());
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), door.accept()).await.expect("a seat");
    }
}
