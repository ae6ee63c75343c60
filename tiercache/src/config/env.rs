//! `${VAR}` and `${VAR:-default}` in the scalars of a file.
//!
//! Scalars are expanded after the file was parsed, so a value cannot become structure and positions stay true.
//! `$${` stands for `${` itself.

use super::error::Problem;
use super::node::{Kind, Node};

/// Expands every scalar below `node`; a variable without value or default is a problem.
pub(crate) fn expand(
    node: &mut Node,
    variable: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
) {
    match &mut node.kind {
        Kind::Text(text) if text.contains("${") => match expanded(text, variable) {
            Ok(value) => node.kind = Kind::Expanded(value),
            Err(found) => problems
                .push(Problem::new(node.at, node.path.clone(), found).allowed("${VAR} and ${VAR:-default}")),
        },
        Kind::List(items) => items.iter_mut().for_each(|item| expand(item, variable, problems)),
        Kind::Map(entries) => entries.iter_mut().for_each(|(_, value)| expand(value, variable, problems)),
        _ => {}
    }
}

fn expanded(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let (inside, after) = rest[at + 2..].split_once('}').ok_or("a `${` has no `}`")?;
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("`{name}` is no name of an environment variable"));
        }
        match (variable(name).filter(|value| !value.is_empty() || default.is_none()), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => return Err(format!("the environment variable {name} is not set")),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_defaults_are_put_in() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, value) in [
            ("${A}", "1"),
            ("x${A}y${A}", "x1y1"),
            ("${B:-two}", "two"),
            ("${EMPTY:-two}", "two"),
            ("${EMPTY}", ""),
            ("${B:-}", ""),
            ("$${A}", "${A}"),
            ("a: ${A}", "a: 1"),
        ] {
            assert_eq!(expanded(text, &lookup), Ok(value.to_owned()), "{text}");
        }
        assert!(expanded("${B}", &lookup).expect_err("not set").contains("B is not set"));
        assert!(expanded("${A", &lookup).is_err());
        assert!(expanded("${A B}", &lookup).is_err());
    }
}
