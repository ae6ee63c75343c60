//! The function that asks the cache first, and its companions.

use proc_macro2::{Literal, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Attribute, Error, Expr, GenericParam, Generics, Ident, ItemFn, Result, ReturnType};

use crate::function::{Argument, Returns, arguments, returns};
use crate::options::{Cache, Key, Options, Version};

/// A function with all that is known about it.
struct Cached<'a> {
    function: &'a ItemFn,
    options: &'a Options,
    arguments: Vec<Argument>,
    returns: Returns,
    /// The path of the crate's `memo`.
    memo: TokenStream,
    is_method: bool,
}

pub(crate) fn expand(function: &ItemFn, options: &Options) -> Result<TokenStream> {
    let krate = &options.krate;
    let memo = quote!(#krate::memo);
    let arguments = arguments(function, options)?;
    let returns = returns(function, &memo)?;
    let is_method = options.associated || arguments.iter().any(|argument| argument.is_self);
    let cached = Cached { function, options, arguments, returns, memo, is_method };
    cached.check()?;
    let wrapper = cached.wrapper();
    let companions = cached.companions();
    if is_method {
        return Ok(quote!(#wrapper #companions));
    }
    let vis = &function.vis;
    let holder = cached.holder();
    let configured = cached.configured();
    let doc = format!("What goes with the cached function [`{0}`](fn@{0}).", function.sig.ident);
    Ok(quote! {
        #wrapper

        #(#configured)*
        #[doc = #doc]
        #[allow(non_camel_case_types)]
        #[derive(Debug)]
        #vis enum #holder {}

        #(#configured)*
        #[allow(dead_code)]
        impl #holder {
            #companions
        }
    })
}

impl Cached<'_> {
    /// What only the function and its options together show.
    fn check(&self) -> Result<()> {
        let names: Vec<String> =
            self.arguments.iter().map(|argument| format!("`{}`", argument.name)).collect();
        let known = |name: &Ident| {
            if self.arguments.iter().any(|argument| argument.name == *name) {
                return Ok(());
            }
            let there = if names.is_empty() {
                "there are none".into()
            } else {
                format!("there are {}", names.join(", "))
            };
            Err(Error::new(name.span(), format!("`{name}` is no argument: {there}")))
        };
        self.options.skip.iter().try_for_each(known)?;
        if let Cache::Argument(name) = &self.options.cache {
            known(name)?;
        }
        if let Key::Parts(parts) = &self.options.key {
            for part in parts {
                if let Expr::Path(path) = part
                    && let Some(name) = path.path.get_ident()
                    && name.to_string().starts_with(|c: char| c.is_lowercase())
                {
                    known(name)?;
                }
            }
        }
        let needs = |option: &str, has: bool, what: &str| match self.options.given(option) {
            Some(option) if !has => {
                Err(Error::new(option.span(), format!("`{option}` is for functions that return {what}")))
            }
            _ => Ok(()),
        };
        needs("negative_ttl", self.returns.maybe, "an `Option`")?;
        needs("error_ttl", self.returns.error.is_some(), "a `Result`")?;
        needs(
            "hard_timeout",
            self.returns.error.is_some(),
            "a `Result`, so that they can say that the time is over",
        )
    }

    /// Where the companions of a free function are.
    fn holder(&self) -> Ident {
        self.options.companions.clone().unwrap_or_else(|| self.function.sig.ident.clone())
    }

    /// The name of a companion, and how the function's own code calls it.
    fn companion(&self, what: &str) -> (Ident, TokenStream) {
        if self.is_method {
            let prefix = self.options.companions.as_ref().unwrap_or(&self.function.sig.ident);
            let name = format_ident!("{}_{}", prefix, what, span = prefix.span());
            (name.clone(), quote!(Self::#name))
        } else {
            let (holder, name) = (self.holder(), Ident::new(what, Span::call_site()));
            (name.clone(), quote!(#holder::#name))
        }
    }

    /// Where the type it returns stands.
    fn returned(&self) -> Span {
        match &self.function.sig.output {
            ReturnType::Type(_, ty) => at(ty),
            ReturnType::Default => Span::call_site(),
        }
    }

    fn is_async(&self) -> bool {
        self.function.sig.asyncness.is_some()
    }

    /// Whether the function may go on when its caller has its answer.
    fn in_background(&self) -> bool {
        ["eager", "soft_timeout", "hard_timeout", "stale_while_revalidate"]
            .iter()
            .any(|option| self.options.given(option).is_some())
    }

    fn is_owned(&self) -> bool {
        !self.options.in_place && (self.is_async() || self.in_background())
    }

    /// The function as its callers know it.
    fn wrapper(&self) -> TokenStream {
        let Self { function, options, returns, memo, .. } = self;
        let attrs = function.attrs.iter().filter(|attr| !is_lint(attr));
        let (vis, name, output) = (&function.vis, &function.sig.ident, &function.sig.output);
        let (generics, _, clause) = function.sig.generics.split_for_impl();
        let declared = self.arguments.iter().map(|argument| &argument.declared);
        let asyncness = &function.sig.asyncness;
        let (kind, validator, cache, of) = (&returns.kind, self.validator(), self.cache(), self.of());
        let (_, the_memo) = self.companion("memo");
        let key = self.key();
        let hit =
            if returns.error.is_some() { quote!(::core::result::Result::Ok(__hit)) } else { quote!(__hit) };
        let anew = match &options.refresh {
            Some(condition) => quote_spanned!(at(condition)=> #condition),
            None => quote!(false),
        };
        let tags =
            options.tags.iter().map(|(name, value)| quote_spanned!(at(value)=> .tag(#name, &(#value))));
        let errors = match &returns.error {
            Some(error) => quote!((&&&&#memo::Policy::<#error>::new()).errors()),
            None => quote!(#memo::Errors::<::core::convert::Infallible>::in_turn()),
        };
        let converts = options.given("hard_timeout").map(|option| {
            let (krate, error) = (&options.krate, &returns.error);
            quote_spanned! {at(option)=>
                fn __converts<E: ::core::convert::From<#krate::Error>>() {}
                __converts::<#error>();
            }
        });
        let run = self.run();
        // What the type lacks is shown where it stands.
        let returned = self.returned();
        let hit_of = quote_spanned!(returned=> __memo.hit::<#kind>(__cache, &mut __key, #validator));
        let miss =
            quote_spanned!(returned=> __memo.miss::<#kind>(__cache, &mut __key, #of, __anew, #validator));
        let result = if returns.error.is_some() {
            quote!(__result)
        } else {
            quote!(match __result {
                ::core::result::Result::Ok(__value) => __value,
                ::core::result::Result::Err(__never) => match __never {},
            })
        };
        quote! {
            #(#attrs)*
            #[allow(clippy::all, clippy::pedantic, unused_imports)]
            #vis #asyncness fn #name #generics (#(#declared),*) #output #clause {
                use #memo::{ByClone as _, ByCloneAndFrom as _, ByFrom as _, InTurn as _};
                #converts
                let __memo = #the_memo();
                #cache
                #key
                let __anew: bool = #anew;
                if !__anew {
                    if let ::core::option::Option::Some(__hit) = #hit_of {
                        return #hit;
                    }
                }
                let __miss = #miss #(#tags)*;
                let __errors = #errors;
                let __result = #run;
                #result
            }
        }
    }

    /// The call of the function itself, by way of the cache.
    fn run(&self) -> TokenStream {
        let (_, bypass) = self.companion("bypass");
        let turbofish = turbofish(&self.function.sig.generics, &self.arguments);
        let in_cache = self.in_cache();
        let (mut prepared, mut given) = (Vec::new(), Vec::new());
        for argument in &self.arguments {
            let name = &argument.name;
            let own = if argument.is_self { format_ident!("__self") } else { name.clone() };
            if self.is_owned() && argument.borrowed {
                let span = at(&argument.ty);
                prepared.push(quote_spanned!(span=> let #own = ::std::borrow::ToOwned::to_owned(#name);));
                given.push(quote!(&#own));
            } else {
                if !argument.borrowed && in_cache.contains(&argument.name) {
                    prepared.push(quote!(let #own = ::core::clone::Clone::clone(&#name);));
                } else if argument.is_self {
                    prepared.push(quote!(let #own = self;));
                }
                given.push(quote!(#own));
            }
        }
        let call = quote!(#bypass #turbofish (#(#given),*));
        let call = if self.is_async() { quote!(#call.await) } else { call };
        let call = if self.returns.error.is_some() {
            let memo = &self.memo;
            quote!(#memo::Fallible::result(#call))
        } else {
            quote!(::core::result::Result::<_, ::core::convert::Infallible>::Ok(#call))
        };
        let returned = self.returned();
        match (self.is_async(), self.is_owned()) {
            (true, true) => {
                quote_spanned!(returned=> __miss.owned(__errors, { #(#prepared)* async move { #call } }).await)
            }
            (true, false) => {
                quote_spanned!(returned=> __miss.in_place(__errors, { #(#prepared)* async move { #call } }).await)
            }
            (false, true) => {
                quote_spanned!(returned=> __miss.owned_blocking(__errors, { #(#prepared)* move || #call }))
            }
            (false, false) => {
                quote_spanned!(returned=> __miss.here(__errors, { #(#prepared)* move || #call }))
            }
        }
    }

    /// Makes `__key`.
    fn key(&self) -> TokenStream {
        let memo = &self.memo;
        let parts: Vec<TokenStream> = match &self.options.key {
            Key::Whole(key) => {
                return quote_spanned!(at(key)=> let mut __key = #memo::CallKey::verbatim(#key););
            }
            Key::Parts(parts) => {
                parts.iter().map(|part| quote_spanned!(at(part)=> __key.argument(&(#part));)).collect()
            }
            Key::Arguments => self.counting().map(Argument::encoded).collect(),
        };
        let (of, name) = (self.of(), self.label());
        let of = self.options.name.is_none().then(|| quote!(__key.name(#of);));
        let types = self.function.sig.generics.params.iter().filter_map(|param| match param {
            GenericParam::Type(param) => {
                let name = &param.ident;
                Some(quote!(__key.name(::core::any::type_name::<#name>());))
            }
            GenericParam::Const(param) => {
                let name = &param.ident;
                Some(quote!(__key.name(&::std::string::ToString::to_string(&#name));))
            }
            _ => None,
        });
        let nameless = self.counting().filter(|argument| argument.nameless).map(|argument| {
            let name = &argument.name;
            quote!(__key.name_of(&#name);)
        });
        quote! {
            let mut __key = #memo::CallKey::new();
            #of
            __key.name(#name);
            #(#types)*
            #(#nameless)*
            #(#parts)*
        }
    }

    /// What tells this function, at this version, from others of its program.
    fn label(&self) -> Literal {
        let name = match &self.options.name {
            Some(name) => name.value(),
            None => {
                let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
                format!("{package} {}", self.function.sig.ident)
            }
        };
        let version = match &self.options.version {
            None => String::new(),
            Some(Version::Text(version)) => format!("@{version}"),
            Some(Version::Code) => {
                let (signature, block) = (&self.function.sig, &self.function.block);
                format!("@{:016x}", hash(&quote!(#signature #block).to_string()))
            }
        };
        Literal::string(&format!("{name}{version}"))
    }

    /// The type that stands for the function.
    fn of(&self) -> TokenStream {
        if self.is_method {
            return quote!(::core::any::type_name::<Self>());
        }
        let holder = self.holder();
        quote!(::core::any::type_name::<#holder>())
    }

    /// Those the key is made of, where nothing says otherwise.
    fn counting(&self) -> impl Iterator<Item = &Argument> {
        let cache = match &self.options.cache {
            Cache::Argument(name) => Some(name),
            _ => None,
        };
        self.arguments.iter().filter(move |argument| {
            !self.options.skip.contains(&argument.name) && cache != Some(&argument.name)
        })
    }

    fn validator(&self) -> TokenStream {
        let Some(path) = &self.options.validate else { return quote!(::core::option::Option::None) };
        let seen = &self.returns.seen;
        quote_spanned! {at(path)=> {
            let __valid: fn(&#seen) -> bool = #path;
            ::core::option::Option::Some(__valid)
        }}
    }

    /// Makes `__cache`.
    fn cache(&self) -> TokenStream {
        let memo = &self.memo;
        let cache = self.cache_expr();
        let found = quote_spanned!(at(&cache)=> #memo::Handle::cache(__handle));
        quote! {
            let __handle = &(#cache);
            let __cache = #found;
        }
    }

    fn cache_expr(&self) -> TokenStream {
        match &self.options.cache {
            Cache::Default => {
                let memo = &self.memo;
                quote!(#memo::Default)
            }
            Cache::Argument(name) => name.to_token_stream(),
            Cache::Expr(expr) => expr.to_token_stream(),
        }
    }

    /// The names in the cache's expression.
    fn in_cache(&self) -> Vec<Ident> {
        let mut names = Vec::new();
        if !matches!(self.options.cache, Cache::Default) {
            idents(self.cache_expr(), &mut names);
        }
        names
    }

    /// The arguments of companions: those that `used` names.
    fn parameters(&self, used: &[Ident]) -> Vec<&TokenStream> {
        let used = |argument: &&Argument| argument.is_self || used.contains(&argument.name);
        self.arguments.iter().filter(used).map(|argument| &argument.declared).collect()
    }

    fn companions(&self) -> TokenStream {
        let Self { function, options, returns, .. } = self;
        let (vis, krate, kind, of, cache) =
            (&function.vis, &options.krate, &returns.kind, self.of(), self.cache());
        let (generics, _, clause) = function.sig.generics.split_for_impl();
        let configured = self.configured();
        let attrs = quote!(#(#configured)* #[allow(dead_code, clippy::all, clippy::pedantic)]);
        let ([memo_name, bypass, prime, invalidate, invalidate_all], [the_memo, ..]) = {
            let names = ["memo", "bypass", "prime", "invalidate", "invalidate_all"];
            let both = names.map(|name| self.companion(name));
            (both.clone().map(|(name, _)| name), both.map(|(_, path)| path))
        };

        let asyncness = &function.sig.asyncness;
        let lints = function.attrs.iter().filter(|attr| is_lint(attr));
        let (inputs, output, block) = (&function.sig.inputs, &function.sig.output, &function.block);

        let key = self.key();
        let mut used = self.in_cache();
        let for_all = self.parameters(&used);
        match &options.key {
            Key::Arguments => used.extend(self.counting().map(|argument| argument.name.clone())),
            Key::Parts(parts) => parts.iter().for_each(|part| idents(part.to_token_stream(), &mut used)),
            Key::Whole(key) => idents(key.to_token_stream(), &mut used),
        }
        let for_one = self.parameters(&used);
        options.tags.iter().for_each(|(_, value)| idents(value.to_token_stream(), &mut used));
        let for_value = self.parameters(&used);
        options.refresh.iter().for_each(|condition| idents(condition.to_token_stream(), &mut used));
        // The cache needs these where the function itself may not.
        let seen =
            self.arguments.iter().filter(|argument| !argument.is_self && used.contains(&argument.name));
        let seen = seen.map(|argument| &argument.name);
        let (value, maybe) = (&returns.value, returns.maybe);
        let tags = options.tags.iter().map(|(name, value)| {
            quote!(let __options = __options.tag(#name, ::std::string::ToString::to_string(&(#value)));)
        });
        let (all_generics, all_clause) =
            if for_all.iter().any(|declared| !declared.to_string().contains("self")) {
                (generics.to_token_stream(), clause.to_token_stream())
            } else {
                Default::default()
            };

        let done = |work: TokenStream, call: &str| match self.is_async() {
            true => quote!(#work.await),
            false => quote!(__memo.wait(__cache, #call, #work)),
        };
        // Not the caller's `value`, if there is one among the arguments.
        let kept = Ident::new("value", Span::mixed_site());
        let primed = done(
            quote_spanned!(self.returned()=> __memo.prime::<#kind>(__cache, __key, #of, |__options| { #(#tags)* __options }, #kept)),
            "prime",
        );
        let one = done(quote!(__memo.invalidate(__cache, __key)), "invalidate");
        let all = done(quote!(__memo.invalidate_all(__cache, #of)), "invalidate_all");
        let begin = quote! {
            let __memo = #the_memo();
            #cache
        };
        let making = self.memo_of(&memo_name);
        let called = format!("`{}`", function.sig.ident);
        let doc_bypass = format!("Runs {called} and leaves the cache alone.");
        let some = if maybe { " It is the value within the `Option`." } else { "" };
        let doc_prime = format!(
            "Keeps `value` as what {called} returns for these arguments.{some} What began before and ends later is not \
             kept over it."
        );
        let doc_one =
            format!("Forgets what {called} returned for these arguments; a call under way is not kept.");
        let doc_all = format!(
            "Forgets all that {called} returned, in a time that does not depend on how much that is."
        );
        quote! {
            #making

            #(#configured)*
            #(#lints)*
            #[allow(dead_code)]
            #[doc = #doc_bypass]
            #vis #asyncness fn #bypass #generics (#inputs) #output #clause {
                let _ = (#(&#seen,)*);
                #block
            }

            #attrs
            #[doc = #doc_prime]
            #[doc = ""]
            #[doc = "# Errors"]
            #[doc = "When no level took it, it does not serialise, or there is no cache."]
            #vis #asyncness fn #prime #generics (#(#for_value,)* #kept: #value) -> #krate::Result<#krate::Written> #clause {
                #begin
                #key
                #primed
            }

            #attrs
            #[doc = #doc_one]
            #[doc = ""]
            #[doc = "# Errors"]
            #[doc = "As for `CacheManager::delete`, and when there is no cache."]
            #vis #asyncness fn #invalidate #generics (#(#for_one),*) -> #krate::Result<#krate::Removed> #clause {
                #begin
                #key
                #one
            }

            #attrs
            #[doc = #doc_all]
            #[doc = ""]
            #[doc = "# Errors"]
            #[doc = "As for `CacheManager::invalidate_tag`, and when there is no cache."]
            #vis #asyncness fn #invalidate_all #all_generics (#(#for_all),*) -> #krate::Result<#krate::Removed> #all_clause {
                #begin
                #all
            }
        }
    }

    /// What all calls have in common.
    fn memo_of(&self, name: &Ident) -> TokenStream {
        let Self { options, memo, .. } = self;
        let krate = &options.krate;
        let configured = self.configured();
        let set = options.load.iter().map(|option| {
            let (name, value) = (&option.name, &option.value);
            quote_spanned!(at(name)=> let __options = __options.#name(#value);)
        });
        let namespace = match &options.namespace {
            Some(namespace) => quote!(::core::option::Option::Some(#namespace)),
            None => quote!(::core::option::Option::None),
        };
        let named = match (&options.name, self.is_method) {
            (Some(name), _) => quote!(#memo::Named::Given(#name)),
            (None, true) => {
                let method = self.function.sig.ident.to_string();
                quote!(#memo::Named::Method(#method))
            }
            (None, false) => quote!(#memo::Named::Free),
        };
        quote! {
            #(#configured)*
            #[doc(hidden)]
            #[allow(clippy::all, clippy::pedantic, unused_imports)]
            fn #name() -> &'static #memo::Memo {
                fn __options() -> #krate::LoadOptions {
                    use #krate::Eager as __Eager;
                    let __options = #krate::LoadOptions::new();
                    #(#set)*
                    __options
                }
                static MEMO: ::std::sync::LazyLock<#memo::Memo> =
                    ::std::sync::LazyLock::new(|| #memo::Memo::new(#named, #namespace, __options()));
                &MEMO
            }
        }
    }

    /// The attributes under which all of it is there or not.
    fn configured(&self) -> Vec<&Attribute> {
        self.function.attrs.iter().filter(|attr| attr.path().is_ident("cfg")).collect()
    }
}

impl Argument {
    /// Adds it to `__key`.
    fn encoded(&self) -> TokenStream {
        let name = &self.name;
        quote_spanned!(at(&self.ty)=> __key.argument(&#name);)
    }
}

/// Whether the attribute is about the function's code.
fn is_lint(attr: &Attribute) -> bool {
    ["allow", "deny", "expect", "forbid", "warn"].iter().any(|lint| attr.path().is_ident(lint))
}

/// Where an error in it is shown; names mean what they mean to the macro.
fn at(tokens: &impl ToTokens) -> Span {
    Span::call_site().located_at(syn::spanned::Spanned::span(tokens))
}

/// The type arguments of a call; none where a nameless type forbids to name the others.
fn turbofish(generics: &Generics, arguments: &[Argument]) -> Option<TokenStream> {
    let names = generics.params.iter().filter_map(|param| match param {
        GenericParam::Type(param) => Some(&param.ident),
        GenericParam::Const(param) => Some(&param.ident),
        _ => None,
    });
    let names: Vec<_> = names.collect();
    let nameless = arguments.iter().any(|argument| argument.nameless);
    (!names.is_empty() && !nameless).then(|| quote!(::<#(#names),*>))
}

/// All names in `tokens`, those within texts as `{name}` too.
fn idents(tokens: TokenStream, found: &mut Vec<Ident>) {
    for token in tokens {
        match token {
            TokenTree::Ident(name) => found.push(name),
            TokenTree::Group(group) => idents(group.stream(), found),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                for part in text.split('{').skip(1) {
                    let end = part.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(part.len());
                    if let Ok(name) = syn::parse_str::<Ident>(&part[..end]) {
                        found.push(name);
                    }
                }
            }
            TokenTree::Punct(_) => {}
        }
    }
}

/// FNV-1a, 64 bit: the same in every build.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
