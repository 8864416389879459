//! Random numbers that are the same on every machine.

/// The generator `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `limit` - 1, and 0 if `limit` is 0.
    pub(super) const fn below(&mut self, limit: u64) -> u64 {
        match self.next().checked_rem(limit) {
            Some(number) => number,
            None => 0,
        }
    }

    /// A number from `low` to `high`.
    pub(super) const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high + 1 - low)
    }
}

/// Numbers from 0 that are drawn in proportion to their weights.
#[derive(Debug)]
pub(super) struct Weights(Vec<u64>);

impl Weights {
    pub(super) fn new(weights: impl Iterator<Item = u64>) -> Self {
        let mut sum = 0;
        Self(
            weights
                .map(|weight| {
                    sum += weight;
                    sum
                })
                .collect(),
        )
    }

    /// The weights of Zipf's law: the second is half of the first, the third a third of it.
    pub(super) fn zipf(count: u64) -> Self {
        Self::new((1..=count).map(|rank| 1_000_000_000 / rank))
    }

    pub(super) fn draw(&self, random: &mut Random) -> usize {
        let number = random.below(self.0.last().copied().unwrap_or_default());
        self.0.partition_point(|sum| *sum <= number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_seed_are_always_the_same() {
        let mut random = Random::new(1_234_567);
        // The first outputs that the authors' program has for this seed.
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn numbers_are_drawn_in_proportion_to_their_weights() {
        let (weights, mut random) = (Weights::new([1, 0, 3].into_iter()), Random::new(7));
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            counts[weights.draw(&mut random)] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((2_300..2_700).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn the_first_of_zipf_has_twice_the_share_of_the_second() {
        let (weights, mut random) = (Weights::zipf(200), Random::new(7));
        let mut counts = vec![0_u32; 200];
        for _ in 0..100_000 {
            counts[weights.draw(&mut random)] += 1;
        }
        assert!((16_500..17_500).contains(&counts[0]), "{}", counts[0]);
        assert!((8_100..8_900).contains(&counts[1]), "{}", counts[1]);
    }
}
