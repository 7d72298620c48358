//! What the machine needs of its processors taken together: how they run, share time with the devices, and what they can tell.
//!
//! Two kinds exist. [`crate::soft`] runs processors and devices in turn on one thread and is a pure function of its inputs;
//! [`crate::kvm`] runs each processor and the devices on threads of their own, in real time.

mod idle;
mod state;
mod turn;

use std::sync::Arc;

use crate::memory::GuestRam;
pub use crate::platform::DeviceEvent;
use crate::platform::Platform;
use crate::vcpu::{BackendError, CpuWrite, Registers};
pub use idle::Idle;
pub use state::{ProcessorsState, SteppedState};
pub use turn::{Activity, Turn};

/// Why processors came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The time that was given is over.
    Limit,
    /// A device has something to say.
    DeviceEvent(DeviceEvent),
    /// There was no sign of progress for too long.
    Stuck,
    /// No processor can go on, and nothing can wake one.
    DeadHalt {
        /// Whether interrupts are enabled; nothing would raise one.
        interruptible: bool,
    },
    /// A processor is about to execute at privilege level 0 in the lower half of the address space.
    LowSupervisorFetch {
        /// Address of the instruction, not yet executed.
        rip: u64,
        /// Guest time at which the old kernel was surely still running, where the backend could not see the very moment.
        not_before: Option<u64>,
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
        /// What was made of it.
        what: String,
    },
}

/// All processors of a machine.
pub trait Processors {
    /// Runs until something happens or until guest time `limit`.
    fn run(&mut self, platform: &mut Platform, limit: u64) -> Result<StopReason, BackendError>;
    /// Lets time pass up to `until` while the processors stand and the devices go on. Ends early when the ledger is full.
    fn stand(&mut self, platform: &mut Platform, until: u64) -> Result<(), BackendError>;
    /// Guest time in nanoseconds.
    fn now(&self) -> u64;
    /// Instructions retired by all processors so far; `None` where they are not counted.
    fn retired(&self) -> Option<u64>;
    /// Instructions retired when the one at guest time `time` was executed, where that is known.
    fn instructions_at(&self, time: u64) -> Option<u64>;
    /// Registers of the processor that had to do with what happened last.
    fn registers(&self) -> Registers;
    /// Whether to come back with [`StopReason::LowSupervisorFetch`]. A booting kernel may execute in the lower half, so it is
    /// wanted only once the agent has spoken.
    fn watch_for_kexec(&mut self, wanted: bool);
    /// The next kernel is loaded and the agent is about to jump into it. `machine_kexec` is the address of that function, if
    /// symbols are at hand.
    fn expect_kexec(&mut self, ram: &GuestRam, machine_kexec: &dyn Fn() -> Option<u64>);
    /// Whether every processor write to this page frame is recorded from now on, where the backend can.
    fn watch_writes(&mut self, pfn: u64, on: bool);
    /// The last write to the byte at `address`, if its page is watched and was written.
    fn last_write(&self, address: u64) -> Option<CpuWrite>;
    /// Hands each page's first write since the last [`Processors::begin_write_epoch`] to `each`.
    fn epoch_writes(&mut self, each: &mut dyn FnMut(CpuWrite)) -> Result<(), BackendError>;
    /// Most that the host was late in serving a device that had something to do, in guest nanoseconds: 0 where devices are
    /// always served in time.
    fn device_lateness(&self) -> u64 {
        0
    }
    /// How often each instruction was executed by softcpu in the backend's place, by mnemonic.
    fn emulated(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    /// Whether page writes are known by instruction and time, and not only by page and epoch.
    fn writes_are_exact(&self) -> bool;
    /// Forgets first writes, so that each page's next write is a first one again.
    fn begin_write_epoch(&mut self) -> Result<(), BackendError>;
    /// When user code last entered the kernel.
    fn left_user_at(&self) -> Option<u64>;
    /// When user code was first entered since [`Processors::reset_user_marks`].
    fn entered_user_at(&self) -> Option<u64>;
    /// Forgets both marks.
    fn reset_user_marks(&mut self);
    /// Their whole state as data.
    fn state(&self) -> ProcessorsState;
}

/// What processors are to begin with.
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
    /// Whether it learns of the processors' writes from the host's page tables, which must then not have huge pages in them.
    fn logs_whole_pages(&self) -> bool {
        false
    }
    /// Host nanoseconds per nanosecond of device time: more than 1 where guest code is slower than devices expect.
    fn slowdown(&self) -> u32 {
        1
    }
    /// Whether its processors have 1 GiB pages.
    fn gigabyte_pages(&self) -> bool;
    /// Whether processors beyond the first wait in firmware for the ACPI wakeup mailbox ([`crate::boot::wakeup`]), which takes
    /// 1 GiB pages; if not, they wait for INIT and start-up interrupts.
    fn starts_by_mailbox(&self) -> bool {
        false
    }
    /// Whether a run is a function of its inputs, so that it can be had again.
    fn is_repeatable(&self) -> bool;
    /// What guest kernels have to be told on this host, for their command line.
    fn command_line(&self) -> &str {
        ""
    }
    /// Makes the processors of a machine with this memory. The platform's interrupt controllers are made for them.
    fn power_on(
        &self,
        ram: Arc<GuestRam>,
        platform: &mut Platform,
        request: &PowerOn,
    ) -> Result<Box<dyn Processors>, BackendError>;
}
