//! `bench http`: hits of the proxy beside those of nginx and Varnish, and of services behind the layers beside those
//! behind tower-http-cache and those behind nothing.
//!
//! The same client (wrk) asks each for the same page in turns, so that all see the same machine; a figure is the median of
//! the rounds. Servers have one core and the client the other, where there are two. Each server keeps pages in RAM (nginx:
//! in files on a RAM disk, where there is one) and writes no access log.

#[cfg(feature = "peers-http")]
mod adapters;
mod contender;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::json;

#[cfg(feature = "peers-http")]
pub(crate) use self::adapters::serve;
use self::contender::{Contender, start_all};
use crate::Options;
use crate::measure::median;

const ROUNDS: usize = 5;
/// Seconds of a round.
const SECONDS: &str = "3";
const CONNECTIONS: &str = "32";
/// In every response: the number of its making. Who answers from a cache says the same again.
const MADE: &str = "x-made";
const SIZES: [(&str, usize); 2] = [("1KiB", 1 << 10), ("64KiB", 64 << 10)];

pub(crate) fn run(options: &Options) {
    if Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("wrk is not installed, nothing to ask with");
        return;
    }
    let origin = origin();
    let contenders = start_all(origin, options);
    for (size, bytes) in SIZES {
        if !options.wants("case", size) {
            continue;
        }
        let mut rounds: Vec<Vec<Told>> = contenders.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for (contender, told) in contenders.iter().zip(&mut rounds) {
                told.extend(ask(contender, bytes));
            }
        }
        for (contender, told) in contenders.iter().zip(&rounds) {
            let bare = contenders.iter().position(|other| Some(other.name) == contender.bare);
            print(options, size, contender.name, told, bare.map(|bare| &*rounds[bare]));
        }
    }
}

/// What wrk says of a round.
struct Told {
    per_second: f64,
    p50: f64,
    p99: f64,
    /// Microseconds of the server's processor time for each request.
    cpu: f64,
    failed: bool,
}

fn ask(contender: &Contender, bytes: usize) -> Option<Told> {
    let url = format!("http://{}/{bytes}", contender.address);
    let mut wrk = contender::on_core(1, "wrk");
    wrk.args(["-t1", "-c", CONNECTIONS, "-d", SECONDS, "--latency", &url]);
    let before = contender.cpu();
    let said = wrk.output().ok()?;
    let taken = contender.cpu() - before;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let requests =
        said.lines().find_map(|line| line.split_once(" requests in")?.0.trim().parse::<f64>().ok())?;
    let word = |begins: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(begins))?;
        line.split_whitespace().nth(1).map(str::to_owned)
    };
    Some(Told {
        per_second: word("Requests/sec:")?.parse().ok()?,
        p50: micros(&word("50%")?)?,
        p99: micros(&word("99%")?)?,
        cpu: taken * 1e6 / requests.max(1.0),
        failed: said.contains("Non-2xx") || said.contains("Socket errors"),
    })
}

/// wrk's `12.34us`, `1.23ms`, `1.23s` in microseconds.
fn micros(text: &str) -> Option<f64> {
    let (number, factor) = match text {
        text if text.ends_with("us") => (&text[..text.len() - 2], 1.0),
        text if text.ends_with("ms") => (&text[..text.len() - 2], 1e3),
        text if text.ends_with('s') => (&text[..text.len() - 1], 1e6),
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// `bare` is what the same service told without a cache in front.
fn print(options: &Options, size: &str, contender: &str, told: &[Told], bare: Option<&[Told]>) {
    let of = |part: fn(&Told) -> f64| median(told.iter().map(part));
    let (rate, cpu) = (of(|told| told.per_second), of(|told| told.cpu));
    let beside = bare.map(|bare| cpu - median(bare.iter().map(|told| told.cpu)));
    let (p50, p99) = (of(|told| told.p50), of(|told| told.p99));
    let failed = told.is_empty() || told.iter().any(|told| told.failed);
    // Figures of a machine that others use too say so.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    if options.json {
        println!(
            "{}",
            json!({
                "bench": "http", "case": size, "contender": contender, "requests_per_second": rate.round(),
                "cpu_us": tenths(cpu), "beside_the_service_us": beside.map(tenths), "p50_us": p50, "p99_us": p99, "failed": failed, "load": load,
            })
        );
    } else {
        let mut note =
            beside.map(|beside| format!("  {beside:+.1} µs beside the service")).unwrap_or_default();
        if failed {
            note.push_str("  some failed");
        }
        println!(
            "{size:<6} {contender:<16} {rate:>9.0} requests/s  {cpu:>6.1} µs of processor  p50 {p50:>8.0} µs  p99 {p99:>8.0} µs  load {load}{note}"
        );
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// Answers `/N` with N bytes that are fresh for an hour. Ends with the process.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let made = Arc::new(AtomicU64::new(0));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let made = made.clone();
            thread::spawn(move || answer(&stream, &made));
        }
    });
    address
}

fn answer(stream: &TcpStream, made: &AtomicU64) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let line = lines.next()?.ok()?;
        let bytes: usize = line.split(' ').nth(1)?.trim_start_matches('/').parse().unwrap_or_default();
        while !lines.next()?.ok()?.is_empty() {}
        let fields = "Cache-Control: max-age=3600\r\nContent-Type: text/plain";
        let made = made.fetch_add(1, Ordering::Relaxed);
        let head =
            format!("HTTP/1.1 200 OK\r\n{fields}\r\n{MADE}: {made}\r\nContent-Length: {bytes}\r\n\r\n");
        (&mut &*stream).write_all(&[head.as_bytes(), &vec![b'x'; bytes]].concat()).ok()?;
    }
}
