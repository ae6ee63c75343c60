//! `cargo xtask bench`: measures beside the peers, or the servers' clients, which nothing else builds.

use crate::run::{self, Outcome, cargo};

pub(crate) fn run(arguments: &[String]) -> Outcome {
    if arguments.iter().any(|argument| argument == "http") {
        // What users run, beside servers of the system, and services with the only peer that is a library.
        let package = ["--quiet", "--release", "--package"];
        run::run(cargo(["build"]).args(package).arg("tiercache-cli"))?;
        let bench = ["tiercache-benches", "--features", "peers-http", "--"];
        return run::run(cargo(["run"]).args(package).args(bench).args(arguments));
    }
    let remote = arguments.iter().any(|argument| argument == "remote");
    let (profile, features) = if remote { ("remote", "remote") } else { ("release", "peers") };
    let bench = ["run", "--quiet", "--profile", profile, "--package", "tiercache-benches"];
    run::run(cargo(bench).args(["--features", features, "--"]).args(arguments))
}
