//! A proxy, what stands behind it, and who talks to it, byte by byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tiercache_core::CacheManager;
use tiercache_http::{HttpCache, Profile};
use tiercache_proxy::{Counters, Drained, Limits, Proxy, Target};
use tiercache_ram::{RamConfig, RamTier};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing here takes so long.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What an origin has received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// Request line and fields as they came.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Which request on its connection, counted from 0.
    pub(crate) turn: usize,
}

impl Received {
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &str {
        self.line().split(' ').nth(1).unwrap_or_default()
    }

    /// Every value of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }
}

/// What an origin does.
pub(crate) enum Reply {
    /// These bytes, and the connection stays.
    Bytes(Vec<u8>),
    /// These bytes, and the connection ends.
    Close(Vec<u8>),
    /// These bytes, and the connection is reset.
    Reset(Vec<u8>),
    /// Nothing until the other has gone, or these bytes when told.
    Wait(Arc<Notify>, Vec<u8>),
    /// The first, and when told the second.
    Parts(Vec<u8>, Arc<Notify>, Vec<u8>),
}

/// A response with that status, these fields and that body.
pub(crate) fn response(status: &str, fields: &str, body: &str) -> Vec<u8> {
    let fields = fields.replace('\n', "\r\n");
    let gap = if fields.is_empty() { "" } else { "\r\n" };
    format!("HTTP/1.1 {status}\r\n{fields}{gap}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn fresh(body: &str) -> Reply {
    Reply::Bytes(response("200 OK", "Cache-Control: max-age=60", body))
}

type Answering = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

/// A server of one's own words.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    /// Connections whose other side has gone while it waited.
    pub(crate) left: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Origin {
    pub(crate) async fn start(answer: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::on(listener, answer)
    }

    pub(crate) fn on(
        listener: TcpListener,
        answer: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("its address");
        let answer: Answering = Arc::new(answer);
        let (received, left) = (Arc::<Mutex<Vec<Received>>>::default(), Arc::<Notify>::default());
        let (log, gone) = (received.clone(), left.clone());
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(converse(stream, answer.clone(), log.clone(), gone.clone()));
            }
        });
        Self { address, received, left, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("the list").clone()
    }

    pub(crate) fn last(&self) -> Received {
        self.received().pop().expect("a request")
    }

    /// Ends it and every connection, and gives the port back.
    pub(crate) async fn stop(self) -> SocketAddr {
        let address = self.address;
        self.task.abort();
        let Self { task, .. } = self;
        let _ = task.await;
        address
    }
}

async fn converse(stream: TcpStream, answer: Answering, log: Arc<Mutex<Vec<Received>>>, gone: Arc<Notify>) {
    stream.set_nodelay(true).expect("a socket option");
    let mut stream = BufReader::new(stream);
    for turn in 0.. {
        let Some((head, body)) = read_message(&mut stream, false).await else { return };
        let received = Received { head, body, turn };
        log.lock().expect("the list").push(received.clone());
        match answer(&received) {
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Close(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            Reply::Reset(bytes) => {
                let _ = stream.write_all(&bytes).await;
                stream.get_ref().set_zero_linger().expect("a socket option");
                return;
            }
            Reply::Wait(told, bytes) => {
                let mut byte = [0];
                tokio::select! {
                    () = told.notified() => {
                        let _ = stream.write_all(&bytes).await;
                    }
                    _ = stream.read(&mut byte) => {
                        gone.notify_one();
                        return;
                    }
                }
            }
            Reply::Parts(first, told, second) => {
                let _ = stream.write_all(&first).await;
                let mut byte = [0];
                tokio::select! {
                    () = told.notified() => {
                        let _ = stream.write_all(&second).await;
                    }
                    _ = stream.read(&mut byte) => {
                        gone.notify_one();
                        return;
                    }
                }
            }
        }
    }
}

/// A running proxy; ended with this value.
pub(crate) struct Running {
    pub(crate) proxy: Proxy,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Drained>,
}

impl Running {
    pub(crate) async fn before(origin: &Origin) -> Self {
        Self::with(&origin.url(), Profile::Default, Limits::default()).await
    }

    pub(crate) async fn with(origin: &str, profile: Profile, limits: Limits) -> Self {
        let target: Target = origin.parse().expect("an origin");
        let cache = HttpCache::builder(manager().await).profile(profile).build().expect("a cache");
        Self::of(Proxy::new(cache, target, limits)).await
    }

    pub(crate) async fn of(proxy: Proxy) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = proxy.clone();
        let task = tokio::spawn(async move {
            serving
                .serve(
                    listener,
                    async {
                        let _ = stopped.await;
                    },
                    Duration::from_secs(5),
                )
                .await
        });
        Self { proxy, address, stop: Some(stop), task }
    }

    pub(crate) async fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        Client(BufReader::new(stream))
    }

    /// One request on a connection of its own; `Host` is added, and `fields` are lines.
    pub(crate) async fn get(&self, path: &str, fields: &[&str]) -> Answer {
        self.ask("GET", path, fields, "").await
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, fields: &[&str], body: &str) -> Answer {
        let mut client = self.connect().await;
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        client
            .send(&format!("{method} {path} HTTP/1.1\r\nHost: a.example\r\n{fields}{length}\r\n{body}"))
            .await;
        client.answer(method == "HEAD").await
    }

    /// These bytes on a connection of their own, and all that comes back until it ends.
    pub(crate) async fn raw(&self, bytes: &str) -> String {
        let mut client = self.connect().await;
        client.send(bytes).await;
        client.rest().await
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        count(self.proxy.counters(), name)
    }

    /// Tells it to stop; how that ended is told by [`Running::ended`].
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) async fn ended(mut self) -> Drained {
        self.stop();
        timeout(LONG, self.task).await.expect("it ends").expect("it does not panic")
    }
}

pub(crate) async fn manager() -> CacheManager {
    let ram = RamTier::new(RamConfig { max_size: 16 << 20, policy: Default::default() });
    CacheManager::builder().hot(Arc::new(ram)).build().await.expect("a cache")
}

pub(crate) fn count(counters: &Counters, name: &str) -> u64 {
    let found = counters.all().into_iter().find(|(known, ..)| *known == name);
    found.unwrap_or_else(|| panic!("nothing is counted as {name}")).2
}

/// A connection to the proxy.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) async fn send(&mut self, bytes: &str) {
        // Who is refused may find the connection gone.
        let _ = self.0.write_all(bytes.as_bytes()).await;
    }

    pub(crate) async fn answer(&mut self, head_only: bool) -> Answer {
        let read = timeout(LONG, read_message(&mut self.0, head_only)).await.expect("an answer in time");
        let (head, body) = read.expect("an answer");
        Answer { head, body }
    }

    /// The head of an answer, whose body is read with [`Client::some`].
    pub(crate) async fn head(&mut self) -> Answer {
        let head =
            timeout(LONG, read_head(&mut self.0)).await.expect("an answer in time").expect("an answer");
        Answer { head, body: Vec::new() }
    }

    /// So many further bytes.
    pub(crate) async fn some(&mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        timeout(LONG, self.0.read_exact(&mut buffer)).await.expect("bytes in time").expect("bytes");
        buffer
    }

    /// All that comes until the connection ends.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = timeout(LONG, self.0.read_to_end(&mut rest)).await.expect("an end in time");
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// What the proxy has answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        let status = self.head.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("no status: {}", self.head))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }
}

fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}

async fn read_head(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut head = String::new();
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        if line == b"\r\n" {
            return Some(head);
        }
        head.push_str(&String::from_utf8_lossy(&line));
    }
}

/// A request or a response; bodies by their length, in chunks, or (a response's) to the end.
async fn read_message(
    stream: &mut (impl AsyncBufReadExt + AsyncRead + Unpin),
    head_only: bool,
) -> Option<(String, Vec<u8>)> {
    let head = read_head(stream).await?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    let mut body = Vec::new();
    if head_only || status.is_some_and(|status| status == "204" || status == "304" || status.starts_with('1'))
    {
        return Some((head, body));
    }
    if fields(&head, "transfer-encoding").iter().any(|coding| coding.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await.ok()?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Some((head, body));
            }
        }
    }
    match (fields(&head, "content-length").first(), status) {
        (Some(length), _) => {
            body.resize(length.parse().ok()?, 0);
            stream.read_exact(&mut body).await.ok()?;
        }
        (None, Some(_)) => {
            stream.read_to_end(&mut body).await.ok()?;
        }
        (None, None) => {}
    }
    Some((head, body))
}
