//! What may be written on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args as Options, Parser, Subcommand, ValueEnum};
use hyper::header::HeaderName;
use tiercache::units::{format_duration, parse_duration, parse_size};
use tiercache::{Level, MAX_NAMESPACE_BYTES};

/// A cache of three levels, hot, cold and dry: look into it, manage it, serve it.
///
/// Exit codes: 0 done, 1 not found or not well, 2 wrong use, 3 a backend failed.
#[derive(Debug, Parser)]
#[command(name = "tiercache", version)]
pub(crate) struct Args {
    /// The configuration [default: $TIERCACHE_CONFIG, else tier.yaml]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "url")]
    pub(crate) config: Option<PathBuf>,
    /// Ask the service that runs there instead of opening the cache, such as http://127.0.0.1:8989
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The service's token
    #[arg(long, global = true, env = "TIERCACHE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a commented configuration
    Init(InitArgs),
    /// Check the configuration or show what is in force
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a value
    Get(GetArgs),
    /// Keep a value
    Set(SetArgs),
    /// Remove keys
    Delete {
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        within: Within,
    },
    /// Give a key a new time to live
    Touch(TouchArgs),
    /// Tell whether a key is there
    Contains {
        /// The key
        key: String,
        #[command(flatten)]
        within: Within,
    },
    /// Add to a counter and print the sum
    Incr(CountArgs),
    /// Take from a counter and print what is left
    Decr(CountArgs),
    /// Print a counter
    Counter(CounterArgs),
    /// List keys
    Keys(KeysArgs),
    /// Hits, misses and what each level holds
    Stats,
    /// Drop what is dead and let sink what has stayed its time
    Prune,
    /// Remove everything, or what a level, a tag or a prefix picks
    Clear(ClearArgs),
    /// Verify every record on disk, and that tracking knows what the levels hold; to repair a disk no other process may have
    /// it open
    Check {
        /// Put right what can be
        #[arg(long)]
        repair: bool,
    },
    /// Serve the cache over HTTP; SIGHUP reads the configuration again
    Serve(ServeArgs),
    /// Stand in front of an HTTP origin and answer from the cache what may be
    Proxy(ProxyArgs),
    /// Write entries, with deadlines and tags, to one file
    Export(ExportArgs),
    /// Read what an export wrote, or a folder of Python's diskcache or pysciqlop-cache
    Import(ImportArgs),
    /// Carry everything from one configuration's cache to another's; may be stopped and run again
    Migrate(MigrateArgs),
}

impl Command {
    /// The namespace whose keys it is about; None for the default one, and where it is about no keys.
    pub(crate) fn namespace(&self) -> Option<&str> {
        let within = match self {
            Self::Get(args) => &args.within,
            Self::Set(args) => &args.within,
            Self::Delete { within, .. } | Self::Contains { within, .. } => within,
            Self::Touch(args) => &args.within,
            Self::Incr(args) | Self::Decr(args) => &args.within,
            Self::Counter(args) => &args.within,
            Self::Keys(args) => &args.within,
            Self::Clear(args) => return args.namespace.as_deref(),
            _ => return None,
        };
        within.namespace.as_deref()
    }
}

#[derive(Debug, Default, Options)]
pub(crate) struct Within {
    /// In that namespace [default: the one without a name]
    #[arg(long, value_parser = namespace, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Default, Options)]
pub(crate) struct Picked {
    /// Only what is at that level
    #[arg(long)]
    pub(crate) level: Option<LevelName>,
    /// Only what has that tag; may be given several times
    #[arg(long = "tag", value_parser = pair, value_name = "NAME=VALUE")]
    pub(crate) tags: Vec<(String, String)>,
    /// Only keys that begin so
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Only keys that match: * any run, ? one byte, [a-z] one of
    #[arg(long)]
    pub(crate) glob: Option<String>,
    /// Only that namespace, '' for the default one [default: all]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Options)]
pub(crate) struct ExportArgs {
    /// Where to write it; - for standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Make values smaller: lz4 is fast, zstd is small [default: as they are]
    #[arg(long, value_name = "METHOD")]
    pub(crate) compress: Option<PackingName>,
    /// Encrypt with the key in that file, 32 bytes or their base64 [default: written in plain]
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) picked: Picked,
}

#[derive(Debug, Options)]
#[command(group(ArgGroup::new("from").required(true).args(["file", "from_diskcache"])))]
pub(crate) struct ImportArgs {
    /// What an export wrote; - for standard input
    pub(crate) file: Option<PathBuf>,
    /// The folder of a diskcache or pysciqlop-cache, which is only read; nothing may write to it meanwhile
    #[arg(long, alias = "from-sciqlop-cache", value_name = "FOLDER", conflicts_with_all = ["skip_damaged", "key_file"])]
    pub(crate) from_diskcache: Option<PathBuf>,
    /// Replace the entries that keys have already [default: they stay]
    #[arg(long)]
    pub(crate) replace: bool,
    /// Step over damage and count what was left out [default: stop there]
    #[arg(long)]
    pub(crate) skip_damaged: bool,
    /// The key the export was encrypted with
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Options)]
pub(crate) struct MigrateArgs {
    /// The configuration of the cache to read
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
    /// The configuration of the cache to fill
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// Replace the entries that keys have there already [default: they stay]
    #[arg(long)]
    pub(crate) replace: bool,
    #[command(flatten)]
    pub(crate) picked: Picked,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PackingName {
    Lz4,
    Zstd,
}

#[derive(Debug, Options)]
pub(crate) struct InitArgs {
    /// Where to write it
    #[arg(default_value = "tier.yaml")]
    pub(crate) file: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say everything that is wrong with it
    Check,
    /// Show what is in force, with defaults marked and secrets hidden
    Show,
}

#[derive(Debug, Options)]
pub(crate) struct GetArgs {
    /// The key
    pub(crate) key: String,
    /// Write the value there instead of to standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) within: Within,
}

#[derive(Debug, Options)]
#[command(group(ArgGroup::new("source").args(["value", "file"])))]
pub(crate) struct SetArgs {
    /// The key
    pub(crate) key: String,
    /// The value; without one and without --file it is read from standard input
    pub(crate) value: Option<String>,
    /// Read the value from there
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// How long it lives, such as 90s or 2h [default: as the levels have it]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) ttl: Option<Duration>,
    /// A tag, such as type=thumbnail; may be given several times
    #[arg(long = "tag", value_parser = pair, value_name = "NAME=VALUE")]
    pub(crate) tags: Vec<(String, String)>,
    /// The value's media type [default: guessed from the key]
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    #[command(flatten)]
    pub(crate) within: Within,
}

#[derive(Debug, Options)]
#[command(group(ArgGroup::new("time").required(true).args(["ttl", "never"])))]
pub(crate) struct TouchArgs {
    /// The key
    pub(crate) key: String,
    /// How long it lives from now
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) ttl: Option<Duration>,
    /// It lives until it is removed or there is no room
    #[arg(long)]
    pub(crate) never: bool,
    #[command(flatten)]
    pub(crate) within: Within,
}

#[derive(Debug, Options)]
pub(crate) struct CountArgs {
    /// The counter
    pub(crate) key: String,
    /// How much
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) by: u32,
    /// What a counter that is not there is taken to have before
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub(crate) start: i64,
    /// How long a counter lives that begins with this [default: until it is removed]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) within: Within,
}

#[derive(Debug, Options)]
pub(crate) struct CounterArgs {
    /// The counter
    pub(crate) key: String,
    /// Remove it: the next addition begins anew
    #[arg(long)]
    pub(crate) reset: bool,
    #[command(flatten)]
    pub(crate) within: Within,
}

#[derive(Debug, Default, Options)]
pub(crate) struct KeysArgs {
    /// At that level
    #[arg(long)]
    pub(crate) level: Option<LevelName>,
    /// With that tag; may be given several times
    #[arg(long = "tag", value_parser = pair, value_name = "NAME=VALUE")]
    pub(crate) tags: Vec<(String, String)>,
    /// That begin so
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// That match: * any run, ? one byte, [a-z] one of
    #[arg(long)]
    pub(crate) glob: Option<String>,
    /// Set longer ago than that
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) older_than: Option<Duration>,
    /// Set since then
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) newer_than: Option<Duration>,
    /// With at least so many bytes, such as 1MB
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(crate) min_size: Option<u64>,
    /// With at most so many bytes
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(crate) max_size: Option<u64>,
    /// With at least so many hits
    #[arg(long, value_name = "HITS")]
    pub(crate) min_hits: Option<u64>,
    /// With at most so many hits
    #[arg(long, value_name = "HITS")]
    pub(crate) max_hits: Option<u64>,
    /// At most so many keys
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) limit: u64,
    /// Go on behind that key, with which the page before ended
    #[arg(long, value_name = "KEY")]
    pub(crate) after: Option<String>,
    #[command(flatten)]
    pub(crate) within: Within,
}

#[derive(Debug, Options)]
#[command(group(ArgGroup::new("what").args(["level", "tag", "prefix"])))]
pub(crate) struct ClearArgs {
    /// Only what that level holds; copies at other levels stay
    #[arg(long)]
    pub(crate) level: Option<LevelName>,
    /// Only what has that tag
    #[arg(long, value_parser = pair, value_name = "NAME=VALUE")]
    pub(crate) tag: Option<(String, String)>,
    /// Only keys that begin so
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) prefix: Option<String>,
    /// Only what is in that namespace [default: with a prefix or a tag the one without a name, else all]
    #[arg(long, value_parser = namespace, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Options)]
pub(crate) struct ServeArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8989", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// How long RAM may take to sink to disk at the end
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub(crate) drain: Duration,
    /// The largest value that is accepted
    #[arg(long, default_value = "64MiB", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) max_body: u64,
}

#[derive(Debug, Options)]
pub(crate) struct ProxyArgs {
    /// The origin, such as http://127.0.0.1:8000
    // Not parsed here: what is wrong with it would be shown whole, with a password if it has one.
    #[arg(long, value_name = "URL")]
    pub(crate) origin: String,
    /// Where to listen, for HTTP/1.1 and for HTTP/2 with prior knowledge; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// How strictly the rules are read
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    pub(crate) profile: ProfileName,
    /// Where to listen for purges, statistics and metrics [default: nowhere]
    #[arg(long, value_name = "ADDRESS", requires = "admin_token")]
    pub(crate) admin: Option<SocketAddr>,
    /// What who purges must know
    #[arg(long, env = "TIERCACHE_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) admin_token: Option<String>,
    /// Also take an origin whose name resolves to private addresses
    #[arg(long)]
    pub(crate) allow_private: bool,
    /// Believe X-Forwarded-* and Forwarded: only another proxy can reach this one
    #[arg(long)]
    pub(crate) trust_forwarded: bool,
    /// A response header that lists tags; may be given several times
    #[arg(long, default_values = ["surrogate-key", "cache-tag"], value_name = "NAME")]
    pub(crate) tags_from: Vec<HeaderName>,
    /// The longest response that is stored
    #[arg(long, default_value = "64MiB", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) max_object: u64,
    /// The longest request body that is accepted
    #[arg(long, default_value = "100MiB", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) max_body: u64,
    /// How long the origin may take to accept a connection
    #[arg(long, default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub(crate) connect_timeout: Duration,
    /// How long the origin may take to begin its response
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    pub(crate) first_byte_timeout: Duration,
    /// How long either side may pause within a body
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub(crate) body_timeout: Duration,
    /// Requests under way at the origin at a time
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536), value_name = "N")]
    pub(crate) max_upstream: u32,
    /// Connections of clients at a time
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    pub(crate) max_connections: u32,
    /// How long answers under way, and RAM on its way to disk, may take at the end
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub(crate) drain: Duration,
    /// Write a line for every request to standard error
    #[arg(long)]
    pub(crate) access_log: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum ProfileName {
    /// For applications: stores only what says that it may be stored
    #[default]
    Default,
    /// A shared cache by the letter of RFC 9111
    Rfc9111,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LevelName {
    Hot,
    Cold,
    Dry,
}

impl From<LevelName> for Level {
    fn from(name: LevelName) -> Self {
        match name {
            LevelName::Hot => Self::Hot,
            LevelName::Cold => Self::Cold,
            LevelName::Dry => Self::Dry,
        }
    }
}

fn namespace(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("the default namespace has no name: leave it out".to_owned()),
        1..=MAX_NAMESPACE_BYTES => Ok(text.to_owned()),
        _ => Err(format!("a namespace has at most {MAX_NAMESPACE_BYTES} bytes")),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form name=value")),
    }
}

impl KeysArgs {
    /// The same as the query of an address.
    pub(crate) fn to_pairs(&self) -> Vec<(String, String)> {
        let mut pairs = vec![("limit".to_owned(), self.limit.to_string())];
        let mut add =
            |name: &str, value: Option<String>| pairs.extend(value.map(|value| (name.to_owned(), value)));
        add("level", self.level.map(|level| Level::from(level).name().to_owned()));
        add("prefix", self.prefix.clone());
        add("glob", self.glob.clone());
        add("older_than", self.older_than.map(format_duration));
        add("newer_than", self.newer_than.map(format_duration));
        add("min_size", self.min_size.map(|size| size.to_string()));
        add("max_size", self.max_size.map(|size| size.to_string()));
        add("min_hits", self.min_hits.map(|hits| hits.to_string()));
        add("max_hits", self.max_hits.map(|hits| hits.to_string()));
        add("after", self.after.clone());
        pairs.extend(self.tags.iter().map(|(name, value)| (format!("tag.{name}"), value.clone())));
        pairs
    }

    /// Reads what [`KeysArgs::to_pairs`] wrote, or somebody who knows it.
    pub(crate) fn from_pairs(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut args = Self { limit: 100, ..Self::default() };
        for (name, value) in pairs {
            let number =
                || value.parse::<u64>().map_err(|_| format!("{name}: `{value}` is not a whole number"));
            match name.as_str() {
                "level" => {
                    args.level = Some(LevelName::from_str(&value, false).map_err(|_| level_message(&value))?)
                }
                "prefix" => args.prefix = Some(value),
                "glob" => args.glob = Some(value),
                "older_than" => args.older_than = Some(parse_duration(&value)?),
                "newer_than" => args.newer_than = Some(parse_duration(&value)?),
                "min_size" => args.min_size = Some(parse_size(&value)?),
                "max_size" => args.max_size = Some(parse_size(&value)?),
                "min_hits" => args.min_hits = Some(number()?),
                "max_hits" => args.max_hits = Some(number()?),
                "limit" => args.limit = number()?.clamp(1, 10_000),
                "after" => args.after = Some(value),
                _ => match tag_name(&name) {
                    Some(tag) => args.tags.push((tag.to_owned(), value)),
                    None => {
                        return Err(format!(
                            "unknown parameter `{name}`; allowed: namespace, level, tag.NAME, prefix, glob, older_than, \
                             newer_than, min_size, max_size, min_hits, max_hits, limit, after"
                        ));
                    }
                },
            }
        }
        Ok(args)
    }
}

/// What is wrong with a level's word.
pub(crate) fn level_message(word: &str) -> String {
    format!("unknown level `{word}`; allowed: hot, cold, dry")
}

/// The tag a parameter such as `tag.type`, or in the first system's way `tag_type`, is about.
pub(crate) fn tag_name(parameter: &str) -> Option<&str> {
    parameter.strip_prefix("tag.").or_else(|| parameter.strip_prefix("tag_")).filter(|name| !name.is_empty())
}
