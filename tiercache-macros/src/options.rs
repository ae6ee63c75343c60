//! What stands in the brackets.

use std::time::Duration;

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Error, Expr, ExprLit, Ident, Lit, LitStr, Path, Result, Token, parenthesized};

const KNOWN: [&str; 25] = [
    "associated",
    "back_off",
    "cache",
    "companions",
    "crate",
    "eager",
    "error_ttl",
    "hard_timeout",
    "in_place",
    "jitter",
    "key",
    "lease",
    "limit",
    "name",
    "namespace",
    "negative_ttl",
    "refresh",
    "skip",
    "soft_timeout",
    "stale_if_error",
    "stale_while_revalidate",
    "tags",
    "ttl",
    "validate",
    "version",
];

/// What a call is kept under.
pub(crate) enum Key {
    /// All arguments but the skipped ones.
    Arguments,
    /// These.
    Parts(Vec<Expr>),
    /// This, as it is.
    Whole(Expr),
}

pub(crate) enum Cache {
    Default,
    Argument(Ident),
    Expr(Expr),
}

pub(crate) enum Version {
    Text(String),
    /// That of the function's own code.
    Code,
}

/// An option that `LoadOptions` has under the same name.
pub(crate) struct LoadOption {
    pub(crate) name: Ident,
    pub(crate) value: TokenStream,
}

pub(crate) struct Options {
    pub(crate) krate: TokenStream,
    pub(crate) cache: Cache,
    pub(crate) key: Key,
    pub(crate) skip: Vec<Ident>,
    pub(crate) name: Option<LitStr>,
    pub(crate) namespace: Option<LitStr>,
    pub(crate) version: Option<Version>,
    pub(crate) tags: Vec<(String, Expr)>,
    pub(crate) load: Vec<LoadOption>,
    pub(crate) refresh: Option<Expr>,
    pub(crate) validate: Option<Expr>,
    pub(crate) in_place: bool,
    pub(crate) associated: bool,
    pub(crate) companions: Option<Ident>,
}

impl Options {
    /// The name of the load option, where it was given.
    pub(crate) fn given(&self, name: &str) -> Option<&Ident> {
        self.load.iter().map(|option| &option.name).find(|given| *given == name)
    }
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut options = Self {
            krate: quote!(::tiercache),
            cache: Cache::Default,
            key: Key::Arguments,
            skip: Vec::new(),
            name: None,
            namespace: None,
            version: None,
            tags: Vec::new(),
            load: Vec::new(),
            refresh: None,
            validate: None,
            in_place: false,
            associated: false,
            companions: None,
        };
        let mut seen: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            let option = input.call(Ident::parse_any)?;
            if seen.contains(&option) {
                return Err(Error::new(option.span(), format!("`{option}` is given twice")));
            }
            options.take(&option, input)?;
            seen.push(option);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        options.check(&seen)?;
        Ok(options)
    }
}

impl Options {
    fn take(&mut self, option: &Ident, input: ParseStream<'_>) -> Result<()> {
        match option.to_string().as_str() {
            "associated" => self.associated = true,
            "in_place" => self.in_place = true,
            "cache" if input.peek(syn::token::Paren) => {
                let inner;
                parenthesized!(inner in input);
                self.cache = Cache::Argument(inner.call(Ident::parse_any)?);
                end(&inner, "one argument")?;
            }
            "cache" => self.cache = Cache::Expr(value(option, input, "an expression, or `cache(argument)`")?),
            "companions" => self.companions = Some(value(option, input, "a name")?),
            "crate" => self.krate = value::<Path>(option, input, "a path")?.into_token_stream(),
            "key" if input.peek(syn::token::Paren) => self.key = Key::Parts(list(input, Expr::parse)?),
            "key" => {
                self.key = Key::Whole(value(option, input, "an expression, or `key(argument, …)`")?);
            }
            "name" => self.name = Some(text(option, input, 1)?),
            "namespace" => self.namespace = Some(text(option, input, 0)?),
            "refresh" => self.refresh = Some(value(option, input, "a condition")?),
            "skip" => {
                if !input.peek(syn::token::Paren) {
                    return Err(Error::new(option.span(), "write `skip(argument, …)`"));
                }
                self.skip = list(input, Ident::parse_any)?;
            }
            "tags" => {
                if !input.peek(syn::token::Paren) {
                    return Err(Error::new(option.span(), "write `tags(name = value, …)`"));
                }
                self.tags = list(input, tag)?;
            }
            "validate" => {
                self.validate =
                    Some(value(option, input, "the path of a function from a reference to `bool`")?);
            }
            "version" => self.version = Some(version(option, input)?),
            "eager" => {
                let value = eager(option, input)?;
                self.load.push(LoadOption { name: option.clone(), value });
            }
            "jitter" => {
                let value = share(&value(option, input, "a share between 0 and 1")?)?;
                self.load.push(LoadOption { name: option.clone(), value });
            }
            "back_off"
            | "error_ttl"
            | "hard_timeout"
            | "lease"
            | "limit"
            | "negative_ttl"
            | "soft_timeout"
            | "stale_if_error"
            | "stale_while_revalidate"
            | "ttl" => {
                let value = duration(&value(option, input, "a time such as \"60s\"")?)?;
                self.load.push(LoadOption { name: option.clone(), value });
            }
            unknown => return Err(Error::new(option.span(), not_known(unknown))),
        }
        Ok(())
    }

    /// What cannot stand together.
    fn check(&self, seen: &[Ident]) -> Result<()> {
        let given = |name: &str| seen.iter().find(|given| *given == name);
        if let Some(skip) = given("skip")
            && !matches!(self.key, Key::Arguments)
        {
            return Err(Error::new(skip.span(), "`key` says all that counts: leave `skip` out"));
        }
        if let Some(version) = given("version")
            && matches!(self.key, Key::Whole(_))
        {
            return Err(Error::new(
                version.span(),
                "a key of your own is taken as it is: put the version into its expression",
            ));
        }
        let background = ["eager", "soft_timeout", "hard_timeout", "stale_while_revalidate"];
        if let Some(in_place) = given("in_place")
            && let Some(option) = background.iter().find_map(|name| given(name))
        {
            let message = format!(
                "with `{option}` the function goes on in the background, so it cannot run `in_place`"
            );
            return Err(Error::new(in_place.span(), message));
        }
        Ok(())
    }
}

/// What follows `option =`.
fn value<T: Parse>(option: &Ident, input: ParseStream<'_>, what: &str) -> Result<T> {
    if !input.peek(Token![=]) {
        return Err(Error::new(option.span(), format!("`{option} = …` takes {what}")));
    }
    input.parse::<Token![=]>()?;
    input.parse()
}

fn list<T>(input: ParseStream<'_>, item: fn(ParseStream<'_>) -> Result<T>) -> Result<Vec<T>> {
    let inner;
    parenthesized!(inner in input);
    Ok(Punctuated::<T, Token![,]>::parse_terminated_with(&inner, item)?.into_iter().collect())
}

fn end(input: ParseStream<'_>, what: &str) -> Result<()> {
    if input.is_empty() { Ok(()) } else { Err(input.error(format!("only {what} stands here"))) }
}

fn tag(input: ParseStream<'_>) -> Result<(String, Expr)> {
    let (name, span) = if input.peek(LitStr) {
        let name: LitStr = input.parse()?;
        (name.value(), name.span())
    } else {
        let name = input.call(Ident::parse_any)?;
        (name.unraw().to_string(), name.span())
    };
    if name.is_empty() || name.len() > 255 {
        return Err(Error::new(span, "a tag's name has 1 to 255 bytes"));
    }
    input.parse::<Token![=]>()?;
    Ok((name, input.parse()?))
}

fn text(option: &Ident, input: ParseStream<'_>, least: usize) -> Result<LitStr> {
    let text: LitStr = value(option, input, "text in quotes")?;
    let length = text.value().len();
    if length < least || length > 255 || text.value().contains('\0') {
        return Err(Error::new(
            text.span(),
            format!("a {option} has {least} to 255 bytes, none of them NUL"),
        ));
    }
    Ok(text)
}

fn version(option: &Ident, input: ParseStream<'_>) -> Result<Version> {
    const WHAT: &str = "a number, text in quotes, or `code` for that of the function's own code";
    match value(option, input, WHAT)? {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => Ok(Version::Text(number.base10_digits().into())),
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) if !text.value().contains('\0') => {
            Ok(Version::Text(text.value()))
        }
        Expr::Path(path) if path.path.is_ident("code") => Ok(Version::Code),
        other => Err(Error::new(other.span(), format!("a version is {WHAT}"))),
    }
}

/// `eager = 0.8`, or `eager(probably = 1.0)`. What is written here is read where `__Eager` is in scope.
fn eager(option: &Ident, input: ParseStream<'_>) -> Result<TokenStream> {
    if !input.peek(syn::token::Paren) {
        let share = share(&value(option, input, "a share of the time to live, or `eager(probably = 1.0)`")?)?;
        return Ok(quote!(__Eager::After(#share)));
    }
    let inner;
    parenthesized!(inner in input);
    let how = inner.call(Ident::parse_any)?;
    if how != "probably" {
        return Err(Error::new(how.span(), "write `eager = 0.8` or `eager(probably = 1.0)`"));
    }
    let factor: Expr = value(&how, &inner, "a factor, 1.0 for what is best as a rule")?;
    end(&inner, "a factor")?;
    Ok(quote!(__Eager::Probably(#factor)))
}

/// A number between 0 and 1, or an expression of one.
fn share(share: &Expr) -> Result<TokenStream> {
    if let Expr::Lit(ExprLit { lit, .. }) = share {
        let number = match lit {
            Lit::Float(number) => number.base10_parse::<f32>().ok(),
            Lit::Int(number) => number.base10_parse::<f32>().ok(),
            _ => None,
        };
        return match number {
            Some(number) if (0.0..=1.0).contains(&number) => Ok(quote_spanned!(share.span()=> #number)),
            _ => Err(Error::new(share.span(), "a share is a number between 0 and 1, such as 0.8")),
        };
    }
    Ok(share.to_token_stream())
}

/// Text with units, or an expression of a `Duration`.
fn duration(time: &Expr) -> Result<TokenStream> {
    let Expr::Lit(ExprLit { lit, .. }) = time else { return Ok(time.to_token_stream()) };
    let Lit::Str(text) = lit else {
        return Err(Error::new(time.span(), "a time has a unit and stands in quotes, such as \"60s\""));
    };
    let millis = millis(&text.value()).map_err(|reason| Error::new(text.span(), reason))?;
    Ok(quote_spanned!(text.span()=> ::core::time::Duration::from_millis(#millis)))
}

/// `1h 30m`, `90s`, `250ms`.
fn millis(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    const ALLOWED: &str = "numbers with ms, s, m, h or d, such as \"90s\" or \"1h 30m\"";
    let refused = |what: String| format!("{what}: a time is {ALLOWED}");
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(refused("nothing is no time".into()));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let tail = tail.trim_start();
        let letters = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| refused(format!("`{text}` is no time")))?;
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            let what = if unit.is_empty() {
                "a number without a unit".into()
            } else {
                format!("`{unit}` is no unit")
            };
            return Err(refused(what));
        };
        total = number
            .checked_mul(*factor)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| refused(format!("`{text}` is too long")))?;
        rest = tail.trim_start();
    }
    if Duration::from_millis(total).is_zero() {
        return Err("zero is not a time to keep something: leave the option out".into());
    }
    Ok(total)
}

fn not_known(option: &str) -> String {
    let near = KNOWN.iter().map(|known| (distance(known, option), known)).min();
    let hint = match near {
        Some((edits, known)) if edits <= 2 => format!(" (`{known}`?)"),
        _ => String::new(),
    };
    let known = KNOWN.map(|known| format!("`{known}`")).join(", ");
    format!("unknown option `{option}`{hint}: there are {known}")
}

/// Edits from one word to the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (line, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, b) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, expected) in [
            ("60s", 60_000),
            ("1h 30m", 5_400_000),
            ("250ms", 250),
            ("2 d", 172_800_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(millis(text), Ok(expected), "{text}");
        }
        for text in ["", "60", "s", "60x", "1.5s", "-1s", "0s", "99999999999999999999s", "9999999999999999d"]
        {
            assert!(millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_slip_is_answered_with_what_was_meant() {
        assert!(not_known("tll").contains("(`ttl`?)"));
        assert!(!not_known("speed").contains('?'));
    }
}
