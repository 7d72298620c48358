//! Configuration of a machine, and errors.

use std::ops::Range;

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::boot::{BootError, HandedOver};
use crate::devices::dma::{DmaConfig, MIN_ADDRESS_BITS};
use crate::injection::{Act, Deed, Injection, MAX_INJECTIONS};
use crate::memory::{LOW_RAM_END, MemoryError, PAGE_SIZE};
use crate::processors::Backend;
use crate::vcpu::BackendError;

/// Slowest rate of the DMA engine, in bytes per second.
pub const MIN_RATE: u64 = 1;
/// Fastest rate of the DMA engine, in bytes per second.
pub const MAX_RATE: u64 = 20_000_000_000;

/// Most processors of a machine, because the guest kernels are configured for that many.
pub const MAX_VCPUS: u8 = 8;

/// Configuration of a machine.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// The kernel, a bzImage.
    pub kernel: Vec<u8>,
    /// The initramfs; may be empty.
    pub initramfs: Vec<u8>,
    /// Kernel command line.
    pub command_line: String,
    /// Seed of everything random that the machine gives to the guest.
    pub seed: u64,
    /// The DMA engine.
    pub dma: DmaConfig,
    /// Guest nanoseconds without a message, console output, phase change or jump after which the run ends.
    pub progress_limit_ns: u64,
    /// Number of processors.
    pub vcpus: u8,
    /// Entries that the ledger has room for, 64 bytes of memory each.
    pub ledger_entries: usize,
    /// Faults on purpose.
    pub injections: Vec<Injection>,
    /// What the kernel is handed over, if it is to boot as another kernel's successor; see [`super::Machine::enter`].
    pub handover: Option<HandedOver>,
    /// RAM at the end of its region below 4 GiB that is a device's own: the memory map reserves it, so that no kernel uses
    /// it. Both ends are multiples of 4096.
    pub device_memory: Option<Range<u64>>,
}

impl MachineConfig {
    /// The seed for the guest's own random number generator.
    #[must_use]
    pub fn rng_seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        for (index, word) in (0_u8..).zip(seed.chunks_exact_mut(8)) {
            word.copy_from_slice(
                &xxh3_64_with_seed(&[b"guest rng ", &[index][..]].concat(), self.seed).to_le_bytes(),
            );
        }
        seed
    }

    pub(super) fn check(&self, backend: &dyn Backend) -> Result<(), MachineError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(MachineError::VcpuCount { found: self.vcpus });
        }
        if !(MIN_RATE..=MAX_RATE).contains(&self.dma.rate) {
            return Err(MachineError::DmaRate { found: self.dma.rate });
        }
        if !(MIN_ADDRESS_BITS..=u64::BITS).contains(&self.dma.address_bits) {
            let found = self.dma.address_bits;
            return Err(MachineError::DmaAddressBits { found });
        }
        if self.progress_limit_ns == 0 {
            return Err(MachineError::ProgressLimit);
        }
        if let Some(found) = &self.device_memory {
            let end = self.ram_bytes.min(LOW_RAM_END);
            let whole = found.start.is_multiple_of(PAGE_SIZE) && found.start < found.end;
            if !whole || found.end != end {
                let found = found.clone();
                return Err(MachineError::DeviceMemory { found, end });
            }
        }
        let mut injections = self.injections.iter().enumerate();
        injections.try_for_each(|(number, injection)| {
            check_injection(number, injection, self.vcpus, backend.is_repeatable())
        })
    }
}

/// Checks injection `number` of a machine with so many processors. `soft` says whether the backend is `soft`.
pub(super) fn check_injection(
    number: usize,
    injection: &Injection,
    vcpus: u8,
    soft: bool,
) -> Result<(), MachineError> {
    let refused = |reason: &str| {
        let reason = reason.to_owned();
        Err(MachineError::Injection { number, reason })
    };
    if let Some(what) = injection.needs_soft().filter(|_| !soft) {
        return refused(&format!(
            "{what}, which the kvm backend cannot; use --backend soft"
        ));
    }
    if let Deed::Act(Act::Nmi { processor } | Act::Unstoppable { processor }) = injection.deed
        && processor >= vcpus
    {
        return refused(&format!(
            "there is no processor {processor}, expected less than {vcpus}"
        ));
    }
    if number >= MAX_INJECTIONS {
        return refused("there are more than 64");
    }
    if injection.repeat.count == 0 || injection.repeat.every == 0 || injection.trigger.nth == 0 {
        return refused("it would never fire: expected a count, a distance and a number of 1 or more");
    }
    Ok(())
}

/// Why a machine cannot be made, or a call was refused.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The number of processors is 0 or too large.
    #[error("{found} processors: expected 1 to {MAX_VCPUS}")]
    VcpuCount {
        /// Number asked for.
        found: u8,
    },
    /// The DMA rate is out of range.
    #[error("DMA rate of {found} bytes per second: expected {MIN_RATE} to {MAX_RATE}")]
    DmaRate {
        /// Rate asked for.
        found: u64,
    },
    /// The engine's number of address bits is out of range.
    #[error("a DMA engine with {found} address bits: expected {MIN_ADDRESS_BITS} to 64")]
    DmaAddressBits {
        /// Number asked for.
        found: u32,
    },
    /// The progress limit is 0.
    #[error("progress limit of 0 ns: expected more")]
    ProgressLimit,
    /// The device's memory is not at the end of RAM below 4 GiB.
    #[error("device memory from {:#x} to {:#x}: expected whole pages that end at {end:#x}", found.start, found.end)]
    DeviceMemory {
        /// What was asked for.
        found: Range<u64>,
        /// Where it has to end.
        end: u64,
    },
    /// An injection cannot be made.
    #[error("injection {number}: {reason}")]
    Injection {
        /// Number of the injection, from 0.
        number: usize,
        /// Why.
        reason: String,
    },
    /// A kernel is to be entered that nothing was handed over to, or that runs already.
    #[error("no kernel waits to be entered with a handover")]
    NothingHanded,
    /// Guest RAM.
    #[error("guest memory")]
    Memory(#[from] MemoryError),
    /// The kernel.
    #[error("kernel cannot be booted")]
    Boot(#[from] BootError),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A part of the state cannot be encoded.
    #[error("the machine's state cannot be encoded: {0}")]
    Encoding(String),
    /// The backend cannot save and restore its state.
    #[error(
        "the kvm backend cannot hold a machine as data, because its processors and their time belong to the host; use --backend soft"
    )]
    NoSnapshot,
    /// A snapshot holds a state that no machine can be in.
    #[error("the snapshot holds an impossible state of the {device}")]
    UnsoundState {
        /// Which part.
        device: &'static str,
    },
    /// The machine was to run although the agent waits for an answer.
    #[error("the machine was told to run on, but the agent waits for the answer to its message")]
    ReplyOwed,
    /// There was an answer, but no message.
    #[error("an answer of {length} bytes was given, but the agent has sent no message")]
    NothingAsked {
        /// Length of the answer.
        length: usize,
    },
    /// The answer is too long for the window.
    #[error("an answer of {length} bytes does not fit the mailbox window of {window} bytes")]
    ReplyTooLong {
        /// Length of the answer.
        length: usize,
        /// Size of the window.
        window: u64,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::dma::BusMaster;

    /// A configuration that passes, around this kernel.
    pub fn config(kernel: Vec<u8>) -> MachineConfig {
        MachineConfig {
            ram_bytes: 32 << 20,
            kernel,
            initramfs: Vec::new(),
            command_line: String::new(),
            seed: 1,
            dma: DmaConfig {
                rate: 100_000_000,
                seed: 1,
                bus_master: BusMaster::Retained,
                ..DmaConfig::default()
            },
            progress_limit_ns: 1_000_000,
            vcpus: 1,
            ledger_entries: crate::ledger::DEFAULT_CAPACITY,
            injections: Vec::new(),
            handover: None,
            device_memory: None,
        }
    }

    #[test]
    fn what_makes_no_machine_is_refused() {
        let check = |change: &dyn Fn(&mut MachineConfig)| {
            let mut config = config(Vec::new());
            change(&mut config);
            config
                .check(&crate::soft::Soft::default())
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(check(&|_| {}), None);
        assert!(
            check(&|config| config.vcpus = 0)
                .unwrap()
                .contains("0 processors")
        );
        assert!(
            check(&|config| config.dma.rate = 0)
                .unwrap()
                .contains("0 bytes per second")
        );
        assert!(check(&|config| config.dma.rate = u64::MAX).is_some());
        assert!(check(&|config| config.dma.address_bits = MIN_ADDRESS_BITS).is_none());
        for bits in [0, MIN_ADDRESS_BITS - 1, 65] {
            let refusal = check(&|config| config.dma.address_bits = bits).unwrap();
            assert!(refusal.contains(&format!("{bits} address bits")), "{refusal}");
        }
        assert!(check(&|config| config.progress_limit_ns = 0).is_some());
    }

    #[test]
    fn what_kvm_cannot_do_is_refused_in_a_sentence() {
        use crate::injection::{Delay, Occurrence, Repeat, Trigger};
        let injection = |act: Act| Injection {
            trigger: Trigger {
                since: None,
                on: Occurrence::Begin,
                nth: 1,
                delay: Delay::Time(0),
            },
            deed: Deed::Act(act),
            repeat: Repeat::ONCE,
        };
        let refused = |act: Act, soft: bool| {
            let checked = check_injection(2, &injection(act), 2, soft);
            checked.err().map(|error| error.to_string())
        };
        let soft_alone = [
            Act::Pend { vector: None },
            Act::Unstoppable { processor: 1 },
            Act::ShiftTsc { by: 1 },
            Act::DelayTimers { by: 1 },
            Act::SlowAccesses { by: 1, ns: 1 },
        ];
        for act in soft_alone {
            assert_eq!(refused(act, true), None, "{act}");
            let told = refused(act, false).expect("it is refused");
            let (first, last) = (
                "injection 2: it ",
                ", which the kvm backend cannot; use --backend soft",
            );
            assert!(told.starts_with(first) && told.ends_with(last), "{told}");
        }
        let both = [Act::Remove, Act::Nmi { processor: 0 }, Act::Burst { blocks: 1 }];
        for act in both {
            assert_eq!(refused(act, false), None, "{act}");
        }
        assert!(
            refused(Act::Nmi { processor: 2 }, true)
                .expect("it is refused")
                .contains("less than 2")
        );
    }

    #[test]
    fn each_seed_gives_the_guest_another() {
        let seed = |seed| {
            MachineConfig {
                seed,
                ..config(Vec::new())
            }
            .rng_seed()
        };
        assert_eq!(seed(1), seed(1));
        assert_ne!(seed(1), seed(2));
        assert_ne!(seed(1)[..8], seed(1)[8..16]);
    }
}
