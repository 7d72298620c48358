//! The test's own random numbers: one seed, one stream per case, the same on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, and good enough to pick test inputs.
pub struct Rng {
    state: u64,
    /// Numbers that come first, the last one before the others.
    given: Vec<u64>,
}

impl Rng {
    /// The stream of case number `case` of a run with `seed`.
    pub fn for_case(seed: u64, case: u64) -> Self {
        let mut rng = Self {
            state: seed ^ case.wrapping_mul(0xd134_2543_de82_ef95),
            given: Vec::new(),
        };
        rng.next();
        rng
    }

    #[allow(dead_code)] // for the fuzz target and its test, which share this file
    /// The bytes of a fuzzer's input, eight for each number, and then the stream that they begin.
    pub fn from_input(input: &[u8]) -> Self {
        let word = |bytes: &[u8]| {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(whole)
        };
        let given: Vec<u64> = input.chunks(8).rev().map(word).collect();
        let state = given
            .iter()
            .fold(0, |state: u64, word| state.rotate_left(7) ^ word);
        Self { state, given }
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        if let Some(number) = self.given.pop() {
            return number;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (which must not be zero).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One element of a slice that is not empty.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("a slice index")]
    }

    /// An integer of the kinds that break things: small, near a power of two, all ones, or plain random.
    pub fn integer(&mut self) -> u64 {
        let raw = self.next();
        let width = 1 << self.below(7);
        let edge = 1u64.wrapping_shl(u32::try_from(self.below(64)).expect("below 64"));
        match self.below(8) {
            0 => raw & 0xff,
            1 => (raw & 0xff).wrapping_neg(),
            2 => edge,
            3 => edge.wrapping_sub(1),
            4 => edge.wrapping_neg(),
            5 => raw >> (64 - width),
            _ => raw,
        }
    }

    /// A single-precision bit pattern with all classes well represented.
    pub fn float32(&mut self) -> u32 {
        let raw = u32::try_from(self.next() >> 32).expect("32 bits");
        let exponent = match self.below(10) {
            0 => 0,
            1 => 0xff,
            2 => u32::try_from(self.below(30)).expect("small"),
            3 => 0xfe - u32::try_from(self.below(4)).expect("small"),
            4 | 5 => 127 + u32::try_from(self.below(66)).expect("small"),
            6 | 7 => 120 + u32::try_from(self.below(14)).expect("small"),
            _ => raw >> 23 & 0xff,
        };
        let mantissa = match self.below(6) {
            0 => 0,
            1 => 0x40_0000,
            2 => 0x7f_ffff,
            3 => raw & 0x7f_f000,
            _ => raw & 0x7f_ffff,
        };
        raw & 0x8000_0000 | exponent << 23 | mantissa
    }

    /// A double-precision bit pattern with all classes well represented.
    pub fn float64(&mut self) -> u64 {
        let raw = self.next();
        let exponent = match self.below(12) {
            0 => 0,
            1 => 0x7ff,
            2 => self.below(60),
            3 => 0x7fe - self.below(4),
            4 | 5 => 1023 + self.below(66),
            6 | 7 => 1016 + self.below(14),
            // Around the edges of single precision, for the conversions.
            8 => 1023 - 152 + self.below(30),
            9 => 1023 + 124 + self.below(8),
            _ => raw >> 52 & 0x7ff,
        };
        let mantissa = match self.below(6) {
            0 => 0,
            1 => 1 << 51,
            2 => (1 << 52) - 1,
            3 => raw & 0xf_ffff_e000_0000,
            _ => raw & 0xf_ffff_ffff_ffff,
        };
        raw & 1 << 63 | exponent << 52 | mantissa
    }

    /// An 80-bit extended pattern with all classes well represented, those that no operation gives included.
    pub fn extended(&mut self) -> u128 {
        let raw = self.next();
        let exponent = match self.below(10) {
            0 => 0x7fff,
            1 => 0,
            2 => self.below(70),
            3 => 0x7ffe - self.below(70),
            4 | 5 => 0x3fff + self.below(66),
            6 | 7 => 0x3ff8 + self.below(14),
            8 => 0x3fff - self.below(80),
            _ => raw & 0x7fff,
        };
        let significand = match self.below(8) {
            0 => self.integer(),
            1 => 1 << 63,
            2 => 3 << 62,
            3 => u64::MAX,
            4 => raw << 40 | 1 << 63,
            _ => self.next() | 1 << 63,
        };
        u128::from(raw >> 63) << 79 | u128::from(exponent) << 64 | u128::from(significand)
    }

    /// Eighteen decimal digits and a sign.
    pub fn decimal(&mut self) -> u128 {
        let digits = self.next() % 10u64.pow(u32::try_from(self.below(19)).expect("small"));
        let packed = u128::from_str_radix(&digits.to_string(), 16).expect("decimal digits");
        u128::from(self.below(2)) << 79 | packed
    }

    /// 128 bits for a vector register: integers, floats of either size, or one lane repeated.
    pub fn vector(&mut self) -> u128 {
        let low = self.half_vector();
        let high = if self.one_in(8) { low } else { self.half_vector() };
        u128::from(high) << 64 | u128::from(low)
    }

    fn half_vector(&mut self) -> u64 {
        match self.below(4) {
            0 => self.integer(),
            1 => u64::from(self.float32()) << 32 | u64::from(self.float32()),
            2 => self.float64(),
            _ => self.next(),
        }
    }
}
