//! The caching proxy in front of a slow origin: what a client waits with it and without it.
//!
//! `cargo run -p tiercache-examples --bin proxy -- 100 50ms`: so many requests, each of which takes the origin so long.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tiercache::CacheManager;
use tiercache::ram::{RamConfig, RamTier};
use tiercache::units::parse_duration;
use tiercache_http::HttpCache;
use tiercache_proxy::{Limits, Proxy};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let mut arguments = std::env::args().skip(1);
    let requests: usize = arguments.next().unwrap_or("100".into()).parse()?;
    let delay = parse_duration(&arguments.next().unwrap_or("50ms".into()))?;

    let (origin, asked) = slow_origin(delay).await?;
    let ram = RamTier::new(RamConfig { max_size: 64 << 20, policy: Default::default() });
    let cache = HttpCache::new(CacheManager::builder().hot(Arc::new(ram)).build().await?);
    let proxy = Proxy::new(cache.clone(), format!("http://{origin}").parse()?, Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        proxy.serve(listener, stopped, Duration::from_secs(1)).await
    });

    for (name, address) in [("origin", origin), ("proxy", address)] {
        let before = asked.load(Ordering::SeqCst);
        let mut times = measure(address, requests).await?;
        times.sort_unstable();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let asked = asked.load(Ordering::SeqCst) - before;
        println!("{name:<7} {requests} requests, {asked} at the origin, p50 {p50:.1?}, p99 {p99:.1?}");
    }

    // What changes at the origin is purged by address or by tag.
    cache.purge(&format!("http://{address}/page").parse()?).await?;
    let before = asked.load(Ordering::SeqCst);
    measure(address, 2).await?;
    println!("purged  2 requests, {} at the origin", asked.load(Ordering::SeqCst) - before);

    drop(stop);
    serving.await?;
    Ok(())
}

/// Answers every request after `delay` with a page that is fresh for a minute; the number is that of its requests.
async fn slow_origin(delay: Duration) -> Result<(SocketAddr, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (address, asked) = (listener.local_addr()?, Arc::<AtomicUsize>::default());
    let counter = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while read_head(&mut stream).await.is_ok() {
                    counter.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(delay).await;
                    let page =
                        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\nhello";
                    if stream.write_all(page.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok((address, asked))
}

/// How long each of the requests took, one after the other on one connection.
async fn measure(address: SocketAddr, requests: usize) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let began = Instant::now();
        stream.write_all(format!("GET /page HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        read_head(&mut stream).await?;
        let mut body = [0; 5];
        stream.read_exact(&mut body).await?;
        assert_eq!(&body, b"hello");
        times.push(began.elapsed());
    }
    Ok(times)
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Result {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err("the connection ended".into());
        }
        if line == "\r\n" {
            return Ok(());
        }
    }
}
