//! Removals that wait for other levels: rows of the first shard, which all processes on the directory have.

use async_trait::async_trait;
use rusqlite::Connection;
use tiercache_core::tier::{Journal, Reach, Waiting};
use tiercache_core::{Generation, Level, Result};

use crate::SqliteTier;
use crate::step::Step;
use crate::tier::NAME;

#[async_trait]
impl Journal for SqliteTier {
    async fn note(&self, waiting: &Waiting) -> Result<u64> {
        let note = waiting.encode();
        let work = move |step: &mut Step<'_>| {
            step.connection
                .prepare_cached("INSERT INTO waiting (note) VALUES (?1) RETURNING number")?
                .query_row([&note], |row| row.get::<_, i64>(0))
        };
        self.check_open()?;
        let noted = self.shards[0].write("note", 0, work).await;
        noted.map(i64::cast_unsigned).map_err(|failure| failure.into_error("note"))
    }

    async fn strike(&self, notes: &[u64]) -> Result<()> {
        let notes = notes.to_vec();
        let work = move |step: &mut Step<'_>| {
            let mut strike = step.connection.prepare_cached("DELETE FROM waiting WHERE number = ?1")?;
            notes.iter().try_for_each(|number| strike.execute([number.cast_signed()]).map(drop))
        };
        self.check_open()?;
        self.shards[0].write("strike", 0, work).await.map_err(|failure| failure.into_error("strike"))
    }

    async fn notes(&self) -> Result<Vec<(u64, Waiting)>> {
        self.check_open()?;
        self.shards[0].read("list notes", |_, connection| read(connection)).await
    }
}

/// What is noted, with the numbers.
pub(crate) fn read(connection: &Connection) -> rusqlite::Result<Vec<(u64, Waiting)>> {
    let mut statement = connection.prepare("SELECT number, note FROM waiting ORDER BY number")?;
    let rows = statement.query_map((), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let mut notes = Vec::new();
    for row in rows {
        let (number, note) = row?;
        let number = number.cast_unsigned();
        match Waiting::decode(&note) {
            Some(waiting) => notes.push((number, waiting)),
            // It may have been any: nothing below RAM is to be believed.
            None => {
                tracing::error!(tier = NAME, number, "a note is damaged: the levels below RAM are emptied");
                let of = |level| Waiting { level, reach: Reach::Level, below: Generation::ZERO };
                notes.extend([Level::Cold, Level::Dry].map(|level| (number, of(level))));
            }
        }
    }
    Ok(notes)
}
