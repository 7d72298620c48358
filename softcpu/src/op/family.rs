//! The list of a family: instructions that share one [`OpCode`](super::OpCode) and are told apart by a number.

/// Defines a family: its operations, and the iced codes that each of them is lowered from.
///
/// The function that executes the family is one `match` over the type in the same file as the list, so the compiler
/// asks for an arm when a row is added.
macro_rules! family {
    ($(#[$doc:meta])* $name:ident { $($op:ident: $($code:ident)|+),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum $name { $($op),* }

        impl $name {
            /// Every operation, by number.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$op),*];

            /// Every iced code of the list.
            #[cfg(test)]
            pub(crate) const CODES: &'static [iced_x86::Code] = &[$($(iced_x86::Code::$code),+),*];

            /// The operation for an iced code; `None` if the code belongs to another family.
            pub(crate) fn from_code(code: iced_x86::Code) -> Option<Self> {
                match code {
                    $($(iced_x86::Code::$code)|+ => Some(Self::$op),)*
                    _ => None,
                }
            }

            /// The operation with this number; a number that does not exist wraps around.
            #[inline(always)]
            pub(crate) fn from_number(number: u8) -> Self {
                Self::ALL[usize::from(number) % Self::ALL.len()]
            }
        }
    };
}
pub(crate) use family;
