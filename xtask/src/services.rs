//! `cargo xtask services`: the servers that tests run against.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{self, Outcome};

/// Programs, and the distribution's package that has each.
const PACKAGES: [(&str, &str); 4] = [
    ("memcached", "memcached"),
    ("redis-server", "redis-server"),
    ("postgres", "postgresql"),
    ("openssl", "openssl"),
];
/// Python's stand-ins for MongoDB and for a second S3, and the caches whose folders can be imported.
const PYTHON: [&str; 4] =
    ["nx-27017==0.8.1", "moto[s3,server]==5.2.5", "diskcache==5.6.3", "pysciqlop-cache==0.3.6"];

/// Installs what is missing. What cannot be had is said, and its tests are skipped, or fail where `CI` is set.
pub(crate) fn run() -> Outcome {
    let missing: Vec<_> = PACKAGES.iter().filter(|(program, _)| !installed(program)).collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
        if let Err(failure) = install(&names) {
            eprintln!("servers are missing: install {} ({failure})", names.join(", "));
        }
    }
    if let Err(failure) = python() {
        eprintln!("the simulators of MongoDB and S3 are missing: {failure}");
    }
    Ok(())
}

/// Where the simulators' Python stands.
pub(crate) fn venv() -> PathBuf {
    target().join("services")
}

/// Cargo's folder for what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| run::root().join("target"), PathBuf::from)
}

fn installed(program: &str) -> bool {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps PostgreSQL's programs off the path, one folder a version.
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.map(|version| version.path().join("bin"));
    std::env::split_paths(&on_path).chain(versions).any(|folder| folder.join(program).is_file())
}

fn install(packages: &[&str]) -> Outcome {
    let apt = |arguments: &[&str]| {
        run::run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], packages].concat())
}

fn python() -> Outcome {
    let venv = venv();
    let mark = venv.join("packages");
    let wanted = PYTHON.join("\n");
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if !run::works(Command::new("python3").args(["-m", "venv", "--help"])) {
        install(&["python3", "python3-venv"])?;
    }
    let made = |arguments: &[&str], program: &Path| run::run(Command::new(program).args(arguments));
    made(&["-m", "venv", "--clear", &venv.to_string_lossy()], Path::new("python3"))?;
    let mut pip = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    pip.extend(PYTHON);
    made(&pip, &venv.join("bin/python"))?;
    std::fs::write(&mark, wanted).map_err(|error| format!("{}: {error}", mark.display()))
}
