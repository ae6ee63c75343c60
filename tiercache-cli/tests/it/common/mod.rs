//! What the tests of the command share: the binary, a served cache, a small HTTP client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

/// A folder with a `tier.yaml` whose paths lie in it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a folder") };
        place.configure(
            "hot_cache: { backend: ram, max_size: 8MiB }\n\
             cold_cache: { backend: ram, max_size: 8MiB }\n\
             dry_cache: { backend: local, path: ./cache/dry, max_size: 64MiB }\n\
             tracking: { backend: sqlite, path: ./cache/index.db }\n",
        );
        place
    }

    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.path().join("tier.yaml"), text).expect("a configuration");
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The command, to be run in the folder, without what this environment may say.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tiercache"));
        command
            .args(args)
            .current_dir(self.path())
            .env_remove("TIERCACHE_CONFIG")
            .env_remove("TIERCACHE_TOKEN")
            .env_remove("TIERCACHE_ADMIN_TOKEN");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran(self.command(args).output().expect("the command"))
    }

    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command");
        child.stdin.take().expect("a pipe").write_all(input).expect("the input");
        Ran(child.wait_with_output().expect("the command"))
    }
}

/// What a command did.
pub(crate) struct Ran(pub(crate) Output);

impl Ran {
    pub(crate) fn code(&self) -> i32 {
        self.0.status.code().expect("it ended by itself")
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.0.stdout)
            .unwrap_or_else(|_| panic!("no JSON: {} {}", self.out(), self.err()))
    }

    /// One answer a line.
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        self.out().lines().map(read).collect()
    }

    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "out: {}\nerr: {}", self.out(), self.err());
        self
    }
}

/// A served cache; ended with SIGKILL when it is dropped without having been stopped.
pub(crate) struct Server {
    child: Option<Child>,
    out: Option<BufReader<ChildStdout>>,
    pub(crate) address: String,
    /// What it said when it was ready.
    pub(crate) said: serde_json::Value,
}

impl Server {
    pub(crate) fn start(place: &Place, args: &[&str]) -> Self {
        Self::run(place, &[&["serve", "--listen", "127.0.0.1:0", "--json"], args].concat())
    }

    /// A command that says in JSON where it listens, and goes on.
    pub(crate) fn run(place: &Place, args: &[&str]) -> Self {
        Self::of(place.command(args))
    }

    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server");
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        out.read_line(&mut line).expect("a line");
        let said: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("not listening: {line}"));
        let url = said["listening"].as_str().unwrap_or_else(|| panic!("not listening: {line}"));
        let address = url.trim_start_matches("http://").to_owned();
        Self { child: Some(child), out: Some(out), address, said }
    }

    /// Another address of the same process.
    pub(crate) fn at(&self, address: &str) -> Self {
        Self { child: None, out: None, address: address.to_owned(), said: serde_json::Value::Null }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the process").id()
    }

    /// The next line it says.
    pub(crate) fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.out.as_mut().expect("its output").read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub(crate) fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.ask("PUT", path, &[], body)
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request += &format!("Host: {}\r\n", self.address);
        }
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding")) {
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(b"\r\n")).expect("a request");
        // The server may answer, and close, before it has read a body it does not want.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Answer::read(&answer)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream
    }

    /// SIGTERM; what it said, and the exit code.
    pub(crate) fn stop(mut self) -> (serde_json::Value, i32) {
        let pid = self.pid().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        assert!(killed.success());
        let mut rest = String::new();
        self.out.as_mut().expect("its output").read_to_string(&mut rest).expect("its last words");
        let code = self
            .child
            .as_mut()
            .expect("the process")
            .wait()
            .expect("its end")
            .code()
            .expect("it ended by itself");
        (serde_json::from_str(rest.trim()).unwrap_or_else(|_| panic!("no JSON: {rest}")), code)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Puts a value on a connection of its own; whether that was answered with 204.
pub(crate) fn try_put(address: &str, path: &str, body: &[u8]) -> bool {
    let request = format!(
        "PUT {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = Vec::new();
    let exchanged = TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(request.as_bytes())?;
        stream.write_all(body)?;
        stream.read_to_end(&mut answer)
    });
    exchanged.is_ok() && answer.starts_with(b"HTTP/1.1 204")
}

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error").to_owned()
    }
}
