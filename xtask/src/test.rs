//! `cargo xtask test`: everything there is to check by running it.

use crate::run::{self, Outcome, cargo};
use crate::{bugs, services};

/// The peers are measured, not tested.
const ALL: [&str; 3] = ["--workspace", "--exclude", "tiercache-benches"];

pub(crate) fn run() -> Outcome {
    if !run::works(&mut cargo(["nextest", "--version"])) {
        run::run(&mut cargo(["install", "cargo-nextest", "--locked"]))?;
    }
    services::run()?;
    let skipped = services::target().join("skipped");
    // One that is not there is as good as empty.
    let _ = std::fs::remove_file(&skipped);
    let mut tests = cargo(["nextest", "run", "--no-fail-fast", "--color", "never", "--all-features"]);
    tests.env("TIERCACHE_TEST_VENV", services::venv()).env("TIERCACHE_TEST_SKIPPED", &skipped);
    let summary = run::run_watching(tests.args(ALL), |line| line.trim_start().starts_with("Summary"))?;
    run::run(cargo(["test", "--quiet", "--doc"]).args(ALL))?;
    bugs::run(&[])?;
    // Once more, where the eye looks for it.
    println!("{}", summary.unwrap_or_default().trim());
    let skipped = std::fs::read_to_string(&skipped).unwrap_or_default();
    if !skipped.is_empty() {
        println!("{} tests lacked what they run against:\n{}", skipped.lines().count(), skipped.trim_end());
    }
    Ok(())
}
