use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::certificates::Certificates;
use crate::container::Image;
use crate::server::{Recipe, Server};
use crate::{find, launch, port};

const IMAGE: Image =
    Image { name: "postgres", tag: "16-alpine", port: 5432, env: &[("POSTGRES_HOST_AUTH_METHOD", "trust")] };

/// Who runs it when root would: it refuses root.
const USER: &str = "postgres";

/// PostgreSQL, with the user `postgres` without a password.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    url: String,
}

impl Postgres {
    /// One of whatever kind is at hand; `None` when none is.
    pub fn start() -> Option<Self> {
        let Some(url) = find::variable("TIERCACHE_TEST_POSTGRES_URL") else { return Self::own() };
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        let address = place.split(['/', '?']).next().unwrap_or_default();
        let address = if address.contains(':') { address.to_owned() } else { format!("{address}:5432") };
        Some(Self { server: Server::elsewhere("postgres", address), url })
    }

    /// One of this test's own.
    pub fn own() -> Option<Self> {
        Self::start_with(&[])
    }

    /// One of this test's own with these arguments, such as `["-c", "max_connections=5"]`.
    pub fn start_with(args: &[&str]) -> Option<Self> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let server = match programs() {
            Some(programs) => server(&programs, |_| args),
            None => Server::contained("postgres", IMAGE, &args, answers).or_else(missing)?,
        };
        Some(Self::at(server))
    }

    /// One of this test's own that speaks TLS too, and the certificates it has.
    pub fn with_tls() -> Option<(Self, Certificates)> {
        let programs = programs().or_else(missing)?;
        let mut made = None;
        let server = server(&programs, |dir| {
            made = Certificates::make(dir);
            let Some(Certificates { server, key, .. }) = &made else { return vec![] };
            // It takes only a key that nobody else can read.
            fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("the key is ours");
            give_away(key);
            let files =
                [format!("ssl_cert_file={}", server.display()), format!("ssl_key_file={}", key.display())];
            ["ssl=on".to_owned()].into_iter().chain(files).flat_map(|set| ["-c".to_owned(), set]).collect()
        });
        Some((Self::at(server), made?))
    }

    fn at(server: Server) -> Self {
        let url = format!("postgres://postgres@{}/postgres", server.address());
        Self { server, url }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

fn server(programs: &Path, args: impl FnOnce(&Path) -> Vec<String>) -> Server {
    Server::start("postgres", |port, dir| {
        let data = dir.join("data");
        copy(&template(programs), &data);
        let (data, port) = (data.display().to_string(), port.to_string());
        // No unix socket: only loopback.
        let own = ["-D", &data, "-h", "127.0.0.1", "-p", &port, "-k", "", "-F"].map(str::to_owned);
        let args = [own.to_vec(), args(dir)].concat();
        let recipe = Recipe::new(programs.join("postgres"), args);
        // An orderly end also frees its piece of shared memory.
        Recipe { user: Some(USER), stop: Signal::INT, ready: answers, ..recipe }
    })
}

/// To who runs the server when root would.
fn give_away(path: &Path) {
    if let Some((user, group)) = launch::ids_of(USER).filter(|_| rustix::process::getuid().is_root()) {
        std::os::unix::fs::chown(path, Some(user), Some(group)).expect("root may give it away");
    }
}

/// The folder with `initdb` and `postgres`: not on `PATH` where Debian installs them. The highest version wins.
fn programs() -> Option<PathBuf> {
    let whole = |dir: &PathBuf| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    let version = |dir: &PathBuf| dir.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let installed = installed.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let on_path = find::program("postgres").and_then(|path| Some(path.parent()?.to_owned()));
    on_path.filter(whole).or_else(|| installed.filter(whole).max_by_key(version))
}

/// A fresh cluster that `initdb` made, once for each version and user; test processes that start together wait
/// for the one that makes it.
fn template(programs: &Path) -> PathBuf {
    let base = port::shared_dir("postgres");
    let asked = run(Command::new(programs.join("postgres")).arg("--version"));
    let version: String = String::from_utf8_lossy(&asked.stdout)
        .chars()
        .filter(|letter| letter.is_ascii_digit() || *letter == '.')
        .collect();
    let lock = File::create(base.join(format!("{version}.lock"))).expect("a lock file can be made");
    lock.lock().expect("the lock can be waited for");
    let whole = base.join(&version);
    if !whole.exists() {
        let part = base.join(format!("{version}.part"));
        let _ = fs::remove_dir_all(&part);
        fs::create_dir(&part).expect("a folder can be made");
        give_away(&part);
        let mut initdb = launch::command(&programs.join("initdb"), Some(USER), "KILL");
        initdb.arg("-D").arg(&part).args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]);
        initdb.args(["--locale=C.UTF-8", "--no-sync"]).current_dir("/");
        run(&mut initdb);
        fs::rename(&part, &whole).expect("the folder can be renamed");
    }
    whole
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg("--reflink=auto").arg(from).arg(to));
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Whether it takes a login. It listens before it does.
fn answers(address: &str) -> bool {
    let asked = || -> std::io::Result<u8> {
        let mut stream = TcpStream::connect(address)?;
        let login = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        stream.write_all(&(login.len() as u32 + 4).to_be_bytes())?;
        stream.write_all(login)?;
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        Ok(kind[0])
    };
    asked().is_ok_and(|kind| kind == b'R')
}

fn missing<T>() -> Option<T> {
    find::skipped("postgres", "install the package postgresql or set TIERCACHE_TEST_POSTGRES_URL");
    None
}
