//! Every operation of every list is lowered from some instruction, and the names in the lists say what the rows say.
//!
//! The tests decode every opcode of the one-byte and the two-byte map with every ModRM byte and the prefixes that
//! change the operands, and look at what each instruction becomes.

use std::collections::HashSet;

use iced_x86::{Code, Decoder, Instruction, OpKind};

use super::{OPTIONS, lower, operands, stretch};
use crate::exec::misc::MiscOp;
use crate::exec::string::StringOp;
use crate::exec::system::SystemOp;
use crate::op::OpCode::{self, *};
use crate::op::{Op, SCRATCH, ZERO, operations};

/// A row of the section `two_operands`: mnemonic, form, and the operations with their operand sizes in bytes.
type TwoOperands = (&'static str, &'static str, [(OpCode, usize); 4]);

macro_rules! define_rows {
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
        const TWO_OPERANDS: &[TwoOperands] =
            &[$($((stringify!($family), stringify!($form), [($b, 1), ($w, 2), ($d, 4), ($q, 8)]),)*)*];
        /// The operations for a register and for memory, with every code of the row.
        const REGISTER_OR_MEMORY: &[(OpCode, OpCode, &[Code])] = &[
            $(($r, $m, &[$(Code::$rm_code),+]),)*
            $(($to_r, $to_m, &[$(Code::$to_code),+]),)*
        ];
        /// The operations for a target in the page and outside it, with every code of the row.
        const BRANCHES: &[(OpCode, OpCode, &[Code])] = &[
            $(($near, $far, &[$(Code::$branch_code),+]),)*
            $(($always_near, $always_far, &[$(Code::$always_code),+]),)*
        ];
        const CONDITIONS: &[(OpCode, OpCode, &str)] = &[$(($near, $far, stringify!($condition)),)*];
        const ONE_FORM: &[(OpCode, &[Code])] = &[
            $(($one, &[$(Code::$code),+]),)*
            $(($ret, &[$(Code::$ret_code),+]),)*
        ];
        const SPECIAL: &[OpCode] = &[$($special),*];
        const STEPS: &[OpCode] = &[$($step),*];
    };
}
operations!(define_rows);

/// An instruction and the operations that it becomes.
struct Lowered {
    insn: Instruction,
    ops: Vec<Op>,
}

impl Lowered {
    /// The operation for the instruction itself, which comes after the steps that it needs.
    fn code(&self) -> OpCode {
        self.ops.last().unwrap().code
    }
}

/// Calls `look` with every instruction.
fn for_each_instruction(mut look: impl FnMut(&Lowered)) {
    const PREFIXES: [&[u8]; 10] = [
        &[],
        &[0x66],
        &[0xf2],
        &[0xf3],
        &[0x67],
        &[0x48],
        &[0x66, 0xf3],
        &[0x66, 0x48],
        &[0xf2, 0x48],
        &[0xf3, 0x48],
    ];
    for prefix in PREFIXES {
        for escape in [&[][..], &[0x0f]] {
            for rest in 0..=u16::MAX {
                let [modrm, opcode] = rest.to_le_bytes();
                // Immediates, displacements and addresses of both kinds: small and large.
                let fill = if modrm & 7 == 5 { 0x11 } else { 0 };
                let mut bytes = [prefix, escape, &[opcode, modrm]].concat();
                bytes.resize(15, fill);
                let insn = Decoder::with_ip(64, &bytes, 0x800, OPTIONS).decode();
                let mut ops = Vec::new();
                lower(&insn, 0x800, true, &mut ops);
                look(&Lowered { insn, ops });
            }
        }
    }
}

#[test]
fn every_operation_is_lowered_from_an_instruction() {
    let mut pairs = HashSet::new();
    let mut steps = HashSet::new();
    for_each_instruction(|lowered| {
        pairs.insert((lowered.code() as u16, lowered.insn.code()));
        steps.extend(lowered.ops.iter().map(|op| op.code as u16));
    });
    let reached = |code: OpCode| steps.contains(&(code as u16));
    let from = |op: OpCode, code: Code| pairs.contains(&(op as u16, code));

    let mut missing = Vec::new();
    let named = TWO_OPERANDS.iter().flat_map(|(_, _, row)| row.map(|(op, _)| op));
    missing.extend(named.filter(|op| !reached(*op)).map(|op| format!("{op:?}")));
    for (first, second, codes) in REGISTER_OR_MEMORY.iter().chain(BRANCHES) {
        missing.extend(
            [first, second]
                .into_iter()
                .filter(|op| !reached(**op))
                .map(|op| format!("{op:?}")),
        );
        let unseen = codes
            .iter()
            .filter(|code| !from(*first, **code) && !from(*second, **code));
        missing.extend(unseen.map(|code| format!("{code:?}")));
    }
    for (op, codes) in ONE_FORM {
        missing.extend(
            codes
                .iter()
                .filter(|code| !from(*op, **code))
                .map(|code| format!("{code:?}")),
        );
    }
    missing.extend(
        SPECIAL
            .iter()
            .filter(|op| !reached(**op))
            .map(|op| format!("{op:?}")),
    );
    // The others join stretches, see the next test.
    missing.extend(
        [Ea32, EaWide]
            .iter()
            .filter(|op| !reached(**op))
            .map(|op| format!("{op:?}")),
    );

    let codes_of = |op: OpCode| -> Vec<Code> {
        let of_op = pairs.iter().filter(|(number, _)| *number == op as u16);
        of_op.map(|(_, code)| *code).collect()
    };
    macro_rules! look {
        ($($family:ident in $op:ident;)*) => {$(
            let codes = codes_of($op);
            let unseen = $family::CODES.iter().filter(|code| !codes.contains(code));
            missing.extend(unseen.map(|code| format!("{code:?}")));
            let seen: Vec<_> = codes.iter().filter_map(|code| $family::from_code(*code)).collect();
            missing.extend($family::ALL.iter().filter(|op| !seen.contains(op)).map(|op| format!("{op:?}")));
        )*};
    }
    look! { MiscOp in Misc; SystemOp in Cold; StringOp in String; }
    missing.extend(crate::sse::unreached(&codes_of(Sse)));
    assert!(missing.is_empty(), "no instruction reaches {missing:?}");
}

#[test]
fn steps_that_join_stretches_come_from_decoding_a_page() {
    let mut page = [0x90; 4096];
    let mut ops = Vec::new();
    stretch(&page, 0, |at| at == 3, &mut ops);
    stretch(&page[4090..], 4090, |_| false, &mut ops);
    // The opcode of a five-byte instruction in the page's last byte.
    page[4095] = 0xe8;
    stretch(&page[4095..], 4095, |_| false, &mut ops);
    for step in STEPS.iter().filter(|step| !matches!(step, Ea32 | EaWide)) {
        assert!(ops.iter().any(|op| op.code == *step), "{step:?}");
    }
}

#[test]
fn names_are_made_of_instruction_form_and_size() {
    for (family, form, row) in TWO_OPERANDS {
        for ((op, _), size) in row.iter().zip(["B", "W", "D", "Q"]) {
            assert_eq!(
                format!("{op:?}"),
                format!("{family}{}{size}", form.to_uppercase())
            );
        }
    }
    for (near, far, condition) in CONDITIONS {
        let (first, rest) = condition.split_at(1);
        let name = format!("J{}{rest}", first.to_uppercase());
        assert_eq!(
            (format!("{near:?}"), format!("{far:?}")),
            (format!("{name}Near"), format!("{name}Far"))
        );
    }
}

#[test]
fn an_instruction_becomes_the_operation_of_its_mnemonic_form_and_size() {
    for_each_instruction(|Lowered { insn, ops }| {
        let op = ops.last().unwrap().code;
        let row = TWO_OPERANDS
            .iter()
            .find(|(.., row)| row.iter().any(|(code, _)| *code == op));
        let Some((family, form, row)) = row else { return };
        let letter = |i| match insn.op_kind(i) {
            OpKind::Register => 'r',
            OpKind::Memory => 'm',
            _ => 'i',
        };
        let mnemonic = format!("{:?}", insn.mnemonic());
        assert!(
            mnemonic == *family || insn.code() == Code::Movsxd_r32_rm32,
            "{:?} is {op:?}",
            insn.code()
        );
        assert_eq!(*form, format!("{}{}", letter(0), letter(1)), "{:?}", insn.code());
        let size = row.iter().find(|(code, _)| *code == op).map(|(_, size)| *size);
        assert_eq!(size, Some(operands::size(insn, 0)), "{:?} is {op:?}", insn.code());
    });
}

#[test]
fn an_address_that_a_step_computes_gets_nothing_added() {
    let mut seen = HashSet::new();
    for_each_instruction(|lowered| {
        let op = lowered.ops.last().unwrap();
        if op.base == SCRATCH {
            seen.insert(op.code as u16);
            let insn = lowered.insn.code();
            assert_eq!((op.index, op.scale, op.disp), (ZERO, 0, 0), "{insn:?}");
        }
    });
    for code in [AddRMD, Misc, Cold, Sse] {
        assert!(seen.contains(&(code as u16)), "{code:?}");
    }
}

#[test]
fn a_row_for_register_or_memory_looks_at_the_operand() {
    for_each_instruction(|lowered| {
        let op = lowered.code();
        for (register, memory, _) in REGISTER_OR_MEMORY {
            if [*register, *memory].contains(&op) {
                let expected = if operands::has_memory(&lowered.insn) {
                    memory
                } else {
                    register
                };
                assert_eq!(op, *expected, "{:?}", lowered.insn.code());
            }
        }
    });
}
