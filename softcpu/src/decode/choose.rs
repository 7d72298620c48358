//! Which operation of the loop an instruction is, made from the list of operations.

use iced_x86::{Code, Mnemonic};

use crate::op::OpCode::{self, *};
use crate::op::operations;

/// Forms of a two-operand instruction, named as in the list.
#[allow(non_camel_case_types)] // the list has them in lower case, because functions have the same names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    rr,
    ri,
    rm,
    mr,
    mi,
}

/// Whether a row of the section `one_form` is for an instruction whose operand is in memory if `memory` is set.
macro_rules! allows {
    (any, $memory:ident) => {
        true
    };
    (register, $memory:ident) => {
        !$memory
    };
}

macro_rules! define_choice {
    (
        two_operands { $($family:ident { $($form:ident: $b:ident $w:ident $d:ident $q:ident;)* })* }
        register_or_memory { $($r:ident $m:ident = $rm:ident<$($rm_type:ty),+>: $($rm_code:ident)+;)* }
        one_form { $($one:ident $when:ident = $f:ident<$($type:ty),+>: $($code:ident)+;)* }
        conditional_branches { $($near:ident $far:ident = $condition:ident: $($branch_code:ident)+;)* }
        branches { $($always_near:ident $always_far:ident = $before:ident: $($always_code:ident)+;)* }
        indirect_branches { $($to_r:ident $to_m:ident = $target:ident: $($to_code:ident)+;)* }
        returns { $($ret:ident = $return:ident: $($ret_code:ident)+;)* }
        special { $($(#[$special_doc:meta])* $special:ident;)* }
        steps { $($(#[$step_doc:meta])* $step:ident;)* }
    ) => {
        /// The operations of a two-operand instruction in this form, for 8, 16, 32 and 64 bits; `None` if it is not
        /// one.
        pub(super) fn two_operands(mnemonic: Mnemonic, form: Form) -> Option<[OpCode; 4]> {
            match (mnemonic, form) {
                $($((Mnemonic::$family, Form::$form) => Some([$b, $w, $d, $q]),)*)*
                _ => None,
            }
        }

        /// The operation of any other instruction; `None` if the loop has none of its own.
        ///
        /// `memory`: the operand that can be a register or memory is memory. `near`: the branch stays in the page.
        pub(super) fn other(code: Code, memory: bool, near: bool) -> Option<OpCode> {
            match code {
                $($(Code::$rm_code)|+ => Some(if memory { $m } else { $r }),)*
                $($(Code::$code)|+ => allows!($when, memory).then_some($one),)*
                $($(Code::$branch_code)|+ => Some(if near { $near } else { $far }),)*
                $($(Code::$always_code)|+ => Some(if near { $always_near } else { $always_far }),)*
                $($(Code::$to_code)|+ => Some(if memory { $to_m } else { $to_r }),)*
                $($(Code::$ret_code)|+ => Some($ret),)*
                _ => None,
            }
        }
    };
}
operations!(define_choice);
