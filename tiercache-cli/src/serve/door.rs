//! Connections: so many at a time, and none that stands still for long.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use tiercache_proxy::Seat;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// How many connections there may be; further ones wait in the system's queue.
const CONNECTIONS: usize = 1024;
/// How long one may neither read nor write.
const IDLE: Duration = Duration::from_secs(75);

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
        (Seat::new(stream, IDLE, seat), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn there_are_so_many_seats_and_one_is_free_again_when_its_connection_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut door = Door { listener, seats: Arc::new(Semaphore::new(1)) };
        let clients = (TcpStream::connect(address).await, TcpStream::connect(address).await);
        let (first, _) = door.accept().await;
        let full = tokio::time::timeout(Duration::from_millis(50), door.accept()).await;
        assert!(full.is_err());
        // The server waits for the client's side to be closed as well.
        drop((first, clients.0));
        tokio::time::timeout(Duration::from_secs(5), door.accept()).await.expect("a seat");
    }
}
