use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Deref;

use crate::find;
use crate::server::{Recipe, Server};

/// moto, a simulator of S3. It takes any credentials.
#[derive(Debug)]
pub struct Moto(Server);

impl Moto {
    /// One of whatever kind is at hand; `None` when none is.
    pub fn start() -> Option<Self> {
        match find::variable("TIERCACHE_TEST_S3_URL") {
            Some(url) => {
                let address = url.split_once("://").map_or(url.as_str(), |(_, address)| address);
                Some(Self(Server::elsewhere("moto", address.trim_end_matches('/').to_owned())))
            }
            None => Self::own(),
        }
    }

    /// One of this test's own.
    pub fn own() -> Option<Self> {
        let python = find::python("moto.server").or_else(|| {
            let remedy =
                "install moto[s3,server] into a virtual environment and name it in TIERCACHE_TEST_VENV";
            find::skipped("moto", remedy);
            None
        })?;
        Some(Self(Server::start("moto", |port, _| {
            let serve = "import sys; from moto.server import main; main(sys.argv[1:])";
            let args = ["-c", serve, "-H", "127.0.0.1", "-p", &port.to_string()];
            Recipe { ready: answers, ..Recipe::new(python, args.map(str::to_owned).to_vec()) }
        })))
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Makes it forget everything.
    pub fn wipe(&self) {
        self.post("/moto-api/reset", "");
    }

    /// From here on it verifies who asks, and knows nobody.
    pub fn refuse_everyone(&self) {
        self.post("/moto-api/reset-auth", "0");
    }

    /// Takes any credentials again.
    pub fn admit_everyone(&self) {
        self.post("/moto-api/reset-auth", "inf");
    }

    fn post(&self, path: &str, body: &str) {
        let status = ask(self.address(), "POST", path, body).expect("moto answers");
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
    }
}

impl Deref for Moto {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

fn answers(address: &str) -> bool {
    ask(address, "GET", "/moto-api/data.json", "").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn ask(address: &str, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
