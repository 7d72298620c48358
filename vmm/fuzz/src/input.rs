//! Numbers out of an input's bytes.

use vmm::memory::{MIN_RAM, PAGE_SIZE};

/// What is left of an input.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// The next byte; `None` at the end.
    pub fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next byte; 0 after the end.
    pub fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    /// A number of so many bytes.
    fn raw(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// Any number. Small ones, page addresses in RAM and limits come often.
    pub fn number(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => self.raw(1),
            1 => self.raw(2),
            2 => self.raw(4),
            3 | 4 => self.raw(2) % (MIN_RAM / PAGE_SIZE) * PAGE_SIZE,
            5 => {
                let limit =
                    [0, 1 << 32, 0xfee0_0000, MIN_RAM, 1 << 63, 1 << 16][usize::from(self.byte() % 6)];
                limit.wrapping_add(u64::from(self.byte())).wrapping_sub(128)
            }
            6 => self.raw(1) << (self.byte() % 64),
            _ => self.raw(8),
        }
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}
