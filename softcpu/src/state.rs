//! A processor as plain data: everything that what it does next depends on, and everything that can be asked of it.
//!
//! Left out is what follows from the rest or is made again on demand: decoded code, and whatever lives only while an
//! instruction is executed. Restoring drops these, and the guest cannot tell: a run that was saved and restored
//! anywhere goes on as if it had not been. Where other processors have decoded code is left out too, and none has
//! any after a restore: restore all processors of a machine at once. That the processor is halted is known to who got
//! [`crate::Exit::Halted`].

mod translations;

use serde::{Deserialize, Serialize};
pub use translations::{CodeTranslation, DataTranslation, Translations};

use crate::core::Core;
use crate::cpu::Cpu;
use crate::flags;
use crate::hooks::{Hooks, Watches};
use crate::memory::Ram;
use crate::model::CpuModel;
use crate::msr::Msrs;
use crate::registers::Registers;
use crate::sse::state::MXCSR_MASK;

/// The complete state of a [`Cpu`] between two runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// Identity and frequencies.
    pub model: CpuModel,
    /// General, control, segment, SSE and x87 registers.
    pub registers: Registers,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Debug registers DR0 to DR7.
    pub debug: [u64; 8],
    /// Guest time in ticks.
    pub time: u64,
    /// How much of it passed in HLT, not in instructions.
    pub skipped: u64,
    /// A non-maskable interrupt was taken and no IRET has been executed since.
    pub nmi_blocked: bool,
    /// The instruction before (STI, MOV SS) holds interrupts off for one more.
    pub interrupt_shadow: bool,
    /// Stop as soon as an interrupt can be taken.
    pub window_wanted: bool,
    /// Stop after PAUSE.
    pub pause_wanted: bool,
    /// What the TLBs hold.
    pub translations: Translations,
    /// What is watched and what was seen.
    pub watches: Watches,
}

/// Why a [`CpuState`] is none that a processor can be in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A register holds what cannot be loaded into it.
    #[error("{register} is {value:#x}, expected {expected}")]
    Register {
        /// Its name.
        register: &'static str,
        /// Its value.
        value: u128,
        /// What is allowed.
        expected: &'static str,
    },
    /// More time was skipped than passed.
    #[error("{skipped} ticks were skipped of {time} that passed")]
    Time {
        /// Guest time.
        time: u64,
        /// Time skipped.
        skipped: u64,
    },
    /// A page number in a TLB belongs to no canonical address.
    #[error("a TLB translates virtual page {page:#x}, which is not canonical")]
    VirtualPage {
        /// The page number.
        page: u64,
    },
    /// A translation leads to no page of RAM.
    #[error(
        "a TLB translates virtual page {page:#x} to offset {offset:#x}, expected the offset of a page in RAM"
    )]
    Offset {
        /// The page number.
        page: u64,
        /// Where it leads.
        offset: u64,
    },
    /// Translations are not in order of their slots, or two share one.
    #[error("the translation of virtual page {page:#x} does not lie in a slot above the one before")]
    SlotOrder {
        /// The page number.
        page: u64,
    },
    /// An address of what is watched is not in RAM, or not that of a page where one is expected.
    #[error("guest physical address {gpa:#x} of what is watched is no page of RAM")]
    NotRam {
        /// The address.
        gpa: u64,
    },
    /// A list of distinct, ascending items is not.
    #[error("{what} listed twice or out of order: page {page:#x}")]
    Twice {
        /// What is listed.
        what: &'static str,
        /// Guest physical address of the page.
        page: u64,
    },
    /// A write is empty or leaves its page.
    #[error("a write of {len} bytes at {gpa:#x} is empty or leaves its page")]
    WriteLength {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u16,
    },
    /// A write is said to be the last to bytes that it did not write.
    #[error("the last write to 8 bytes number {unit} of page {page:#x} did not write there")]
    Writer {
        /// Guest physical address of the page.
        page: u64,
        /// Number of the 8 bytes in it.
        unit: u16,
    },
}

impl Cpu {
    /// The processor as plain data. `ram` is the RAM it runs on.
    #[must_use]
    pub fn state(&self, ram: &Ram) -> CpuState {
        let Self {
            core,
            // Decoded code is made again when it is reached.
            cache: _,
            scratch: _,
            translator: _,
            translation: _,
            changes: _,
        } = self;
        let Core {
            // In `Registers`; those of the interpreter's own live within an instruction.
            regs: _,
            lazy: _,
            rip: _,
            flags: _,
            segments: _,
            tr: _,
            ldtr: _,
            gdtr: _,
            idtr: _,
            cr0: _,
            cr2: _,
            cr3: _,
            cr4: _,
            cr8: _,
            efer: _,
            xmm: _,
            mxcsr: _,
            fpu: _,
            // The privilege level of CS says it.
            mode_tag: _,
            // Only while the loop runs.
            budget: _,
            saved: _,
            stops: _,
            writer: _,
            fault: _,
            unknown: _,
            stale_code: _,
            native: _,
            translate_after: _,
            // In `Translations`.
            tlb: _,
            code_tlb: _,
            filled: _,
            filled_code: _,
            large_regions: _,
            large_global_regions: _,
            until,
            shadow_until,
            // A single-step trap comes at the end of its instruction, and the state is taken between two.
            traps_held_until: _,
            trap_due: _,
            // In RFLAGS.
            resume_until: _,
            window_wanted,
            pause_wanted,
            nmi_blocked,
            skipped,
            dr,
            msrs,
            hooks,
            model,
        } = &**core;
        CpuState {
            model: model.clone(),
            registers: core.registers(),
            msrs: msrs.clone(),
            debug: *dr,
            time: *until,
            skipped: *skipped,
            nmi_blocked: *nmi_blocked,
            interrupt_shadow: until < shadow_until,
            window_wanted: *window_wanted,
            pause_wanted: *pause_wanted,
            translations: Translations::of(core),
            watches: hooks.state(ram),
        }
    }

    /// A processor in the given state, to run on `ram`, which holds what it did when the state was taken.
    ///
    /// # Errors
    /// When no processor can be in that state.
    pub fn from_state(state: &CpuState, ram: &Ram) -> Result<Self, StateError> {
        let CpuState {
            model,
            registers,
            msrs,
            debug,
            time,
            skipped,
            nmi_blocked,
            interrupt_shadow,
            window_wanted,
            pause_wanted,
            translations,
            watches,
        } = state;
        check_registers(registers, debug)?;
        if skipped > time || *time == u64::MAX {
            return Err(StateError::Time {
                time: *time,
                skipped: *skipped,
            });
        }
        let mut cpu = Self::new(model.clone());
        let core = &mut *cpu.core;
        core.set_registers(registers);
        core.msrs = msrs.clone();
        core.dr = *debug;
        core.until = *time;
        core.skipped = *skipped;
        core.nmi_blocked = *nmi_blocked;
        core.shadow_until = if *interrupt_shadow { time + 1 } else { 0 };
        core.set_resume_flag(registers.rflags & flags::RF != 0);
        core.window_wanted = *window_wanted;
        core.pause_wanted = *pause_wanted;
        core.hooks = Hooks::from_state(watches, ram)?;
        translations.put_into(core, ram)?;
        Ok(cpu)
    }
}

/// Refuses what instructions cannot load either and what the rest of the crate relies on.
fn check_registers(registers: &Registers, debug: &[u64; 8]) -> Result<(), StateError> {
    let check = |fine: bool, register: &'static str, value: u128, expected: &'static str| {
        if fine {
            Ok(())
        } else {
            Err(StateError::Register {
                register,
                value,
                expected,
            })
        }
    };
    let rflags = registers.rflags;
    check(rflags & flags::FIXED != 0, "RFLAGS", rflags.into(), "bit 1 set")?;
    check(registers.cr8 <= 15, "CR8", registers.cr8.into(), "at most 15")?;
    let mxcsr = registers.mxcsr;
    check(mxcsr & !MXCSR_MASK == 0, "MXCSR", mxcsr.into(), "bits 15:0 only")?;
    let enabled = debug[7] & 0xff;
    check(enabled == 0, "DR7", debug[7].into(), "no breakpoint enabled")?;
    let fpu = &registers.fpu;
    for value in fpu.registers {
        check(value >> 80 == 0, "an x87 register", value, "80 bits")?;
    }
    check(fpu.opcode >> 11 == 0, "FOP", fpu.opcode.into(), "11 bits")?;
    let mut normal = fpu.clone();
    normal.normalise();
    let agrees = normal.control == fpu.control;
    check(
        agrees,
        "FCW",
        fpu.control.into(),
        "bit 6 set, reserved bits clear",
    )?;
    let agrees = normal.status == fpu.status;
    check(
        agrees,
        "FSW",
        fpu.status.into(),
        "ES and B set when an unmasked exception is pending",
    )
}
