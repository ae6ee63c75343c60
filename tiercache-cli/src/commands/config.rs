//! `init`, `config check`, `config show`.

use std::io::Write;

use serde_json::json;
use tiercache::Config;

use crate::args::{Args, ConfigCommand, InitArgs};
use crate::outcome::{Failure, Outcome, Result};
use crate::say::say;
use crate::target;

pub(super) fn init(args: &InitArgs, json: bool) -> Result {
    let file = args.file.display();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(!args.force).create(true).truncate(true);
    let mut opened = options.open(&args.file).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::usage(format!("{file} is there already, --force replaces it"))
        }
        _ => Failure::backend(format!("{file} cannot be written: {error}")),
    })?;
    opened
        .write_all(Config::default_yaml().as_bytes())
        .map_err(|error| Failure::backend(format!("{file} cannot be written: {error}")))?;
    if json {
        say!("{}", json!({ "written": args.file }));
    } else {
        say!("{file} is written; `tiercache serve --config {file}` serves it");
    }
    Ok(Outcome::Done)
}

pub(super) fn config(what: ConfigCommand, args: &Args) -> Result {
    let config = target::config(args)?;
    match (what, args.json) {
        (ConfigCommand::Check, false) => say!("{} is well", target::config_file(args).display()),
        (ConfigCommand::Check, true) => say!("{}", json!({ "ok": true })),
        (ConfigCommand::Show, false) => say!("{}", config.to_yaml().trim_end()),
        (ConfigCommand::Show, true) => say!("{}", config.to_json()),
    }
    Ok(Outcome::Done)
}
