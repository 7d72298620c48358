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
    if (0..8).contains(
        &(case
            .bytes
            .iter()
            .find(|byte| **byte >= 0xd8)
            .map_or(255, |byte| byte - 0xd8)),
    ) || case.insn.op0_register().is_mm()
        || case.insn.op1_register().is_mm()
    {
        let fx = &case.state.fx;
        let word = |at: usize| u16::from_le_bytes([fx[at], fx[at + 1]]);
        let _ = write!(
            text,
            "  control {:#06x} status {:#06x} full {:#04x}",
            word(0),
            word(2),
            fx[4]
        );
        for st in 0..8 {
            let at = state::fx::ST + 16 * st;
            let value = u128::from_le_bytes(fx[at..at + 16].try_into().expect("16 bytes"));
            let _ = write!(
                text,
                "{}st{st}={value:#022x}",
                if st % 4 == 0 { "\n  " } else { " " }
            );
        }
        let _ = writeln!(text);
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
