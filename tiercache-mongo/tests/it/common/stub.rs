//! A server of MongoDB's protocol that says what the test tells it to: for the faults no other server shows on
//! demand.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const OP_MSG: u32 = 2013;

/// What a command is answered with.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// This, with `ok: 1`.
    Answer(Document),
    /// An error of that code.
    Error(i32),
    /// The answer, but half of it, and the end of the connection.
    Cut(Document),
    /// The end of the connection; the command was carried out.
    Lost,
    /// Bytes that are no message.
    Garbage,
    /// A message of a length no message has.
    Endless,
    /// A message whose document does not end where it says.
    Torn,
    /// Nothing, ever.
    Never,
    /// That, so much later.
    Late(Duration, Document),
}

pub(crate) struct Stub {
    port: u16,
    shared: Arc<Mutex<Shared>>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    script: VecDeque<(&'static str, Reply)>,
    seen: Vec<(String, Document)>,
    opened: usize,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::<Mutex<Shared>>::default();
        let listening = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    lock(&shared).opened += 1;
                    let shared = shared.clone();
                    tokio::spawn(async move { drop(serve(stream, &shared).await) });
                }
            }
        });
        Self { port, shared, listening }
    }

    pub(crate) fn url(&self) -> String {
        format!("mongodb://127.0.0.1:{}", self.port)
    }

    /// The next command of that name is answered so; others as a server without any documents would.
    pub(crate) fn next(&self, command: &'static str, reply: Reply) {
        lock(&self.shared).script.push_back((command, reply));
    }

    /// The commands of that name that have come.
    pub(crate) fn seen(&self, command: &str) -> Vec<Document> {
        lock(&self.shared)
            .seen
            .iter()
            .filter(|(name, _)| name == command)
            .map(|(_, body)| body.clone())
            .collect()
    }

    /// What was said to do and was not asked for.
    pub(crate) fn left(&self) -> usize {
        lock(&self.shared).script.len()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("no panic")
}

/// Documents as what a command found.
pub(crate) fn page(documents: Vec<Document>) -> Document {
    cursor(0, documents)
}

/// Likewise, with more to come.
pub(crate) fn cursor(id: i64, documents: Vec<Document>) -> Document {
    doc! { "cursor": { "id": id, "ns": "tiercache.x", "firstBatch": documents } }
}

async fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let (request, body) = read(&mut stream).await?;
        let name = body.keys().next().cloned().unwrap_or_default();
        // What goes on beside the calls is asked for by a name of its own.
        let beside = body.get_str(&name).is_ok_and(|collection| collection.ends_with(".state"));
        let label = if beside { format!("{name} state") } else { name.clone() };
        let scripted = {
            let mut shared = lock(shared);
            shared.seen.push((label.clone(), body.clone()));
            let at = shared.script.iter().position(|(command, _)| label.eq_ignore_ascii_case(command));
            at.and_then(|at| shared.script.remove(at)).map(|(_, reply)| reply)
        };
        match scripted.unwrap_or_else(|| Reply::Answer(usual(&name))) {
            Reply::Answer(answer) => stream.write_all(&message(request, answer)).await?,
            Reply::Error(code) => {
                let answer =
                    doc! { "ok": 0, "code": code, "codeName": "Scripted", "errmsg": "as the test says" };
                stream.write_all(&message(request, answer)).await?;
            }
            Reply::Cut(answer) => {
                let whole = message(request, answer);
                stream.write_all(&whole[..whole.len() / 2]).await?;
                return Ok(());
            }
            Reply::Lost => return Ok(()),
            Reply::Garbage => stream.write_all(&[0xff; 64]).await?,
            Reply::Endless => {
                let mut whole = message(request, doc! {});
                whole[..4].copy_from_slice(&i32::MAX.to_le_bytes());
                stream.write_all(&whole).await?;
            }
            Reply::Torn => {
                let mut whole = message(request, doc! { "x": "some text" });
                // The length of the document, behind header, flags and kind.
                whole[21..25].copy_from_slice(&7_i32.to_le_bytes());
                stream.write_all(&whole).await?;
            }
            Reply::Never => {}
            Reply::Late(after, answer) => {
                tokio::time::sleep(after).await;
                stream.write_all(&message(request, answer)).await?;
            }
        }
    }
}

/// What a server without any documents says.
fn usual(command: &str) -> Document {
    match command.to_ascii_lowercase().as_str() {
        "hello" | "ismaster" => doc! {
            "isWritablePrimary": true,
            "ismaster": true,
            "helloOk": true,
            "maxBsonObjectSize": 16 << 20,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 21,
        },
        "find" | "aggregate" | "listindexes" => page(Vec::new()),
        "findandmodify" => doc! { "value": Bson::Null },
        "update" => doc! { "n": 1, "nModified": 1 },
        "delete" => doc! { "n": 0 },
        "insert" => doc! { "n": 1 },
        _ => doc! {},
    }
}

/// The id of the next message, and its document, with the sequences beside it put into it.
async fn read(stream: &mut TcpStream) -> io::Result<(u32, Document)> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).await?;
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(field(12), OP_MSG, "the driver speaks OP_MSG");
    let mut rest = vec![0; field(0) as usize - header.len()];
    stream.read_exact(&mut rest).await?;
    let mut body = Document::new();
    let mut sequences = Document::new();
    let mut sections = &rest[4..];
    while let [kind, section @ ..] = sections {
        if *kind == 0 {
            let read = document(section)?;
            sections = &section[read.0..];
            body = read.1;
        } else {
            let length = u32::from_le_bytes(section[..4].try_into().expect("four bytes")) as usize;
            let (mut inner, after) = (&section[4..length], &section[length..]);
            let end = inner.iter().position(|&byte| byte == 0).ok_or(ErrorKind::InvalidData)?;
            let name = String::from_utf8_lossy(&inner[..end]).into_owned();
            inner = &inner[end + 1..];
            let mut list = Vec::new();
            while !inner.is_empty() {
                let read = document(inner)?;
                inner = &inner[read.0..];
                list.push(read.1);
            }
            sequences.insert(name, list);
            sections = after;
        }
    }
    body.extend(sequences);
    Ok((field(4), body))
}

fn document(bytes: &[u8]) -> io::Result<(usize, Document)> {
    let length = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
    let read = Document::from_reader(&bytes[..length]).map_err(|_| ErrorKind::InvalidData)?;
    Ok((length, read))
}

fn message(to: u32, mut answer: Document) -> Vec<u8> {
    if !answer.contains_key("ok") {
        answer.insert("ok", 1);
    }
    let body = answer.to_vec().expect("encodes");
    let mut whole = Vec::new();
    for field in [16 + 4 + 1 + body.len() as u32, 1, to, OP_MSG, 0] {
        whole.extend(field.to_le_bytes());
    }
    whole.push(0);
    whole.extend(body);
    whole
}
