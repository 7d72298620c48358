//! Conditions of Jcc, SETcc and CMOVcc.

use crate::flags::Lazy;

macro_rules! conditions {
    ($($name:ident $not:ident = $test:expr;)*) => {
        $(
            #[inline(always)]
            pub(crate) fn $name(lazy: Lazy) -> bool {
                let test: fn(Lazy) -> bool = $test;
                test(lazy)
            }
            #[inline(always)]
            pub(crate) fn $not(lazy: Lazy) -> bool {
                !$name(lazy)
            }
        )*
        /// Whether condition number `number` (its encoding) holds.
        #[inline(always)]
        pub(crate) fn holds(lazy: Lazy, number: u64) -> bool {
            let positive = match number >> 1 & 7 {
                0 => o(lazy),
                1 => b(lazy),
                2 => z(lazy),
                3 => be(lazy),
                4 => s(lazy),
                5 => p(lazy),
                6 => l(lazy),
                _ => le(lazy),
            };
            positive != (number & 1 != 0)
        }
    };
}

conditions! {
    o no = Lazy::of;
    b nb = Lazy::cf;
    z nz = Lazy::zf;
    be nbe = |f| f.cf() | f.zf();
    s ns = Lazy::sf;
    p np = Lazy::pf;
    l nl = |f| f.sf() != f.of();
    le nle = |f| f.zf() | (f.sf() != f.of());
}
