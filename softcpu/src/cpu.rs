//! The processor as its users see it.

use std::fmt;

use crate::access::{Place, page_rest};
use crate::bus::Bus;
use crate::code::{self, CodeCache, CrossingCode};
use crate::core::{CODE_TLB, Core, Ctx, Faulted, stop};
use crate::decode;
use crate::exec::{self, Leave, event};
use crate::flags::{IF, TF};
use crate::memory::{PAGE_BYTES, PAGE_SIZE, Ram};
use crate::mmu::{Tag, slot};
use crate::model::CpuModel;
use crate::op::Op;
use crate::registers::Registers;
use crate::translate::{self, Translation, Translator};

pub use crate::exec::event::Shutdown;

/// Why [`Cpu::run`] came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The time asked for has come.
    Deadline,
    /// An instruction used the bus; it is complete.
    Bus,
    /// HLT; nothing more happens before an interrupt.
    Halted {
        /// Whether interrupts are enabled, so that one can end it.
        interruptible: bool,
    },
    /// An interrupt can be taken now (see [`Cpu::request_interrupt_window`]).
    InterruptWindow,
    /// PAUSE: the guest waits for another processor (see [`Cpu::stop_on_pause`]).
    Pause {
        /// Virtual address of the instruction after it.
        rip: u64,
    },
    /// A fault while delivering a double fault.
    Shutdown(Shutdown),
    /// Kernel code in the lower half of the address space is about to run (see [`Cpu::stop_on_low_supervisor_fetch`]).
    LowSupervisorFetch {
        /// Virtual address of the instruction.
        rip: u64,
    },
    /// An instruction in a watched page is about to run.
    WatchExecute {
        /// Virtual address of the instruction.
        rip: u64,
        /// Guest physical address of the instruction.
        gpa: u64,
    },
    /// A kernel instruction at an awaited virtual address is about to run (see [`Cpu::await_addresses`]).
    WatchAddress {
        /// Virtual address of the instruction.
        rip: u64,
    },
    /// An instruction that the processor should be able to execute and is not.
    Unknown(UnknownInstruction),
}

/// An instruction that this crate has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownInstruction {
    /// Virtual address.
    pub rip: u64,
    /// Bytes at that address (fewer than 15 where the next page is not mapped).
    pub bytes: Vec<u8>,
    /// What is missing.
    pub what: String,
}

impl fmt::Display for UnknownInstruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}: bytes", self.what, self.rip)?;
        self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        let mut decoder =
            iced_x86::Decoder::with_ip(64, &self.bytes, self.rip, iced_x86::DecoderOptions::NONE);
        let insn = decoder.decode();
        if insn.is_invalid() {
            Ok(())
        } else {
            write!(f, " ({:?})", insn.code())
        }
    }
}

/// One processor, with its TLB, its decoded code and its watches.
pub struct Cpu {
    pub(crate) core: Box<Core>,
    pub(crate) cache: CodeCache,
    pub(crate) scratch: Vec<Op>,
    pub(crate) translator: Option<Translator>,
    pub(crate) translation: Translation,
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("now", &self.now())
            .field("registers", &self.registers())
            .finish_non_exhaustive()
    }
}

/// What keeps [`Cpu::run`] from executing on.
enum Obstacle {
    Exit(Exit),
    Fault,
}

impl Cpu {
    /// A processor in the state of [`Registers::default`], at time 0.
    #[must_use]
    pub fn new(model: CpuModel) -> Self {
        Self {
            core: Box::new(Core::new(model)),
            cache: CodeCache::default(),
            scratch: Vec::new(),
            translator: None,
            translation: Translation::default(),
        }
    }

    /// Architectural state. Only meaningful between runs.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.core.registers()
    }

    /// IA32_LSTAR: where SYSCALL goes; 0 after a reset.
    #[must_use]
    pub fn syscall_entry(&self) -> u64 {
        self.core.msrs.lstar
    }

    /// Replaces the architectural state as a reset would: the TLBs are empty afterwards, and no instruction before
    /// holds interrupts off.
    pub fn set_registers(&mut self, state: &Registers) {
        self.core.set_registers(state);
    }

    /// Replaces the registers and keeps what the TLBs hold, as if instructions had loaded them. Not to be used to
    /// change what address translation depends on.
    pub fn load_registers(&mut self, state: &Registers) {
        self.core.put_registers(state);
    }

    /// Chooses which code is translated from now on.
    pub fn translate(&mut self, which: Translation) {
        self.forget_everything();
        self.translator = None;
        self.core.native.reset();
        self.translation = which;
        self.core.translate_after = which.after();
    }

    /// Instructions that translated code has executed, of all that were retired since [`Self::translate`].
    #[must_use]
    pub fn translated(&self) -> u64 {
        self.core.native.executed
    }

    /// Instructions in the block that the translator makes, or would make, of the code at RIP; 1 where none of it is
    /// decoded yet, and where the interpreter goes on. For tests that compare two processors after each block.
    #[must_use]
    pub fn block_length(&mut self) -> u64 {
        let rip = self.core.rip;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let entry = &self.core.code_tlb[slot];
        let here = entry.tag.offset_of(rip, self.core.mode_tag);
        let (Some(page), Some(translator)) = (
            self.cache.pages.get(entry.page as usize).filter(|_| here < PAGE_SIZE),
            &mut self.translator,
        ) else {
            return 1;
        };
        translator.length(page, here, self.core.mode_tag != 0)
    }

    /// Guest time in ticks: instructions retired plus time skipped in HLT.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.core.now()
    }

    /// Instructions retired. An instruction that faults counts, and so does each piece of a repeated string
    /// instruction.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.now() - self.core.skipped
    }

    /// Lets the time stamp counter jump by so many ticks, as if software had written it.
    pub fn shift_tsc(&mut self, by: i64) {
        let offset = &mut self.core.msrs.tsc_offset;
        *offset = offset.wrapping_add_signed(by);
    }

    /// Lets time pass without executing, to `time`; nothing when that is past.
    pub fn skip_to(&mut self, time: u64) {
        let ahead = time.saturating_sub(self.core.until);
        // What holds to the end of the next instruction is not over because time passes.
        let core = &mut self.core;
        for end in [&mut core.shadow_until, &mut core.resume_until] {
            if *end > core.until {
                *end += ahead;
            }
        }
        core.until += ahead;
        core.skipped += ahead;
    }

    /// Whether an interrupt could be taken before the next instruction.
    #[must_use]
    pub fn can_take_interrupt(&self) -> bool {
        self.core.flags & IF != 0 && self.core.now() >= self.core.shadow_until
    }

    /// Asks [`Cpu::run`] to come back as soon as an interrupt can be taken.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.core.window_wanted = wanted;
    }

    /// Whether a non-maskable interrupt could be taken before the next instruction.
    #[must_use]
    pub fn can_take_nmi(&self) -> bool {
        !self.core.nmi_blocked && self.core.now() >= self.core.shadow_until
    }

    /// Takes a non-maskable interrupt, and no other before the next IRET. Only when [`Cpu::can_take_nmi`].
    ///
    /// # Errors
    /// When delivery ends in shutdown.
    pub fn inject_nmi(&mut self, ram: &mut Ram, bus: &mut dyn Bus) -> Result<(), Shutdown> {
        const NMI: u8 = 2;
        self.core.nmi_blocked = true;
        self.inject_interrupt(ram, bus, NMI)
    }

    /// Takes an external interrupt. Only when [`Cpu::can_take_interrupt`].
    ///
    /// # Errors
    /// When delivery ends in shutdown.
    pub fn inject_interrupt(&mut self, ram: &mut Ram, bus: &mut dyn Bus, vector: u8) -> Result<(), Shutdown> {
        let mut cx = Ctx { ram, bus };
        self.core.hooks.cover(cx.ram);
        self.core.set_writer(self.core.rip);
        let delivered = event::deliver(&mut self.core, &mut cx, vector, None, event::Source::Hardware)
            .or_else(|Faulted| event::deliver_fault(&mut self.core, &mut cx));
        self.drop_stale_code();
        self.settle();
        delivered
    }

    /// Makes [`Cpu::run`] return [`Exit::Pause`] after each PAUSE: what spins then need not spin for long.
    pub fn stop_on_pause(&mut self, wanted: bool) {
        self.core.pause_wanted = wanted;
    }

    /// Executes until guest time `until` or until something needs attention.
    pub fn run(&mut self, ram: &mut Ram, bus: &mut dyn Bus, until: u64) -> Exit {
        let mut cx = Ctx { ram, bus };
        self.core.hooks.cover(cx.ram);
        self.core.settle_on(cx.ram);
        loop {
            if self.core.window_wanted && self.can_take_interrupt() {
                return Exit::InterruptWindow;
            }
            let before = self.core.until;
            let left = until.saturating_sub(before);
            if left == 0 {
                return Exit::Deadline;
            }
            let single = self.core.flags & TF != 0;
            let budget = if single {
                1
            } else if self.core.window_wanted && self.core.flags & IF != 0 {
                // Only the shadow of the instruction before holds the interrupt off.
                left.min(self.core.shadow_until - self.core.until)
            } else {
                left
            };
            self.core.until += budget;
            self.core.budget = budget;
            let outcome = self.run_until_stop(&mut cx);
            let stops = self.core.stops;
            let executed = self.core.now() != before;
            self.settle();
            if let Err(exit) = outcome {
                return exit;
            }
            let due = self.core.flags & TF != 0 || std::mem::take(&mut self.core.trap_due);
            let trapped = single && executed && due && self.core.now() >= self.core.traps_held_until;
            if trapped && let Err(exit) = self.single_step_trap(&mut cx) {
                return exit;
            }
            if stops & stop::BUS != 0 {
                return Exit::Bus;
            }
            // A trap ends HLT and PAUSE.
            if stops & stop::HALT != 0 && !trapped {
                return Exit::Halted {
                    interruptible: self.core.flags & IF != 0,
                };
            }
            if stops & stop::PAUSE != 0 && !trapped {
                return Exit::Pause { rip: self.core.rip };
            }
        }
    }

    /// Makes `until` the present again after a run of the loop.
    fn settle(&mut self) {
        self.core.until = self.core.now();
        self.core.budget = 0;
        self.core.saved = 0;
        self.core.stops = 0;
    }

    /// Runs the loop until its budget is spent or cut.
    fn run_until_stop(&mut self, cx: &mut Ctx<'_>) -> Result<(), Exit> {
        loop {
            let leave = exec::run(&mut self.core, &self.cache, cx);
            let obstacle = match leave {
                Leave::Fault => Err(Obstacle::Fault),
                _ if self.core.budget == 0 => Ok(()),
                Leave::Budget => Ok(()),
                Leave::Page => self.reach_code(cx),
                Leave::Decode => self.decode(cx.ram),
                Leave::Crossing => self.decode_crossing(cx),
                Leave::Hot => {
                    self.translate_code();
                    Ok(())
                }
            };
            self.drop_stale_code();
            match obstacle {
                Ok(()) => {}
                Err(Obstacle::Exit(exit)) => return Err(exit),
                Err(Obstacle::Fault) if self.core.fault.unknown => return Err(self.unknown_here(cx)),
                Err(Obstacle::Fault) => {
                    // A fault takes a tick, so that a guest that only faults still gets older.
                    event::deliver_fault(&mut self.core, cx).map_err(Exit::Shutdown)?;
                    self.drop_stale_code();
                }
            }
            if self.core.budget == 0 {
                return Ok(());
            }
        }
    }

    fn single_step_trap(&mut self, cx: &mut Ctx<'_>) -> Result<(), Exit> {
        const BS: u64 = 1 << 14;
        self.core.dr[6] |= BS;
        self.core.fault = crate::core::Exception {
            vector: 1,
            error: None,
            unknown: false,
        };
        let result = event::deliver_trap(&mut self.core, cx).map_err(Exit::Shutdown);
        self.drop_stale_code();
        self.settle();
        result
    }

    /// Makes the code at RIP reachable by the loop, or stops there, or executes one instruction of a watched page.
    fn reach_code(&mut self, cx: &mut Ctx<'_>) -> Result<(), Obstacle> {
        let rip = self.core.rip;
        let page = self.locate_code(cx, rip)?;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let hooks = &mut self.core.hooks;
        let watched = hooks.watches_execution(page);
        let supervisor = self.core.mode_tag == 0;
        let low =
            hooks.low_supervisor_fetch && supervisor && rip >> 47 == 0 && !self.core.code_tlb[slot].passed;
        let (awaited, here) = if supervisor {
            hooks.awaits(rip)
        } else {
            (false, false)
        };
        if watched || low || here {
            if hooks.pass.take() != Some(rip) {
                hooks.pass = Some(rip);
                return Err(Obstacle::Exit(if watched {
                    Exit::WatchExecute {
                        rip,
                        gpa: cx.ram.address_of(page) + rip % PAGE_SIZE,
                    }
                } else if low {
                    Exit::LowSupervisorFetch { rip }
                } else {
                    Exit::WatchAddress { rip }
                }));
            }
            self.core.code_tlb[slot].passed |= low;
        }
        if watched || awaited {
            return self.step_watched(cx);
        }
        self.attach(cx.ram, rip, page);
        self.core.code_tlb[slot].tag = self.core.code_tlb[slot].tag.offered(slot);
        Ok(())
    }

    /// Notes the number of the decoded code for the translation of `va`, which leads to `page`.
    fn attach(&mut self, ram: &Ram, va: u64, page: u64) {
        let tag = Tag::of(va, self.core.mode_tag);
        self.relocate_code(ram, page, tag);
        self.compare_code(ram, page);
        let slot = slot::<CODE_TLB>(va >> 12);
        let entry = &mut self.core.code_tlb[slot];
        entry.page = self.cache.page(page);
        self.cache.enter(entry.page, tag);
        entry.entries = self.cache.pages[entry.page as usize]
            .code
            .entries(entry.tag.offered(slot));
    }

    /// Uses the code that was decoded from another page of RAM, if nothing is known of this one, which is entered by
    /// the same virtual page as that one was, and if both hold the same instructions.
    fn relocate_code(&mut self, ram: &Ram, page: u64, tag: Tag) {
        let Some(before) = self.cache.predecessor(page, tag) else {
            return;
        };
        self.compare_code(ram, before);
        let granules = self.core.hooks.code_map(before);
        let Some(number) = self.cache.number_at(before).filter(|_| granules != 0) else {
            return;
        };
        let [old, new] = [before, page].map(|page| {
            let mut bytes = [0; PAGE_BYTES];
            ram.load_bytes(page, &mut bytes);
            bytes
        });
        if !code::agree(granules, &old, &new) {
            return;
        }
        self.core.detach_code(number);
        self.core.hooks.clear_code(before);
        self.cache.relocate(before, page);
        if self.core.hooks.mark_granules(page, granules) {
            self.core.revoke_writes(page);
        }
    }

    /// Drops code that another processor has decoded, if this one's RAM does not hold the same.
    fn compare_code(&mut self, ram: &Ram, page: u64) {
        let number = self.cache.page(page);
        let Some(proof) = self.cache.pages[number as usize].proof.take() else {
            return;
        };
        let mut bytes = [0; PAGE_BYTES];
        ram.load_bytes(page, &mut bytes);
        if !proof.holds(&bytes) {
            self.forget(page);
        } else if self.core.hooks.mark_granules(page, proof.granules) {
            self.core.revoke_writes(page);
        }
    }

    /// Translates the block at RIP, whose code is decoded.
    fn translate_code(&mut self) {
        let rip = self.core.rip;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let (number, tag) = (self.core.code_tlb[slot].page, self.core.code_tlb[slot].tag);
        if self.translator.is_none() {
            self.translator = Translator::new(&mut self.core, self.translation).ok();
        }
        let (Some(translator), Some(page)) =
            (&mut self.translator, self.cache.pages.get_mut(number as usize))
        else {
            // A host that allows no executable memory.
            self.core.translate_after = 0;
            return;
        };
        let user = self.core.mode_tag != 0;
        match translator.translate(page, number, rip, tag, user) {
            translate::Outcome::Done => {}
            translate::Outcome::FirstTable => {
                self.core.code_tlb[slot].entries = page.code.entries(tag);
            }
            translate::Outcome::OtherTable => {
                for (slot, entry) in self.core.code_tlb.iter_mut().enumerate() {
                    if entry.page == number {
                        entry.entries = page.code.entries(entry.tag.offered(slot));
                    }
                }
            }
            translate::Outcome::Full => {
                translator.clear();
                for page in &mut self.cache.pages {
                    page.code.clear();
                }
                for entry in &mut self.core.code_tlb {
                    entry.entries = translate::no_entries();
                }
            }
        }
    }

    /// Executes one instruction of a watched page, whose translation is known, and ends this run of the loop:
    /// [`Cpu::run`] has to look at everything again before the next one.
    fn step_watched(&mut self, cx: &mut Ctx<'_>) -> Result<(), Obstacle> {
        self.core.until -= self.core.budget - 1;
        self.core.budget = 1;
        let rip = self.core.rip;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let result = loop {
            self.drop_stale_code();
            let page = self.core.code_tlb[slot].offset;
            self.attach(cx.ram, rip, page);
            self.core.code_tlb[slot].tag = self.core.code_tlb[slot].tag.offered(slot);
            let prepared = match exec::run(&mut self.core, &self.cache, cx) {
                Leave::Fault => break Err(Obstacle::Fault),
                _ if self.core.budget == 0 => break Ok(()),
                Leave::Decode => self.decode(cx.ram),
                Leave::Crossing => self.decode_crossing(cx),
                Leave::Hot => {
                    self.translate_code();
                    Ok(())
                }
                // Decoding dropped what was decoded, this page included.
                Leave::Page | Leave::Budget => Ok(()),
            };
            if prepared.is_err() {
                break prepared;
            }
        };
        self.core.code_tlb[slot].tag = self.core.code_tlb[slot].tag.withheld(slot);
        result
    }

    /// RAM offset of the page that holds the instruction at `va`.
    fn locate_code(&mut self, cx: &mut Ctx<'_>, va: u64) -> Result<u64, Obstacle> {
        match self.core.locate_code(cx, va) {
            Ok(Place::Ram(offset)) => Ok(offset),
            Ok(Place::Outside(gpa)) => Err(Obstacle::Exit(Exit::Unknown(UnknownInstruction {
                rip: va,
                bytes: Vec::new(),
                what: format!("instruction fetch from guest physical address {gpa:#x}, which is not RAM"),
            }))),
            Err(Faulted) => {
                // A fault takes a tick: instructions that fault have taken theirs in the loop, this one has not begun.
                self.core.budget -= 1;
                Err(Obstacle::Fault)
            }
        }
    }

    /// Decodes the stretch at RIP, whose page is in the code TLB.
    fn decode(&mut self, ram: &Ram) -> Result<(), Obstacle> {
        let rip = self.core.rip;
        let slot = slot::<CODE_TLB>(rip >> 12);
        let entry = &mut self.core.code_tlb[slot];
        let number = entry.page;
        let Some(page) = self.cache.offset_of(number) else {
            entry.tag = entry.tag.withheld(slot);
            return Ok(());
        };
        if self.cache.pages[number as usize].is_full() {
            self.forget(page);
            return Ok(());
        }
        let mut bytes = [0; decode::STRETCH_BYTES];
        let bytes = &mut bytes[..page_rest(rip).min(decode::STRETCH_BYTES)];
        ram.load_bytes(page + rip % PAGE_SIZE, bytes);
        self.scratch.clear();
        let code = &mut self.cache.pages[number as usize];
        decode::stretch(
            bytes,
            rip % PAGE_SIZE,
            |at| code.find(at).is_some(),
            &mut self.scratch,
        );
        code.add(&self.scratch);
        let end = self
            .scratch
            .last()
            .map_or(1, |op| u64::from(op.off) + u64::from(op.len));
        self.mark_code(page, rip % PAGE_SIZE, (end - rip % PAGE_SIZE).max(1));
        if self.cache.grow(self.scratch.len()) {
            self.forget_everything();
        }
        Ok(())
    }

    /// Decodes the instruction at RIP, which runs on into the next page.
    fn decode_crossing(&mut self, cx: &mut Ctx<'_>) -> Result<(), Obstacle> {
        let rip = self.core.rip;
        let next_va = (rip & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
        let next_page = self.locate_code(cx, next_va)?;
        self.attach(cx.ram, next_va, next_page);
        let next = self.core.code_tlb[slot::<CODE_TLB>(next_va >> 12)].page;
        let here = self.core.code_tlb[slot::<CODE_TLB>(rip >> 12)].page;
        let Some(page) = self.cache.offset_of(here) else {
            return Ok(());
        };
        let mut bytes = [0; 30];
        let first = page_rest(rip).min(15);
        cx.ram.load_bytes(page + rip % PAGE_SIZE, &mut bytes[..first]);
        cx.ram.load_bytes(next_page, &mut bytes[first..first + 15]);
        self.scratch.clear();
        decode::crossing(&bytes[..first + 15], rip % PAGE_SIZE, &mut self.scratch);
        self.mark_code(page, rip % PAGE_SIZE, first as u64);
        let start = u16::try_from(rip % PAGE_SIZE).unwrap_or(0);
        self.mark_code(next_page, 0, 15);
        self.cache.pages[here as usize].crossing = Some(CrossingCode {
            start,
            next,
            ops: self.scratch.clone(),
        });
        Ok(())
    }

    fn mark_code(&mut self, page: u64, from: u64, len: u64) {
        if self.core.hooks.mark_code(page, from, len) {
            self.core.revoke_writes(page);
        }
    }

    /// Drops decoded code that has been written to since the last time.
    fn drop_stale_code(&mut self) {
        for page in std::mem::take(&mut self.core.stale_code) {
            self.forget(page);
        }
    }

    pub(crate) fn forget(&mut self, page: u64) {
        self.core.hooks.clear_code(page);
        if let Some(number) = self.cache.forget(page) {
            self.core.detach_code(number);
        }
    }

    fn forget_everything(&mut self) {
        for page in self.cache.clear() {
            self.core.hooks.clear_code(page);
        }
        for (slot, entry) in self.core.code_tlb.iter_mut().enumerate() {
            entry.detach(slot);
        }
        // Pages are numbered anew from here.
        if let Some(translator) = &mut self.translator {
            translator.clear();
        }
    }

    fn unknown_here(&mut self, cx: &mut Ctx<'_>) -> Exit {
        let rip = self.core.rip;
        let mut bytes = Vec::new();
        for i in 0..15 {
            let mut byte = [0];
            if self.core.read_bytes(cx, rip.wrapping_add(i), &mut byte).is_err() {
                break;
            }
            bytes.push(byte[0]);
        }
        let what = self.core.unknown.take().unwrap_or_default();
        Exit::Unknown(UnknownInstruction { rip, bytes, what })
    }

    /// Tells the processor that something else wrote guest RAM, so that it drops code decoded from there.
    pub fn memory_written(&mut self, ram: &Ram, gpa: u64, len: u64) {
        let mut at = gpa;
        let end = gpa.saturating_add(len);
        while at < end {
            let part = (PAGE_SIZE - at % PAGE_SIZE).min(end - at);
            if let Some(page) = ram.page_offset(at)
                && self.core.hooks.code_overlaps(page + at % PAGE_SIZE, part)
            {
                self.forget(page);
            }
            at += part;
        }
    }
}
