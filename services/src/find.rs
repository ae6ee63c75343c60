use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The value of a variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A program on `PATH`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A Python that has `module`.
pub(crate) fn python(module: &str) -> Option<PathBuf> {
    let venv = variable("TIERCACHE_TEST_VENV").map(|venv| Path::new(&venv).join("bin/python"));
    let named = variable("TIERCACHE_TEST_PYTHON").map(PathBuf::from);
    [named, venv, program("python3")].into_iter().flatten().find(|python| {
        // Looked up, not imported: importing takes seconds.
        let found = format!("import importlib.util as u, sys; sys.exit(u.find_spec('{module}') is None)");
        let mut tried = Command::new(python);
        tried.args(["-c", &found]).stdout(Stdio::null()).stderr(Stdio::null());
        tried.status().is_ok_and(|status| status.success())
    })
}

/// Says loudly that a test is left out; in CI that is a failure.
pub(crate) fn skipped(what: &str, remedy: &str) {
    let line = format!("SKIPPED: {what} is not available here: {remedy}");
    assert!(variable("CI").is_none(), "{line}");
    note(&line);
}

/// Says loudly that a test, or a part of it, is left out: `line` begins with `SKIPPED: `.
///
/// # Panics
/// When the file that `TIERCACHE_TEST_SKIPPED` names cannot be appended to.
pub fn note(line: &str) {
    eprintln!("{line}");
    if let Some(path) = variable("TIERCACHE_TEST_SKIPPED") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .expect("$TIERCACHE_TEST_SKIPPED can be appended to");
    }
}
