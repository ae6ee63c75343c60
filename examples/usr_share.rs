//! The main job on real files: `cargo run --release -p tiercache-examples --bin usr_share` (build `tiercache-cli`
//! likewise before).
//!
//! Serves a cache, stores every file below `/usr/share` up to 1 MiB in it over HTTP, reads all of them back byte for
//! byte, stops the server with SIGTERM, starts it again, and reads all of them once more. Prints how fast that was
//! and which level answered. Options: `--folder DIR`, `--files MOST`, `--connections N`, `--tiercache PROGRAM`,
//! `--json`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const LARGEST: u64 = 1 << 20;
/// A prime: steps of that many visit every file once, in an order that is not the one they were stored in.
const STEP: usize = 1_000_003;

/// What to do with which files.
#[derive(Debug)]
pub(crate) struct Job {
    /// The command that serves.
    pub(crate) tiercache: PathBuf,
    /// What is stored.
    pub(crate) folder: PathBuf,
    /// The most files, spread evenly over what there is.
    pub(crate) files: usize,
    pub(crate) connections: usize,
    pub(crate) hot: &'static str,
    pub(crate) cold: &'static str,
}

fn main() -> Result<()> {
    let mut job = Job {
        tiercache: std::env::current_exe()?.with_file_name("tiercache"),
        folder: "/usr/share".into(),
        files: usize::MAX,
        connections: 4,
        hot: "16MiB",
        cold: "32MiB",
    };
    let mut as_json = false;
    let mut args = std::env::args().skip(1);
    while let Some(option) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{option}: the value is missing"));
        match option.as_str() {
            "--folder" => job.folder = value()?.into(),
            "--files" => job.files = value()?.parse()?,
            "--connections" => job.connections = value()?.parse::<usize>()?.max(1),
            "--tiercache" => job.tiercache = value()?.into(),
            "--json" => as_json = true,
            _ => return Err(format!("no such option: {option}").into()),
        }
    }
    let report = job.run()?;
    if as_json {
        println!("{report}");
        return Ok(());
    }
    println!("{} files, {:.1} MB", report["files"], report["bytes"].as_f64().unwrap_or(0.0) / 1e6);
    for pass in report["passes"].as_array().into_iter().flatten() {
        let number = |name: &str| pass[name].as_f64().unwrap_or(0.0);
        let from = if pass["levels"].as_object().is_some_and(|levels| levels.is_empty()) {
            String::new()
        } else {
            format!(", from {}", pass["levels"])
        };
        println!(
            "{:<20} {:>7.2} s, {:>8.0} files/s, {:>7.1} MB/s{from}",
            pass["pass"].as_str().unwrap_or_default(),
            number("seconds"),
            number("files_per_second"),
            number("megabytes_per_second"),
        );
    }
    println!("the first stop took {} s: {}", report["stop_seconds"], report["stopped"]);
    Ok(())
}

impl Job {
    /// Does it and tells what came of it. Anything that is not as it was stored is an error.
    pub(crate) fn run(&self) -> Result<Value> {
        let place = tempfile::tempdir()?;
        let config = place.path().join("tier.yaml");
        let path = place.path().display();
        fs::write(
            &config,
            format!(
                "hot_cache: {{ backend: ram, max_size: {} }}\ncold_cache: {{ backend: ram, max_size: {} }}\n\
                 dry_cache: {{ backend: local, path: {path}/dry, max_size: 10GiB }}\n\
                 tracking: {{ backend: sqlite, path: {path}/index.db }}\n",
                self.hot, self.cold
            ),
        )?;
        let mut files = Vec::new();
        walk(&self.folder, &mut files)?;
        files.sort();
        let step = files.len().div_ceil(self.files.max(1)).max(1);
        let files: Vec<PathBuf> = files.into_iter().step_by(step).collect();

        let server = Server::start(&self.tiercache, &config)?;
        let stored = self.pass("stored", &server, &files, 1, store)?;
        let read = self.pass("read", &server, &files, STEP, compare)?;
        let began = Instant::now();
        let stopped = server.stop()?;
        let stop_seconds = rounded(began.elapsed().as_secs_f64());
        let server = Server::start(&self.tiercache, &config)?;
        let again = self.pass("read after restart", &server, &files, STEP, compare)?;
        server.stop()?;
        Ok(json!({
            "files": files.len(),
            "bytes": stored["bytes"],
            "passes": [stored, read, again],
            "stop_seconds": stop_seconds,
            "stopped": stopped,
        }))
    }

    /// Does one thing with every file, over several connections at once.
    fn pass(&self, name: &str, server: &Server, files: &[PathBuf], step: usize, work: Work) -> Result<Value> {
        let began = Instant::now();
        let next = AtomicUsize::new(0);
        let shown = io::stderr().is_terminal();
        let one = || -> Result<(u64, BTreeMap<String, u64>)> {
            let mut connection = Connection::open(&server.address)?;
            let (mut bytes, mut levels) = (0, BTreeMap::new());
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= files.len() {
                    return Ok((bytes, levels));
                }
                let file = &files[at * step % files.len()];
                if shown && at.is_multiple_of(256) {
                    eprint!("\r{name}: {at} of {}", files.len());
                }
                let key = file.strip_prefix(&self.folder)?;
                let (length, level) = work(&mut connection, &path_of(key), &fs::read(file)?)
                    .map_err(|error| format!("{}: {error}", file.display()))?;
                bytes += length;
                if let Some(level) = level {
                    *levels.entry(level).or_default() += 1;
                }
            }
        };
        let parts: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.connections).map(|_| scope.spawn(one)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().map_err(|_| "a connection's thread panicked"))
                .collect()
        });
        if shown {
            eprint!("\r\x1b[K");
        }
        let (mut bytes, mut levels) = (0, BTreeMap::<String, u64>::new());
        for part in parts {
            let (length, from) = part??;
            bytes += length;
            from.into_iter().for_each(|(level, count)| *levels.entry(level).or_default() += count);
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(json!({
            "pass": name,
            "bytes": bytes,
            "seconds": rounded(seconds),
            "files_per_second": rounded(files.len() as f64 / seconds),
            "megabytes_per_second": rounded(bytes as f64 / 1e6 / seconds),
            "levels": levels,
        }))
    }
}

/// What is done with a file: the bytes it had, and the level that answered.
type Work = fn(&mut Connection, &str, &[u8]) -> Result<(u64, Option<String>)>;

fn store(connection: &mut Connection, path: &str, content: &[u8]) -> Result<(u64, Option<String>)> {
    let answer = connection.ask("PUT", path, content)?;
    if answer.status != 204 {
        return Err(format!("not stored: {}", answer.status).into());
    }
    Ok((content.len() as u64, None))
}

fn compare(connection: &mut Connection, path: &str, content: &[u8]) -> Result<(u64, Option<String>)> {
    let answer = connection.ask("GET", path, b"")?;
    if answer.status != 200 {
        return Err(format!("not there: {}", answer.status).into());
    }
    if answer.body != content {
        return Err("not what was stored".into());
    }
    Ok((content.len() as u64, answer.level))
}

/// Regular files that are not empty and not too large, no links.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let path = entry.path();
        if kind.is_dir() {
            walk(&path, files)?;
        } else if kind.is_file()
            && (1..=LARGEST).contains(&entry.metadata()?.len())
            && fs::File::open(&path).is_ok()
            && path.as_os_str().len() <= 1_024
        {
            files.push(path);
        }
    }
    Ok(())
}

/// The path of a key, percent-encoded.
fn path_of(key: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut path = "/cache/".to_owned();
    for &byte in key.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            path.push(byte.into());
        } else {
            path += &format!("%{byte:02X}");
        }
    }
    path
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// `tiercache serve`; killed when it is dropped without having been stopped.
struct Server {
    child: Child,
    says: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start(program: &Path, config: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(["serve", "--json", "--listen", "127.0.0.1:0", "--drain", "60s", "--config"])
            .arg(config);
        command.env_remove("TIERCACHE_TOKEN").stdin(Stdio::null()).stdout(Stdio::piped());
        let started = command.spawn();
        let mut child = started.map_err(|error| format!("{}: {error}", program.display()))?;
        let says = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let mut server = Self { child, says, address: String::new() };
        let mut line = String::new();
        server.says.read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).map_err(|_| format!("it did not start: {line}"))?;
        let url = said["listening"].as_str().ok_or("it does not say where it listens")?;
        server.address = url.trim_start_matches("http://").to_owned();
        Ok(server)
    }

    /// SIGTERM; its last words.
    fn stop(mut self) -> Result<Value> {
        Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status()?;
        let mut rest = String::new();
        self.says.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("it ended with {status}: {rest}").into());
        }
        Ok(serde_json::from_str(rest.trim())?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// HTTP/1.1 over one connection that is kept.
struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
}

struct Answer {
    status: u16,
    level: Option<String>,
    body: Vec<u8>,
}

impl Connection {
    fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), host: address.to_owned() })
    }

    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        let length = body.len();
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n", self.host)
                .into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut answer = Answer { status: status.ok_or("no answer")?, level: None, body: Vec::new() };
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err("the answer broke off".into());
            }
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => answer.body = vec![0; value.parse()?],
                "cache-status" => {
                    answer.level = value.split("detail=").nth(1).map(str::to_owned);
                }
                _ => {}
            }
        }
        self.stream.read_exact(&mut answer.body)?;
        Ok(answer)
    }
}
