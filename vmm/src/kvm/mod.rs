//! The `kvm` backend: the host's processor, in real time.
//!
//! ```text
//!  host         opens /dev/kvm and checks its capabilities
//!   |- probe    measures how fast guest kernel code is, and whether SYSCALL works
//!   `- vm       memory slots, split irqchip, vCPUs; cpuid: their CPUID leaves
//!  processors   the trait Processors: one thread per vCPU and one for the devices during a run, none between runs
//!   |- vcpu     KVM_RUN and its exits                     kick: makes KVM_RUN return      io: accesses to devices
//!   |   |- guest_debug  breakpoints and single steps      kexec: what to watch for
//!   |   `- emulate      one instruction on softcpu        emulatable: which ones   exclusive: alone with RAM
//!   |- devices  the event loop that drives the devices
//!   |- shared   what the threads share, and how a run ends
//!   |- msi, dirty, clock      interrupts, written pages, guest time
//!   |- sandbox      seccomp filters of the threads
//!   `- workarounds  for hosts whose KVM emulates guest kernels
//!  registers, xsave, x86      register structures and numbers
//! ```
//!
//! Guest code and device writes race for guest RAM, as on hardware. Nothing else in this process races. Every access to
//! a device is made under the platform's lock, by a vCPU's thread after an exit or by the device thread. The device
//! thread accesses RAM under that lock. softcpu does so too, and only while no vCPU is in the guest. Loader, evidence
//! collection and oracle access RAM between runs.

mod clock;
mod cpuid;
mod devices;
mod dirty;
mod emulatable;
mod emulate;
mod error;
mod exclusive;
mod guest_debug;
mod host;
mod io;
mod kexec;
mod kick;
mod msi;
mod probe;
mod processors;
mod registers;
mod sandbox;
mod shared;
mod vcpu;
mod vm;
mod workarounds;
mod x86;
mod xsave;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm as KvmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

pub use error::KvmError;
pub use host::HostError;
pub use probe::Measured;
pub use workarounds::Workarounds;

use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Backend, PowerOn, Processors};
use crate::vcpu::BackendError;
use clock::GuestClock;
use dirty::DirtyLog;
use emulate::Emulator;
use guest_debug::GuestDebug;
use msi::MsiRoutes;
use processors::KvmProcessors;
use sandbox::Sandbox;
use shared::Recorded;
use vcpu::KvmVcpu;

/// This host's KVM.
pub struct Kvm {
    kvm: KvmFd,
    measured: Measured,
    workarounds: Workarounds,
    supported: CpuId,
    /// Most instructions that softcpu executes in KVM's place in one run.
    emulation_limit: u64,
}

/// Why KVM cannot be used on this host.
#[derive(Debug, Error)]
pub enum OpenError {
    /// /dev/kvm cannot be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It can be opened, but no guest can be run on it.
    #[error("KVM here cannot run a guest of a few instructions: {0}; use --backend soft")]
    Probe(#[from] KvmError),
}

impl Kvm {
    /// Opens /dev/kvm and measures it, which takes some tens of milliseconds.
    pub fn open() -> Result<Self, OpenError> {
        let kvm = host::open()?;
        let supported = vm::supported_cpuid(&kvm)?;
        let measured = probe::measure(&kvm, &supported)?;
        Ok(Self {
            workarounds: Workarounds::for_host(&measured),
            measured,
            supported,
            kvm,
            emulation_limit: emulate::LIMIT,
        })
    }

    /// Uses these workarounds instead of those that the host needs: for tests of the workarounds themselves.
    #[must_use]
    pub fn with_workarounds(self, workarounds: Workarounds) -> Self {
        Self { workarounds, ..self }
    }

    /// Slows device time by this factor instead of the one that was measured.
    #[must_use]
    pub fn with_slowdown(mut self, slowdown: u32) -> Self {
        self.workarounds.slowdown = slowdown.clamp(1, workarounds::MAX_SLOWDOWN);
        self
    }

    /// Sets the most instructions that softcpu executes in KVM's place in one run. A guest that needs more ends with an
    /// unknown instruction.
    #[must_use]
    pub fn with_emulation_limit(self, instructions: u64) -> Self {
        Self {
            emulation_limit: instructions,
            ..self
        }
    }

    /// How this host's KVM behaves.
    #[must_use]
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// The workarounds in use.
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

    fn logs_whole_pages(&self) -> bool {
        true
    }

    fn slowdown(&self) -> u32 {
        self.workarounds.slowdown
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
                    "{} processors: expected 1 on this host, because its KVM emulates guest kernels and user code on a \
                     second processor faults; use --backend soft",
                    request.count
                ),
            });
        }
        kick::install_handler().map_err(|error| KvmError::new("sigaction", error))?;
        let vm = vm::create(&self.kvm, &self.workarounds)?;
        let slots = vm::add_memory(&vm, &ram)?;
        let mut vcpus = Vec::new();
        for index in 0..request.count {
            let start = (index == 0).then_some(&request.registers);
            let fd = vm::add_vcpu(
                &self.supported,
                &vm,
                index,
                request.count,
                start,
                &self.workarounds,
            )?;
            vcpus.push(KvmVcpu {
                index: index.into(),
                fd,
                debug: GuestDebug::new(),
                emulator: Emulator::new(Arc::clone(&ram), self.emulation_limit)?,
                workarounds: self.workarounds,
                ram: Arc::clone(&ram),
            });
        }
        platform.bus.outbox = Some(Vec::new());
        let wake = EventFd::new(libc::EFD_NONBLOCK).map_err(|error| KvmError::new("eventfd", error))?;
        Ok(Box::new(KvmProcessors {
            timers: vcpus.iter().map(|_| Mutex::default()).collect(),
            vcpus,
            dirty: DirtyLog::new(&slots),
            msi_routes: MsiRoutes::default(),
            sandbox: Sandbox::new()?,
            clock: GuestClock::new(self.workarounds.slowdown),
            wake,
            recorded: Recorded::default(),
            last: 0,
            at_entry: None,
            pending: VecDeque::new(),
            vm,
            _ram: ram,
        }))
    }
}
