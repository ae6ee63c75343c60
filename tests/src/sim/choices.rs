//! The source of every decision of a history: seeded, recorded, replayable, and so shrinkable.

/// Numbers a history draws its decisions from.
#[derive(Clone, Debug)]
pub struct Choices {
    numbers: Vec<u32>,
    next: usize,
    /// The state of the generator, unless a recorded history is replayed.
    seed: Option<u64>,
    limit: usize,
}

impl Choices {
    /// Decisions from a seed, `limit` of them.
    pub fn seeded(seed: u64, limit: usize) -> Self {
        Self { numbers: Vec::with_capacity(limit), next: 0, seed: Some(seed ^ 0x5DEE_CE66_D1CE_4E5B), limit }
    }

    /// The decisions of a history that was.
    pub fn replayed(numbers: Vec<u32>) -> Self {
        let limit = numbers.len();
        Self { numbers, next: 0, seed: None, limit }
    }

    /// Whether there is nothing left to decide by.
    pub fn is_spent(&self) -> bool {
        self.next >= self.limit
    }

    /// A number below `n`. Once spent, zero.
    pub fn below(&mut self, n: u32) -> u32 {
        if self.is_spent() {
            return 0;
        }
        let number = match (&mut self.seed, self.numbers.get(self.next)) {
            (_, Some(&number)) => number,
            (Some(state), None) => {
                // SplitMix64, Steele et al., OOPSLA 2014.
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut mixed = *state;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                let number = ((mixed ^ (mixed >> 31)) >> 32) as u32;
                self.numbers.push(number);
                number
            }
            (None, None) => 0,
        };
        self.next += 1;
        number % n.max(1)
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: u32) -> bool {
        self.below(n) == n - 1
    }

    /// What was drawn.
    pub fn drawn(&self) -> &[u32] {
        &self.numbers[..self.next.min(self.numbers.len())]
    }
}

/// Makes a failing history smaller: leaves out ever smaller pieces, then makes single decisions smaller, as long as
/// `fails` says that it still fails.
pub fn shrink(mut failing: Vec<u32>, mut fails: impl FnMut(&[u32]) -> bool, tries: usize) -> Vec<u32> {
    let mut left = tries;
    let mut piece = failing.len() / 2;
    while piece > 0 && left > 0 {
        let mut at = 0;
        while at < failing.len() && left > 0 {
            left -= 1;
            let mut shorter = failing.clone();
            shorter.drain(at..(at + piece).min(failing.len()));
            if fails(&shorter) {
                failing = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    for at in 0..failing.len() {
        for smaller in [0, 1, failing[at] / 2] {
            if left > 0 && smaller < failing[at] {
                left -= 1;
                let mut simpler = failing.clone();
                simpler[at] = smaller;
                if fails(&simpler) {
                    failing = simpler;
                }
            }
        }
    }
    failing
}
