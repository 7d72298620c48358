//! One block under translation: its code, where it can be left, and how it reaches the guest's registers and memory.
//!
//! # Registers of the host
//!
//! ```text
//! r13            the Core
//! rax, r15       free within an instruction
//! rsp            the host's stack
//! r14, r12       the guest's RAX and RSP
//! rcx, rdx, rbx, rbp, rsi, rdi, r8 to r11: the guest's of the same name
//! ```
//! The guest's R12 to R15 are in the Core, as everything else.
//!
//! # Flags
//!
//! An instruction whose flags are wanted stores them (see [`super::flags`]) at once. What needs them afterwards takes
//! them from the host's flags as long as nothing has changed these, and from memory otherwise. So all flags are in
//! memory wherever the block can be left.

use super::emit::{Alu, Bit, Condition, Emitter, Hole, Reg, Rm, Shift, Size};
use super::kind::{Target, depends_on, set};
use super::layout::{BUDGET, CARRY_BIT, CODES, FLAGS, FREE, FREE2, HOST, RIP, condition, field, in_core};
use std::ops::Range;

use super::CODE_ENTRY_PAGE;
use super::flags;
use super::plan::{End, Plan, Step};
use crate::core::{CODE_TLB, CodeEntry};
use crate::memory::PAGE_SIZE;
use crate::mmu::slot;
use crate::op::{HIGH_BYTE, Op};

/// A branch of a block that leads to another one. It leads to an exit until that other one is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// Where the branch's displacement is.
    pub at: usize,
    /// Virtual address where it leads.
    pub target: u64,
    /// Where the number of the target's code page is compared, if that is another page.
    pub page_at: Option<usize>,
}

/// How flags of an instruction are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// The host's six flags are right.
    All,
    /// OF is clear and AF reads as zero; the others are right.
    Logic,
    /// The same, but the host's OF may be set.
    NoOverflow,
    /// AF reads as zero; the others are right.
    NoAf,
    /// AF reads as zero and OF is SF ^ CF; the others are right.
    ShiftedLeft,
}

/// What is written behind the block because it is seldom reached. Holes are those of [`Writer::punts`] and
/// [`Writer::exits`] at these places.
#[derive(Debug, Clone)]
enum Cold {
    /// The instruction at `rip` is the interpreter's after all. It and what follows, `refund` instructions, did not
    /// happen.
    Punt {
        holes: Range<usize>,
        rip: u64,
        refund: u32,
    },
    /// A branch is taken, and `refund` instructions did not happen.
    Taken { hole: Hole, target: Target, refund: u32 },
    /// An exit to the interpreter.
    Exit { holes: Range<usize>, rip: u64 },
}

/// A block under translation. It is used for one block after the other, because it keeps memory for its lists.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub code: Emitter,
    /// Virtual address of the page.
    pub page: u64,
    pub user: bool,
    /// Where the code will lie, and the code that ends each stay in translated code.
    origin: usize,
    leave: usize,
    length: u32,
    /// Instructions before the one that is being translated.
    done: u32,
    /// Which of the host's flags are the guest's.
    pub host_flags: u8,
    /// Branches to a [`Cold::Punt`] each, and how many of them belong to instructions before.
    pub punts: Vec<Hole>,
    punted: usize,
    /// Branches to a [`Cold::Exit`].
    exits: Vec<Hole>,
    /// An instruction before has found that vector instructions are available.
    pub vectors: bool,
    cold: Vec<Cold>,
    pub links: Vec<Link>,
}

impl Writer {
    /// Translates a block of the page at `page`, to lie at `origin`. `leave` is where [`super::entry`] has the end. The
    /// result is in [`Self::code`] and [`Self::links`].
    pub fn write(&mut self, plan: &Plan, start: u64, page: u64, user: bool, origin: usize, leave: usize) {
        self.code.bytes.clear();
        self.punts.clear();
        self.exits.clear();
        self.cold.clear();
        self.links.clear();
        (self.page, self.user) = (page, user);
        (self.origin, self.leave) = (origin, leave);
        (self.length, self.done) = (plan.length, 0);
        self.host_flags = set::NONE;
        self.punted = 0;
        self.vectors = false;
        self.charge(start);
        for step in &plan.steps {
            self.step(step);
        }
        match plan.end {
            End::Said => {}
            End::Interpreter(offset) => self.exit(page.wrapping_add(offset)),
            End::Next(offset) if offset < PAGE_SIZE => self.go(Target::Near(offset)),
            End::Next(offset) => self.go(Target::Far(offset)),
        }
        self.write_cold();
    }

    /// Takes the block's time, or leaves if there is not enough.
    #[allow(clippy::cast_possible_wrap)] // at most the length of a block
    fn charge(&mut self, start: u64) {
        self.code.alu_imm(Alu::Sub, Size::Q, BUDGET, self.length as i32);
        self.punt_if(condition::CARRY);
        let holes = self.new_punts();
        self.cold.push(Cold::Punt {
            holes,
            rip: self.page.wrapping_add(start),
            refund: self.length,
        });
    }

    fn step(&mut self, step: &Step) {
        self.translate(step);
        let holes = self.new_punts();
        if !holes.is_empty() {
            self.cold.push(Cold::Punt {
                holes,
                rip: self.rip(&step.op),
                refund: self.length - self.done,
            });
        }
        self.done += u32::from(step.kind != super::kind::Kind::Address32);
    }

    /// Leaves the instruction to the interpreter if the condition holds.
    pub fn punt_if(&mut self, condition: Condition) {
        let hole = self.code.jcc(condition);
        self.punts.push(hole);
    }

    /// The branches to a punt since the last call.
    fn new_punts(&mut self) -> Range<usize> {
        let first = std::mem::replace(&mut self.punted, self.punts.len());
        first..self.punted
    }

    /// Instructions of the block after the one that is being translated.
    #[allow(clippy::cast_possible_wrap)] // at most the length of a block
    pub fn after(&self) -> i32 {
        (self.length - self.done - 1) as i32
    }

    /// Virtual address of the instruction.
    pub fn rip(&self, op: &Op) -> u64 {
        self.page.wrapping_add(u64::from(op.off))
    }

    /// Virtual address of the instruction after.
    pub fn next_rip(&self, op: &Op) -> u64 {
        self.rip(op).wrapping_add(u64::from(op.len))
    }

    // Ways out.

    /// Goes on in the interpreter at `rip`.
    fn exit(&mut self, rip: u64) {
        let rip = rip.cast_signed();
        if let Ok(short) = i32::try_from(rip) {
            self.code.mov_imm(Size::Q, RIP, short);
        } else {
            self.code.constant(FREE, rip.cast_unsigned());
            self.code.mov_mr(Size::Q, RIP, FREE);
        }
        let hole = self.code.jmp();
        self.fill_outside(hole, self.leave);
    }

    /// Makes a branch lead to code outside the block.
    fn fill_outside(&mut self, hole: Hole, target: usize) {
        // Distances do not depend on where both lie.
        self.code.fill(hole, target.wrapping_sub(self.origin));
    }

    /// Goes on at `target`.
    pub fn go(&mut self, target: Target) {
        match target {
            Target::Near(offset) => {
                let hole = self.code.jmp();
                self.link_near(hole, offset);
            }
            Target::Far(distance) => self.go_far(self.page.wrapping_add(distance)),
        }
    }

    fn link_near(&mut self, hole: Hole, offset: u64) {
        let target = self.page.wrapping_add(offset);
        self.links.push(Link {
            at: self.origin + hole.0,
            target,
            page_at: None,
        });
        self.exit_by(&[hole], target);
    }

    /// Lets branches that lead nowhere yet lead to an exit.
    fn exit_by(&mut self, branches: &[Hole], rip: u64) {
        let first = self.exits.len();
        self.exits.extend_from_slice(branches);
        let holes = first..self.exits.len();
        self.cold.push(Cold::Exit { holes, rip });
    }

    /// Goes on in another page: in its translated code if the page's translation is at hand and the code there is what
    /// it was when this branch was linked.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // a Core is smaller than 2 GiB
    fn go_far(&mut self, target: u64) {
        let entry = CODES + slot::<CODE_TLB>(target >> 12) * size_of::<CodeEntry>();
        // A number that no code page has, in 32 bits.
        self.code.alu_imm(
            Alu::Cmp,
            Size::D,
            field(entry + CODE_ENTRY_PAGE),
            super::UNLINKED as i32,
        );
        let page_at = self.origin + self.code.here() - 4;
        let other_code = self.code.jcc(condition::NOT_ZERO);
        self.compare(field(entry), self.tag(target));
        let other_page = self.code.jcc(condition::NOT_ZERO);
        let hole = self.code.jmp();
        self.links.push(Link {
            at: self.origin + hole.0,
            target,
            page_at: Some(page_at),
        });
        self.exit_by(&[other_code, other_page, hole], target);
    }

    /// Goes on there if the condition holds. The last instruction of a block needs no refund.
    pub fn branch(&mut self, condition: Condition, target: Target) {
        let hole = self.code.jcc(condition);
        let refund = self.length - self.done - 1;
        match target {
            Target::Near(offset) if refund == 0 => self.link_near(hole, offset),
            _ => self.cold.push(Cold::Taken { hole, target, refund }),
        }
    }

    #[allow(clippy::cast_possible_wrap)] // at most the length of a block
    fn write_cold(&mut self) {
        let mut next = 0;
        // Branches that are taken add exits.
        while let Some(cold) = self.cold.get(next).cloned() {
            next += 1;
            match cold {
                Cold::Punt { holes, rip, refund } => {
                    let here = self.code.here();
                    for hole in &self.punts[holes] {
                        self.code.fill(*hole, here);
                    }
                    self.code.alu_imm(Alu::Add, Size::Q, BUDGET, refund as i32);
                    self.exit(rip);
                }
                Cold::Taken { hole, target, refund } => {
                    self.code.fill(hole, self.code.here());
                    if refund != 0 {
                        self.code.alu_imm(Alu::Add, Size::Q, BUDGET, refund as i32);
                    }
                    self.go(target);
                }
                Cold::Exit { holes, rip } => {
                    let here = self.code.here();
                    for hole in &self.exits[holes] {
                        self.code.fill(*hole, here);
                    }
                    self.exit(rip);
                }
            }
        }
    }

    // Registers.

    /// Where a register of the guest is.
    pub fn place(register: u8) -> Rm {
        match HOST.get(usize::from(register)) {
            Some(host) => Rm::Reg(*host),
            None => Rm::Mem(in_core(register)),
        }
    }

    /// Where a byte register of the guest is. AH to BH are in the Core, with the whole register, until [`Self::back`].
    pub fn byte_place(&mut self, register: u8) -> Rm {
        match HOST.get(usize::from(register & !HIGH_BYTE)) {
            Some(host) if register & HIGH_BYTE != 0 => {
                let mut place = in_core(register & !HIGH_BYTE);
                self.code.mov_mr(Size::Q, place, *host);
                place.disp += 1;
                Rm::Mem(place)
            }
            _ => Self::place(register),
        }
    }

    /// Takes a register back that [`Self::byte_place`] has put into the Core.
    pub fn back(&mut self, register: u8) {
        if let Some(host) = HOST.get(usize::from(register & !HIGH_BYTE))
            && register & HIGH_BYTE != 0
        {
            self.code.mov_rm(Size::Q, *host, in_core(register & !HIGH_BYTE));
        }
    }

    /// The host register that holds a register of the guest, which is `free` if it has to be loaded.
    pub fn load(&mut self, register: u8, free: Reg) -> Reg {
        match Self::place(register) {
            Rm::Reg(host) => host,
            Rm::Mem(mem) => {
                self.code.mov_rm(Size::Q, free, mem);
                free
            }
        }
    }

    /// Stores a result, zero-extended in `value` if it has 32 bits. `value` is not the register's host register.
    pub fn store(&mut self, register: u8, size: Size, value: Reg) {
        match Self::place(register) {
            Rm::Reg(host) => self.code.mov_rm(size, host, value),
            Rm::Mem(mem) if size == Size::D => self.code.mov_mr(Size::Q, mem, value),
            Rm::Mem(mem) => self.code.mov_mr(size, mem, value),
        }
    }

    // Flags.

    /// Makes the host's flags those of the guest that `condition` depends on.
    pub fn need(&mut self, condition: Condition) {
        let depends = depends_on(condition);
        if depends & !self.host_flags == 0 {
            return;
        }
        if depends == set::CF {
            return self.need_carry();
        }
        self.code.movzx(Size::W, FREE, FLAGS);
        self.code.add_al(flags::TO_OVERFLOW);
        self.code.sahf();
        self.host_flags = set::ALL;
    }

    /// Makes the host's CF that of the guest.
    pub fn need_carry(&mut self) {
        if self.host_flags & set::CF == 0 {
            self.code.bit_imm(Bit::Bt, Size::D, FLAGS, CARRY_BIT);
        }
    }

    /// Loads the stored flags into [`FREE`], with AF as it reads.
    pub fn load_flags(&mut self) {
        self.code.movzx(Size::W, FREE, FLAGS);
        self.code.test_al(flags::AF_CLEAR);
        let right = self.code.skip(condition::ZERO);
        self.code.and_ah(!(1 << 4));
        self.code.land(right);
        self.host_flags = set::NONE;
    }

    /// Makes all six flags of the host those of the guest.
    pub fn need_all(&mut self) {
        self.load_flags();
        self.code.add_al(flags::TO_OVERFLOW);
        self.code.sahf();
        self.host_flags = set::ALL;
    }

    /// Notes that an instruction has set flags and stores them if anybody wants them.
    pub fn flags(&mut self, wanted: u8, how: Store) {
        self.host_flags = set::NONE;
        if wanted == set::NONE {
            return;
        }
        self.host_flags = set::ALL;
        self.code.lahf();
        match how {
            Store::All => self.code.set(condition::OVERFLOW, FREE),
            Store::Logic => self.code.mov_byte(FREE, flags::NO_OVERFLOW),
            Store::NoOverflow => {
                self.code.mov_byte(FREE, flags::NO_OVERFLOW);
                self.host_flags = set::ALL & !set::OF;
            }
            Store::NoAf => {
                self.code.mov_byte(FREE, flags::NO_OVERFLOW);
                let clear = self.code.skip(condition::NO_OVERFLOW);
                self.code.mov_byte(FREE, flags::OVERFLOW);
                self.code.land(clear);
            }
            Store::ShiftedLeft => {
                // SF is bit 15 and CF bit 8.
                self.code.mov_rm(Size::D, FREE2, FREE);
                self.code.shift_imm(Shift::Shr, Size::D, FREE2, 7);
                self.code.alu_rm(Alu::Xor, Size::D, FREE2, FREE);
                self.code.alu_imm(Alu::And, Size::D, FREE2, 1 << 8);
                self.code.mov_byte(FREE, flags::NO_OVERFLOW);
                let clear = self.code.skip(condition::ZERO);
                self.code.mov_byte(FREE, flags::OVERFLOW);
                self.code.land(clear);
                self.host_flags = set::NONE;
            }
        }
        self.code.mov_mr(Size::W, FLAGS, FREE);
    }
}
