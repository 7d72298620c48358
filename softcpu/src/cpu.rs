//! The processor as its users see it.

use std::fmt;

use crate::bus::Bus;
use crate::code::CodeCache;
use crate::core::{CODE_TLB, Core, Ctx, Faulted, stop};
use crate::exec::{self, Leave, event};
use crate::flags::{IF, TF};
use crate::memory::{PAGE_SIZE, Ram};
use crate::mmu::slot;
use crate::model::CpuModel;
use crate::op::Op;
use crate::registers::Registers;
use crate::share::CodeChange;
use crate::translate::{Translation, Translator};

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
    /// What happened to the code that other processors have to know; `None` if there are none.
    pub(crate) changes: Option<Vec<CodeChange>>,
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
pub(crate) enum Obstacle {
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
            changes: None,
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
            self.cache
                .pages
                .get(entry.page as usize)
                .filter(|_| here < PAGE_SIZE),
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
}
