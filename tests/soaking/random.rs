//! Chance that can be repeated: all choices of a soak follow from its seed.

/// A sequence of numbers (splitmix64).
pub struct Random(u64);

impl Random {
    /// Each `stream` of a seed is a sequence of its own, so that sessions do not depend on each other's speed.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// One of these, each as likely as its weight says.
    pub fn weighted<T: Copy>(&mut self, from: &[(u64, T)]) -> T {
        let mut rest = self.below(from.iter().map(|(weight, _)| weight).sum());
        for (weight, item) in from {
            if rest < *weight {
                return *item;
            }
            rest -= weight;
        }
        unreachable!("the rest is below the sum of the weights")
    }
}
