//! Automation: `cargo xtask`. One file per command.

mod bench;
mod bugs;
mod ci;
mod matrix;
mod run;
mod services;
mod test;
mod torture;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  test                                     install what is missing, run every test
  ci                                       format, lints, every feature alone, documentation, then test
  matrix [--rounds N]                      every backend under every fault, so many times
  services                                 install the servers that tests run against
  bugs [NAME]                              seeded bugs, each of which the simulator must catch
  torture [--histories N] [--seed S]       generated histories against the reference model, as many as you like
  bench hot|load|disk|memory|hits|http|remote [--json] [FILE…]
                                           tiercache and its peers side by side
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let done = match command {
        "test" => test::run(),
        "ci" => ci::run(),
        "bugs" => bugs::run(rest),
        "services" => services::run(),
        "matrix" => matrix::run(rest),
        "torture" => torture::run(rest),
        "bench" => bench::run(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprint!("unknown command `{other}`\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask {command}: {failure}");
            ExitCode::FAILURE
        }
    }
}
