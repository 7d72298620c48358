//! Elementary functions of positive numbers, in integers, to more than 110 bits.
//!
//! A value is a [`Real`], a floating-point number of 128 bits, or a *fixed* one: a fraction of [`ONE`]. Each function
//! is its argument, reduced to a small interval, times a power series that is near one. The argument keeps its leading
//! bits however small it is, so the relative error of the result is small everywhere.

use crate::sse::softfloat::{Exact, low64};

/// One as a fixed number.
const ONE: u128 = 1 << 127;
const LN2: Real = Real::constant(0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af, -1);
const TWICE_LOG2_E: Real = Real::constant(0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88, 1);
const HALF_PI: Real = Real::constant(0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1, 0);
/// 2/pi as a fraction of 2^320, the lowest 64 bits first.
const TWO_OVER_PI: [u64; 5] = [
    0xb724_6e3a_424d_d2e0,
    0xfe51_63ab_debb_c561,
    0xdb62_9599_3c43_9041,
    0xfc27_57d1_f534_ddc0,
    0xa2f9_836e_4e44_1529,
];
/// The arc tangents of 0/8 to 8/8, fixed.
const ARC_TANGENTS: [u128; 9] = [
    0,
    0x0fea_dd4d_5617_b6e3_2c89_7989_f3e8_88ef,
    0x1f5b_75f9_2c80_dd62_adb8_f3de_bef4_42fc,
    0x2dec_3283_c9bd_e11c_e2a8_c848_b73f_9120,
    0x3b58_ce0a_c376_9ed1_5bf9_117b_2f0e_a340,
    0x4780_2eaf_7bfa_cfcd_ae41_af0b_32e2_1ba3,
    0x525e_3e8c_9a7b_8492_0cd4_3f95_22be_d64f,
    0x5c02_9f15_e118_cf39_e596_d2a9_0852_221e,
    0x6487_ed51_10b4_611a_6263_3145_c06e_0e68,
];
/// Significands above this one (the square root of two) are nearer to the next power of two.
const ROOT_OF_TWO: u64 = 0xb504_f333_f9de_6484;

/// A positive number, `significand * 2^(exponent - 127)`. The significand's leading bit is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Real {
    // In this order numbers compare as their fields do.
    exponent: i32,
    significand: u128,
}

impl Real {
    const fn constant(significand: u128, exponent: i32) -> Self {
        Self {
            exponent,
            significand,
        }
    }

    /// From a significand that is not zero, whose bit 127 stands for `2^exponent`.
    fn new(significand: u128, exponent: i32) -> Self {
        let shift = significand.leading_zeros();
        Self {
            exponent: exponent - shift.cast_signed(),
            significand: significand << shift,
        }
    }

    /// `significand * 2^exponent`, significand not zero.
    pub fn of(significand: u64, exponent: i32) -> Self {
        Self::new(u128::from(significand), exponent + 127)
    }

    /// From a fixed number that is not zero.
    fn from_fixed(fixed: u128) -> Self {
        Self::new(fixed, 0)
    }

    /// As a fixed number, for numbers below two.
    fn fixed(self) -> u128 {
        self.significand
            .checked_shr(self.exponent.min(0).unsigned_abs())
            .unwrap_or(0)
    }

    /// Exponent of the leading bit.
    pub fn exponent(self) -> i32 {
        self.exponent
    }

    /// The 64 leading bits.
    fn high(self) -> u64 {
        low64(self.significand >> 64)
    }

    pub fn times(self, other: Self) -> Self {
        let product = high_half(self.significand, other.significand);
        Self::new(product, self.exponent + other.exponent + 1)
    }

    pub fn over(self, divisor: Self) -> Self {
        let (mut rest, below) = (self.significand >> 1, divisor.significand >> 1);
        let mut quotient = 0u128;
        for _ in 0..128 {
            quotient <<= 1;
            if rest >= below {
                rest -= below;
                quotient |= 1;
            }
            rest <<= 1;
        }
        Self::new(quotient, self.exponent - divisor.exponent)
    }

    /// As the approximation of an irrational number, which is never exact.
    pub fn irrational(self, sign: bool) -> Exact {
        Exact::Finite {
            sign,
            exponent: self.exponent - 127,
            significand: self.significand | 1,
        }
    }
}

/// The upper 128 bits of a product.
fn high_half(a: u128, b: u128) -> u128 {
    let (a1, a0) = (a >> 64, u128::from(low64(a)));
    let (b1, b0) = (b >> 64, u128::from(low64(b)));
    let middle = a1 * b0 + ((a0 * b0) >> 64);
    let other = a0 * b1 + u128::from(low64(middle));
    a1 * b1 + (middle >> 64) + (other >> 64)
}

/// The product of fixed numbers.
fn mul(a: u128, b: u128) -> u128 {
    high_half(a, b) << 1
}

/// sin(x) / x of `square` = x^2; below one even if the difference is too small for a fixed number.
fn sine_series(square: u128) -> u128 {
    let series = (1..19u128)
        .rev()
        .fold(ONE, |rest, k| ONE - mul(square, rest) / (2 * k * (2 * k + 1)));
    series.min(ONE - 1)
}

/// cos(x) of `square` = x^2; below one.
fn cosine_series(square: u128) -> u128 {
    let series = (1..19u128)
        .rev()
        .fold(ONE, |rest, k| ONE - mul(square, rest) / ((2 * k - 1) * 2 * k));
    series.min(ONE - 1)
}

/// atan(x) / x of `square` = x^2, at most 1/256; below one.
fn arc_tangent_series(square: u128) -> u128 {
    let series = (0..18u128)
        .rev()
        .fold(0, |rest, k| ONE / (2 * k + 1) - mul(square, rest));
    series.min(ONE - 1)
}

/// atanh(x) / x of `square` = x^2.
fn area_tangent_series(square: u128) -> u128 {
    (0..40u128)
        .rev()
        .fold(0, |rest, k| ONE / (2 * k + 1) + mul(square, rest))
}

/// (e^x - 1) / x of a fixed x below 0.7, or of its negative.
fn exponential_series(negative: bool, x: u128) -> u128 {
    (2..36u128).rev().fold(ONE, |rest, k| {
        let term = mul(x, rest) / k;
        if negative { ONE - term } else { ONE + term }
    })
}

/// The magnitude of `2^x - 1`, for x (or its negative) with a magnitude below one.
pub(super) fn exp2_minus_one(negative: bool, x: Real) -> Real {
    let power = x.times(LN2);
    let series = exponential_series(negative, power.fixed());
    power.times(Real::from_fixed(series))
}

/// The magnitude of log2 of (1 + z) / (1 - z), for z below 0.34.
fn log2_of_ratio(z: Real) -> Real {
    let fixed = z.fixed();
    let series = area_tangent_series(mul(fixed, fixed));
    z.times(TWICE_LOG2_E).times(Real::from_fixed(series))
}

/// log2(x) for x of 64 bits that is no power of two: whether it is negative, and its magnitude.
pub(super) fn log2(x: Real) -> (bool, Real) {
    const HALF: u128 = 1 << 63;
    let significand = u128::from(x.high());
    // x is 2^power times a number near one, between the square roots of a half and of two.
    let (power, below_one, one) = if x.high() > ROOT_OF_TWO {
        (x.exponent + 1, true, 2 * HALF)
    } else {
        (x.exponent, false, HALF)
    };
    let z = Real::new(significand.abs_diff(one), 0).over(Real::new(significand + one, 0));
    let part = log2_of_ratio(z);
    if power == 0 {
        return (below_one, part);
    }
    let whole = u128::from(power.unsigned_abs()) << 112;
    let fraction = part.fixed() >> 15;
    let sum = if (power < 0) == below_one {
        whole + fraction
    } else {
        whole - fraction
    };
    (power < 0, Real::new(sum, 15))
}

/// The magnitude of log2(1 + x), which has x's sign, for x (or its negative) with a magnitude below a half.
pub(super) fn log2_of_one_plus(negative: bool, x: Real) -> Real {
    let half = x.fixed() >> 1;
    // 2 + x; as a fixed number it would be two times too large.
    let sum = if negative { ONE - half } else { ONE + half };
    log2_of_ratio(x.over(Real::new(sum, 1)))
}

/// The angle of the point (x, y) of 64-bit coordinates in the first quadrant.
pub(super) fn angle(y: Real, x: Real) -> Real {
    let steep = y > x;
    let (small, large) = if steep { (x, y) } else { (y, x) };
    let (eighths, above, rest) = nearest_eighth(small, large);
    let part = rest.map(|rest| {
        let fixed = rest.fixed();
        rest.times(Real::from_fixed(arc_tangent_series(mul(fixed, fixed))))
    });
    if let (0, false, Some(part)) = (eighths, steep, part) {
        return part;
    }
    let part = part.map_or(0, Real::fixed);
    let whole = ARC_TANGENTS[eighths];
    let shallow = if above { whole + part } else { whole - part };
    if steep {
        Real::new(HALF_PI.significand - shallow, 0)
    } else {
        Real::from_fixed(shallow)
    }
}

/// The number of eighths next to t = small / large, whether t is above it, and the tangent of the difference of the two
/// angles: (t - k/8) / (1 + t k/8), or none if t is that number.
fn nearest_eighth(small: Real, large: Real) -> (usize, bool, Option<Real>) {
    let apart = (large.exponent - small.exponent).unsigned_abs();
    if apart > 6 {
        return (0, true, Some(small.over(large)));
    }
    let (n, d) = (u128::from(small.high()), u128::from(large.high()) << apart);
    let eighths = (16 * n + d) / (2 * d);
    let (value, nearest) = (8 * n, eighths * d);
    let rest = (value != nearest)
        .then(|| Real::new(value.abs_diff(nearest), 0).over(Real::new(8 * d + eighths * n, 0)));
    (
        usize::from(eighths.to_le_bytes()[0] & 15).min(8),
        value > nearest,
        rest,
    )
}

/// pi minus an angle in the first quadrant: the angle of the point on the other side of the y axis.
pub(super) fn straight_minus(angle: Real) -> Real {
    // A fraction of 2^126, because pi is above two. The angle may be above one, where its exponent is 0.
    Real::new(HALF_PI.significand - (angle.fixed() >> 1), 1)
}

/// A right angle.
pub(super) fn right_angle() -> Real {
    HALF_PI
}

/// Half of a right angle, or one and a half.
pub(super) fn diagonal(obtuse: bool) -> Real {
    if obtuse {
        straight_minus(Real::from_fixed(ARC_TANGENTS[8]))
    } else {
        Real::from_fixed(ARC_TANGENTS[8])
    }
}

/// pi.
pub(super) fn straight_angle() -> Real {
    Real::constant(HALF_PI.significand, 1)
}

/// Sine and cosine, each with its sign.
pub(super) struct SineCosine {
    pub sine: (bool, Real),
    pub cosine: (bool, Real),
}

/// Sine and cosine of a number of 64 bits below 2^63.
pub(super) fn sine_cosine(x: Real) -> SineCosine {
    let (quarters, negative, rest) = quarter_turns(x);
    let fixed = rest.fixed();
    let square = mul(fixed, fixed);
    let sine = rest.times(Real::from_fixed(sine_series(square)));
    let cosine = Real::from_fixed(cosine_series(square));
    let (sine, cosine) = match quarters & 3 {
        0 => ((negative, sine), (false, cosine)),
        1 => ((false, cosine), (!negative, sine)),
        2 => ((!negative, sine), (true, cosine)),
        _ => ((true, cosine), (negative, sine)),
    };
    SineCosine { sine, cosine }
}

/// The number of quarter turns next to x, and the rest, which may be negative and has a magnitude of at most pi/4.
fn quarter_turns(x: Real) -> (u64, bool, Real) {
    if x.exponent < -1 {
        return (0, false, x);
    }
    // x times 2/pi, as a fraction of 2^384 above which there is one more word.
    let shift = (x.exponent + 1).unsigned_abs();
    let mut words = [0u64; 7];
    let mut carry = 0;
    for (word, factor) in words.iter_mut().zip(TWO_OVER_PI) {
        let product = u128::from(x.high()) * u128::from(factor) + carry;
        *word = low64(product);
        carry = product >> 64;
    }
    words[5] = low64(carry);
    let mut below = 0;
    for word in &mut words {
        let wide = u128::from(*word) << shift | below;
        *word = low64(wide);
        below = wide >> 64;
    }
    let [fraction @ .., mut quarters] = words;
    let mut fraction = fraction;
    let negative = fraction[5] >> 63 != 0;
    if negative {
        quarters = quarters.wrapping_add(1);
        // Minus the fraction, but for its last bit.
        fraction = fraction.map(|word| !word);
    }
    let (mut place, mut top) = (5, 0);
    while place > 1 && fraction[place] == 0 {
        place -= 1;
        top -= 64;
    }
    let two = u128::from(fraction[place]) << 64 | u128::from(fraction[place - 1]);
    let shift = (two | 1).leading_zeros();
    let third = if place > 1 { fraction[place - 2] } else { 0 };
    let low = u128::from(third) << shift >> 64;
    let rest = Real::new((two << shift | low).max(1), top - 1 - shift.cast_signed());
    (quarters, negative, rest.times(HALF_PI))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As a double, which is exact to about 53 bits.
    #[allow(clippy::cast_precision_loss)]
    fn double(real: Real) -> f64 {
        real.significand as f64 * 2f64.powi(real.exponent - 127)
    }

    /// Whether two numbers are equal but for an error of a few units in the last place of a double.
    fn near(ours: f64, host: f64) -> bool {
        (ours - host).abs() <= host.abs() * 8.0 * f64::EPSILON
    }

    fn signed((negative, real): (bool, Real)) -> f64 {
        if negative { -double(real) } else { double(real) }
    }

    /// Numbers with few enough bits to be doubles.
    fn argument() -> impl Strategy<Value = (Real, f64)> {
        (1u64 << 52..1 << 53, -40i32..0).prop_map(|(significand, exponent)| {
            let real = Real::of(significand, exponent - 52);
            (real, double(real))
        })
    }

    proptest! {
        #[test]
        fn functions_agree_with_the_host_as_far_as_a_double_goes(
            (x, host) in argument(),
            (y, other) in argument(),
            grow in 0i32..30,
        ) {
            prop_assert!(near(double(exp2_minus_one(false, x)), (host * std::f64::consts::LN_2).exp_m1()));
            prop_assert!(near(-double(exp2_minus_one(true, x)), (-host * std::f64::consts::LN_2).exp_m1()));
            prop_assert!(near(double(angle(y, x)), other.atan2(host)));
            prop_assert!(near(double(straight_minus(angle(y, x))), other.atan2(-host)));
            let (large, double_large) = (Real::new(x.significand, x.exponent + grow), host * 2f64.powi(grow));
            let both = sine_cosine(large);
            prop_assert!(near(signed(both.sine), double_large.sin()));
            prop_assert!(near(signed(both.cosine), double_large.cos()));
            if x.significand << 1 != 0 {
                prop_assert!(near(signed(log2(large)), double_large.log2()));
            }
            if host < 0.5 {
                prop_assert!(near(double(log2_of_one_plus(false, x)), host.ln_1p() * std::f64::consts::LOG2_E));
                prop_assert!(near(-double(log2_of_one_plus(true, x)), (-host).ln_1p() * std::f64::consts::LOG2_E));
            }
        }
    }

    #[test]
    fn identities_hold_to_120_bits() {
        // sin^2 + cos^2 is one, tan of an angle is the ratio it is the angle of.
        for (significand, exponent) in [
            (0x8000_0000_0000_0001, -64),
            (0xfedc_ba98_7654_3210, -63),
            (0xdead_beef_0bad_f00d, -40),
            (0xffff_ffff_ffff_ffff, -1),
        ] {
            let both = sine_cosine(Real::of(significand, exponent));
            let square = |(_, real): (bool, Real)| mul(real.fixed(), real.fixed());
            let sum = square(both.sine) + square(both.cosine);
            assert!(
                sum.abs_diff(ONE) < 1 << 7,
                "{significand:#x} {exponent}: {sum:#x}"
            );
        }
        let x = Real::of(0xb504_f333_f9de_6485, -64);
        let (_, log) = log2(x);
        // 2^(log2 x) with the argument negative: 1 - (1 - x).
        let back = ONE - exp2_minus_one(true, log).fixed();
        assert!(back.abs_diff(x.fixed()) < 1 << 8, "{back:#x}");
    }

    #[test]
    fn the_argument_next_to_a_multiple_of_pi_keeps_its_bits() {
        // Of all 64-bit significands below 2^63 the nearest to a multiple of pi/2 leave a rest of about 2^-67, so the
        // product with 2/pi must be exact far below that: pi/2 rounded to 64 bits, whose cosine is the rounding error.
        let near_half_pi = Real::of(0xc90f_daa2_2168_c235, -63);
        let cosine = sine_cosine(near_half_pi).cosine;
        let error = (0xc90f_daa2_2168_c235u128 << 64) - HALF_PI.significand;
        assert!(cosine.0);
        let found = cosine.1.significand >> 66;
        let expected = Real::new(error, 0).significand >> 66;
        assert!(found.abs_diff(expected) < 4, "{found:#x} {expected:#x}");
    }
}
