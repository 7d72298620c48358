//! The `kvm` backend: the host's processor, in real time.
//!
//! ```text
//!  host         opening /dev/kvm: what may be wrong with it, and what to do
//!   |- probe    how fast guest kernel code is, and whether SYSCALL works
//!   `- vm       memory slots, split irqchip, vCPUs (cpuid: the baseline)
//!  live         Processors: threads while the machine runs, none while it stands
//!   |- cpu      KVM_RUN and its exits, one thread per vCPU              kick: stopping one
//!   |   |- debug      hardware breakpoints and steps                     kexec: seeing the jump
//!   |   `- emulate    one instruction on softcpu, where KVM gives up
//!   |- devices  the event loop that drives the devices
//!   |- shared   what the threads share, and how a run ends
//!   |- interrupts, dirty, clock
//!   |- sandbox    what the threads may ask of the host's kernel
//!   `- emulating  workarounds for hosts whose KVM emulates guest kernels
//! ```
//!
//! What may race: guest code and device writes, as on hardware. Device state may not: every access to a device, from a vCPU's exit or
//! from the device thread, is made under the platform's lock. Guest RAM is accessed by the device thread, and by instructions that softcpu
//! executes for KVM, under that lock, too, so that in this process only guests race with anybody. The loader, the collector of
//! evidence and the oracle look at RAM only while no thread runs.

mod clock;
mod cpu;
mod cpuid;
mod debug;
mod devices;
mod dirty;
mod emulate;
mod emulating;
mod host;
mod interrupts;
mod kexec;
mod kick;
mod live;
mod probe;
mod sandbox;
mod shared;
mod state;
mod vm;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm as KvmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

pub use emulating::Workarounds;
pub use host::HostError;
pub use probe::Measured;

use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Backend, PowerOn, Processors};
use crate::vcpu::BackendError;
use clock::Clock;
use cpu::Cpu;
use debug::Debug;
use dirty::Dirty;
use emulate::Emulator;
use interrupts::Interrupts;
use live::Live;
use sandbox::Sandbox;
use shared::Marks;

/// A call that the host refused.
#[derive(Debug, Error)]
#[error("{call}: {reason}")]
pub struct Refused {
    /// The ioctl's name in KVM's documentation, or what else was called.
    pub call: &'static str,
    /// What the system says.
    pub reason: String,
}

impl Refused {
    /// For `map_err` on KVM calls.
    fn at(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self {
            call,
            reason: error.to_string(),
        }
    }

    fn io(call: &'static str, error: &std::io::Error) -> Self {
        Self {
            call,
            reason: error.to_string(),
        }
    }

    fn text(call: &'static str, reason: &str) -> Self {
        Self {
            call,
            reason: reason.to_owned(),
        }
    }
}

impl From<Refused> for BackendError {
    fn from(refused: Refused) -> Self {
        Self {
            backend: "kvm",
            reason: refused.to_string(),
        }
    }
}

/// A host's KVM, measured.
pub struct Kvm {
    kvm: KvmFd,
    measured: Measured,
    workarounds: Workarounds,
    supported: CpuId,
    /// Instructions that softcpu may execute in KVM's place in one run.
    emulations: u64,
}

/// Why there is no such backend.
#[derive(Debug, Error)]
pub enum OpenError {
    /// /dev/kvm cannot be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It can be opened, but no guest can be run on it.
    #[error("KVM here cannot run a guest of a few instructions: {0}; use --backend soft")]
    Probe(#[from] Refused),
}

impl Kvm {
    /// Opens /dev/kvm and measures it, which takes a few milliseconds.
    pub fn open() -> Result<Self, OpenError> {
        let kvm = host::open()?;
        let supported = vm::supported_cpuid(&kvm)?;
        let measured = probe::measure(&kvm, &supported)?;
        Ok(Self {
            workarounds: Workarounds::for_host(&measured),
            measured,
            supported,
            kvm,
            emulations: emulate::LIMIT,
        })
    }

    /// Uses these workarounds instead of those that the host needs: for tests of the workarounds themselves.
    #[must_use]
    pub fn with_workarounds(self, workarounds: Workarounds) -> Self {
        Self { workarounds, ..self }
    }

    /// Sets the most instructions that softcpu executes in KVM's place in one run. A guest that needs more ends with an
    /// unknown instruction.
    #[must_use]
    pub fn with_emulation_limit(self, instructions: u64) -> Self {
        Self {
            emulations: instructions,
            ..self
        }
    }

    /// What was measured.
    #[must_use]
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// What this host needs.
    #[must_use]
    pub fn workarounds(&self) -> &Workarounds {
        &self.workarounds
    }

    /// KVM's API version.
    #[must_use]
    pub fn api_version(&self) -> i32 {
        self.kvm.get_api_version()
    }
}

impl std::fmt::Debug for Kvm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kvm")
            .field("measured", &self.measured)
            .field("workarounds", &self.workarounds)
            .finish_non_exhaustive()
    }
}

impl Backend for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn gigabyte_pages(&self) -> bool {
        cpuid::has_gigabyte_pages(&self.supported)
    }

    fn is_repeatable(&self) -> bool {
        false
    }

    fn command_line(&self) -> &str {
        self.workarounds.command_line()
    }

    fn power_on(
        &self,
        ram: Arc<GuestRam>,
        platform: &mut Platform,
        request: &PowerOn,
    ) -> Result<Box<dyn Processors>, BackendError> {
        if request.count > 1 && self.workarounds.fix_syscall {
            return Err(BackendError {
                backend: "kvm",
                reason: format!(
                    "{} processors: expected 1 on this host, whose KVM emulates guest kernels and runs user code on a second processor \
                     into faults; use --backend soft",
                    request.count
                ),
            });
        }
        kick::install_handler().map_err(|error| Refused::io("sigaction", &error))?;
        let vm = vm::create(&self.kvm, &self.workarounds)?;
        let slots = vm::add_memory(&vm, &ram)?;
        let mut cpus = Vec::new();
        for index in 0..request.count {
            let registers = (index == 0).then_some(&request.registers);
            let fd = vm::add_vcpu(
                &self.supported,
                &vm,
                index,
                request.count,
                registers,
                &self.workarounds,
            )?;
            cpus.push(Cpu {
                index: index.into(),
                fd,
                debug: Debug::new(),
                emulator: Emulator::new(Arc::clone(&ram), self.emulations)?,
                workarounds: self.workarounds,
                ram: Arc::clone(&ram),
            });
        }
        platform.bus.outbox = Some(Vec::new());
        let wake = EventFd::new(libc::EFD_NONBLOCK).map_err(|error| Refused::io("eventfd", &error))?;
        Ok(Box::new(Live {
            ticks: cpus.iter().map(|_| Mutex::default()).collect(),
            cpus,
            dirty: Dirty::new(&slots),
            interrupts: Interrupts::default(),
            sandbox: Sandbox::new()?,
            clock: Clock::new(self.workarounds.slowdown),
            wake,
            marks: Marks::default(),
            last: 0,
            at_entry: None,
            untold: VecDeque::new(),
            vm,
            _ram: ram,
        }))
    }
}
