//! Connections of clients: HTTP/1.1, and HTTP/2 where a client begins with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::fields;
use crate::limits::Limits;
use crate::proxy::Proxy;
use crate::seat::Seat;

/// Streams of one HTTP/2 connection at a time.
const STREAMS: u32 = 128;

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still answering when the time was over, and were cut.
    pub cut: usize,
}

impl Proxy {
    /// Answers whoever connects until `stop` is ready; then lets what is under way come to its end, for `drain` at most.
    ///
    /// Dropping the future ends every connection at once.
    pub async fn serve(
        &self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
        drain: Duration,
    ) -> Drained {
        let limits = *self.limits();
        let seats = Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS)));
        let builder = Arc::new(http(&limits));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                _ = ticks.tick() => self.sweep(),
                Some(_) = connections.join_next() => {}
                (stream, client, seat) = accept(&listener, &seats) => {
                    self.count_connection();
                    let (proxy, builder, watcher) = (self.clone(), builder.clone(), graceful.watcher());
                    connections.spawn(proxy.converse(stream, client, seat, builder, watcher));
                }
            }
        }
        drop(listener);
        // Each connection ends after the answer it is giving.
        let _ = timeout(drain, graceful.shutdown()).await;
        while connections.try_join_next().is_some() {}
        let cut = connections.len();
        connections.shutdown().await;
        Drained { cut }
    }

    async fn converse(
        self,
        stream: TcpStream,
        client: SocketAddr,
        permit: OwnedSemaphorePermit,
        builder: Arc<auto::Builder<TokioExecutor>>,
        watcher: Watcher,
    ) {
        // Answers are written whole: waiting to fill a packet would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let seat = Seat::new(stream, self.limits().idle(), permit);
        let address = fields::address(client.ip());
        let service = service_fn(move |request| {
            let (proxy, address) = (self.clone(), address.clone());
            async move { Ok::<_, Infallible>(proxy.answer(&address, request).await) }
        });
        let connection = builder.serve_connection(TokioIo::new(seat), service).into_owned();
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, %client, "a connection ended");
        }
    }
}

fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        // One more than we take, so that who is a little over it gets our answer.
        .max_headers(limits.fields + 1)
        .max_buf_size(limits.buffer());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(limits.buffer()).unwrap_or(u32::MAX))
        .keep_alive_interval(limits.head)
        .keep_alive_timeout(limits.head);
    builder
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let Ok(seat) = seats.clone().acquire_owned().await else {
        // The semaphore is never closed.
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, client)) => return (stream, client, seat),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                // Out of file descriptors: trying at once would only keep the processor busy.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
