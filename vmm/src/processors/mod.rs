//! The interface between a machine and all its processors.
//!
//! Two backends implement it. [`crate::soft`] runs processors and devices in turn on one thread and is a pure function
//! of its inputs; [`crate::kvm`] runs each processor and the devices on threads of their own, in real time.

mod idle;
mod state;
mod turn;

use std::sync::Arc;

use crate::memory::GuestRam;
pub use crate::platform::DeviceEvent;
use crate::platform::Platform;
use crate::vcpu::{BackendError, CpuWrite, Look, Registers};
pub use crate::vcpu::{Translation, WarmCode};
pub use idle::Idle;
pub use state::{ProcessorsState, SteppedState};
pub use turn::{Activity, Turn};

/// Why [`Processors::run`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// Guest time reached the limit of [`Processors::run`].
    Limit,
    /// A device needs the host.
    DeviceEvent(DeviceEvent),
    /// The guest showed no sign of progress for longer than [`crate::platform::Progress`] allows.
    NoProgress,
    /// All processors are halted, and nothing can wake one.
    DeadHalt {
        /// Whether interrupts are enabled. If so, no device will ever raise one.
        interruptible: bool,
    },
    /// A processor is about to execute at privilege level 0 in the lower half of the address space.
    LowSupervisorFetch {
        /// Address of the instruction, not yet executed.
        rip: u64,
        /// Lower bound on the time of the jump, in guest nanoseconds; `None` if the backend saw the jump itself.
        not_before: Option<u64>,
    },
    /// A processor is about to execute an awaited instruction of a kernel.
    AwaitedAddress {
        /// Its virtual address.
        rip: u64,
    },
    /// A processor shut down.
    TripleFault {
        /// What the backend knows about it.
        reason: String,
    },
    /// The backend cannot execute an instruction.
    UnknownInstruction {
        /// The instruction's bytes.
        bytes: Vec<u8>,
        /// Disassembly or reason, for messages.
        what: String,
    },
}

/// All processors of a machine.
pub trait Processors {
    /// Runs until there is a [`StopReason`], at the latest to guest time `limit`.
    fn run(&mut self, platform: &mut Platform, limit: u64) -> Result<StopReason, BackendError>;
    /// Lets guest time pass up to `until`: devices work, processors do not. Returns early if [`Platform::holds`].
    fn stand(&mut self, platform: &mut Platform, until: u64) -> Result<(), BackendError>;
    /// Guest time in nanoseconds.
    fn now(&self) -> u64;
    /// Instructions retired by all processors so far; `None` where they are not counted.
    fn retired(&self) -> Option<u64>;
    /// Instructions retired when the one at guest time `time` was executed, where that is known.
    fn instructions_at(&self, time: u64) -> Option<u64>;
    /// Registers of the processor that caused the last [`StopReason`].
    fn registers(&self) -> Registers;
    /// Registers of every processor, in the order of their numbers.
    fn all_registers(&self) -> Vec<Registers>;
    /// IA32_LSTAR of each processor, where SYSCALL goes; 0 if its kernel has not set it yet. A processor that cannot be
    /// asked is left out.
    fn syscall_entries(&self) -> Vec<u64>;
    /// Whether [`Processors::run`] returns [`StopReason::LowSupervisorFetch`]. Off until the agent has greeted, because
    /// a booting kernel executes in the lower half, too.
    fn watch_for_kexec(&mut self, wanted: bool);
    /// Whether that shows a kexec which [`Processors::expect_kexec`] has not announced.
    fn sees_unannounced_kexec(&self) -> bool {
        true
    }
    /// Whether [`Processors::run`] returns [`StopReason::AwaitedAddress`], and where: before instructions in kernel
    /// mode whose virtual address is one of these in the bits of `mask`. Not part of the state. Only `soft` can.
    fn await_addresses(&mut self, _addresses: &[u64], _mask: u64) {}
    /// To be called before the agent executes the kexec. `machine_kexec` returns the address of that function in the
    /// running kernel, if its symbols are known.
    fn expect_kexec(&mut self, ram: &GuestRam, machine_kexec: &dyn Fn() -> Option<u64>);
    /// Starts or stops recording the last write to each byte of this page frame, if the backend can.
    fn watch_writes(&mut self, pfn: u64, on: bool);
    /// The last write to the byte at `address`, if its page is watched and was written.
    fn last_write(&self, address: u64) -> Option<CpuWrite>;
    /// Remembers when this page frame is next read or written, if the backend can. The run may go on differently if the
    /// guest relies on stale translations, so this is for runs that only search.
    fn watch_first_access(&mut self, _pfn: u64) {}
    /// Guest time of that access, in nanoseconds; `None` if there was none.
    fn first_access(&self, _pfn: u64) -> Option<u64> {
        None
    }
    /// Calls `each` with each page's first write since the last [`Processors::begin_write_epoch`].
    ///
    /// KVM knows only which pages were written. Such a write is 4096 bytes long, has an instruction pointer of 0, and
    /// its time is the beginning of the epoch.
    fn epoch_writes(&mut self, each: &mut dyn FnMut(CpuWrite)) -> Result<(), BackendError>;
    /// Longest delay between a device's due time and its service, in guest nanoseconds. 0 if devices never wait for the
    /// host.
    fn device_lateness(&self) -> u64 {
        0
    }
    /// How many instructions softcpu executed because KVM could not, by mnemonic.
    fn emulated(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    /// Forgets first writes, so that each page's next write is a first one again.
    fn begin_write_epoch(&mut self) -> Result<(), BackendError>;
    /// When user code last entered the kernel.
    fn left_user_at(&self) -> Option<u64>;
    /// When user code was first entered since [`Processors::reset_user_marks`].
    fn entered_user_at(&self) -> Option<u64>;
    /// Forgets both times.
    fn reset_user_marks(&mut self);
    /// The code that the processors have decoded and translated, for a machine that branches off the same run.
    fn take_code(&mut self) -> Option<WarmCode> {
        None
    }
    /// Uses such code wherever RAM holds the same bytes.
    fn give_code(&mut self, _code: WarmCode) {}
    /// Chooses which guest code is translated to host code from now on, where the backend does so.
    fn translate(&mut self, _which: Translation) {}
    /// What the processor whose turn it is is about to do, on the `soft` backend.
    fn look(&mut self) -> Option<Look> {
        None
    }
    /// The state of all processors.
    fn state(&self) -> ProcessorsState;
}

/// Number and registers of a machine's processors at power-on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerOn {
    /// Number of processors; the first has local APIC identity 0, the others follow.
    pub count: u8,
    /// Registers of the first one; the others wait to be started.
    pub registers: Registers,
}

/// What executes guest code.
pub trait Backend {
    /// The name in options and reports: `soft` or `kvm`.
    fn name(&self) -> &'static str;
    /// Whether it finds the processors' writes through the host's page tables, which must then hold no huge pages.
    fn logs_whole_pages(&self) -> bool {
        false
    }
    /// Which guest code its processors translate to host code. Nothing but speed depends on it.
    fn translation(&self) -> Translation {
        Translation::Off
    }
    /// Host nanoseconds per nanosecond of device time: more than 1 where guest code is slower than devices expect.
    fn slowdown(&self) -> u32 {
        1
    }
    /// Whether its processors support 1 GiB pages.
    fn gigabyte_pages(&self) -> bool;
    /// Whether processors beyond the first wait in firmware for the ACPI wakeup mailbox ([`crate::boot::wakeup`]),
    /// which takes 1 GiB pages; if not, they wait for INIT and start-up interrupts.
    fn starts_by_mailbox(&self) -> bool {
        false
    }
    /// Whether running the same inputs again gives the same result, bit for bit.
    fn is_repeatable(&self) -> bool;
    /// What guest kernels need on their command line on this host.
    fn command_line(&self) -> &str {
        ""
    }
    /// Makes the processors of a machine with this memory, and sets up the platform's interrupt controllers for them.
    fn power_on(
        &self,
        ram: Arc<GuestRam>,
        platform: &mut Platform,
        request: &PowerOn,
    ) -> Result<Box<dyn Processors>, BackendError>;
}
