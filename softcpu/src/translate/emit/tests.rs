//! Each form is decoded by iced, and its text compared.

use super::*;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, MemorySizeOptions};

/// The text of what `write` emits, instructions separated by semicolons.
fn text(write: impl FnOnce(&mut Emitter)) -> String {
    let mut emitter = Emitter::default();
    write(&mut emitter);
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_space_after_operand_separator(true);
    options.set_memory_size_options(MemorySizeOptions::Always);
    options.set_use_pseudo_ops(false);
    options.set_show_branch_size(false);
    let decoder = Decoder::new(64, &emitter.bytes, DecoderOptions::NONE);
    let lines: Vec<String> = decoder
        .into_iter()
        .map(|insn| {
            let mut line = String::new();
            formatter.format(&insn, &mut line);
            line
        })
        .collect();
    lines.join("; ")
}

const NAMES: [[&str; 4]; 16] = [
    ["al", "ax", "eax", "rax"],
    ["cl", "cx", "ecx", "rcx"],
    ["dl", "dx", "edx", "rdx"],
    ["bl", "bx", "ebx", "rbx"],
    ["spl", "sp", "esp", "rsp"],
    ["bpl", "bp", "ebp", "rbp"],
    ["sil", "si", "esi", "rsi"],
    ["dil", "di", "edi", "rdi"],
    ["r8b", "r8w", "r8d", "r8"],
    ["r9b", "r9w", "r9d", "r9"],
    ["r10b", "r10w", "r10d", "r10"],
    ["r11b", "r11w", "r11d", "r11"],
    ["r12b", "r12w", "r12d", "r12"],
    ["r13b", "r13w", "r13d", "r13"],
    ["r14b", "r14w", "r14d", "r14"],
    ["r15b", "r15w", "r15d", "r15"],
];
const SIZES: [Size; 4] = [Size::B, Size::W, Size::D, Size::Q];
const WORDS: [&str; 4] = ["byte", "word", "dword", "qword"];

fn registers() -> impl Iterator<Item = Reg> {
    (0..16).map(Reg)
}

fn name(reg: Reg, size: Size) -> &'static str {
    NAMES[usize::from(reg.0)][size as usize]
}

/// Every register, and memory of every shape, with its text.
fn operands(size: Size) -> Vec<(Rm, String)> {
    let mut all: Vec<(Rm, String)> = registers()
        .map(|reg| (Rm::Reg(reg), name(reg, size).to_owned()))
        .collect();
    let mut put = |mem: Mem, text: String| all.push((Rm::Mem(mem), format!("[{text}]")));
    for base in registers() {
        let base_name = name(base, Size::Q);
        for (disp, tail) in [(0, ""), (-8, "-8"), (0x1234, "+0x1234")] {
            put(Mem::at(base, disp), format!("{base_name}{tail}"));
        }
        for index in registers().filter(|index| *index != Reg(4)) {
            let index_name = name(index, Size::Q);
            put(
                Mem::indexed(base, index, 2, 0x10),
                format!("{base_name}+{index_name}*4+0x10"),
            );
        }
    }
    for index in registers().filter(|index| *index != Reg(4)) {
        let mem = Mem {
            base: None,
            index: Some((index, 3)),
            disp: 0x40,
        };
        put(mem, format!("{}*8+0x40", name(index, Size::Q)));
    }
    all
}

/// The text of an operand where no register tells its size.
fn sized(rm: Rm, text: &str, size: Size) -> String {
    match rm {
        Rm::Reg(_) => text.to_owned(),
        Rm::Mem(_) => format!("{} ptr {text}", WORDS[size as usize]),
    }
}

#[test]
fn an_operand_and_a_register() {
    for size in SIZES {
        for (rm, address) in operands(size) {
            let place = sized(rm, &address, size);
            for reg in registers() {
                let r = name(reg, size);
                assert_eq!(
                    text(|e| e.alu_mr(Alu::Sbb, size, rm, reg)),
                    format!("sbb {place}, {r}")
                );
                assert_eq!(
                    text(|e| e.alu_rm(Alu::Xor, size, reg, rm)),
                    format!("xor {r}, {place}")
                );
                assert_eq!(text(|e| e.mov_mr(size, rm, reg)), format!("mov {place}, {r}"));
                assert_eq!(text(|e| e.mov_rm(size, reg, rm)), format!("mov {r}, {place}"));
                assert_eq!(text(|e| e.test_mr(size, rm, reg)), format!("test {place}, {r}"));
                assert_eq!(
                    text(|e| e.cmpxchg(size, rm, reg)),
                    format!("cmpxchg {place}, {r}")
                );
                assert_eq!(text(|e| e.xadd(size, rm, reg)), format!("xadd {place}, {r}"));
                if size == Size::D || size == Size::Q {
                    assert_eq!(text(|e| e.imul(size, reg, rm)), format!("imul {r}, {place}"));
                    assert_eq!(
                        text(|e| e.imul_imm(size, reg, rm, 0x77)),
                        format!("imul {r}, {place}, 0x77")
                    );
                    assert_eq!(text(|e| e.cmov(4, size, reg, rm)), format!("cmove {r}, {place}"));
                    assert_eq!(
                        text(|e| e.scan(false, size, reg, rm)),
                        format!("bsf {r}, {place}")
                    );
                    assert_eq!(text(|e| e.scan(true, size, reg, rm)), format!("bsr {r}, {place}"));
                    if let Rm::Mem(mem) = rm {
                        assert_eq!(text(|e| e.lea(size, reg, mem)), format!("lea {r}, {address}"));
                    }
                    if let Rm::Reg(register) = rm {
                        assert_eq!(
                            text(|e| e.bit(Bit::Btr, size, register, reg)),
                            format!("btr {place}, {r}")
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn an_operand_and_an_immediate_or_nothing() {
    for size in SIZES {
        for (rm, place) in operands(size) {
            let place = sized(rm, &place, size);
            for (imm, shown) in [(0x12, "0x12"), (0x1234_5678, "0x12345678")] {
                let shown = match size {
                    Size::B if imm != 0x12 => "0x78",
                    Size::W if imm != 0x12 => "0x5678",
                    _ => shown,
                };
                assert_eq!(
                    text(|e| e.alu_imm(Alu::Cmp, size, rm, imm)),
                    format!("cmp {place}, {shown}")
                );
                assert_eq!(
                    text(|e| e.mov_imm(size, rm, imm)),
                    format!("mov {place}, {shown}")
                );
                assert_eq!(
                    text(|e| e.test_imm(size, rm, imm)),
                    format!("test {place}, {shown}")
                );
            }
            for (shift, word) in [
                (Shift::Rol, "rol"),
                (Shift::Ror, "ror"),
                (Shift::Shl, "shl"),
                (Shift::Shr, "shr"),
                (Shift::Sar, "sar"),
            ] {
                assert_eq!(
                    text(|e| e.shift_imm(shift, size, rm, 5)),
                    format!("{word} {place}, 5")
                );
                assert_eq!(
                    text(|e| e.shift_cl(shift, size, rm)),
                    format!("{word} {place}, cl")
                );
            }
            for (unary, word) in [
                (Unary::Not, "not"),
                (Unary::Neg, "neg"),
                (Unary::Mul, "mul"),
                (Unary::Imul, "imul"),
                (Unary::Div, "div"),
            ] {
                assert_eq!(text(|e| e.unary(unary, size, rm)), format!("{word} {place}"));
            }
            assert_eq!(text(|e| e.step(false, size, rm)), format!("inc {place}"));
            assert_eq!(text(|e| e.step(true, size, rm)), format!("dec {place}"));
            if size == Size::B {
                assert_eq!(text(|e| e.set(0xb, rm)), format!("setnp {place}"));
            }
            if size == Size::D || size == Size::Q {
                for (bit, word) in [
                    (Bit::Bt, "bt"),
                    (Bit::Bts, "bts"),
                    (Bit::Btr, "btr"),
                    (Bit::Btc, "btc"),
                ] {
                    assert_eq!(
                        text(|e| e.bit_imm(bit, size, rm, 7)),
                        format!("{word} {place}, 7")
                    );
                }
            }
            if size == Size::Q {
                assert_eq!(text(|e| e.jmp_rm(rm)), format!("jmp {place}"));
            }
        }
    }
}

#[test]
fn extensions() {
    for from in [Size::B, Size::W, Size::D] {
        for (rm, place) in operands(from) {
            let place = sized(rm, &place, from);
            for reg in registers() {
                let (d, q) = (name(reg, Size::D), name(reg, Size::Q));
                if from == Size::D {
                    let expected = format!("movsxd {q}, {place}");
                    assert_eq!(text(|e| e.movsx(from, Size::Q, reg, rm)), expected);
                    continue;
                }
                assert_eq!(text(|e| e.movzx(from, reg, rm)), format!("movzx {d}, {place}"));
                assert_eq!(
                    text(|e| e.movsx(from, Size::D, reg, rm)),
                    format!("movsx {d}, {place}")
                );
                assert_eq!(
                    text(|e| e.movsx(from, Size::Q, reg, rm)),
                    format!("movsx {q}, {place}")
                );
            }
        }
    }
}

#[test]
fn registers_alone() {
    for reg in registers() {
        let (b, d, q) = (name(reg, Size::B), name(reg, Size::D), name(reg, Size::Q));
        assert_eq!(text(|e| e.push(reg)), format!("push {q}"));
        assert_eq!(text(|e| e.pop(reg)), format!("pop {q}"));
        assert_eq!(text(|e| e.bswap(Size::D, reg)), format!("bswap {d}"));
        assert_eq!(text(|e| e.bswap(Size::Q, reg)), format!("bswap {q}"));
        assert_eq!(text(|e| e.mov_byte(reg, 3)), format!("mov {b}, 3"));
        assert_eq!(text(|e| e.constant(reg, 7)), format!("mov {d}, 7"));
        assert_eq!(
            text(|e| e.constant(reg, u64::MAX - 1)),
            format!("mov {q}, 0xfffffffffffffffe")
        );
        assert_eq!(
            text(|e| e.constant(reg, 0x1234_5678_9abc)),
            format!("mov {q}, 0x123456789abc")
        );
    }
}

#[test]
fn vectors() {
    assert_eq!(
        text(|e| {
            e.vector_unaligned(0x6f, 1, Mem::at(Reg::R15, 0x10));
            e.vector_unaligned(0x7f, 0, Mem::at(Reg::R13, 0x1234));
            e.vector(0xd4, 0, 1, None);
            e.vector(0x70, 0, 1, Some(0x4e));
        }),
        "movdqu xmm1, xmmword ptr [r15+0x10]; movdqu xmmword ptr [r13+0x1234], xmm0; paddq xmm0, xmm1; \
         pshufd xmm0, xmm1, 0x4e"
    );
}

#[test]
fn flags_and_branches() {
    assert_eq!(
        text(|e| {
            e.lahf();
            e.sahf();
            e.add_al(0x7f);
            e.test_al(0x82);
            e.and_ah(0xef);
            e.or_ah_al();
            e.sign_to_rdx(Size::D);
            e.sign_to_rdx(Size::Q);
            e.ret();
        }),
        "lahf; sahf; add al, 0x7f; test al, 0x82; and ah, 0xef; or ah, al; cdq; cqo; ret"
    );
    assert_eq!(
        text(|e| {
            let hole = e.jcc(4);
            let skip = e.skip(5);
            e.ret();
            e.land(skip);
            e.fill(hole, 8);
            let back = e.jmp();
            e.fill(back, 0);
        }),
        "je 8; jne 9; ret; jmp 0"
    );
}

#[test]
fn repeated_copies_and_fills() {
    let all = text(|e| {
        for size in SIZES {
            e.rep_movs(size);
            e.rep_stos(size);
        }
    });
    let sizes = ["b", "w", "d", "q"].into_iter().zip(WORDS);
    let expected: Vec<String> = sizes
        .flat_map(|(size, word)| {
            [
                format!("rep movs{size} {word} ptr [rdi], {word} ptr [rsi]"),
                format!("rep stos{size} {word} ptr [rdi]"),
            ]
        })
        .collect();
    assert_eq!(all, expected.join("; "));
}
