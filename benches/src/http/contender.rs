//! Servers that cache, each on a free port and ended with its value.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Options;

pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    /// The same service without a cache in front, if it is one.
    pub(super) bare: Option<&'static str>,
    child: Child,
    _folder: TempDir,
}

impl Contender {
    /// Seconds of processor time that it and its children have taken: what the neighbours take does not count.
    pub(super) fn cpu(&self) -> f64 {
        cpu_of(self.child.id())
    }
}

/// From Linux's `/proc`, whose ticks are a hundredth of a second.
fn cpu_of(process: u32) -> f64 {
    let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let stat = read("stat");
    // Behind the name, which may have anything in it: user and system time are the 12th and 13th.
    let times = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let own: f64 = times.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0;
    let children = read(&format!("task/{process}/children"));
    own + children.split_whitespace().filter_map(|child| child.parse().ok()).map(cpu_of).sum::<f64>()
}

impl Drop for Contender {
    fn drop(&mut self) {
        // In order: its own children end with it.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// How one is started.
#[derive(Clone, Copy)]
struct Starter {
    name: &'static str,
    /// Whether it answers from a cache.
    caches: bool,
    bare: Option<&'static str>,
    /// Of the origin, of its own address and of its folder.
    command: fn(SocketAddr, SocketAddr, &Path) -> Option<Command>,
}

const SERVERS: [Starter; 3] = [
    Starter { name: "tiercache", caches: true, bare: None, command: tiercache },
    Starter { name: "nginx", caches: true, bare: None, command: nginx },
    Starter { name: "varnish", caches: true, bare: None, command: varnish },
];

/// This program once more, each time as another service.
#[cfg(feature = "peers-http")]
const SERVICES: [Starter; 5] = [
    Starter { name: "axum", caches: false, bare: None, command: |_, at, _| service("axum", at) },
    Starter {
        name: "axum-layer",
        caches: true,
        bare: Some("axum"),
        command: |_, at, _| service("axum-layer", at),
    },
    Starter {
        name: "tower-http-cache",
        caches: true,
        bare: Some("axum"),
        command: |_, at, _| service("tower-http-cache", at),
    },
    Starter { name: "actix", caches: false, bare: None, command: |_, at, _| service("actix", at) },
    Starter {
        name: "actix-layer",
        caches: true,
        bare: Some("actix"),
        command: |_, at, _| service("actix-layer", at),
    },
];
#[cfg(not(feature = "peers-http"))]
const SERVICES: [Starter; 0] = [];

#[cfg(feature = "peers-http")]
fn service(name: &str, address: SocketAddr) -> Option<Command> {
    let mut command = on_core(0, std::env::current_exe().ok()?);
    command.args(["http-service", name, &address.to_string()]);
    Some(command)
}

/// Every one that is wanted and there, in front of `origin`.
pub(super) fn start_all(origin: SocketAddr, options: &Options) -> Vec<Contender> {
    let wanted = SERVERS.into_iter().chain(SERVICES).filter(|one| options.wants("contender", one.name));
    let started = wanted.filter_map(|starter| {
        let started = start(starter, origin);
        if started.is_none() {
            eprintln!("{}: not here, or it does not start; left out", starter.name);
        }
        started
    });
    started.collect()
}

/// A command on one core, where there are so many and `taskset` is there.
pub(super) fn on_core(core: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores <= core.max(1) || Command::new("taskset").arg("-V").stdout(Stdio::null()).status().is_err() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

fn start(starter: Starter, origin: SocketAddr) -> Option<Contender> {
    // On a RAM disk, if there is one: nginx keeps pages in files.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).ok()?;
    let address = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?;
    let mut command = (starter.command)(origin, address, folder.path())?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let Starter { name, caches, bare, .. } = starter;
    let contender = Contender { name, address, bare, child, _folder: folder };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        if answers(address, caches).is_some() {
            return Some(contender);
        }
        thread::sleep(Duration::from_millis(50));
    }
    None
}

/// Asks twice for every page: who caches has the second time what was made the first, and nobody else has.
fn answers(address: SocketAddr, caches: bool) -> Option<()> {
    for (_, bytes) in super::SIZES {
        let first = made(&fetch(address, bytes)?)?;
        let second = made(&fetch(address, bytes)?)?;
        if caches != (first == second) {
            return None;
        }
    }
    Some(())
}

/// The number of a response's making.
fn made(head: &str) -> Option<u64> {
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(super::MADE).then(|| value.trim().parse().ok())?
    };
    head.lines().find_map(value)
}

fn fetch(address: SocketAddr, bytes: usize) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = format!("GET /{bytes} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while reader.read_line(&mut head).ok()? > 2 {}
    let mut body = Vec::new();
    reader.read_to_end(&mut body).ok()?;
    (head.contains(" 200 ") && body.len() == bytes).then_some(head)
}

/// The command as it was built beside this program.
fn tiercache(origin: SocketAddr, address: SocketAddr, folder: &Path) -> Option<Command> {
    let program = std::env::current_exe().ok()?.with_file_name("tiercache");
    if !program.exists() {
        return None;
    }
    let mut command = on_core(0, program);
    command.args(["proxy", "--origin", &format!("http://{origin}"), "--listen", &address.to_string()]);
    command.current_dir(folder).env_remove("TIERCACHE_CONFIG").env_remove("TIERCACHE_LOG");
    Some(command)
}

/// `sendfile` is off: with it a page that is a little over a segment waits for the client's acknowledgement.
fn nginx(origin: SocketAddr, address: SocketAddr, folder: &Path) -> Option<Command> {
    let here = folder.display();
    let config = format!(
        "daemon off; worker_processes 1; pid {here}/pid; error_log /dev/null crit;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           access_log off; keepalive_requests 100000000; sendfile off; output_buffers 2 128k; open_file_cache max=1000;\n\
           client_body_temp_path {here}/a; proxy_temp_path {here}/b; fastcgi_temp_path {here}/c;\n\
           uwsgi_temp_path {here}/d; scgi_temp_path {here}/e;\n\
           proxy_cache_path {here}/cache keys_zone=pages:10m use_temp_path=off;\n\
           server {{ listen {address}; location / {{\n\
             proxy_pass http://{origin}; proxy_cache pages; add_header X-Cache $upstream_cache_status;\n\
           }} }}\n\
         }}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config).ok()?;
    // As root its worker would be another user, who may not enter the folder.
    let mut command = on_core(0, program("nginx")?);
    command.arg("-p").arg(folder).arg("-c").arg(&file).args(["-g", &user()]);
    Some(command)
}

fn varnish(origin: SocketAddr, address: SocketAddr, folder: &Path) -> Option<Command> {
    let mut command = on_core(0, program("varnishd")?);
    command.args(["-F", "-j", "none", "-a", &address.to_string(), "-b", &origin.to_string()]);
    command.args(["-s", "malloc,256m", "-n"]).arg(folder.join("varnish"));
    Some(command)
}

fn user() -> String {
    let root = Command::new("id").arg("-u").output().is_ok_and(|said| said.stdout == b"0\n");
    if root { "user root;".to_owned() } else { String::new() }
}

/// Where a server is, which may not be on everybody's path.
fn program(name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    folders.map(|folder| format!("{folder}/{name}")).find(|program| Path::new(program).exists())
}
