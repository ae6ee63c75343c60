//! `cargo xtask test`: everything there is to check by running it.

use crate::bugs;
use crate::run::{self, Outcome, cargo};

/// The peers are measured, not tested.
const ALL: [&str; 3] = ["--workspace", "--exclude", "tiercache-benches"];

pub(crate) fn run() -> Outcome {
    if !run::works(&mut cargo(["nextest", "--version"])) {
        run::run(&mut cargo(["install", "cargo-nextest", "--locked"]))?;
    }
    let mut tests = cargo(["nextest", "run", "--no-fail-fast", "--color", "never"]);
    let summary = run::run_watching(tests.args(ALL), |line| line.trim_start().starts_with("Summary"))?;
    run::run(cargo(["test", "--quiet", "--doc"]).args(ALL))?;
    bugs::run(&[])?;
    // Once more, where the eye looks for it.
    println!("{}", summary.unwrap_or_default().trim());
    Ok(())
}
