//! Instructions that need others around them for a defined result: divisions, string instructions, stack, and branches.

use iced_x86::code_asm::*;

use super::code::Asm;
use super::sequence::{REGISTERS, Rng};

/// The status flags: CF, PF, AF, ZF, SF, OF.
pub const STATUS: i32 = 0x8d5;

/// Writes a random one of them.
pub fn one(c: &mut CodeAssembler, rng: &mut Rng) -> Asm {
    match rng.below(4) {
        0 => division(c, rng),
        1 => string(c, rng),
        2 => stack(c, rng),
        _ => branch(c, rng),
    }
}

/// A division that does not overflow: the divisor is positive and the dividend no wider than the quotient. It leaves
/// the flags undefined, so a comparison follows.
fn division(c: &mut CodeAssembler, rng: &mut Rng) -> Asm {
    c.and(rbx, 0x7f)?;
    c.or(rbx, 1)?;
    match rng.below(8) {
        0 => {
            c.movzx(eax, al)?;
            c.div(bl)?;
        }
        1 => {
            c.movsx(ax, al)?;
            c.idiv(bl)?;
        }
        2 => {
            c.mov(edx, 0)?;
            c.div(bx)?;
        }
        3 => {
            c.cwd()?;
            c.idiv(bx)?;
        }
        4 => {
            c.mov(edx, 0)?;
            c.div(ebx)?;
        }
        5 => {
            c.cdq()?;
            c.idiv(ebx)?;
        }
        6 => {
            c.mov(edx, 0)?;
            c.div(rbx)?;
        }
        _ => {
            c.cqo()?;
            c.idiv(rbx)?;
        }
    }
    c.cmp(rng.pick(&REGISTERS), rng.pick(&REGISTERS))
}

/// String instructions on at most 200 bytes, beginning within 0x200 bytes of the window's middle.
fn string(c: &mut CodeAssembler, rng: &mut Rng) -> Asm {
    c.lea(rsi, qword_ptr(r15 + offset(rng)))?;
    c.lea(rdi, qword_ptr(r15 + offset(rng)))?;
    c.mov(ecx, u32::try_from(rng.below(25)).unwrap())?;
    let down = rng.below(3) == 0;
    if down {
        c.std()?;
    }
    match rng.below(16) {
        0 => c.rep().movsb()?,
        1 => c.rep().movsw()?,
        2 => c.rep().movsd()?,
        3 => c.rep().movsq()?,
        4 => c.rep().stosb()?,
        5 => c.rep().stosw()?,
        6 => c.rep().stosd()?,
        7 => c.rep().stosq()?,
        8 => c.rep().lodsb()?,
        9 => c.lodsq()?,
        10 => c.repe().cmpsb()?,
        11 => c.repne().cmpsw()?,
        12 => c.repne().scasb()?,
        13 => c.repe().scasd()?,
        14 => c.movsq()?,
        _ => c.stosb()?,
    }
    if down {
        c.cld()?;
    }
    Ok(())
}

fn offset(rng: &mut Rng) -> i32 {
    i32::try_from(rng.below(0x400)).unwrap() - 0x200
}

fn stack(c: &mut CodeAssembler, rng: &mut Rng) -> Asm {
    let (from, to) = (rng.pick(&REGISTERS), rng.pick(&REGISTERS));
    match rng.below(7) {
        0 => c.push(from)?,
        1 => c.push(i32::try_from(rng.next() & 0x7fff_ffff).unwrap())?,
        2 => c.push(qword_ptr(r15 + offset(rng)))?,
        3 => c.pushfq()?,
        4 => {
            // A stack frame.
            c.push(to)?;
            c.enter(0x20, 0)?;
            c.mov(qword_ptr(rbp - 8), from)?;
            c.leave()?;
        }
        5 => {
            // A call and its return.
            let mut there = c.create_label();
            let mut done = c.create_label();
            c.push(from)?;
            c.call(there)?;
            c.jmp(done)?;
            c.set_label(&mut there)?;
            c.not(to)?;
            c.ret()?;
            c.set_label(&mut done)?;
        }
        _ => {
            // Loads the status flags from a register, and no other flags.
            c.push(from)?;
            c.and(qword_ptr(rsp), STATUS)?;
            c.popfq()?;
            c.push(to)?;
        }
    }
    if rng.below(4) == 0 {
        c.pop(qword_ptr(r15 + offset(rng)))
    } else {
        c.pop(to)
    }
}

/// A conditional branch over an instruction, or a short loop.
fn branch(c: &mut CodeAssembler, rng: &mut Rng) -> Asm {
    type Jump = fn(&mut CodeAssembler, CodeLabel) -> Asm;
    const JUMPS: [Jump; 18] = [
        |c, to| c.jo(to),
        |c, to| c.jno(to),
        |c, to| c.jb(to),
        |c, to| c.jae(to),
        |c, to| c.je(to),
        |c, to| c.jne(to),
        |c, to| c.jbe(to),
        |c, to| c.ja(to),
        |c, to| c.js(to),
        |c, to| c.jns(to),
        |c, to| c.jp(to),
        |c, to| c.jnp(to),
        |c, to| c.jl(to),
        |c, to| c.jge(to),
        |c, to| c.jle(to),
        |c, to| c.jg(to),
        |c, to| c.jrcxz(to),
        |c, to| c.jmp(to),
    ];
    let (from, to) = (rng.pick(&REGISTERS), rng.pick(&REGISTERS));
    if rng.below(5) == 0 {
        let mut again = c.create_label();
        c.mov(ecx, u32::try_from(rng.below(6)).unwrap() + 1)?;
        c.set_label(&mut again)?;
        c.lea(r9, qword_ptr(r9 + r10 * 2 + 1))?;
        c.xor(r10, r9)?;
        return c.loop_(again);
    }
    let mut over = c.create_label();
    rng.pick(&JUMPS)(c, over)?;
    c.xor(to, from)?;
    c.not(to)?;
    c.set_label(&mut over)?;
    c.lea(from, qword_ptr(from + 1))
}
