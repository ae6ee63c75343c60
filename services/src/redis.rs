use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::path::PathBuf;

use crate::container::Image;
use crate::find;
use crate::port::Port;
use crate::server::{Recipe, Server, wait};

const IMAGE: Image = Image { name: "redis", tag: "7-alpine", port: 6379, env: &[] };

/// Redis.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    login: Option<(String, String)>,
    elsewhere: Option<String>,
}

impl Redis {
    /// One of whatever kind is at hand; `None` when none is.
    pub fn start() -> Option<Self> {
        let Some(url) = find::variable("TIERCACHE_TEST_REDIS_URL") else { return Self::own() };
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let login = login.and_then(|login| login.split_once(':'));
        let login = login.map(|(user, word)| (user.to_owned(), word.to_owned()));
        let address = rest.split('/').next().unwrap_or_default();
        let address = if address.contains(':') { address.to_owned() } else { format!("{address}:6379") };
        Some(Self { server: Server::elsewhere("redis", address), login, elsewhere: Some(url) })
    }

    /// One of this test's own.
    pub fn own() -> Option<Self> {
        Self::start_with(&[])
    }

    /// One of this test's own with these arguments, such as `["--maxmemory", "16mb"]`.
    pub fn start_with(args: &[&str]) -> Option<Self> {
        Self::run(args, None)
    }

    /// One of this test's own that wants `password` of everyone.
    pub fn with_password(password: &str) -> Option<Self> {
        Self::run(&["--requirepass", password], Some(("default".to_owned(), password.to_owned())))
    }

    /// One of this test's own that wants a `user` with a `password`, who may do all with keys that begin with `tiercache`.
    pub fn with_user(user: &str, password: &str) -> Option<Self> {
        let password_rule = format!(">{password}");
        let args = ["--user", "default", "off", "--user", user, "on", &password_rule];
        let args = [&args[..], &["~tiercache*", "&tiercache*", "+@all"]].concat();
        Self::run(&args, Some((user.to_owned(), password.to_owned())))
    }

    /// Its URL, with the login if it has one.
    pub fn url(&self) -> String {
        match (&self.elsewhere, &self.login) {
            (Some(url), _) => url.clone(),
            (None, Some((user, password))) => format!("redis://{user}:{password}@{}/0", self.address()),
            (None, None) => format!("redis://{}/0", self.address()),
        }
    }

    /// Makes it forget everything.
    pub fn wipe(&self) {
        assert_eq!(self.command("FLUSHALL"), "+OK");
    }

    /// Sends one line and returns the answer: the first line, or the text of a bulk.
    pub fn command(&self, line: &str) -> String {
        let answer = ask(self.address(), self.login.as_ref(), line);
        answer.unwrap_or_else(|error| panic!("redis does not answer: {error}"))
    }

    fn run(args: &[&str], login: Option<(String, String)>) -> Option<Self> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let server = match find::program("redis-server") {
            Some(_) => node(&args)?,
            None => {
                let args = [vec!["redis-server".to_owned()], args].concat();
                Server::contained("redis", IMAGE, &args, answers).or_else(missing)?
            }
        };
        Some(Self { server, login, elsewhere: None })
    }
}

impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// A Redis cluster of three masters.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Server>,
    _buses: Vec<Port>,
}

impl RedisCluster {
    /// One of this test's own; `None` when there is no `redis-server`.
    pub fn start() -> Option<Self> {
        let buses: Vec<Port> = (0..3).map(|_| Port::reserve()).collect();
        let nodes = buses.iter().map(|bus| {
            let bus = bus.number.to_string();
            let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus];
            node(&args.map(str::to_owned))
        });
        let nodes = nodes.collect::<Option<Vec<_>>>()?;
        let slots = ["0 5460", "5461 10922", "10923 16383"];
        for (number, (node, slots)) in nodes.iter().zip(slots).enumerate() {
            say(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1));
            say(node, &format!("CLUSTER ADDSLOTSRANGE {slots}"));
        }
        for (node, bus) in nodes.iter().zip(&buses).skip(1) {
            say(&nodes[0], &format!("CLUSTER MEET 127.0.0.1 {} {}", node.port(), bus.number));
        }
        let whole = |node: &Server| {
            let info = ask(node.address(), None, "CLUSTER INFO").unwrap_or_default();
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") && {
                let all = ask(node.address(), None, "CLUSTER NODES").unwrap_or_default();
                all.matches(" connected ").count() == 3 && !all.contains("handshake")
            }
        };
        wait("the redis cluster", || nodes.iter().all(whole).then_some(()));
        Some(Self { nodes, _buses: buses })
    }

    /// The URLs of its nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("redis://{}", node.address())).collect()
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }
}

/// A Redis master and its replica, watched by one sentinel that lets the replica take over.
#[derive(Debug)]
pub struct RedisSentinel {
    nodes: Vec<Server>,
    sentinel: Server,
}

impl RedisSentinel {
    /// The name the sentinel knows the master by.
    pub const MASTER: &str = "main";

    /// One of this test's own; `None` when there is no `redis-server`.
    pub fn start() -> Option<Self> {
        let master = node(&[])?;
        let of = ["--replicaof".to_owned(), "127.0.0.1".to_owned(), master.port().to_string()];
        let replica = node(&of)?;
        wait("the redis replica", || {
            let info = ask(replica.address(), None, "INFO replication").ok()?;
            info.contains("master_link_status:up").then_some(())
        });
        let program = find::program("redis-server")?;
        let sentinel = Server::start("redis", |port, dir| {
            let name = Self::MASTER;
            let config = format!(
                "bind 127.0.0.1\nport {port}\nsentinel monitor {name} 127.0.0.1 {} 1\n\
                 sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 2000\n",
                master.port()
            );
            let path = dir.join("sentinel.conf");
            std::fs::write(&path, config).expect("the configuration can be written");
            let args = vec![path.display().to_string(), "--sentinel".to_owned()];
            Recipe { ready: answers, ..Recipe::new(program, args) }
        });
        wait("the redis sentinel", || {
            let known = ask(sentinel.address(), None, "INFO sentinel").ok()?;
            known.contains("status=ok,").then_some(())?;
            known.contains("slaves=1").then_some(())
        });
        Some(Self { nodes: vec![master, replica], sentinel })
    }

    /// The sentinel's URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.sentinel.address())
    }

    /// The sentinel.
    pub fn sentinel(&self) -> &Server {
        &self.sentinel
    }

    /// The node that is master now, as the sentinel has it.
    pub fn master(&self) -> &Server {
        let line = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {}", Self::MASTER);
        wait("a redis master", || {
            let answer = ask(self.sentinel.address(), None, &line).ok()?;
            self.nodes.iter().find(|node| answer.ends_with(&node.port().to_string()))
        })
    }

    /// Kills the master and returns when the other has taken over.
    pub fn fail_over(&self) {
        let old = self.master();
        old.kill();
        wait("the new redis master", || {
            let new = self.master();
            let role = ask(new.address(), None, "INFO replication").ok()?;
            (new.port() != old.port() && role.contains("role:master")).then_some(())
        });
    }
}

fn node(args: &[String]) -> Option<Server> {
    let program: PathBuf = find::program("redis-server").or_else(missing)?;
    Some(Server::start("redis", |port, dir| {
        let place = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"];
        let mut all: Vec<String> = place.map(str::to_owned).to_vec();
        all.extend([port.to_string(), "--dir".to_owned(), dir.display().to_string()]);
        all.extend_from_slice(args);
        Recipe { ready: answers, ..Recipe::new(program, all) }
    }))
}

fn answers(address: &str) -> bool {
    let answer = ask(address, None, "PING");
    answer.is_ok_and(|answer| answer == "+PONG" || answer.starts_with("-NOAUTH"))
}

fn say(node: &Server, line: &str) {
    let answer = ask(node.address(), None, line).expect("the node answers");
    assert_eq!(answer, "+OK", "{line}");
}

/// The answer to one line: a simple one with its sign, a bulk's text, or the lines of an array of bulks.
fn ask(address: &str, login: Option<&(String, String)>, line: &str) -> std::io::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    if let Some((user, password)) = login {
        let user = if user.is_empty() { "default" } else { user };
        stream.get_mut().write_all(format!("AUTH {user} {password}\r\n").as_bytes())?;
        answer(&mut stream)?;
    }
    stream.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
    answer(&mut stream)
}

fn answer(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut head = String::new();
    stream.read_line(&mut head)?;
    let head = head.trim_end();
    let count = || head[1..].parse::<usize>().unwrap_or(0);
    match head.as_bytes().first() {
        Some(b'$') => {
            let mut bulk = vec![0; count() + 2];
            stream.read_exact(&mut bulk)?;
            Ok(String::from_utf8_lossy(&bulk).trim_end().to_owned())
        }
        Some(b'*') => {
            let items = (0..count()).map(|_| answer(stream)).collect::<std::io::Result<Vec<_>>>()?;
            Ok(items.join("\n"))
        }
        _ => Ok(head.to_owned()),
    }
}

fn missing<T>() -> Option<T> {
    find::skipped("redis", "install the package redis-server or set TIERCACHE_TEST_REDIS_URL");
    None
}
