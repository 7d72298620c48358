//! Processor state, and the interface of one processor that takes turns with the devices.

use softcpu::registers::CR0_PE;
use thiserror::Error;

pub use softcpu::registers::{CS, Segment, TableRegister};
pub use softcpu::{Bus, CodeChange, CpuState, CpuWrite, Exit, LentCode, Shutdown, Translation, WarmCode};

/// Index of RDI in [`Registers::gpr`].
pub const RDI: usize = softcpu::registers::RDI as usize;
/// Index of RSI in [`Registers::gpr`].
pub const RSI: usize = softcpu::registers::RSI as usize;

/// The registers that booting, findings and crash messages need.
///
/// These are the part of [`softcpu::Registers`] that a backend can give at any exit. KVM would need more system calls
/// for the vector and x87 state, and nothing here reads that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2: address of the last page fault.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// What a processor of the `soft` backend is about to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// All of its registers, those of the FPU included.
    pub registers: softcpu::Registers,
    /// Instructions in the block of code at the instruction pointer. It depends on what is translated.
    pub block: u64,
}

impl From<&softcpu::Registers> for Registers {
    fn from(all: &softcpu::Registers) -> Self {
        Self {
            gpr: all.gpr,
            rip: all.rip,
            rflags: all.rflags,
            segments: all.segments,
            tr: all.tr,
            gdtr: all.gdtr,
            idtr: all.idtr,
            cr0: all.cr0,
            cr2: all.cr2,
            cr3: all.cr3,
            cr4: all.cr4,
            efer: all.efer,
        }
    }
}

impl Registers {
    /// Whether these are the registers of a processor at reset, in real mode. No guest of this machine is ever in real
    /// mode, so KVM has reset the vCPU and its registers are lost. KVM does so at a shutdown on AMD processors.
    #[must_use]
    pub fn were_reset(&self) -> bool {
        const RESET_RIP: u64 = 0xfff0;
        self.rip == RESET_RIP && self.cr0 & CR0_PE == 0
    }

    /// The privilege level: 0 kernel, 3 user.
    #[must_use]
    pub fn privilege(&self) -> u8 {
        (self.segments[CS].selector & 3) as u8
    }

    /// The instruction pointer; `None` if it is lost.
    #[must_use]
    pub fn known_rip(&self) -> Option<u64> {
        (!self.were_reset()).then_some(self.rip)
    }

    /// Sets these registers in `all` and leaves its others as they are.
    pub fn copy_to(&self, all: &mut softcpu::Registers) {
        let Self {
            gpr,
            rip,
            rflags,
            segments,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
        } = *self;
        (all.gpr, all.rip, all.rflags) = (gpr, rip, rflags);
        (all.segments, all.tr, all.gdtr, all.idtr) = (segments, tr, gdtr, idtr);
        (all.cr0, all.cr2, all.cr3, all.cr4, all.efer) = (cr0, cr2, cr3, cr4, efer);
    }
}

/// A processor in long mode with access to guest RAM.
pub trait Vcpu {
    /// The current registers.
    fn registers(&self) -> Registers;
    /// The code that the processor has decoded and translated, if it has any.
    fn take_code(&mut self) -> Option<WarmCode> {
        None
    }
    /// Uses such code of another processor wherever RAM holds the same bytes.
    fn give_code(&mut self, _code: WarmCode) {}
    /// Chooses which guest code is translated to host code from now on, where the backend does so.
    fn translate(&mut self, _which: Translation) {}
    /// All registers, and the instructions in the block of code at the instruction pointer, on the `soft` backend. See
    /// [`softcpu::Cpu::block_length`].
    fn look(&mut self) -> Option<Look> {
        None
    }
    /// IA32_LSTAR: where SYSCALL goes; 0 after power-on.
    fn syscall_entry(&self) -> u64;
    /// Sets the registers.
    fn set_registers(&mut self, registers: &Registers);
    /// Executes to guest time `until`, or to an earlier exit.
    fn run(&mut self, bus: &mut dyn Bus, until: u64) -> Exit;
    /// Guest time in nanoseconds.
    fn now(&self) -> u64;
    /// Lets time pass up to `time` without executing anything.
    fn skip_to(&mut self, time: u64);
    /// Lets the time stamp counter jump by so many nanoseconds.
    fn shift_tsc(&mut self, by: i64);
    /// Instructions retired so far.
    fn retired(&self) -> u64;
    /// CR8. An interrupt is delivered only if the upper four bits of its vector are greater.
    fn task_priority(&self) -> u8;
    /// Whether an interrupt would be taken before the next instruction.
    fn can_take_interrupt(&self) -> bool;
    /// Delivers an external interrupt; allowed only when [`Vcpu::can_take_interrupt`].
    fn inject_interrupt(&mut self, bus: &mut dyn Bus, vector: u8) -> Result<(), Shutdown>;
    /// Whether [`Vcpu::run`] stops as soon as an interrupt can be taken.
    fn request_interrupt_window(&mut self, wanted: bool);
    /// Whether [`Vcpu::run`] stops with [`Exit::Pause`].
    fn stop_on_pause(&mut self, wanted: bool);
    /// Whether a non-maskable interrupt would be taken before the next instruction.
    fn can_take_nmi(&self) -> bool;
    /// Delivers a non-maskable interrupt; allowed only when [`Vcpu::can_take_nmi`].
    fn inject_nmi(&mut self, bus: &mut dyn Bus) -> Result<(), Shutdown>;
    /// Remembers what happens to decoded code from now on, for [`Vcpu::take_code_changes`].
    fn share_code(&mut self) {}
    /// Gives decoded code away, for the processor whose turn comes.
    fn lend_code(&mut self) -> LentCode {
        LentCode::default()
    }
    /// Takes the code that another processor of the machine lends.
    fn receive_code(&mut self, _code: LentCode) {}
    /// What happened to decoded code since the last call. Empty on a machine with one processor.
    fn take_code_changes(&mut self) -> Vec<CodeChange> {
        Vec::new()
    }
    /// Does what such changes by another processor ask for.
    fn follow_code(&mut self, _changes: &[CodeChange]) {}
    /// Drops code decoded from this range, because a device or another processor wrote to it.
    fn memory_written(&mut self, address: u64, length: u64);
    /// Whether [`Vcpu::run`] stops with [`Exit::LowSupervisorFetch`].
    fn stop_on_low_supervisor_fetch(&mut self, wanted: bool);
    /// Makes [`Vcpu::run`] stop with [`Exit::WatchAddress`]. See [`softcpu::Cpu::await_addresses`].
    fn await_addresses(&mut self, _addresses: &[u64], _mask: u64) {}
    /// Starts or stops recording the last write to each byte of this page frame.
    fn watch_writes(&mut self, pfn: u64, on: bool);
    /// The last write to the byte at `address`, if its page is watched and was written.
    fn last_write(&self, address: u64) -> Option<CpuWrite>;
    /// Remembers when this page frame is next read or written. See [`softcpu::Cpu::watch_first_access`].
    fn watch_first_access(&mut self, _pfn: u64) {}
    /// Guest time of that access.
    fn first_access(&self, _pfn: u64) -> Option<u64> {
        None
    }
    /// Calls `each` with each page's first write since the last [`Vcpu::begin_write_epoch`].
    fn epoch_writes(&self, each: &mut dyn FnMut(CpuWrite));
    /// Forgets first writes, so that each page's next write is a first one again.
    fn begin_write_epoch(&mut self);
    /// When user code last entered the kernel.
    fn left_user_at(&self) -> Option<u64>;
    /// When user code was first entered since [`Vcpu::reset_user_marks`].
    fn entered_user_at(&self) -> Option<u64>;
    /// Forgets both times.
    fn reset_user_marks(&mut self);
    /// The whole state; [`crate::soft`] restores an equal processor from it.
    fn state(&self) -> CpuState;
}

/// A backend could not do what a machine needs.
#[derive(Debug, Error)]
#[error("the {backend} backend: {reason}")]
pub struct BackendError {
    /// The backend's name.
    pub backend: &'static str,
    /// What went wrong.
    pub reason: String,
}
