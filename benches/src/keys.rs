//! Keys, and the orders they are asked for in.

/// A small generator of even randomness: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The key of that number: 24 bytes.
pub(crate) fn key(number: usize) -> String {
    format!("key:{number:020}")
}

/// Zipf's law over `0..count`: how often something is asked for falls with its rank to the power of `skew`.
///
/// By rejection from the integral of the law (Hörmann and Derflinger), so that a million ranks need no table.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    count: f64,
    skew: f64,
    first: f64,
    all: f64,
    shift: f64,
}

impl Zipf {
    pub(crate) fn new(count: usize, skew: f64) -> Self {
        let mut zipf = Self { count: count as f64, skew, first: 0.0, all: 0.0, shift: 0.0 };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.all = zipf.integral(zipf.count + 0.5);
        zipf.shift = 2.0 - zipf.inverse(zipf.integral(2.5) - 2f64.powf(-skew));
        zipf
    }

    /// A rank, the most frequent being 0.
    pub(crate) fn rank(&self, random: &mut Random) -> usize {
        loop {
            let area = self.all + random.unit() * (self.first - self.all);
            let at = self.inverse(area);
            let rank = at.round().clamp(1.0, self.count);
            if rank - at <= self.shift || area >= self.integral(rank + 0.5) - rank.powf(-self.skew) {
                return rank as usize - 1;
            }
        }
    }

    fn integral(&self, x: f64) -> f64 {
        (x.powf(1.0 - self.skew) - 1.0) / (1.0 - self.skew)
    }

    fn inverse(&self, area: f64) -> f64 {
        (1.0 + area * (1.0 - self.skew)).powf(1.0 / (1.0 - self.skew))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_follows_its_law() {
        let (zipf, mut random) = (Zipf::new(1000, 0.99), Random::new(1));
        let mut counts = vec![0u32; 1000];
        (0..1_000_000).for_each(|_| counts[zipf.rank(&mut random)] += 1);
        let total: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-0.99)).sum();
        for rank in [1, 2, 10, 100, 1000] {
            let expected = 1e6 * f64::from(rank).powf(-0.99) / total;
            let seen = f64::from(counts[rank as usize - 1]);
            assert!((seen / expected - 1.0).abs() < 0.2, "rank {rank}: {seen}, expected {expected}");
        }
    }
}
