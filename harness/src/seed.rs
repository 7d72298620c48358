//! Seeds for the consumers of randomness in a run.

use guest_agent::pattern::mix;

/// The seed of the generator that consumer `name` uses in a run of seed `seed`.
///
/// Each consumer has a name of its own (`"dma"`, `"memfd/guest-ram"`), so a new consumer does not change the random
/// numbers of the others. The name is mixed in byte by byte with the output function of SplitMix64.
pub fn seed_for(seed: u64, name: &str) -> u64 {
    name.bytes()
        .fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_and_seeds_are_told_apart() {
        assert_eq!(seed_for(1, "dma"), seed_for(1, "dma"));
        assert_ne!(seed_for(1, "dma"), seed_for(2, "dma"));
        assert_ne!(seed_for(1, "dma"), seed_for(1, "amd"));
        assert_ne!(seed_for(1, "dma"), seed_for(1, "dm"));
    }
}
