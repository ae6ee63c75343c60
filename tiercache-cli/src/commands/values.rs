//! `get`, `set`, `delete`, `touch`, `contains`.

use std::io::{IsTerminal, Read};

use bytes::Bytes;
use serde_json::json;

use crate::args::{GetArgs, SetArgs, TouchArgs};
use crate::outcome::{Failure, Outcome, Result};
use crate::say::{self, say};
use crate::serve::media_type_of;
use crate::target::Target;

pub(super) async fn get(target: &Target, args: &GetArgs, json: bool) -> Result {
    let Some(found) = target.get(&args.key).await? else {
        return Ok(absent(&args.key, json));
    };
    if let Some(file) = &args.output {
        std::fs::write(file, &found.value)
            .map_err(|error| Failure::backend(format!("{} cannot be written: {error}", file.display())))?;
    }
    if json {
        let mut about = found.about;
        about["key"] = json!(args.key);
        about["size_bytes"] = json!(found.value.len());
        if args.output.is_none() {
            match std::str::from_utf8(&found.value) {
                Ok(text) => about["value"] = json!(text),
                Err(_) => about["value_hex"] = json!(hex(&found.value)),
            }
        }
        say!("{about}");
    } else if args.output.is_none() {
        say::bytes(&found.value);
    }
    Ok(Outcome::Done)
}

pub(super) async fn set(target: &Target, args: &SetArgs, json: bool) -> Result {
    let value = value(args)?;
    let size = value.len();
    let content_type = args.content_type.as_deref().or_else(|| media_type_of(args.key.as_bytes()));
    target.set(&args.key, value, args.ttl, &args.tags, content_type).await?;
    if json {
        say!("{}", json!({ "key": args.key, "size_bytes": size }));
    }
    Ok(Outcome::Done)
}

pub(super) async fn delete(target: &Target, keys: &[String], json: bool) -> Result {
    let mut missing = Vec::new();
    for key in keys {
        if !target.delete(key).await? {
            missing.push(key);
        }
    }
    if json {
        say!("{}", json!({ "deleted": keys.len() - missing.len(), "not_found": missing }));
    } else {
        missing.iter().for_each(|key| eprintln!("{key} is not there"));
    }
    Ok(if missing.is_empty() { Outcome::Done } else { Outcome::FallsShort })
}

pub(super) async fn touch(target: &Target, args: &TouchArgs, json: bool) -> Result {
    if !target.touch(&args.key, args.ttl).await? {
        return Ok(absent(&args.key, json));
    }
    if json {
        say!("{}", json!({ "key": args.key, "found": true }));
    }
    Ok(Outcome::Done)
}

pub(super) async fn contains(target: &Target, key: &str, json: bool) -> Result {
    let found = target.contains(key).await?;
    if json {
        say!("{}", json!({ "key": key, "found": found }));
    } else {
        say!("{}", if found { "yes" } else { "no" });
    }
    Ok(if found { Outcome::Done } else { Outcome::FallsShort })
}

pub(super) fn absent(key: &str, json: bool) -> Outcome {
    if json {
        say!("{}", json!({ "key": key, "found": false }));
    } else {
        eprintln!("{key} is not there");
    }
    Outcome::FallsShort
}

/// From the argument, the file or standard input.
fn value(args: &SetArgs) -> Result<Bytes> {
    if let Some(value) = &args.value {
        return Ok(Bytes::copy_from_slice(value.as_bytes()));
    }
    if let Some(file) = &args.file {
        let read = std::fs::read(file);
        return read
            .map(Bytes::from)
            .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", file.display())));
    }
    let mut input = std::io::stdin();
    if input.is_terminal() {
        return Err(Failure::usage("there is no value: give one, or --file, or pipe it in"));
    }
    let mut value = Vec::new();
    input.read_to_end(&mut value)?;
    Ok(value.into())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
