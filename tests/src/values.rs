//! Values that tell where they belong, and the numbers that everything random is drawn from.

use bytes::Bytes;

/// A generator of numbers: seeded, small, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers from a seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5DEE_CE66_D1CE_4E5B))
    }

    /// A number below `n`, which is not zero.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mix(self.0) >> 16) % n
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of several, each as often as its weight says.
    pub fn pick<T: Copy>(&mut self, weighted: &[(T, u32)]) -> T {
        let total: u64 = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut left = self.below(total);
        for &(what, weight) in weighted {
            match left.checked_sub(weight.into()) {
                Some(rest) => left = rest,
                None => return what,
            }
        }
        unreachable!("the weights add up to the total")
    }
}

/// The name of a key.
pub fn name(key: u16) -> String {
    format!("key-{key}")
}

/// The value of that number: it names its key, and every byte of it follows from the two. Mostly small, sometimes
/// as large as 2 KB.
pub fn value(key: u16, number: u64) -> Bytes {
    let mixed = mix(number);
    let size = if mixed.is_multiple_of(4) { 128 + (mixed >> 8) % 1_900 } else { 8 + (mixed >> 8) % 100 };
    let mut bytes = format!("{key}:{number}:").into_bytes();
    bytes.extend((0..size).map(|at| (mixed >> (at % 57)) as u8));
    bytes.into()
}

/// The number of a value that was read under a key.
///
/// # Errors
/// What is wrong with it: not a byte may differ from what was written.
pub fn number(key: u16, bytes: &[u8]) -> Result<u64, String> {
    let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    let mut parts =
        bytes.split(|byte| *byte == b':').map(|part| std::str::from_utf8(part).unwrap_or_default());
    let owner: Option<u16> = parts.next().and_then(|part| part.parse().ok());
    let number: Option<u64> = parts.next().and_then(|part| part.parse().ok());
    match (owner, number) {
        (Some(owner), Some(_)) if owner != key => {
            Err(format!("key {key} answered with a value of key {owner}: {}", shown()))
        }
        (Some(_), Some(number)) if value(key, number) == bytes => Ok(number),
        _ => Err(format!("key {key} answered with what nobody wrote: {}", shown())),
    }
}

/// SplitMix64's finisher, Steele et al., OOPSLA 2014.
const fn mix(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}
