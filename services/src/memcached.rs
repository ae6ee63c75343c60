use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::container::Image;
use crate::find;
use crate::server::{Recipe, Server};

const IMAGE: Image = Image { name: "memcached", tag: "1.6-alpine", port: 11211, env: &[] };

/// memcached.
#[derive(Debug)]
pub struct Memcached(Server);

impl Memcached {
    /// One of whatever kind is at hand; `None` when none is.
    pub fn start() -> Option<Self> {
        match find::variable("TIERCACHE_TEST_MEMCACHED_URL") {
            Some(url) => {
                let address = url.split_once("://").map_or(url.as_str(), |(_, address)| address);
                Some(Self(Server::elsewhere("memcached", address.trim_end_matches('/').to_owned())))
            }
            None => Self::own(),
        }
    }

    /// One of this test's own.
    pub fn own() -> Option<Self> {
        Self::start_with(&[])
    }

    /// One of this test's own with these arguments, such as `["-m", "16", "-I", "2m"]`.
    pub fn start_with(args: &[&str]) -> Option<Self> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let server = match find::program("memcached") {
            Some(program) => Server::start("memcached", |port, _| {
                let place = ["-l", "127.0.0.1", "-U", "0", "-p"].map(str::to_owned);
                recipe(&program, [place.to_vec(), vec![port.to_string()], args].concat())
            }),
            None => Server::contained("memcached", IMAGE, &args, answers).or_else(missing)?,
        };
        Some(Self(server))
    }

    /// One of this test's own that listens on a unix socket only, and the socket.
    pub fn on_socket() -> Option<(Self, PathBuf)> {
        let program = find::program("memcached").or_else(missing)?;
        let mut path = PathBuf::new();
        let server = Server::start("memcached", |_, dir| {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
                .expect("the folder is ours");
            path = dir.join("memcached.sock");
            // It runs in that folder.
            let args = ["-s", "memcached.sock", "-a", "0777"].map(str::to_owned);
            Recipe { ready: |_| true, ..recipe(&program, args.to_vec()) }
        });
        crate::server::wait("memcached", || UnixStream::connect(&path).ok());
        Some((Self(server), path))
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("memcached://{}", self.address())
    }

    /// Makes it forget everything.
    pub fn wipe(&self) {
        assert_eq!(self.command("flush_all"), "OK");
    }

    /// Sends one line and returns the first line of the answer.
    pub fn command(&self, line: &str) -> String {
        ask(self.address(), line).unwrap_or_else(|error| panic!("memcached does not answer: {error}"))
    }
}

impl Deref for Memcached {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

fn recipe(program: &Path, args: Vec<String>) -> Recipe {
    // Refused for root even where nobody is not known: then root is asked for by name.
    let nobody = crate::launch::ids_of("nobody").is_some() && find::program("setpriv").is_some();
    let user = if nobody { vec![] } else { vec!["-u".to_owned(), "root".to_owned()] };
    let args = [user, args].concat();
    Recipe { user: Some("nobody"), ready: answers, ..Recipe::new(program, args) }
}

fn answers(address: &str) -> bool {
    ask(address, "version").is_ok_and(|answer| answer.starts_with("VERSION"))
}

fn ask(address: &str, line: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("{line}\r\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

fn missing<T>() -> Option<T> {
    find::skipped("memcached", "install the package memcached or set TIERCACHE_TEST_MEMCACHED_URL");
    None
}
