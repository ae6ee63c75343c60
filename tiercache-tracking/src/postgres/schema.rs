//! The tables, and how they come to be.
//!
//! A key may be longer than an index takes, so rows are known by a hash of namespace and key, ordered by the first
//! [`HEAD`] bytes of the key, then by all of it; tags are found by hashes and compared whole. Everything is bytes:
//! PostgreSQL's text has no NUL and an order of its own.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tiercache_core::{Error, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::config::PostgresConfig;
use super::{NAME, failed};

/// Bytes of a key that stand in an index.
pub(super) const HEAD: usize = 1_000;

/// Each brings the tables from one version to the next; `{t}` stands for schema and prefix.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE {t}record (
        id bytea PRIMARY KEY,
        namespace bytea NOT NULL,
        key bytea NOT NULL,
        generation bigint NOT NULL,
        level smallint NOT NULL,
        size bigint NOT NULL,
        created bigint NOT NULL,
        used bigint NOT NULL,
        deadline bigint NOT NULL,
        hits bigint NOT NULL,
        tag_hashes bigint[] NOT NULL,
        tags bytea[] NOT NULL
    ) WITH (fillfactor = 80);
    CREATE INDEX {i}record_key ON {t}record (namespace, substring(key, 1, 1000));
    CREATE INDEX {i}record_level ON {t}record (level, namespace, substring(key, 1, 1000));
    CREATE INDEX {i}record_tags ON {t}record USING gin (tag_hashes);
    CREATE TABLE {t}totals (
        id smallint PRIMARY KEY CHECK (id = 1),
        hot_hits bigint NOT NULL DEFAULT 0,
        cold_hits bigint NOT NULL DEFAULT 0,
        dry_hits bigint NOT NULL DEFAULT 0,
        misses bigint NOT NULL DEFAULT 0,
        sets bigint NOT NULL DEFAULT 0,
        deletes bigint NOT NULL DEFAULT 0
    );
    INSERT INTO {t}totals (id) VALUES (1);
",
    "
    CREATE TABLE {t}lease (
        id bytea PRIMARY KEY,
        holder bytea NOT NULL,
        token bigint NOT NULL,
        until timestamptz NOT NULL
    ) WITH (fillfactor = 80);
    CREATE INDEX {i}lease_until ON {t}lease (until);
",
];

/// The row of a key.
pub(super) fn id(namespace: &str, key: &[u8]) -> [u8; 16] {
    let mut whole = Vec::with_capacity(1 + namespace.len() + key.len());
    // A namespace has at most 255 bytes.
    whole.push(namespace.len() as u8);
    whole.extend_from_slice(namespace.as_bytes());
    whole.extend_from_slice(key);
    xxh3_128(&whole).to_be_bytes()
}

/// A tag as it is compared: unlike any other, whatever is in it.
pub(super) fn tag(name: &str, value: &str) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes(), name.as_bytes(), value.as_bytes()].concat()
}

/// Name and value of a tag; `None` when it is not one.
pub(super) fn untag(tag: &[u8]) -> Option<(String, String)> {
    let (len, rest) = tag.split_first_chunk::<4>()?;
    let (name, value) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some((text(name)?, text(value)?))
}

/// A tag as it is found.
pub(super) fn tag_hash(tag: &[u8]) -> i64 {
    xxh3_64(tag).cast_signed()
}

/// Schema and prefix, as they stand before the name of a table.
pub(super) fn qualifier(config: &PostgresConfig) -> String {
    // Checked: nothing in them needs to be quoted but words such as `user`.
    format!("{}.{}", quoted(&config.schema), config.table_prefix)
}

/// Brings the tables to the version this is written for. Processes that start together take turns.
pub(super) async fn migrate(connection: &mut PgConnection, config: &PostgresConfig) -> Result<()> {
    let newest = MIGRATIONS.len();
    let tables = qualifier(config);
    if version(connection, config).await? == newest {
        return Ok(());
    }
    let mut transaction = connection.begin().await.map_err(failed("migrate"))?;
    let turn = xxh3_64(format!("tiercache tracking {tables}").as_bytes()).cast_signed();
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(turn)
        .execute(&mut *transaction)
        .await
        .map_err(failed("migrate"))?;
    let present: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
        .bind(quoted(&config.schema))
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed("migrate"))?;
    let mut steps = Vec::new();
    if !present {
        steps.push(format!("CREATE SCHEMA {}", quoted(&config.schema)));
    }
    let found = version(&mut transaction, config).await?;
    if found == 0 {
        steps.push(format!("CREATE TABLE {tables}version (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"));
    }
    for (step, number) in MIGRATIONS.iter().zip(1..).skip(found) {
        steps.push(step.replace("{t}", &tables).replace("{i}", &config.table_prefix));
        steps.push(format!("INSERT INTO {tables}version (version) VALUES ({number})"));
    }
    for step in steps {
        sqlx::raw_sql(AssertSqlSafe(step)).execute(&mut *transaction).await.map_err(failed("migrate"))?;
    }
    transaction.commit().await.map_err(failed("migrate"))
}

/// The version of the tables there are, 0 for none.
async fn version(connection: &mut PgConnection, config: &PostgresConfig) -> Result<usize> {
    let tables = qualifier(config);
    let present: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("{tables}version"))
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("look at the tables"))?;
    if !present {
        return Ok(0);
    }
    let asked = format!("SELECT coalesce(max(version), 0) FROM {tables}version");
    let row = sqlx::query(AssertSqlSafe(asked)).fetch_one(connection).await;
    let found: i32 = row.and_then(|row| row.try_get(0)).map_err(failed("look at the tables"))?;
    match usize::try_from(found) {
        Ok(found) if found <= MIGRATIONS.len() => Ok(found),
        _ => Err(Error::Refused(format!(
            "{NAME}: the tables {tables}… are of version {found}, this program knows up to {}: give another \
             table_prefix or use a newer program",
            MIGRATIONS.len()
        ))),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_never_taken_for_others() {
        let tags = [("a", "b"), ("ab", ""), ("", "ab"), ("a\0", "b"), ("a", "\0b")];
        for (name, value) in tags {
            assert_eq!(untag(&tag(name, value)), Some((name.into(), value.into())));
        }
        let all: std::collections::HashSet<_> = tags.map(|(name, value)| tag(name, value)).into();
        assert_eq!(all.len(), tags.len());
        for senseless in [&b""[..], b"\0\0\0", b"\0\0\0\x02a", b"\xff\xff\xff\xff", b"\0\0\0\x01\xff"] {
            assert_eq!(untag(senseless), None);
        }
    }

    #[test]
    fn the_index_has_the_head_it_is_said_to_have() {
        assert_eq!(MIGRATIONS[0].matches(&format!("substring(key, 1, {HEAD})")).count(), 2);
    }
}
