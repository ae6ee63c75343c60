//! A process is killed again and again while it works, and asked afterwards what it still has.
//!
//! What it was told and what it answered is written down here, outside of it, and judged as one history over all its
//! lives by [`crate::history`]: what it did not answer any more may have happened or not.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tiercache::disk::DiskTier;

use crate::history::{Event, Tally, What, Written, judge};
use crate::values::Random;

/// No command takes so long, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(20);
const KEYS: u16 = 16;
const TAGS: u64 = 3;

/// What a process does before it is killed, over and over in one folder.
#[derive(Clone, Copy, Debug)]
pub struct Ordeal {
    /// Everything is drawn from this.
    pub seed: u64,
    /// `back`, `behind` or `through`.
    pub write: &'static str,
    /// `adaptive`, `lru` or `tinylfu`.
    pub policy: &'static str,
    /// Whether the disk level has room for all that is written; else it reclaims, and forgets.
    pub roomy: bool,
    /// How often the process is killed.
    pub kills: u32,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Of all lives.
    pub tally: Tally,
    /// Operations that were under way when the process was killed.
    pub interrupted: u64,
    /// Starts that were interrupted.
    pub starts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Get,
    Set,
    SetShort,
    Touch,
    Delete,
    Invalidate,
    Clear,
    Settle,
}

const ACTS: &[(Act, u32)] = &[
    (Act::Get, 40),
    (Act::Set, 60),
    (Act::SetShort, 6),
    (Act::Touch, 6),
    (Act::Delete, 14),
    (Act::Invalidate, 3),
    (Act::Clear, 1),
    (Act::Settle, 4),
];

impl Ordeal {
    /// Runs it with the program `victim`, in `folder`.
    ///
    /// # Errors
    /// The promise that was broken, and the history of the key.
    pub fn run(&self, victim: &Path, folder: &Path) -> Result<Outcome, String> {
        let mut ledger = Ledger::new(self);
        for kill in 0..self.kills {
            let told = |broken| format!("{self:?}, life {kill}: {broken}");
            ledger.live(kill, victim, folder).map_err(told)?;
            let report =
                DiskTier::check(folder, false, &mut |_, _| {}).map_err(|error| told(error.to_string()))?;
            if !report.is_clean() {
                return Err(told(format!("the folder is not clean after the kill: {report:?}")));
            }
            ledger.outcome.tally = judge(&ledger.events, self.roomy).map_err(told)?;
        }
        Ok(ledger.outcome)
    }
}

/// What was told and answered.
struct Ledger {
    ordeal: Ordeal,
    random: Random,
    moments: Arc<AtomicU64>,
    began: Instant,
    values: u64,
    events: Vec<Event>,
    outcome: Outcome,
}

/// A command that has not been answered.
struct Open {
    act: Act,
    key: u16,
    value: u64,
    tag: Option<u8>,
    /// Microseconds to live.
    life: u64,
    begun: u64,
    clock: u64,
}

/// A line that came, and when.
type Heard = (u64, String);

struct Victim {
    child: Child,
    orders: ChildStdin,
    heard: Receiver<Heard>,
}

impl Victim {
    fn start(
        ordeal: &Ordeal,
        program: &Path,
        folder: &Path,
        moments: &Arc<AtomicU64>,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let room = if ordeal.roomy { "roomy" } else { "cramped" };
        let mut command = Command::new(program);
        command.arg(folder).args([ordeal.write, ordeal.policy, room]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let (tell, heard) = channel();
        let moments = moments.clone();
        // Ends with the child's output, at the latest when it is killed.
        std::thread::spawn(move || {
            for line in BufReader::new(answers).lines().map_while(Result::ok) {
                let heard = (moments.fetch_add(1, Ordering::SeqCst), line);
                if tell.send(heard).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, orders, heard })
    }

    /// SIGKILL; what it had still said.
    fn kill(mut self) -> Result<Vec<Heard>, String> {
        self.child.kill().and_then(|()| self.child.wait()).map_err(|error| error.to_string())?;
        Ok(self.heard.iter().collect())
    }
}

impl Ledger {
    fn new(ordeal: &Ordeal) -> Self {
        Self {
            ordeal: *ordeal,
            random: Random::new(ordeal.seed),
            moments: Arc::new(AtomicU64::new(1)),
            began: Instant::now(),
            values: 0,
            events: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    fn clock(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Starts a process, gives it work, and kills it at some moment.
    fn live(&mut self, life: u32, program: &Path, folder: &Path) -> Result<(), String> {
        let mut victim = Victim::start(&self.ordeal, program, folder, &self.moments)?;
        if life > 0 && self.random.once_in(10) {
            // While it opens what the one before it left.
            self.outcome.starts += 1;
            self.pause(3_000);
            return victim.kill().map(drop);
        }
        match victim.heard.recv() {
            Ok((_, line)) if line == "ready" => {}
            other => return Err(format!("it did not start: {other:?}")),
        }
        let mut open = HashMap::new();
        let mut at_once = 1 + self.random.below(12) as usize;
        let commands = u64::from(KEYS) + self.random.below(300);
        // The last ones come all at once, so that many are under way when it is killed.
        let burst = commands - self.random.below(40).min(commands);
        for id in 0..commands {
            let (act, key) = match u16::try_from(id) {
                Ok(key) if key < KEYS => (Act::Get, key),
                _ => (self.random.pick(ACTS), self.random.below(KEYS.into()) as u16),
            };
            if id == burst {
                at_once = usize::MAX;
            }
            let order = self.order(id, act, key, &mut open);
            victim.orders.write_all(order.as_bytes()).map_err(|error| format!("it went away: {error}"))?;
            while open.len() >= at_once {
                let heard = victim.heard.recv().map_err(|_| "it went away")?;
                self.hear(life, heard, &mut open)?;
            }
        }
        if self.random.once_in(2) {
            self.pause(20);
        }
        for heard in victim.kill()? {
            self.hear(life, heard, &mut open)?;
        }
        let ended = self.moment();
        self.outcome.interrupted += open.len() as u64;
        for open in open.into_values() {
            self.note(life, &open, ended, false, None);
        }
        Ok(())
    }

    /// Some time, to hit another moment.
    fn pause(&mut self, most: u64) {
        for _ in 0..self.random.below(most) {
            std::thread::yield_now();
        }
    }

    fn order(&mut self, id: u64, act: Act, key: u16, open: &mut HashMap<u64, Open>) -> String {
        self.values += 1;
        let value = self.values;
        let tag = (act == Act::Invalidate || self.random.once_in(3)).then(|| self.random.below(TAGS) as u8);
        let life = 5 + self.random.below(60);
        let shown = |tag: Option<u8>| tag.map_or("-".to_owned(), |tag| tag.to_string());
        let command = match act {
            Act::Get => format!("get {key}"),
            Act::Set => format!("set {key} {value} {} -", shown(tag)),
            Act::SetShort => format!("set {key} {value} {} {life}", shown(tag)),
            Act::Touch => format!("touch {key}"),
            Act::Delete => format!("delete {key}"),
            Act::Invalidate => format!("invalidate {}", shown(tag)),
            Act::Clear => "clear".to_owned(),
            Act::Settle => "settle".to_owned(),
        };
        let (clock, begun) = (self.clock(), self.moment());
        open.insert(id, Open { act, key, value, tag, life: life * 1_000, begun, clock });
        format!("{id} {command}\n")
    }

    fn hear(&mut self, life: u32, (ended, line): Heard, open: &mut HashMap<u64, Open>) -> Result<(), String> {
        let mut words = line.split(' ');
        let id = words.next().and_then(|id| id.parse().ok());
        let open = id.and_then(|id: u64| open.remove(&id)).ok_or_else(|| format!("not an answer: {line}"))?;
        let took = self.clock() - open.clock;
        if took > PATIENCE.as_micros() as u64 {
            return Err(format!("{:?} of key {} took {took} µs", open.act, open.key));
        }
        let certain = match words.next() {
            Some("ok") => true,
            Some("degraded") => false,
            _ => return Err(format!("{:?} of key {} failed: {line}", open.act, open.key)),
        };
        let told = words.next().and_then(|number| number.parse().ok());
        self.note(life, &open, ended, certain, told);
        Ok(())
    }

    /// Writes down what became of a command: `certain` is false when nobody knows whether it took effect.
    fn note(&mut self, life: u32, open: &Open, ended: u64, certain: bool, told: Option<u64>) {
        let through = self.ordeal.write == "through";
        let mut key = Some(open.key);
        let what = match open.act {
            Act::Get if !certain => return,
            Act::Get => What::Read { value: told, clock: open.clock },
            Act::Set | Act::SetShort => What::Write(Written {
                value: open.value,
                generation: told,
                certain,
                tag: open.tag,
                // Deadlines are whole milliseconds.
                deadline: (open.act == Act::SetShort).then(|| self.clock() + open.life + 1_000),
                durable: through && certain,
            }),
            Act::Touch => What::Touch { durable: through && certain },
            Act::Delete => What::Remove { tag: None, certain },
            Act::Invalidate | Act::Clear => {
                key = None;
                What::Remove { tag: open.tag.filter(|_| open.act == Act::Invalidate), certain }
            }
            Act::Settle => {
                if certain && self.ordeal.write == "behind" {
                    self.queued_have_arrived(life, open.begun);
                }
                return;
            }
        };
        self.events.push(Event { key, who: 0, life, begun: open.begun, ended, what });
    }

    /// What was queued for the disk before that moment is there.
    fn queued_have_arrived(&mut self, life: u32, before: u64) {
        for event in self.events.iter_mut().filter(|event| event.life == life && event.ended < before) {
            match &mut event.what {
                What::Write(written) => written.durable = written.certain,
                What::Touch { durable } => *durable = true,
                _ => {}
            }
        }
    }
}
