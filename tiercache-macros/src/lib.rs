#![doc = include_str!("../README.md")]

mod expand;
mod function;
mod options;

use proc_macro::TokenStream;
use syn::{Error, Item, parse_macro_input};

/// Puts a function behind a cache: see the crate's page.
#[proc_macro_attribute]
pub fn cached(options: TokenStream, item: TokenStream) -> TokenStream {
    let options = parse_macro_input!(options as options::Options);
    let item = parse_macro_input!(item as Item);
    let expanded = match &item {
        Item::Fn(function) => expand::expand(function, &options),
        other => Err(Error::new_spanned(other, "`#[cached]` is for functions and methods")),
    };
    expanded.unwrap_or_else(Error::into_compile_error).into()
}
