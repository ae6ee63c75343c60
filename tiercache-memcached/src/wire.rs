//! The level's own connections, over which entries and the record are read and written: several commands in one write, each
//! write of an item on its own condition. The client cannot send different commands at once.
//!
//! Meta commands are answered in their order, one answer each (memcached, doc/protocol.txt, "Meta Commands"), so the n-th
//! answer is the n-th command's. None is quiet. A connection whose call was dropped or failed is not used again.

use std::io::{self, Write as _};
use std::time::Duration;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::server::Written;

/// No answer has a longer line.
const LONGEST_LINE: u64 = 2_048;
/// From so many bytes on a value is sent from where it is.
const LARGE: usize = 32 << 10;
/// So much room is made for a value before it comes.
const ROOM: usize = 1 << 20;

/// A command.
#[derive(Debug)]
pub(crate) enum Ask<'a> {
    /// `mg`: an item with its value.
    Value(&'a str),
    /// `mg`: an item without its value.
    Stands(&'a str),
    /// `ms`.
    Write(Write<'a>),
}

/// A write of one item, on its own condition.
#[derive(Debug)]
pub(crate) struct Write<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a [u8],
    /// The CAS of what it replaces; without, there must be nothing.
    pub(crate) cas: Option<u64>,
    pub(crate) flags: u32,
    /// The flag `T`.
    pub(crate) expiry: &'a str,
}

/// The answer to a command.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    Item(Option<Item>),
    /// With the CAS of what was stored.
    Write(Written, Option<u64>),
}

impl Answer {
    pub(crate) fn item(self) -> Option<Item> {
        match self {
            Self::Item(item) => item,
            Self::Write(..) => None,
        }
    }

    pub(crate) fn written(self) -> (Written, Option<u64>) {
        match self {
            Self::Write(written, cas) => (written, cas),
            Self::Item(_) => (Written::Changed, None),
        }
    }
}

/// An item that is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Item {
    /// Empty when it was not asked for.
    pub(crate) value: Vec<u8>,
    pub(crate) flags: u32,
    pub(crate) cas: Option<u64>,
}

/// A connection.
pub(crate) struct Wire {
    stream: BufReader<Box<dyn Stream>>,
    /// What is sent, put together.
    out: Vec<u8>,
    line: Vec<u8>,
    /// Whether what is read next is the answer to what is written next.
    in_step: bool,
    /// The era of the last record that was read over it.
    pub(crate) era: Option<u64>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

impl Wire {
    async fn connect(address: &str) -> io::Result<Self> {
        Ok(Self::over(match address.strip_prefix("unix://") {
            #[cfg(unix)]
            Some(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
            #[cfg(not(unix))]
            Some(_) => return Err(io::ErrorKind::Unsupported.into()),
            None => {
                let stream = TcpStream::connect(address.trim_start_matches("tcp://")).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        }))
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        let (out, line) = (Vec::new(), Vec::new());
        Self { stream: BufReader::new(stream), out, line, in_step: true, era: None }
    }

    /// Sends the commands in one, and returns the answer to each.
    pub(crate) async fn exchange(&mut self, asks: &[Ask<'_>]) -> io::Result<Vec<Answer>> {
        self.in_step = false;
        self.out.clear();
        for ask in asks {
            match ask {
                Ask::Value(name) => write!(self.out, "mg {name} v f c\r\n")?,
                Ask::Stands(name) => write!(self.out, "mg {name} f c\r\n")?,
                Ask::Write(Write { name, value, cas, flags, expiry }) => {
                    write!(self.out, "ms {name} {} ", value.len())?;
                    match cas {
                        Some(cas) => write!(self.out, "C{cas}")?,
                        None => self.out.extend_from_slice(b"ME"),
                    }
                    write!(self.out, " F{flags} {expiry} c\r\n")?;
                    if value.len() < LARGE {
                        self.out.extend_from_slice(value);
                    } else {
                        self.send().await?;
                        self.stream.write_all(value).await?;
                    }
                    self.out.extend_from_slice(b"\r\n");
                }
            }
            if self.out.len() > LARGE {
                self.send().await?;
            }
        }
        self.send().await?;
        self.stream.flush().await?;
        let mut answers = Vec::with_capacity(asks.len());
        for ask in asks {
            answers.push(match ask {
                Ask::Value(_) | Ask::Stands(_) => Answer::Item(self.item().await?),
                Ask::Write(_) => {
                    let (written, cas) = written(self.line().await?)?;
                    Answer::Write(written, cas)
                }
            });
        }
        self.in_step = true;
        Ok(answers)
    }

    /// Whether it answers to what changes nothing.
    async fn answers(&mut self) -> io::Result<bool> {
        self.in_step = false;
        self.stream.write_all(b"mn\r\n").await?;
        self.stream.flush().await?;
        self.in_step = self.line().await? == b"MN";
        Ok(self.in_step)
    }

    async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// The next line, without its end.
    async fn line(&mut self) -> io::Result<&[u8]> {
        self.line.clear();
        (&mut self.stream).take(LONGEST_LINE).read_until(b'\n', &mut self.line).await?;
        self.line.strip_suffix(b"\r\n").ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn item(&mut self) -> io::Result<Option<Item>> {
        let line = self.line().await?;
        if line == b"EN" {
            return Ok(None);
        }
        let mut item = Item::default();
        let mut words = text(line)?.split(' ');
        let size = match words.next() {
            Some("HD") => None,
            Some("VA") => Some(number(words.next().unwrap_or_default())?),
            _ => return Err(refused(line)),
        };
        for word in words {
            match word.split_at_checked(1) {
                Some(("f", flags)) => item.flags = number(flags)?,
                Some(("c", cas)) => item.cas = Some(number(cas)?),
                _ => return Err(senseless()),
            }
        }
        if let Some(size) = size {
            // No room for what may never come.
            item.value.reserve_exact(usize::min(size, ROOM));
            (&mut self.stream).take(size as u64).read_to_end(&mut item.value).await?;
            let mut end = [0; 2];
            self.stream.read_exact(&mut end).await?;
            if end != *b"\r\n" {
                return Err(senseless());
            }
        }
        Ok(Some(item))
    }
}

/// What a line says became of a write, and the CAS of what was stored.
fn written(line: &[u8]) -> io::Result<(Written, Option<u64>)> {
    let mut words = line.split(|&byte| byte == b' ');
    match words.next() {
        Some(b"HD") => {
            let cas = words.find_map(|word| word.strip_prefix(b"c"));
            Ok((Written::Stored, cas.map(|cas| number(text(cas)?)).transpose()?))
        }
        Some(b"NS" | b"EX" | b"NF") => Ok((Written::Changed, None)),
        _ if line.starts_with(b"SERVER_ERROR ") => match &String::from_utf8_lossy(line) {
            said if said.contains("too large") => Ok((Written::TooLarge, None)),
            said if said.contains("out of memory") => Ok((Written::Full, None)),
            _ => Err(refused(line)),
        },
        _ => Err(refused(line)),
    }
}

/// What comes of a line that answers nothing.
fn refused(line: &[u8]) -> io::Error {
    match line.strip_prefix(b"SERVER_ERROR ") {
        Some(said) => io::Error::other(format!("the server says: {}", String::from_utf8_lossy(said))),
        None => senseless(),
    }
}

fn text(bytes: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| senseless())
}

fn number<N: std::str::FromStr>(digits: &str) -> io::Result<N> {
    digits.parse().map_err(|_| senseless())
}

fn senseless() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the server's answer makes no sense")
}

/// Makes such connections for a pool.
pub(crate) struct Dial {
    pub(crate) address: String,
    /// How long one that is tried may take to answer.
    pub(crate) timeout: Duration,
}

impl managed::Manager for Dial {
    type Type = Wire;
    type Error = io::Error;

    async fn create(&self) -> io::Result<Wire> {
        Wire::connect(&self.address).await
    }

    async fn recycle(&self, wire: &mut Wire, metrics: &Metrics) -> RecycleResult<io::Error> {
        if !wire.in_step {
            return Err(RecycleError::message("a call was given up on it"));
        }
        if metrics.last_used() > crate::server::IDLE {
            let tried = tokio::time::timeout(self.timeout, wire.answers()).await;
            if !tried.map_err(|_| RecycleError::message("it does not answer"))?? {
                return Err(RecycleError::message("it does not answer as it should"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write<'a>(name: &'a str, value: &'a [u8], cas: Option<u64>) -> Ask<'a> {
        Ask::Write(Write { name, value, cas, flags: 7, expiry: "T0" })
    }

    #[tokio::test]
    async fn each_answer_is_the_one_to_its_command() {
        let (ours, mut theirs) = tokio::io::duplex(4_096);
        let mut wire = Wire::over(Box::new(ours));
        let answers = b"HD c12\r\nNS c0\r\nEX c0\r\nNF c0\r\nSERVER_ERROR object too large for cache\r\n\
            SERVER_ERROR out of memory storing object\r\nVA 4 f7 c12\r\n\r\nEN\r\nHD f9 c3\r\nEN\r\nHD c13\r\n";
        theirs.write_all(answers).await.unwrap();
        let mut asks: Vec<_> =
            ["a", "b", "c", "d", "e", "f"].map(|name| write(name, b"\r\nHD", Some(9))).into();
        asks.extend([Ask::Value("a"), Ask::Stands("b"), Ask::Value("c"), write("d", b"", None)]);
        let said = wire.exchange(&asks).await.unwrap();
        use Written::{Changed, Full, Stored, TooLarge};
        let (refused, item) = (Answer::Write(Changed, None), |item| Answer::Item(Some(item)));
        let expected = [
            Answer::Write(Stored, Some(12)),
            Answer::Write(Changed, None),
            Answer::Write(Changed, None),
            refused,
            Answer::Write(TooLarge, None),
            Answer::Write(Full, None),
            item(Item { value: b"\r\nEN".into(), flags: 7, cas: Some(12) }),
            item(Item { value: Vec::new(), flags: 9, cas: Some(3) }),
            Answer::Item(None),
            Answer::Write(Stored, Some(13)),
        ];
        assert_eq!(said, expected);
        assert!(wire.in_step);
        let mut sent = vec![0; 4_096];
        let read = theirs.read(&mut sent).await.unwrap();
        let sent = String::from_utf8(sent[..read].to_vec()).unwrap();
        assert!(sent.starts_with("ms a 4 C9 F7 T0 c\r\n\r\nHD\r\nms b"), "{sent}");
        assert!(
            sent.ends_with("mg a v f c\r\nmg b f c\r\nmg c v f c\r\nms d 0 ME F7 T0 c\r\n\r\n"),
            "{sent}"
        );
    }

    #[tokio::test]
    async fn a_value_of_any_size_comes_whole() {
        let (ours, mut theirs) = tokio::io::duplex(1_000);
        let mut wire = Wire::over(Box::new(ours));
        let value = vec![b'\n'; LARGE + 1];
        let echo = async {
            let head = format!("ms a {} ME F7 T0 c\r\n", value.len());
            let mut sent = vec![0; head.len() + value.len() + 2];
            theirs.read_exact(&mut sent).await.unwrap();
            assert_eq!(sent, [head.as_bytes(), &value, b"\r\n"].concat());
            theirs.write_all(b"HD c1\r\n").await.unwrap();
            let mut sent = [0; 12];
            theirs.read_exact(&mut sent).await.unwrap();
            let answer = [format!("VA {} f7 c1\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat();
            theirs.write_all(&answer).await.unwrap();
        };
        let calls = async {
            wire.exchange(&[write("a", &value, None)]).await.unwrap();
            wire.exchange(&[Ask::Value("a")]).await.unwrap()
        };
        let ((), found) = tokio::join!(echo, calls);
        assert_eq!(found, [Answer::Item(Some(Item { value: value.clone(), flags: 7, cas: Some(1) }))]);
    }

    #[tokio::test]
    async fn a_connection_that_may_be_out_of_step_is_not_used_again() {
        let wrong: [&[u8]; 9] = [
            b"HD c1\r\n",
            b"HD c1\r\nERROR\r\n",
            b"HD c1\r\nSERVER_ERROR oops\r\n",
            b"HD c1\r\nHD",
            b"HD c\r\nEN\r\n",
            b"HD c1\r\nVA 3 f7\r\nabcd\r\n",
            b"HD c1\r\nVA 99999999999999 f7\r\nabcd\r\n",
            b"HD c1\r\nVA x f7\r\nabcd\r\n",
            b"HD c1\r\nHD fx\r\n",
        ];
        for answers in wrong {
            let (ours, mut theirs) = tokio::io::duplex(4_096);
            let mut wire = Wire::over(Box::new(ours));
            theirs.write_all(answers).await.unwrap();
            theirs.shutdown().await.unwrap();
            wire.exchange(&[write("a", b"1", None), Ask::Value("b")]).await.map(drop).unwrap_err();
            assert!(!wire.in_step, "{answers:?}");
        }
        let (ours, _theirs) = tokio::io::duplex(4_096);
        let mut wire = Wire::over(Box::new(ours));
        let asks = [write("a", b"1", None)];
        tokio::select! {
            biased;
            _ = wire.exchange(&asks) => panic!("nobody answered"),
            () = tokio::task::yield_now() => {}
        }
        assert!(!wire.in_step, "dropped half-way");
    }
}
