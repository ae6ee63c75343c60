use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::port::Port;

/// What a [`Proxy`] does to what passes. A change reaches connections that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    Pass,
    /// Nobody listens; what was open is reset.
    Refuse,
    /// Connections open, and nothing passes in either direction. What stood still goes on afterwards.
    Hang,
    /// Each piece of an answer comes that much later.
    Delay(Duration),
    /// Both directions a byte at a time.
    OneByte,
    /// Each connection ends after that many further bytes of answers.
    CutAfter(usize),
    /// Each connection ends after that many further bytes of requests.
    CutRequestAfter(usize),
    /// What is open is reset at once; what is opened, when its first answer comes: the request was carried out.
    Reset,
    /// On each connection one bit of that one of the further bytes of answers, counted from 0, is turned.
    Corrupt(usize),
    /// A request that begins with the first is answered with the second and not passed on, and its connection ends.
    Answer(&'static str, &'static str),
    /// A request whose first piece has this in it is neither passed on nor answered, and its connection ends with the
    /// fault. [`Proxy::held`] counts them.
    Hold(&'static str),
}

/// A TCP proxy on a loopback port that ends with this value. It runs on a thread of its own, so that it goes on
/// whatever the test's runtime does.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    orders: mpsc::UnboundedSender<(Fault, Sender<()>)>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicUsize,
    open: AtomicUsize,
    held: AtomicUsize,
}

impl Proxy {
    /// One in front of `target`, host and port.
    pub fn to(target: impl Display) -> Self {
        let (port, target, counts) = (Port::reserve(), target.to_string(), Arc::<Counts>::default());
        let (orders, taken) = mpsc::unbounded_channel();
        let (ready, listening) = channel();
        let (number, shared) = (port.number, counts.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(serve(number, target, taken, shared, ready));
        });
        listening.recv().expect("the proxy listens");
        Self { port, orders, counts }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Changes the fault. Returns when it is in force.
    pub fn set(&self, fault: Fault) {
        let (done, waited) = channel();
        self.orders.send((fault, done)).expect("the proxy runs as long as this value");
        waited.recv().expect("the proxy runs as long as this value");
    }

    /// Connections that were ever accepted.
    pub fn connections(&self) -> usize {
        self.counts.opened.load(Ordering::SeqCst)
    }

    /// Requests that were ever held.
    pub fn held(&self) -> usize {
        self.counts.held.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }
}

async fn serve(
    port: u16,
    target: String,
    mut orders: mpsc::UnboundedReceiver<(Fault, Sender<()>)>,
    counts: Arc<Counts>,
    ready: Sender<()>,
) {
    let (faults, fault) = watch::channel(Fault::Pass);
    let mut listener = Some(listen(port).await);
    let _ = ready.send(());
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => {
                let Some((new, done)) = order else { return };
                faults.send_replace(new);
                match (new, &listener) {
                    (Fault::Refuse, _) => listener = None,
                    (_, None) => listener = Some(listen(port).await),
                    _ => {}
                }
                let _ = done.send(());
            }
            client = accept(listener.as_ref()) => {
                counts.opened.fetch_add(1, Ordering::SeqCst);
                let (target, fault, counts) = (target.clone(), fault.clone(), counts.clone());
                tokio::spawn(async move {
                    counts.open.fetch_add(1, Ordering::SeqCst);
                    relay(client, &target, fault, &counts).await;
                    counts.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }
}

async fn listen(port: u16) -> TcpListener {
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => return listener,
            // Connections of before may still be going down.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    match listener {
        None => std::future::pending().await,
        Some(listener) => loop {
            if let Ok((client, _)) = listener.accept().await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        },
    }
}

/// Why a connection ends before its time.
enum End {
    Cut,
    Reset,
    Answered(&'static str),
}

/// How long a client may go on sending what is not listened to.
const DRAIN: Duration = Duration::from_secs(1);

async fn relay(mut client: TcpStream, target: &str, mut fault: watch::Receiver<Fault>, counts: &Counts) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    fault.mark_unchanged();
    let outcome = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let requests = pump(from_client, to_server, Way::Request, fault.clone(), counts);
        let answers = pump(from_server, to_client, Way::Answer, fault.clone(), counts);
        tokio::select! {
            outcome = async { tokio::try_join!(requests, answers) } => outcome.err(),
            () = torn(fault) => Some(End::Reset),
        }
    };
    match outcome {
        Some(End::Reset) => {
            let _ = (client.set_zero_linger(), server.set_zero_linger());
        }
        Some(End::Answered(answer)) => {
            let _ = client.write_all(answer.as_bytes()).await;
            let _ = client.shutdown().await;
            // Read to its end: a client whose connection closes while it writes may never see the answer.
            let mut rest = [0; 4096];
            let _ = tokio::time::timeout(DRAIN, async {
                while matches!(client.read(&mut rest).await, Ok(1..)) {}
            })
            .await;
        }
        Some(End::Cut) | None => {}
    }
}

/// Returns when a fault comes that ends open connections.
async fn torn(mut fault: watch::Receiver<Fault>) {
    while fault.changed().await.is_ok() {
        if matches!(*fault.borrow_and_update(), Fault::Refuse | Fault::Reset) {
            return;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Answer,
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    mut faults: watch::Receiver<Fault>,
    counts: &Counts,
) -> Result<(), End> {
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0;
    loop {
        let fault = *faults.borrow_and_update();
        let read = tokio::select! {
            biased;
            Ok(()) = faults.changed() => {
                passed = 0;
                continue;
            }
            read = from.read(&mut buffer), if fault != Fault::Hang => read,
        };
        let piece = match read {
            Ok(0) => return to.shutdown().await.map_err(|_| End::Cut),
            Ok(count) => &mut buffer[..count],
            Err(_) => return Err(End::Reset),
        };
        deliver(piece, &mut passed, &mut to, way, &mut faults, counts).await?;
    }
}

async fn deliver(
    piece: &mut [u8],
    passed: &mut usize,
    to: &mut WriteHalf<'_>,
    way: Way,
    faults: &mut watch::Receiver<Fault>,
    counts: &Counts,
) -> Result<(), End> {
    // A fault that came while this piece was read holds for it.
    let fault = loop {
        let fault = *faults.borrow_and_update();
        if fault != Fault::Hang {
            break fault;
        }
        *passed = 0;
        faults.changed().await.map_err(|_| End::Cut)?;
    };
    let from = *passed;
    *passed += piece.len();
    let failed = |_: io::Error| End::Reset;
    match (fault, way) {
        (Fault::Reset, Way::Answer) => return Err(End::Reset),
        (Fault::Answer(begins, answer), Way::Request) if piece.starts_with(begins.as_bytes()) => {
            return Err(End::Answered(answer));
        }
        (Fault::Hold(text), Way::Request)
            if piece.windows(text.len()).any(|part| part == text.as_bytes()) =>
        {
            counts.held.fetch_add(1, Ordering::SeqCst);
            let _ = faults.changed().await;
            return Err(End::Cut);
        }
        (Fault::Delay(late), Way::Answer) => tokio::time::sleep(late).await,
        (Fault::OneByte, _) => {
            for byte in piece {
                to.write_all(&[*byte]).await.map_err(failed)?;
                tokio::task::yield_now().await;
            }
            return Ok(());
        }
        (Fault::CutAfter(limit), Way::Answer) | (Fault::CutRequestAfter(limit), Way::Request)
            if *passed >= limit =>
        {
            // The limit may have come after more had passed than it allows.
            to.write_all(&piece[..limit.saturating_sub(from)]).await.map_err(failed)?;
            return Err(End::Cut);
        }
        (Fault::Corrupt(nth), Way::Answer) if (from..*passed).contains(&nth) => piece[nth - from] ^= 1,
        _ => {}
    }
    to.write_all(piece).await.map_err(failed)
}
