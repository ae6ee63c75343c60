//! `incr`, `decr`, `counter`.

use serde_json::json;

use super::values::absent;
use crate::args::{CountArgs, CounterArgs};
use crate::outcome::{Outcome, Result};
use crate::say::say;
use crate::target::Target;

pub(super) async fn count(target: &Target, args: &CountArgs, sign: i64, json: bool) -> Result {
    let sum = target.count(&args.key, sign * i64::from(args.by), args.start, args.ttl).await?;
    tell(&args.key, sum, json);
    Ok(Outcome::Done)
}

pub(super) async fn counter(target: &Target, args: &CounterArgs, json: bool) -> Result {
    if args.reset {
        if !target.remove_counter(&args.key).await? {
            return Ok(absent(&args.key, json));
        }
        if json {
            say!("{}", json!({ "key": args.key, "found": true }));
        }
        return Ok(Outcome::Done);
    }
    match target.counter(&args.key).await? {
        Some(sum) => tell(&args.key, sum, json),
        None => return Ok(absent(&args.key, json)),
    }
    Ok(Outcome::Done)
}

fn tell(key: &str, sum: i64, json: bool) {
    if json {
        say!("{}", json!({ "key": key, "counter": sum }));
    } else {
        say!("{sum}");
    }
}
