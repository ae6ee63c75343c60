use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;
use tiercache_services::{Fault, Memcached, MongoSim, Moto, Postgres, Proxy, Redis, Refusal, Server};

use crate::Trouble;

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
    Postgres(Postgres),
}

impl Service {
    fn server(&self) -> &Server {
        match self {
            Self::Memcached(server) => server,
            Self::Redis(server) => server,
            Self::S3(server) => server,
            Self::Mongo(server) => server,
            Self::Postgres(server) => server,
        }
    }
}

/// The backends a level can have.
pub const BACKENDS: [&str; 7] = ["ram", "local", "sqlite", "memcached", "redis", "s3", "mongodb"];

/// Who we are to the servers that ask, and their word.
const USER: &str = "cache";
const PASSWORD: &str = "word";
const DATABASE: &str = "matrix";

/// What S3 says to a put when there is no room.
const NO_ROOM: Fault = Fault::Answer(
    "PUT ",
    "HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/xml\r\nContent-Length: 106\r\n\
     Connection: close\r\n\r\n<?xml version=\"1.0\"?><Error><Code>InsufficientStorage</Code>\
     <Message>The storage is full</Message></Error>",
);

impl Backend {
    /// One with a server of its own behind a proxy; `None` when the server is not to be had here.
    pub async fn start(name: &'static str) -> Option<Self> {
        let service = match name {
            // As little memory as can be, and an error in place of an eviction.
            "memcached" => {
                Some(Service::Memcached(Memcached::start_with(&["-m", "4", "-M", "-o", "slab_automove=0"])?))
            }
            "redis" => {
                let word = format!(">{PASSWORD}");
                let user = ["--user", USER, "on", &word, "~*", "&*", "+@all"];
                Some(Service::Redis(Redis::start_with(&user)?))
            }
            "s3" => Some(Service::S3(Moto::own()?)),
            "mongodb" => Some(Service::Mongo(MongoSim::persistent()?)),
            "postgres" => Some(Service::Postgres(guarded(Postgres::own()?).await)),
            _ => None,
        };
        let proxy = service.as_ref().map(|service| Proxy::to(service.server().address()));
        let address = proxy.as_ref().map(Proxy::address).unwrap_or_default();
        let folder = matches!(name, "local" | "sqlite").then(|| tempfile::tempdir().expect("a folder"));
        let keys = match name {
            "memcached" => format!("servers: [\"{address}\"]"),
            "redis" => format!("url: \"redis://{USER}:{PASSWORD}@{address}/0\""),
            "mongodb" => {
                format!("uri: \"mongodb://{address}/?directConnection=true\", database: {DATABASE}")
            }
            "s3" => format!(
                "endpoint_url: \"http://{address}\", bucket: matrix, access_key: key, secret_key: {PASSWORD}, \
                 region: us-east-1"
            ),
            "postgres" => {
                format!("url: \"postgres://{USER}:{PASSWORD}@{address}/postgres\", schema: {DATABASE}")
            }
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

    /// The section, in one line, for use at a level or for tracking, with `more` keys.
    pub fn section(&self, more: &str) -> String {
        let mut section = format!("{{ backend: {}", self.name);
        for keys in [&*self.keys, more].into_iter().filter(|keys| !keys.is_empty()) {
            let _ = write!(section, ", {keys}");
        }
        section + " }"
    }

    /// What stands between the cache and the server.
    ///
    /// # Panics
    /// For a backend without a server.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a backend with a server")
    }

    /// Begins a trouble that its cell says it has.
    ///
    /// # Panics
    /// When the trouble cannot be made.
    pub async fn begin(&self, trouble: Trouble) {
        if let Some(fault) = trouble.fault() {
            return self.proxy().set(fault);
        }
        match trouble {
            Trouble::Killed => self.server().kill(),
            Trouble::Restarted => self.restart(),
            Trouble::Stopped => self.server().pause(),
            Trouble::Full => match self.service() {
                Service::Memcached(server) => fill(server),
                Service::Redis(server) => redis(server, "CONFIG SET maxmemory 1"),
                Service::S3(_) => self.proxy().set(NO_ROOM),
                Service::Mongo(server) => server.refuse(Refusal::Writes),
                Service::Postgres(server) => {
                    let full = format!(
                        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION \
                         'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$; \
                         CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {DATABASE}.tiercache_record \
                         EXECUTE FUNCTION full_disk(); \
                         CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {DATABASE}.tiercache_totals \
                         EXECUTE FUNCTION full_disk()"
                    );
                    sql(server, &full).await;
                }
            },
            Trouble::Wiped => self.wipe().await,
            Trouble::WrongPassword => match self.service() {
                Service::Redis(server) => {
                    redis(server, &format!("ACL SETUSER {USER} resetpass >another"));
                    server.command(&format!("CLIENT KILL USER {USER}"));
                }
                Service::S3(server) => server.refuse_everyone(),
                Service::Mongo(server) => server.refuse(Refusal::Everyone),
                Service::Postgres(server) => {
                    sql(server, &format!("ALTER ROLE {USER} PASSWORD 'another'")).await;
                    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ";
                    sql(server, &format!("{end}'{USER}'")).await;
                }
                Service::Memcached(_) => panic!("memcached asks nobody for a password"),
            },
            other => panic!("{other} is made by the proxy"),
        }
    }

    /// Ends it; the server is well again when this returns.
    ///
    /// # Panics
    /// As [`Backend::begin`].
    pub async fn end(&self, trouble: Trouble) {
        match trouble {
            Trouble::Killed => self.restart(),
            Trouble::Stopped => self.server().resume(),
            Trouble::Restarted | Trouble::Wiped => {}
            Trouble::Full => match self.service() {
                Service::Memcached(server) => empty(server),
                Service::Redis(server) => redis(server, "CONFIG SET maxmemory 0"),
                Service::S3(_) => self.proxy().set(Fault::Pass),
                Service::Mongo(server) => server.admit(),
                Service::Postgres(server) => sql(server, "DROP FUNCTION full_disk() CASCADE").await,
            },
            Trouble::WrongPassword => match self.service() {
                Service::Redis(server) => redis(server, &format!("ACL SETUSER {USER} resetpass >{PASSWORD}")),
                Service::S3(server) => server.admit_everyone(),
                Service::Mongo(server) => server.admit(),
                Service::Postgres(server) => {
                    sql(server, &format!("ALTER ROLE {USER} PASSWORD '{PASSWORD}'")).await
                }
                Service::Memcached(_) => panic!("memcached asks nobody for a password"),
            },
            _ => self.proxy().set(Fault::Pass),
        }
    }

    fn service(&self) -> &Service {
        self.service.as_ref().expect("a backend with a server")
    }

    /// The server itself.
    ///
    /// # Panics
    /// For a backend without one.
    pub fn server(&self) -> &Server {
        self.service().server()
    }

    /// Ends the server as a crash does, if it runs, and starts it again on its port.
    fn restart(&self) {
        self.server().restart();
        self.make_bucket();
    }

    /// Makes the server forget everything.
    async fn wipe(&self) {
        match self.service() {
            Service::Memcached(server) => server.wipe(),
            Service::Redis(server) => server.wipe(),
            Service::S3(server) => server.wipe(),
            Service::Mongo(server) => {
                let client = mongodb::Client::with_uri_str(server.url()).await.expect("a client");
                client.database(DATABASE).drop().await.expect("the simulator drops it");
            }
            Service::Postgres(server) => sql(server, &format!("DROP SCHEMA {DATABASE} CASCADE")).await,
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

fn redis(server: &Redis, line: &str) {
    assert_eq!(server.command(line), "+OK", "{line}");
}

/// A user that has to say its password and may make a schema.
async fn guarded(server: Postgres) -> Postgres {
    let role = format!(
        "CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'; GRANT CREATE ON DATABASE postgres TO {USER}"
    );
    sql(&server, &role).await;
    let rules = format!("host all {USER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n");
    std::fs::write(server.dir().join("data/pg_hba.conf"), rules).expect("the server's rules");
    sql(&server, "SELECT pg_reload_conf()").await;
    server
}

async fn sql(server: &Postgres, statements: &str) {
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().expect("a URL");
    let mut connection = options.connect().await.expect("the server lets its owner in");
    let statements = sqlx::AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(statements).execute(&mut connection).await.expect("a statement");
    connection.close().await.expect("an orderly end");
}

/// Sizes of the values that memcached is filled with: its classes of sizes do not lend each other room, and none is moved
/// from one to another.
fn sizes() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(40_usize), |size| Some(size * 6 / 5)).take_while(|size| *size < 3_000)
}

/// As many as fit into a megabyte, which each class is given at first; and once more, for the rest of what it got while
/// there was room.
fn fillers(time: u8, size: usize) -> impl Iterator<Item = String> {
    (0..(1 << 20) / (size + 48)).map(move |number| format!("filler-{time}-{size}-{number}"))
}

fn fill(server: &Memcached) {
    for (time, size) in sizes().map(|size| (1, size)).chain(sizes().map(|size| (2, size))) {
        let value = "x".repeat(size);
        tell(server, fillers(time, size).map(|key| format!("set {key} 0 0 {size} noreply\r\n{value}\r\n")));
    }
    let answer = server.command(&format!("set filler 0 0 100\r\n{}", "x".repeat(100)));
    assert!(answer.contains("out of memory"), "{answer}");
}

fn empty(server: &Memcached) {
    for (time, size) in sizes().flat_map(|size| [(1, size), (2, size)]) {
        tell(server, fillers(time, size).map(|key| format!("delete {key} noreply\r\n")));
    }
}

/// Sends commands without answers. Returns when they are carried out.
fn tell(server: &Memcached, commands: impl Iterator<Item = String>) {
    let mut stream = BufReader::new(TcpStream::connect(server.address()).expect("the server listens"));
    let commands = commands.collect::<String>() + "version\r\n";
    stream.get_mut().write_all(commands.as_bytes()).expect("the server listens");
    let version = stream.lines().map(|line| line.expect("the server answers"));
    assert!(version.into_iter().any(|line| line.starts_with("VERSION")));
}
