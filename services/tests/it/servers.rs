//! Every server starts, answers, is paused, killed and started again, and ends with its value.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tiercache_services::{
    Memcached, MongoSim, Mongod, Moto, Postgres, Redis, RedisCluster, RedisSentinel, Server,
};

fn lives(server: &Server) -> bool {
    TcpStream::connect(server.address()).is_ok()
}

/// What any server of our own can do.
fn obeys(server: &Server) {
    let pid = server.pid().unwrap();
    assert!(lives(server));
    server.kill();
    assert!(!lives(server));
    server.restart();
    assert!(lives(server));
    assert_ne!(server.pid(), Some(pid));
    server.pause();
    server.restart();
    assert!(lives(server), "a paused server can be killed and started");
}

fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn memcached_is_commanded_and_forgets() {
    let Some(server) = Memcached::own() else { return };
    obeys(&server);
    assert_eq!(server.command("set k 0 0 1\r\nv"), "STORED");
    assert_eq!(server.command("get k"), "VALUE k 0 1");
    server.wipe();
    assert_eq!(server.command("get k"), "END");
    assert_eq!(server.url(), format!("memcached://127.0.0.1:{}", server.port()));
    let pid = server.pid().unwrap();
    drop(server);
    assert!(gone(pid));
}

#[test]
fn memcached_listens_on_a_unix_socket() {
    let Some((_server, path)) = Memcached::on_socket() else { return };
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"version\r\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.starts_with("VERSION"));
}

#[test]
fn a_paused_server_answers_when_it_goes_on() {
    let Some(server) = Memcached::own() else { return };
    let mut stream = TcpStream::connect(server.address()).unwrap();
    server.pause();
    stream.write_all(b"version\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut byte = [0];
    assert!(stream.read(&mut byte).is_err());
    server.resume();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(stream.read(&mut byte).unwrap(), 1);
}

#[test]
fn redis_is_commanded_and_forgets() {
    let Some(server) = Redis::own() else { return };
    obeys(&server);
    assert_eq!(server.command("SET k v"), "+OK");
    assert_eq!(server.command("GET k"), "v");
    server.wipe();
    assert_eq!(server.command("DBSIZE"), ":0");
}

#[test]
fn redis_wants_a_password_or_a_user() {
    let Some(server) = Redis::with_password("word") else { return };
    assert_eq!(server.command("PING"), "+PONG");
    assert!(server.url().starts_with("redis://default:word@127.0.0.1:"));
    let Some(server) = Redis::with_user("app", "word") else { return };
    assert_eq!(server.command("SET tiercache:k v"), "+OK");
    assert!(server.command("SET other v").starts_with("-NOPERM"));
}

#[test]
fn a_redis_cluster_divides_the_slots() {
    let Some(cluster) = RedisCluster::start() else { return };
    assert_eq!(cluster.urls().len(), 3);
    assert!(cluster.nodes().iter().all(lives));
}

#[test]
fn a_sentinel_lets_the_replica_take_over() {
    let Some(group) = RedisSentinel::start() else { return };
    let old = group.master().port();
    group.fail_over();
    assert_ne!(group.master().port(), old);
}

#[test]
fn postgres_takes_logins() {
    let Some(server) = Postgres::own() else { return };
    obeys(&server);
    assert_eq!(server.url(), format!("postgres://postgres@127.0.0.1:{}/postgres", server.port()));
    let pid = server.pid().unwrap();
    drop(server);
    assert!(gone(pid));
}

#[test]
fn the_simulator_of_mongodb_listens() {
    let Some(server) = MongoSim::start() else { return };
    obeys(&server);
    assert!(server.url().starts_with("mongodb://127.0.0.1:"));
    let Some(server) = MongoSim::persistent() else { return };
    obeys(&server);
}

#[test]
fn mongodb_itself_is_used_where_it_is() {
    let Some(server) = Mongod::start() else { return };
    assert!(lives(&server));
}

#[test]
fn moto_makes_a_bucket_and_forgets_it() {
    let Some(server) = Moto::own() else { return };
    let ask = |method: &str| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head = format!("{method} /bucket HTTP/1.1\r\nHost: {}\r\n", server.address());
        let rest = "Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request\r\n";
        stream
            .write_all(format!("{head}{rest}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(ask("PUT"), "200");
    assert_eq!(ask("HEAD"), "200");
    server.wipe();
    assert_eq!(ask("HEAD"), "404");
}

#[test]
fn a_server_ends_with_a_process_that_is_killed() {
    const CHILD: &str = "TIERCACHE_SERVICES_CHILD";
    if std::env::var_os(CHILD).is_some() {
        if let Some(server) = Memcached::own() {
            println!("pid {}", server.pid().unwrap());
            std::thread::sleep(Duration::from_secs(60));
        }
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "servers::a_server_ends_with_a_process_that_is_killed", "--nocapture"])
        .env(CHILD, "1")
        // It cannot clean up.
        .env("TMPDIR", scratch.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.split_once("pid ")?.1.parse::<u32>().ok());
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(pid) = pid else { return };
    let start = std::time::Instant::now();
    while !gone(pid) {
        assert!(start.elapsed() < Duration::from_secs(5), "{pid} outlives its test");
        std::thread::yield_now();
    }
}
