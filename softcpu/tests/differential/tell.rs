//! A case in words.

use std::fmt::Write as _;

use iced_x86::{Formatter, IntelFormatter};

use crate::generate::Case;
use crate::{compare, fixup, state};

/// Instruction, registers and operands of a case.
pub fn case(case: &Case) -> String {
    let mut disassembly = String::new();
    IntelFormatter::new().format(&case.insn, &mut disassembly);
    let mut text = String::new();
    let hex: Vec<String> = case.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let _ = writeln!(
        text,
        "  {:#x}: {} | {disassembly} ({:?})",
        case.state.rip,
        hex.join(" "),
        case.insn.code()
    );
    for (n, name) in compare::NAMES.iter().enumerate() {
        let _ = write!(
            text,
            "{}{name}={:#x}",
            if n % 8 == 0 { "\n  " } else { " " },
            case.state.gpr[n]
        );
    }
    let _ = writeln!(
        text,
        "\n  rflags={:#x} mxcsr={:#x} taken={:#x}",
        case.state.rflags,
        case.state.mxcsr(),
        case.taken
    );
    for n in 0..16 {
        if case.insn.op0_register() == iced_x86::Register::XMM0 + n
            || case.insn.op1_register() == iced_x86::Register::XMM0 + n
        {
            let _ = writeln!(text, "  xmm{n}={:#034x}", case.state.xmm(n as usize));
        }
    }
    let memory = (0..case.insn.op_count()).any(|i| case.insn.op_kind(i) == iced_x86::OpKind::Memory);
    if memory {
        let at = fixup::linear(case, &case.insn);
        let offset = usize::try_from(at.wrapping_sub(state::DATA)).unwrap_or(usize::MAX);
        if let Some(bytes) = offset.checked_add(16).and_then(|end| case.data.get(offset..end)) {
            let _ = writeln!(text, "  memory at {at:#x}: {bytes:02x?}");
        }
    }
    text
}
