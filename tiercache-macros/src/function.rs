//! The function below the brackets: its arguments and what it returns.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Error, FnArg, GenericArgument, Ident, ItemFn, Pat, PathArguments, ReceiverKind, Result, ReturnType,
    Safety, Type,
};

use crate::options::Options;

/// An argument, `self` among them.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    /// As it is declared, without `mut`.
    pub(crate) declared: TokenStream,
    /// Behind a shared reference.
    pub(crate) borrowed: bool,
    pub(crate) is_self: bool,
    /// Of a type without a name.
    pub(crate) nameless: bool,
    /// Where its type stands.
    pub(crate) ty: TokenStream,
}

/// What the function returns.
pub(crate) struct Returns {
    /// The `Kind` of it.
    pub(crate) kind: TokenStream,
    /// A value of it.
    pub(crate) value: TokenStream,
    /// What a validator is shown.
    pub(crate) seen: TokenStream,
    /// The error's type, of a `Result`.
    pub(crate) error: Option<TokenStream>,
    pub(crate) maybe: bool,
}

/// The arguments, once the function is one that can be cached.
pub(crate) fn arguments(function: &ItemFn, options: &Options) -> Result<Vec<Argument>> {
    let signature = &function.sig;
    if let Some(token) = &signature.constness {
        return Err(Error::new(
            token.span(),
            "a `const fn` is computed when it is compiled: there is nothing to cache",
        ));
    }
    if let Safety::Unsafe(token) = &signature.safety {
        return Err(Error::new(
            token.span(),
            "an `unsafe fn` cannot be cached: its caller would not know when it runs",
        ));
    }
    if let Some(abi) = &signature.abi {
        return Err(Error::new(abi.span(), "only functions of Rust's own ABI can be cached"));
    }
    signature.inputs.iter().map(|input| argument(input, options)).collect()
}

fn argument(input: &FnArg, options: &Options) -> Result<Argument> {
    match input {
        FnArg::Receiver(receiver) => {
            let by_value = "`self` by value is gone after the first call: take `&self` or `self: Arc<Self>`";
            let borrowed = match &receiver.kind {
                ReceiverKind::Reference(_, _, None) => true,
                ReceiverKind::Reference(_, _, Some(token)) => {
                    return Err(Error::new(
                        token.span(),
                        "what changes `self` cannot be cached: take `&self`",
                    ));
                }
                ReceiverKind::Typed(_, ty) => match &**ty {
                    Type::Reference(reference) if reference.mutability.is_none() => true,
                    Type::Path(path) if !path.path.is_ident("Self") => false,
                    other => return Err(Error::new(other.span(), by_value)),
                },
                _ => return Err(Error::new(receiver.self_token.span(), by_value)),
            };
            let mut declared = receiver.clone();
            declared.mutability = None;
            Ok(Argument {
                name: Ident::new("self", receiver.self_token.span()),
                declared: declared.into_token_stream(),
                borrowed,
                is_self: true,
                nameless: false,
                ty: receiver.into_token_stream(),
            })
        }
        FnArg::Typed(typed) => {
            let Pat::Ident(pattern) = &*typed.pat else {
                let message = "an argument of a cached function has a plain name: take it apart in the body";
                return Err(Error::new(typed.pat.span(), message));
            };
            let (name, ty) = (&pattern.ident, &*typed.ty);
            let borrowed = match ty {
                Type::Reference(reference) => match &reference.mutability {
                    Some(token) if !(options.in_place && options.skip.contains(name)) => {
                        let message = "what changes its argument cannot be cached: only with `in_place` and \
                                       `skip` may an argument be `&mut`, and what is done to it happens on misses only";
                        return Err(Error::new(token.span(), message));
                    }
                    mutability => mutability.is_none(),
                },
                _ => false,
            };
            let attrs = &typed.attrs;
            Ok(Argument {
                name: name.clone(),
                declared: quote!(#(#attrs)* #name: #ty),
                borrowed,
                is_self: false,
                nameless: has_impl(ty),
                ty: ty.into_token_stream(),
            })
        }
    }
}

fn has_impl(ty: &Type) -> bool {
    match ty {
        Type::ImplTrait(_) => true,
        Type::Reference(reference) => has_impl(&reference.elem),
        _ => false,
    }
}

/// What the function returns, by the names of its types: `Result` (under any alias), `Option`, `Arc`, `Bytes`.
pub(crate) fn returns(function: &ItemFn, memo: &TokenStream) -> Result<Returns> {
    let nothing = "this function returns nothing that could be cached";
    let ty = match &function.sig.output {
        ReturnType::Type(_, ty) => bare(ty),
        ReturnType::Default => return Err(Error::new(function.sig.fn_token.span, nothing)),
    };
    if let Some(arguments) = named(ty, "Result") {
        let error = Some(quote!(<#ty as #memo::Fallible>::Error));
        return match arguments.first() {
            Some(ok) => Ok(Returns { error, ..inner(bare(ok), memo)? }),
            None => {
                let ok = quote_spanned!(ty.span()=> <#ty as #memo::Fallible>::Ok);
                Ok(Returns { error, ..cloned(&ok, ty, memo) })
            }
        };
    }
    if matches!(ty, Type::Tuple(tuple) if tuple.elems.is_empty()) {
        return Err(Error::new(ty.span(), nothing));
    }
    inner(ty, memo)
}

fn inner(ty: &Type, memo: &TokenStream) -> Result<Returns> {
    if let Some([some]) = named(ty, "Option").as_deref() {
        let value = form(bare(some), memo)?;
        let form = value.kind;
        return Ok(Returns { kind: quote_spanned!(some.span()=> #memo::Maybe<#form>), maybe: true, ..value });
    }
    let value = form(ty, memo)?;
    let form = value.kind;
    Ok(Returns { kind: quote_spanned!(ty.span()=> #memo::Sure<#form>), ..value })
}

/// With the `Form` for a kind.
fn form(ty: &Type, memo: &TokenStream) -> Result<Returns> {
    if let Type::Reference(_) | Type::ImplTrait(_) = ty {
        let message = "a cached function returns a value that it owns and whose type has a name";
        return Err(Error::new(ty.span(), message));
    }
    // An `Arc` of what has no size is cloned like any value.
    if let Some([shared]) = named(ty, "Arc").as_deref()
        && !matches!(shared, Type::Slice(_) | Type::TraitObject(_))
        && named(shared, "str").is_none()
    {
        let kind = quote_spanned!(shared.span()=> #memo::Shared<#shared>);
        return Ok(Returns { kind, value: quote!(#ty), seen: quote!(#shared), error: None, maybe: false });
    }
    if named(ty, "Bytes").is_some_and(|arguments| arguments.is_empty()) {
        let kind = quote!(#memo::Bytes);
        return Ok(Returns { kind, value: quote!(#ty), seen: quote!(#ty), error: None, maybe: false });
    }
    let mut returns = cloned(&quote!(#ty), ty, memo);
    returns.kind = quote_spanned!(ty.span()=> #memo::Cloned<#ty>);
    Ok(returns)
}

fn cloned(value: &TokenStream, at: &Type, memo: &TokenStream) -> Returns {
    let kind = quote_spanned!(at.span()=> #memo::Sure<#memo::Cloned<#value>>);
    Returns { kind, value: value.clone(), seen: value.clone(), error: None, maybe: false }
}

/// The arguments of a type of that name.
fn named(ty: &Type, name: &str) -> Option<Vec<Type>> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return Some(Vec::new()) };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    });
    Some(types.collect())
}

/// Without parentheses, and the invisible ones of other macros.
fn bare(ty: &Type) -> &Type {
    match ty {
        Type::Paren(paren) => bare(&paren.elem),
        Type::Group(group) => bare(&group.elem),
        other => other,
    }
}
