//! A client for the examples: one request, one line.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks, and prints what came and what the cache did.
pub(crate) async fn ask(at: SocketAddr, method: &str, path: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(at).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let did = head.lines().find_map(|line| line.strip_prefix("cache-status: tiercache; "));
    // The rest says for how long.
    let did = did.map_or("", |did| did.split("; ttl").next().unwrap_or(did));
    println!("{method} {path}: {body} ({did})");
    Ok(())
}
