//! tiercache and its peers side by side in one run: `cargo xtask bench`.

mod allocations;
mod disk;
mod hits;
mod hot;
mod http;
mod keys;
mod load;
mod measure;
mod memory;
#[cfg(feature = "remote")]
mod remote;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask bench hot|load|disk|memory|hits|remote|http [--json] [--only KIND=NAME,…] [FILE…]

  hot      a hit, a miss, a set, a promotion in RAM, beside other caches and frameworks
  load     hits, misses and herds of loads through the cache
  disk     gets and puts of the disk level, beside databases and the machine's own limits
  memory   bytes of RAM per entry
  hits     hit ratios on traces, one key per line; without a file on made-up ones
  http     hits of the proxy beside nginx and Varnish, and of services behind the layers beside tower-http-cache and
           nothing, asked by wrk, as far as they are installed
  remote   levels in other processes beside their clients, and batches beside single calls

  --json         one object per line
  --only         only these, KIND being case, keys, contender, threads or backend; may be given once per kind
";

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) json: bool,
    only: Vec<(String, String)>,
    pub(crate) files: Vec<String>,
}

impl Options {
    /// Whether that is to be measured: nothing of its kind was picked, or it was.
    pub(crate) fn wants(&self, kind: &str, name: &str) -> bool {
        let mut picked = self.only.iter().filter(|(picked, _)| picked == kind).peekable();
        picked.peek().is_none() || picked.any(|(_, picked)| picked == name)
    }
}

fn main() -> ExitCode {
    let mut options = Options::default();
    let mut bench = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => options.json = true,
            "--only" => {
                let picked = arguments.next().unwrap_or_default();
                let Some((kind, names)) = picked.split_once('=') else {
                    eprint!("--only takes KIND=NAME,…, not `{picked}`\n\n{USAGE}");
                    return ExitCode::from(2);
                };
                options.only.extend(names.split(',').map(|name| (kind.to_string(), name.to_string())));
            }
            "--help" | "-h" => {
                print!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            _ if bench.is_none() => bench = Some(argument),
            _ => options.files.push(argument),
        }
    }
    match bench.as_deref() {
        Some("disk") => disk::run(&options),
        Some("hits") => hits::run(&options),
        Some("hot") => hot::run(&options),
        Some("http") => http::run(&options),
        #[cfg(feature = "peers-http")]
        Some("http-service") => match options.files.as_slice() {
            [kind, address] => {
                if let Err(error) = http::serve(kind, address) {
                    eprintln!("{error}");
                    return ExitCode::FAILURE;
                }
            }
            _ => return ExitCode::from(2),
        },
        Some("load") => load::run(&options),
        Some("memory") => memory::run(&options),
        #[cfg(feature = "remote")]
        Some("remote") => remote::run(&options),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
