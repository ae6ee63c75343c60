//! What the tests of this package share: a backend behind a proxy, as a section of a `tier.yaml`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tiercache::{CacheManager, Registry, Result, from_yaml};
use tiercache_services::{Fault, Memcached, MongoSim, Moto, Proxy, Redis, Server};

/// A backend with its server, if it has one.
#[derive(Debug)]
pub struct Backend {
    /// What stands after `backend:`.
    pub name: &'static str,
    /// Its section's other keys.
    keys: String,
    service: Option<Service>,
    proxy: Option<Proxy>,
    _folder: Option<TempDir>,
}

#[derive(Debug)]
enum Service {
    Memcached(Memcached),
    Redis(Redis),
    S3(Moto),
    Mongo(MongoSim),
}

impl Service {
    fn server(&self) -> &Server {
        match self {
            Self::Memcached(server) => server,
            Self::Redis(server) => server,
            Self::S3(server) => server,
            Self::Mongo(server) => server,
        }
    }
}

/// The backends a level can have.
pub const BACKENDS: [&str; 7] = ["ram", "local", "sqlite", "memcached", "redis", "s3", "mongodb"];

impl Backend {
    /// One with a server of its own behind a proxy; `None` when the server is not to be had here.
    pub fn start(name: &'static str) -> Option<Self> {
        let service = match name {
            "memcached" => Some(Service::Memcached(Memcached::own()?)),
            "redis" => Some(Service::Redis(Redis::own()?)),
            "s3" => Some(Service::S3(Moto::own()?)),
            "mongodb" => Some(Service::Mongo(MongoSim::persistent()?)),
            _ => None,
        };
        let proxy = service.as_ref().map(|service| Proxy::to(service.server().address()));
        let address = proxy.as_ref().map(Proxy::address).unwrap_or_default();
        let folder = matches!(name, "local" | "sqlite").then(|| tempfile::tempdir().expect("a folder"));
        let keys = match name {
            "memcached" => format!("servers: [\"{address}\"]"),
            "redis" => format!("url: \"redis://{address}/0\""),
            "mongodb" => format!("uri: \"mongodb://{address}/?directConnection=true\", database: matrix"),
            "s3" => format!(
                "endpoint_url: \"http://{address}\", bucket: matrix, access_key: key, secret_key: word, region: us-east-1"
            ),
            "local" | "sqlite" => {
                let folder = folder.as_ref().map(TempDir::path).unwrap_or(Path::new("")).join("level");
                format!("path: {}", folder.display())
            }
            _ => String::new(),
        };
        let backend = Self { name, keys, service, proxy, _folder: folder };
        backend.make_bucket();
        Some(backend)
    }

    /// The section, in one line, for use at a level.
    pub fn section(&self) -> String {
        let comma = if self.keys.is_empty() { "" } else { ", " };
        format!("{{ backend: {}{comma}{}, ttl: null }}", self.name, self.keys)
    }

    /// What stands between the cache and the server.
    ///
    /// # Panics
    /// For a backend without a server.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a backend with a server")
    }

    /// The server itself.
    ///
    /// # Panics
    /// For a backend without one.
    pub fn server(&self) -> &Server {
        self.service.as_ref().expect("a backend with a server").server()
    }

    /// Ends the server as a crash does, and starts it again on its port.
    pub fn kill_and_restart(&self) {
        self.server().kill();
        self.server().restart();
        self.make_bucket();
    }

    /// Makes the server forget everything.
    pub fn wipe(&self) {
        match self.service.as_ref().expect("a backend with a server") {
            Service::Memcached(server) => server.wipe(),
            Service::Redis(server) => server.wipe(),
            Service::S3(server) => server.wipe(),
            // The simulator cannot be told to: this trouble it does not have.
            Service::Mongo(_) => {}
        }
        self.make_bucket();
    }

    /// A bucket is there before a cache is.
    fn make_bucket(&self) {
        if let Some(Service::S3(server)) = &self.service {
            let mut stream = TcpStream::connect(server.address()).expect("the server answers");
            let host = server.address();
            let head = format!(
                "PUT /matrix HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("the server listens");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("the server answers");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
}

/// Opens what `text` describes, with every backend.
///
/// # Errors
/// As [`from_yaml`].
pub async fn open(text: &str) -> Result<CacheManager> {
    from_yaml(text, &Registry::builtin()).await
}

/// The faults a proxy makes that a level must live with.
pub const FAULTS: [(&str, Fault); 7] = [
    ("refused", Fault::Refuse),
    ("hung", Fault::Hang),
    ("reset in the middle", Fault::Reset),
    ("half a second late", Fault::Delay(Duration::from_millis(500))),
    ("one byte at a time", Fault::OneByte),
    ("cut after some bytes", Fault::CutAfter(17)),
    ("one bit turned", Fault::Corrupt(23)),
];
