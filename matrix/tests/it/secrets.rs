//! No secret is ever written down: every one has a word of its own, everything that is said is kept, and no word is in
//! it. Said is: what any crate logs at TRACE, through `tracing` or `log`; configurations and errors, with their sources,
//! as `Display` and as `Debug`; handles as `Debug`; and what `config show` prints.

use std::error::Error as _;
use std::fmt::Debug;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::Log;
use tiercache::core::tracking::Query;
use tiercache::{CacheManager, Config, Error, Level, Registry};
use tiercache_services::{Fault, Memcached, MongoSim, Moto, Postgres, Proxy, Redis};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

const REDIS: &str = "redis-5entinel";
/// As it stands in a URL; what is meant is [`REDIS_PLAIN`].
const REDIS_IN_URL: &str = "redis%405entinel%2Furl";
const REDIS_PLAIN: &str = "redis@5entinel/url";
const SENTINEL: &str = "watcher-5entinel";
const MONGO: &str = "mongo-5entinel";
const POSTGRES: &str = "postgres-5entinel";
const ACCESS: &str = "AKIA5ENTINEL";
const SECRET: &str = "s3-5entinel";
const SESSION: &str = "session-5entinel";
/// Keys of encryption, and what they are in base64.
const KEY: &str = "key-5entinel-key-5entinel-key-5e";
const KEY_BASE64: &str = "a2V5LTVlbnRpbmVsLWtleS01ZW50aW5lbC1rZXktNWU=";
const OLD_KEY: &str = "old-5entinel-old-5entinel-old-5e";
const OLD_KEY_BASE64: &str = "b2xkLTVlbnRpbmVsLW9sZC01ZW50aW5lbC1vbGQtNWU=";

const WORDS: [&str; 12] = [
    REDIS,
    REDIS_IN_URL,
    REDIS_PLAIN,
    SENTINEL,
    MONGO,
    POSTGRES,
    SECRET,
    SESSION,
    KEY,
    KEY_BASE64,
    OLD_KEY,
    OLD_KEY_BASE64,
];

/// Everything that was said.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, text: &str) {
        self.lock().extend_from_slice(text.as_bytes());
    }

    fn debug(&self, what: &dyn Debug) {
        self.add(&format!("{what:?}\n{what:#?}\n"));
    }

    /// An error, and what it came from.
    fn error(&self, error: &Error) {
        self.debug(error);
        let mut source: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = source {
            self.add(&format!("{error}\n{error:#}\n"));
            self.debug(&error);
            source = error.source();
        }
    }

    /// Fails on any word that may not be in it; `needed` shows that it was listened to.
    fn is_clean(&self, needed: &[&str], more: &[&str]) {
        let said = self.lock();
        let text = String::from_utf8_lossy(&said);
        for word in WORDS.iter().chain(more) {
            // As text, and as the numbers that `Debug` makes of bytes.
            let numbers = format!("{:?}", word.as_bytes());
            for form in [word, &numbers[1..numbers.len() - 1]] {
                if let Some(at) = text.find(form) {
                    let around = |at: usize| (at..at + 4).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                    panic!("{form} in: {}", &text[around(at.saturating_sub(500))..around(at + form.len())]);
                }
            }
        }
        for word in needed {
            assert!(text.contains(word), "nothing was said of {word}");
        }
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.add(&format!("{} {}\n", record.target(), record.args()));
    }

    fn flush(&self) {}
}

fn parsed(text: &str) -> Result<Config, tiercache::ConfigError> {
    Config::parse(text, &Registry::builtin())
}

/// Everything a cache does, well or not.
async fn uses(cache: &CacheManager, said: &Said) {
    let value = vec![7_u8; 50_000];
    let outcomes = [
        cache
            .set("k", value)
            .tag("kind", "photo")
            .ttl(Duration::from_secs(60))
            .await
            .map(|written| format!("{written:?}")),
        cache.flush(Level::Hot).await.map(|()| String::new()),
        cache.get("k").await.map(|found| found.map_or(0, |found| found.len()).to_string()),
        cache.touch("k", Duration::from_secs(90)).await.map(|done| format!("{done:?}")),
        cache.entry("k").await.map(|found| format!("{:?}", found.map(|found| found.level))),
        cache.keys(Query::default()).next().await.map(|found| format!("{found:?}")),
        cache.invalidate_tag("kind", "photo").await.map(|removed| format!("{removed:?}")),
        cache.delete("k").await.map(|removed| format!("{removed:?}")),
        cache.clear().await.map(|removed| format!("{removed:?}")),
        cache.settle().await.map(|()| String::new()),
        cache.stats().await.map(|stats| format!("{stats:?}")),
    ];
    for outcome in outcomes {
        match outcome {
            Ok(outcome) => said.add(&outcome),
            Err(error) => said.error(&error),
        }
    }
    said.debug(cache);
}

/// Opens it, uses it, also while the server is gone, and closes it.
async fn lives(text: &str, proxies: &[&Proxy], said: &Said) {
    let config = parsed(text).unwrap_or_else(|error| panic!("{error}"));
    said.debug(&config);
    said.add(&config.to_yaml());
    said.add(&config.to_json().to_string());
    let cache = match config.open().await {
        Ok(cache) => cache,
        Err(error) => panic!("{error:?}"),
    };
    uses(&cache, said).await;
    for fault in [Fault::Refuse, Fault::Pass] {
        proxies.iter().for_each(|proxy| proxy.set(fault));
        uses(&cache, said).await;
    }
    said.debug(&cache.close(Duration::from_secs(5)).await);
}

/// What does not open says why.
async fn is_refused(text: &str, said: &Said) {
    match parsed(text) {
        Ok(config) => match config.open().await {
            Ok(_) => panic!("it opened: {text}"),
            Err(error) => said.error(&error),
        },
        Err(error) => said.add(&format!("{error}\n{error:?}\n{:?}", error.source().map(ToString::to_string))),
    }
}

fn level(section: &str) -> String {
    format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {{ backend: none }}\n\
         dry_cache: {{ {section}, read_timeout: 300ms, write_timeout: 1s, \
         encryption: {{ key: \"{KEY_BASE64}\", old_keys: [ {{ key: \"{OLD_KEY_BASE64}\" }} ] }} }}\n\
         tracking: {{ backend: memory }}\nwrite: through\n"
    )
}

fn tracking(section: &str) -> String {
    format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {{ backend: none }}\ndry_cache: {{ backend: none }}\n\
         tracking: {{ {section} }}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_backend_writes_a_secret_down_whatever_it_does() {
    let said = Said::default();
    let (writer, logger) = (said.clone(), said.clone());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).expect("the only one");
    log::set_logger(Box::leak(Box::new(logger))).expect("the only one");
    log::set_max_level(log::LevelFilter::Trace);
    let mut heard = vec!["TRACE"];

    let folder = tempfile::tempdir().expect("a folder");
    for store in ["local", "sqlite"] {
        let path = folder.path().join(store);
        lives(&level(&format!("backend: {store}, path: {}", path.display())), &[], &said).await;
    }
    if let Some(server) = Memcached::own() {
        let proxy = Proxy::to(server.address());
        lives(&level(&format!("backend: memcached, servers: [\"{}\"]", proxy.address())), &[&proxy], &said)
            .await;
        heard.push("memcached");
    }
    if let Some(server) = Redis::with_password(REDIS_PLAIN) {
        let proxy = Proxy::to(server.address());
        let url = format!("url: \"redis://default:{REDIS_IN_URL}@{}/0\"", proxy.address());
        lives(&level(&format!("backend: redis, {url}")), &[&proxy], &said).await;
        lives(&tracking(&format!("backend: redis, {url}")), &[&proxy], &said).await;
        let wrong =
            format!("backend: redis, host: 127.0.0.1, port: {}, password: \"{REDIS}\"", server.port());
        is_refused(&level(&wrong), &said).await;
        heard.push("redis");
    }
    let sentinels = format!(
        "backend: redis, sentinels: [\"127.0.0.1:1\"], sentinel_password: \"{SENTINEL}\", password: \"{REDIS}\""
    );
    is_refused(&level(&sentinels), &said).await;
    if let Some(server) = Moto::own() {
        let proxy = Proxy::to(server.address());
        make_bucket(&server);
        let section = format!(
            "backend: s3, endpoint_url: \"http://{}\", bucket: secrets, region: us-east-1, access_key: \"{ACCESS}\", \
             secret_key: \"{SECRET}\", session_token: \"{SESSION}\"",
            proxy.address()
        );
        lives(&level(&section), &[&proxy], &said).await;
        server.refuse_everyone();
        is_refused(&level(&section), &said).await;
        heard.push("aws_smithy_runtime");
    }
    if let Some(server) = MongoSim::start() {
        let proxy = Proxy::to(server.address());
        let place = format!("{}/?directConnection=true", proxy.address());
        let section =
            |login: &str| format!("backend: mongodb, uri: \"mongodb://{login}{place}\", database: secrets");
        lives(&level(&section("")), &[&proxy], &said).await;
        lives(&tracking(&section("")), &[&proxy], &said).await;
        // The simulator lets nobody log in.
        is_refused(&level(&section(&format!("user:{MONGO}@"))), &said).await;
        let fields = format!("{}, username: user, password: \"{MONGO}\"", section(""));
        is_refused(&tracking(&fields), &said).await;
        heard.push("mongodb");
    }
    if let Some(server) = Postgres::own() {
        let proxy = Proxy::to(server.address());
        // Anybody is let in who is known, with or without that password.
        let url =
            format!("url: \"postgres://postgres:{POSTGRES}@{}/postgres\", timeout: 1s", proxy.address());
        lives(&tracking(&format!("backend: postgres, {url}")), &[&proxy], &said).await;
        let rules = server.dir().join("data/pg_hba.conf");
        std::fs::write(rules, "host all all 127.0.0.1/32 scram-sha-256\n").expect("the server's rules");
        server.restart();
        is_refused(&tracking(&format!("backend: postgres, {url}")), &said).await;
        let fields =
            format!("backend: postgres, host: 127.0.0.1, port: {}, password: \"{POSTGRES}\"", server.port());
        is_refused(&tracking(&fields), &said).await;
    }
    // The SDK logs at TRACE who asks, which goes over the wire in the clear.
    said.is_clean(&heard, &[]);
}

fn make_bucket(server: &Moto) {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(server.address()).expect("the server answers");
    let host = server.address();
    let head =
        format!("PUT /secrets HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("the server listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn no_problem_of_a_file_shows_the_secret_beside_it() {
    let said = Said::default();
    let sections = [
        // Right.
        format!("hot_cache: {{ backend: redis, url: \"redis://user:{REDIS_IN_URL}@127.0.0.1/0\" }}"),
        format!(
            "hot_cache: {{ backend: redis, password: \"{REDIS}\", sentinels: [a], sentinel_password: \"{SENTINEL}\" }}"
        ),
        format!("dry_cache: {{ backend: mongodb, uri: \"mongodb://user:{MONGO}@127.0.0.1\" }}"),
        format!(
            "s3: {{ bucket: b, access_key: {ACCESS}, secret_key: {SECRET}, session_token: {SESSION} }}\ndry_cache: {{ backend: s3 }}"
        ),
        format!("tracking: {{ backend: postgres, url: \"postgres://user:{POSTGRES}@127.0.0.1/db\" }}"),
        format!("tracking: {{ backend: postgres, url: \"host=h user=u password={POSTGRES}\" }}"),
        format!(
            "dry_cache: {{ backend: local, encryption: {{ key: \"{KEY_BASE64}\", old_keys: [{{ key: \"{OLD_KEY_BASE64}\" }}] }} }}"
        ),
        // Not what it should be.
        format!("hot_cache: {{ backend: redis, url: \"redis://user:{REDIS_IN_URL}@127.0.0.1:99999/0\" }}"),
        format!("hot_cache: {{ backend: redis, url: \"rediss//user:{REDIS}@127.0.0.1/x\" }}"),
        format!("hot_cache: {{ backend: redis, url: [\"redis://user:{REDIS}@127.0.0.1/0\"] }}"),
        format!("hot_cache: {{ backend: redis, password: [\"{REDIS}\"] }}"),
        format!("hot_cache: {{ backend: redis, pasword: \"{REDIS}\" }}"),
        format!("hot_cache: {{ backend: redis, password: {REDIS}, password: {REDIS} }}"),
        format!("hot_cache: {{ backend: redis, password: {{ {REDIS}: 1 }} }}"),
        format!("redis: {{ password: \"{REDIS}\"\nhot_cache: }} [ {REDIS}"),
        format!("redis:\n  password: \"{REDIS}\n  url: x"),
        format!("dry_cache: {{ backend: mongodb, uri: \"mongodb://user:{MONGO}@127.0.0.1:x/?w=nonsense\" }}"),
        format!("dry_cache: {{ backend: s3, bucket: b, secret_key: {{ a: {SECRET} }} }}"),
        format!("tracking: {{ backend: postgres, url: \"mysql://user:{POSTGRES}@127.0.0.1/db\" }}"),
        format!(
            "tracking: {{ backend: postgres, url: \"postgres://user:{POSTGRES}@127.0.0.1/db?password={POSTGRES}&x=y\" }}"
        ),
        format!("dry_cache: {{ backend: local, encryption: {{ key: \"{KEY}\" }} }}"),
        format!("dry_cache: {{ backend: local, encryption: {{ key: [\"{KEY_BASE64}\"] }} }}"),
    ];
    let mut refused = 0;
    for text in &sections {
        match parsed(text) {
            Ok(config) => {
                said.debug(&config);
                said.add(&config.to_yaml());
                said.add(&config.to_json().to_string());
            }
            Err(error) => {
                refused += 1;
                said.add(&format!("{error}\n{error:?}\n{error:#?}\n"));
                let mut source = error.source();
                while let Some(error) = source {
                    said.add(&format!("{error}\n{error:?}\n"));
                    source = error.source();
                }
            }
        }
    }
    assert!(refused >= 10, "{refused}");
    said.is_clean(&["(hidden)"], &[ACCESS]);
}
