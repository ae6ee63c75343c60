//! The command `proxy`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Answer, Place, Server};

const TOKEN: &str = "a-long-secret";

/// An origin whose responses are fresh for a minute and count themselves; ends with the test's process.
struct Origin {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Origin {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let asked = Arc::<AtomicUsize>::default();
        let count = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = count.clone();
                std::thread::spawn(move || answer(stream, &count));
            }
        });
        Self { address, asked }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, count: &AtomicUsize) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let body = format!("answer {}", count.fetch_add(1, Ordering::SeqCst) + 1);
    let fields = "Cache-Control: max-age=60\r\nSurrogate-Key: red blue\r\nConnection: close";
    let response = format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(response.as_bytes());
}

fn start(place: &Place, origin: &str, args: &[&str]) -> Server {
    let all = [&["proxy", "--listen", "127.0.0.1:0", "--json", "--origin", origin], args].concat();
    Server::run(place, &all)
}

fn admin(server: &Server) -> Server {
    let url = server.said["admin"].as_str().expect("its address");
    server.at(url.trim_start_matches("http://"))
}

fn bearer(admin: &Server, method: &str, path: &str) -> Answer {
    admin.ask(method, path, &[("Authorization", &format!("Bearer {TOKEN}"))], b"")
}

#[test]
fn what_may_be_stored_is_asked_for_once_until_it_is_purged() {
    let (place, origin) = (Place::new(), Origin::start());
    let server = start(&place, &origin.url(), &["--admin", "127.0.0.1:0", "--admin-token", TOKEN]);
    let admin = admin(&server);
    assert_eq!(server.get("/a").text(), "answer 1");
    let again = server.get("/a");
    assert_eq!(again.text(), "answer 1");
    assert!(again.header("cache-status").starts_with("tiercache; hit"), "{:?}", again.headers);
    assert_eq!(origin.asked(), 1);

    let url = format!("http://{}/a", server.address.to_uppercase());
    assert_eq!(bearer(&admin, "POST", &format!("/purge?url={url}")).status, 204);
    assert_eq!(server.get("/a").text(), "answer 2");
    assert_eq!(bearer(&admin, "POST", "/purge?tag=red").status, 204);
    assert_eq!(server.get("/a").text(), "answer 3");
    assert_eq!(bearer(&admin, "POST", "/purge?tag.surrogate-key=blue").status, 204);
    assert_eq!(server.get("/a").text(), "answer 4");
    assert_eq!(bearer(&admin, "POST", "/purge?tag=green").status, 204);
    assert_eq!(server.get("/a").text(), "answer 4");

    let stats = bearer(&admin, "GET", "/stats").json();
    assert_eq!((&stats["proxy"]["requests"], &stats["proxy"]["hits"]), (&6.into(), &2.into()), "{stats}");
    assert!(stats["cache"]["hot_size_bytes"].as_u64() > Some(0), "{stats}");
    let metrics = bearer(&admin, "GET", "/metrics").text();
    assert!(metrics.contains("\ntiercache_proxy_misses_total 4\n"), "{metrics}");
    assert!(metrics.contains("\ntiercache_proxy_requests_active 0\n"), "{metrics}");
    assert!(metrics.contains("\ntiercache_bytes{level=\"hot\"} "), "{metrics}");
    let (said, code) = server.stop();
    assert_eq!((said["stopped"].as_bool(), code), (Some(true), 0));
}

#[test]
fn only_who_knows_the_token_purges_and_nobody_does_at_the_proxy() {
    let (place, origin) = (Place::new(), Origin::start());
    let server = start(&place, &origin.url(), &["--admin", "127.0.0.1:0", "--admin-token", TOKEN]);
    let admin = admin(&server);
    for given in [None, Some("Bearer wrong"), Some(TOKEN), Some("Bearer "), Some("Basic a-long-secret")] {
        let fields: Vec<_> = given.iter().map(|given| ("Authorization", *given)).collect();
        for (method, path) in
            [("POST", "/purge?tag=red"), ("GET", "/stats"), ("GET", "/metrics"), ("GET", "/x")]
        {
            assert_eq!(admin.ask(method, path, &fields, b"").status, 401, "{given:?} {path}");
        }
    }
    assert_eq!(admin.get("/health").status, 200);
    for (method, path, status) in [
        ("GET", "/purge?tag=red", 405),
        ("POST", "/purge", 400),
        ("POST", "/purge?tag=red&tag=blue", 400),
        ("POST", "/purge?url=/a", 400),
        ("POST", "/purge?what=red", 400),
        ("POST", "/stats", 405),
        ("GET", "/", 404),
    ] {
        assert_eq!(bearer(&admin, method, path).status, status, "{method} {path}");
    }
    // At the proxy it is one of the origin's paths.
    assert_eq!(server.ask("POST", "/purge?tag=red", &[], b"").text(), "answer 1");
}

#[test]
fn a_named_configuration_keeps_responses_over_a_restart() {
    let (place, origin) = (Place::new(), Origin::start());
    let ask = |server: &Server| server.ask("GET", "/a", &[("Host", "a.example")], b"").text();
    let server = start(&place, &origin.url(), &["--config", "tier.yaml"]);
    assert_eq!(ask(&server), "answer 1");
    let (_, code) = server.stop();
    assert_eq!(code, 0);
    let server = start(&place, &origin.url(), &["--config", "tier.yaml"]);
    assert_eq!(ask(&server), "answer 1");
    // Without it, the file that lies there is not touched.
    let other = start(&place, &origin.url(), &[]);
    assert_eq!(ask(&other), "answer 2");
}

#[test]
fn wrong_use_is_told_before_anything_listens() {
    let place = Place::new();
    let origin = ["proxy", "--listen", "127.0.0.1:0", "--origin"];
    for (args, says) in [
        (vec!["https://127.0.0.1:1"], "TLS to the origin is not supported"),
        (vec!["127.0.0.1:1"], "is not an origin"),
        (vec!["http://127.0.0.1:1/x"], "has a path"),
        (vec!["http://127.0.0.1:1", "--admin", "127.0.0.1:0"], "--admin-token"),
        (vec!["http://127.0.0.1:1", "--admin", "127.0.0.1:0", "--admin-token", "short"], "at least 8 bytes"),
        (vec!["http://127.0.0.1:1", "--profile", "lax"], "rfc9111"),
        (vec!["http://127.0.0.1:1", "--tags-from", "a b"], "--tags-from"),
        (vec!["http://127.0.0.1:1", "--url", "http://127.0.0.1:2"], "--url has no meaning"),
    ] {
        let ran = place.run(&[&origin[..], &args].concat()).expect(2);
        assert!(ran.err().contains(says), "{args:?}: {}", ran.err());
    }
    let own =
        TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").to_string();
    let ran = place.run(&["proxy", "--listen", &own, "--origin", &format!("http://{own}")]).expect(2);
    assert!(ran.err().contains("is the proxy itself"), "{}", ran.err());
    let ran = place.run(&["proxy"]).expect(2);
    assert!(ran.err().contains("--origin"), "{}", ran.err());
}

#[test]
fn a_line_for_every_request_is_written_when_asked_for_and_has_no_secret() {
    let (place, origin) = (Place::new(), Origin::start());
    for (args, lines) in [(vec!["--access-log"], 2), (vec![], 0)] {
        let mut all = vec!["proxy", "--listen", "127.0.0.1:0", "--json", "--origin"];
        let url = origin.url();
        all.push(&url);
        all.extend(["--admin", "127.0.0.1:0", "--admin-token", TOKEN]);
        all.extend(args);
        let log = place.file("log");
        let file = std::fs::File::create(&log).expect("a file");
        let mut command = place.command(&all);
        command.stderr(file);
        let server = Server::of(command);
        server.get("/logged?token=hidden-word");
        server.get("/logged?token=hidden-word");
        bearer(&admin(&server), "POST", "/purge?tag=red");
        server.stop();
        let log = std::fs::read_to_string(&log).expect("the log");
        assert_eq!(log.matches("/logged").count(), lines, "{log}");
        assert!(!log.contains("hidden-word") && !log.contains(TOKEN), "{log}");
        if lines > 0 {
            for part in ["GET", "200", "hit", "miss"] {
                assert!(log.contains(part), "{part}: {log}");
            }
        }
    }
}
