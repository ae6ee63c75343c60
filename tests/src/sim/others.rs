//! What other processes do meanwhile: they write to the store, and have leases.

use tiercache_core::lease::Holder;
use tiercache_core::tier::Scope;
use tiercache_core::{Clock, Key};
use tokio::time::Instant;

use super::counts::Made;
use super::judge::{ELSEWHERE, Kind, Mutation};
use super::operations::number;
use super::origin::Asked;
use super::{Held, History, KEYS, TERM};

impl History {
    /// Another process sets or removes a key, or invalidates a tag, whole and at once. This process may go on with what it has in RAM, but
    /// whatever it does to the key afterwards comes after.
    pub(super) async fn elsewhere(&mut self) -> Result<(), String> {
        let key = self.choices.below(KEYS) as u8;
        if self.choices.once_in(3) {
            self.lease_elsewhere(key).await;
            return Ok(());
        }
        let ahead = [0, 50, 1_000][self.choices.below(3) as usize];
        let name = Key::new("", format!("key-{key}").as_bytes()).expect("a key");
        self.moment += 1;
        if !self.setup.counts_in_ram && self.choices.once_in(4) {
            if let Some(bit) = self.counts.add(key, self.moment) {
                self.note(format!("{}: another process adds {bit} to {key}", self.moment));
                let sum = self.store.add_elsewhere(&name, 1 << bit, self.clock.now());
                self.counts.added(key, bit, self.moment + 1, Made::Certainly);
                self.counts.judge(key, sum, self.moment, self.moment + 1)?;
            }
        } else if self.choices.once_in(4) {
            let tag = self.choices.below(2) as u8;
            let value = tag.to_string();
            let scope = Scope::Tag { namespace: String::new(), name: "t".to_owned(), value };
            self.note(format!("{}: another process invalidates tag {tag}", self.moment));
            self.store.invalidate_elsewhere(scope, ahead);
            self.killed.push((tag, self.moment));
            self.lossy_at = self.lossy_at.max(self.moment);
        } else if self.choices.once_in(4) {
            self.elsewhere.push((key, self.moment));
            let taken = self.store.pop_elsewhere(&name, ahead).map(|value| number(&value));
            self.note(format!("{}: another process removes {key}, and takes {taken:?}", self.moment));
            self.taken.extend(taken);
            self.lossy_at = self.lossy_at.max(self.moment);
        } else {
            self.values += 1;
            self.elsewhere.push((key, self.moment));
            self.note(format!("{}: another process sets {key} to {}", self.moment, self.values));
            self.store.set_elsewhere(&name, &self.values.to_string(), self.clock.now(), ahead);
            self.judge.begin(Mutation {
                key,
                kind: Kind::Write(self.values),
                tag: None,
                deadline: u64::MAX,
                stale: 0,
                begun: self.moment,
                ended: Some(self.moment),
                certain: false,
                failed: false,
                degraded: false,
                life: ELSEWHERE,
            });
        }
        self.moment += 1;
        Ok(())
    }

    /// Another process takes the lease of a key as its loads do, or gives it back.
    pub(super) async fn lease_elsewhere(&mut self, key: u8) {
        let name = Key::new("", format!("load:key-{key}").as_bytes()).expect("a key");
        self.moment += 1;
        if let Some(held) = self.held.remove(&key) {
            self.note(format!("{}: another process gives the lease of {key} back", self.moment));
            self.store.release_elsewhere(&name, held.holder).await;
            return;
        }
        let (holder, until) = (Holder::new(), Instant::now() + TERM);
        if self.store.lease_elsewhere(&name, holder, TERM).await {
            self.note(format!("{}: another process takes the lease of {key}", self.moment));
            self.held.insert(key, Held { holder, since: self.moment, until });
        }
    }

    /// A load that was asked for while another process had the lease of its key waits for the lease or its end. A store
    /// that does not answer in time gives no leases.
    pub(super) async fn judge_lease(&self, loaded: &Asked) -> Result<(), String> {
        let Some(asked) = self.leased.get(&loaded.value) else { return Ok(()) };
        let waits = |held: &&Held| held.since < *asked && Instant::now() < held.until;
        let Some(held) = self.held.get(&loaded.key).filter(waits).filter(|_| !self.setup.faults) else {
            return Ok(());
        };
        let stats = self.manager.stats().await.map_err(|error| error.to_string())?;
        if stats.loads_unleased > 0 {
            return Ok(());
        }
        Err(format!("{loaded:?}, asked for at {asked}, did not wait for {held:?}"))
    }
}
