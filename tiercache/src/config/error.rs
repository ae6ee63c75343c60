//! What is wrong with a configuration, told so that it can be put right.

use std::fmt;

/// A place in the file; both count from 1, 0 stands for the whole file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

/// One thing that is wrong: where, what was found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the file.
    pub at: Position,
    /// Which key, such as `dry_cache.path`; empty for the file as a whole.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What is allowed there.
    pub allowed: Option<String>,
    /// The allowed word that is spelled most alike.
    pub nearest: Option<String>,
}

impl Problem {
    /// What is found where a key is that nobody knows.
    pub(crate) const UNKNOWN_KEY: &str = "unknown key";

    pub(crate) fn new(at: Position, path: impl Into<String>, found: impl Into<String>) -> Self {
        Self { at, path: path.into(), found: found.into(), allowed: None, nearest: None }
    }

    pub(crate) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    /// Names the known words, and the one `word` may have been meant to be.
    pub(crate) fn among<'a>(self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let nearest = nearest(word, &known).map(str::to_owned);
        let listed = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        Self { nearest, ..self.allowed(listed) }
    }

    /// Adds words that are known beside those a backend listed: an unknown key may be a misspelled one of these.
    pub(crate) fn also_among(self, more: &[&str]) -> Self {
        let word = self.path.rsplit('.').next().unwrap_or_default().to_owned();
        let listed = self.allowed.clone().unwrap_or_default();
        let known: Vec<String> =
            more.iter().map(|&word| word.to_owned()).chain(listed.split(", ").map(str::to_owned)).collect();
        self.among(&word, known.iter().map(String::as_str).filter(|word| *word != "nothing"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.found)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {allowed}")?;
        }
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    problems: Vec<Problem>,
}

impl ConfigError {
    pub(crate) fn new(file: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.at);
        // Of a value that is wrong in two ways the first is told: the second may follow from it.
        problems.dedup_by(|second, first| second.at == first.at && second.path == first.path);
        Self { file: file.to_owned(), problems }
    }

    /// The file's name, or what stands for it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What is wrong; at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match problem.at {
                Position { line: 0, .. } => write!(f, "{}: {problem}", self.file)?,
                Position { line, column } => write!(f, "{}:{line}:{column}: {problem}", self.file)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for tiercache_core::Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

/// The known word with the fewest edits from `word`, if they are few for its length.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .iter()
        .map(|&known| (distance(&word, known), known))
        .filter(|&(edits, known)| edits <= 1 + known.chars().count().max(word.chars().count()) / 4)
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, known)| known)
}

/// Edits between two words: insertions, removals, replacements and swaps of neighbours count one each.
fn distance(from: &str, to: &str) -> usize {
    // Words from a file are compared with words of the program: longer ones need no exact answer.
    let from: Vec<char> = from.chars().take(64).collect();
    let to: Vec<char> = to.chars().take(64).collect();
    let width = to.len() + 1;
    let mut table: Vec<usize> =
        (0..width * (from.len() + 1)).map(|at| if at < width { at } else { 0 }).collect();
    for row in 1..=from.len() {
        table[row * width] = row;
        for column in 1..width {
            let same = from[row - 1] == to[column - 1];
            let mut best = (table[(row - 1) * width + column - 1] + usize::from(!same))
                .min(table[(row - 1) * width + column] + 1)
                .min(table[row * width + column - 1] + 1);
            let swapped =
                row > 1 && column > 1 && from[row - 1] == to[column - 2] && from[row - 2] == to[column - 1];
            if swapped {
                best = best.min(table[(row - 2) * width + column - 2] + 1);
            }
            table[row * width + column] = best;
        }
    }
    table[width * (from.len() + 1) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_spelling_is_found_when_it_is_near() {
        let known = ["backend", "max_size", "path", "ttl", "ttl_hours"];
        for (word, expected) in [
            ("backnd", Some("backend")),
            ("Path", Some("path")),
            ("pahT", Some("path")),
            ("tll", Some("ttl")),
            ("maxsize", Some("max_size")),
            ("compression", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), expected, "{word}");
        }
    }
}
