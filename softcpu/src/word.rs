//! Operand sizes as types: one generic body serves 8, 16, 32 and 64 bits.

/// An unsigned integer of an operand size.
pub(crate) trait Word: Copy + Default + PartialEq + std::fmt::Debug + 'static {
    /// Size in bits.
    const BITS: u32;
    /// Size in bytes.
    const BYTES: u64;
    /// The value, zero-extended.
    fn zx(self) -> u64;
    /// The value, sign-extended.
    fn sx(self) -> u64;
    /// The low bits of `value`.
    fn cut(value: u64) -> Self;
}

macro_rules! word {
    ($($type:ty as $signed:ty),*) => {$(
        impl Word for $type {
            const BITS: u32 = <$type>::BITS;
            const BYTES: u64 = (<$type>::BITS / 8) as u64;
            #[inline(always)]
            #[allow(clippy::cast_lossless, trivial_numeric_casts)]
            fn zx(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            #[allow(clippy::cast_lossless, clippy::cast_possible_wrap, clippy::cast_sign_loss)]
            fn sx(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            #[allow(clippy::cast_possible_truncation)]
            fn cut(value: u64) -> Self {
                value as $type
            }
        }
    )*};
}
word!(u8 as i8, u16 as i16, u32 as i32, u64 as i64);
