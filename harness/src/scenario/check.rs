//! Checks of relations between keys, and of ranges.

use super::{Buffers, Bytes, Dma, Fault, Memfd, Scenario, handover, inject, own, payload, steps};
use crate::evidence::MemfdEnd;
use guest_agent::device::dma::MAX_RING_ENTRIES;
use guest_agent::pattern::PAGE_BYTES;
use std::collections::BTreeSet;
use std::ops::Range;
use toml::Spanned;
use vmm::devices::dma::MIN_ADDRESS_BITS;

/// What is wrong, and where in the text.
pub(super) struct Problem {
    /// Byte range of the offending value.
    pub span: Range<usize>,
    /// What was found and what is allowed.
    pub message: String,
}

/// Minimum RAM: a guest kernel needs it to reserve scratch and unpack its initramfs.
const MIN_RAM: u64 = 128 << 20;
/// Maximum guest RAM.
const MAX_RAM: u64 = 64 << 30;
/// Maximum number of kexecs in a chain.
const MAX_KEXECS: u32 = 64;
/// Maximum number of virtual processors: the machine's own limit.
const MAX_VCPUS: u32 = vmm::machine::MAX_VCPUS as u32;
/// Slowest rate of the DMA engine, in bytes per second of guest time.
const MIN_RATE: u64 = 1_000;
/// Fastest rate of the DMA engine: the machine's own limit.
const MAX_RATE: u64 = vmm::machine::MAX_RATE;
/// Maximum number of memfds, to keep the report readable.
const MAX_MEMFDS: usize = 64;
/// Maximum number of ledger entries, at 64 bytes of memory each.
const MAX_LEDGER: u64 = 1_000_000;
/// Minimum time of a block with interrupts, in nanoseconds: each interrupt costs the guest about 5 us.
const MIN_INTERRUPT_PERIOD: u64 = 20_000;
/// Bytes of a huge page of x86-64.
const HUGE_PAGE: u64 = 2 << 20;
/// LUO's session name is an array of 64 bytes with a terminating NUL.
const MAX_SESSION_NAME: usize = 63;

pub(super) fn require<T>(ok: bool, at: &Spanned<T>, message: impl FnOnce() -> String) -> Result<(), Problem> {
    if ok {
        Ok(())
    } else {
        Err(Problem {
            span: at.span(),
            message: message(),
        })
    }
}

/// Checks the whole scenario, and returns the first problem.
pub(super) fn check(scenario: &Scenario) -> Result<(), Problem> {
    let name = scenario.name.get_ref();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    require(
        !name.is_empty() && name.len() <= 100 && name.chars().all(plain),
        &scenario.name,
        || format!("found name \"{name}\", expected up to 100 lower-case letters, digits and hyphens"),
    )?;
    let Bytes(ram) = *scenario.ram.get_ref();
    let page = PAGE_BYTES as u64;
    require(
        (MIN_RAM..=MAX_RAM).contains(&ram) && ram.is_multiple_of(page),
        &scenario.ram,
        || {
            let (low, high) = (Bytes(MIN_RAM), Bytes(MAX_RAM));
            format!(
                "found ram of {}, expected {low} to {high}, a multiple of {page} bytes",
                Bytes(ram)
            )
        },
    )?;
    let vcpus = *scenario.vcpus.get_ref();
    require((1..=MAX_VCPUS).contains(&vcpus), &scenario.vcpus, || {
        format!("found {vcpus} vcpus, expected 1 to {MAX_VCPUS}")
    })?;
    let kexecs = *scenario.kexecs.get_ref();
    require((1..=MAX_KEXECS).contains(&kexecs), &scenario.kexecs, || {
        format!("found kexecs = {kexecs}, expected 1 to {MAX_KEXECS}")
    })?;
    let ledger = *scenario.limits.ledger.get_ref();
    require(
        (1..=MAX_LEDGER).contains(&ledger),
        &scenario.limits.ledger,
        || format!("found a ledger of {ledger} entries, expected 1 to {MAX_LEDGER}"),
    )?;
    check_memfds(scenario, ram)?;
    own::check(scenario, ram)?;
    steps::check(scenario)?;
    scenario
        .handover
        .as_ref()
        .map_or(Ok(()), |handover| handover::check(scenario, handover))?;
    scenario
        .payload
        .as_ref()
        .map_or(Ok(()), |payload| payload::check(scenario, payload))?;
    inject::check(scenario)?;
    scenario
        .fault
        .as_ref()
        .map_or(Ok(()), |fault| check_fault(scenario, fault))?;
    scenario
        .dma
        .as_ref()
        .map_or(Ok(()), |dma| check_dma(scenario, dma))?;
    steps::check_beside(scenario)
}

/// An object must be made of whole pages.
pub(super) fn require_pages(what: &str, size: &Spanned<Bytes>) -> Result<(), Problem> {
    let (page, Bytes(bytes)) = (PAGE_BYTES as u64, *size.get_ref());
    require(bytes > 0 && bytes.is_multiple_of(page), size, || {
        format!("found a {what} of {bytes} bytes, expected a multiple of {page}")
    })
}

/// Objects of `total` bytes must leave the kernel a quarter of RAM. `last` is the size of the last one.
pub(super) fn require_room(what: &str, total: u64, ram: u64, last: &Spanned<Bytes>) -> Result<(), Problem> {
    require(total <= ram / 4 * 3, last, || {
        format!(
            "{what} of {} in all, which is more than three quarters of ram, {}",
            Bytes(total),
            Bytes(ram)
        )
    })
}

fn check_memfds(scenario: &Scenario, ram: u64) -> Result<(), Problem> {
    let (mut names, mut tokens, mut total) = (BTreeSet::new(), BTreeSet::new(), 0u64);
    for memfd in &scenario.memfd {
        let name = memfd.name.get_ref();
        require(names.len() < MAX_MEMFDS, &memfd.name, || {
            format!("more than {MAX_MEMFDS} memfds")
        })?;
        require(!name.is_empty() && names.insert(name), &memfd.name, || {
            format!("found memfd name \"{name}\", expected one that is not empty and not taken")
        })?;
        require_pages("memfd", &memfd.size)?;
        total = total.saturating_add(memfd.size.get_ref().0);
        require_room("memfds", total, ram, &memfd.size)?;
        let (session, token) = (&memfd.session, *memfd.token.get_ref());
        require(
            !session.is_empty() && session.len() <= MAX_SESSION_NAME,
            &memfd.name,
            || format!("found session \"{session}\", expected 1 to {MAX_SESSION_NAME} bytes"),
        )?;
        require(tokens.insert((session, token)), &memfd.token, || {
            format!("token {token} is taken in session \"{session}\"")
        })?;
        if let Some(end) = &memfd.end {
            check_end(scenario, memfd, end)?;
        }
        if let Some(hugetlb) = &memfd.hugetlb {
            require(scenario.gives_steps(), hugetlb, || {
                "found hugetlb without steps: no kernel preserves such a memfd, so a run needs a step that says so".into()
            })?;
            let whole = memfd.size.get_ref().0.is_multiple_of(HUGE_PAGE);
            require(whole || !memfd.is_hugetlb(), &memfd.size, || {
                "found hugetlb beside it, expected a multiple of 2 MiB".into()
            })?;
        }
        if let Some(hops) = &memfd.hops {
            let (found, kexecs) = (*hops.get_ref(), *scenario.kexecs.get_ref());
            require((1..=kexecs).contains(&found), hops, || {
                format!("found hops = {found}, expected 1 to {kexecs} (kexecs)")
            })?;
        }
    }
    Ok(())
}

/// A memfd that is not retrieved cannot be preserved again, so it goes over one kexec.
fn check_end(scenario: &Scenario, memfd: &Memfd, end: &Spanned<MemfdEnd>) -> Result<(), Problem> {
    let found = *end.get_ref();
    require(found == MemfdEnd::Retrieved || memfd.hops.is_none(), end, || {
        "found hops beside it, and a memfd that is not retrieved goes over one kexec".into()
    })?;
    let others = scenario
        .memfd
        .iter()
        .filter(|other| other.session == memfd.session);
    require(
        found != MemfdEnd::Left || others.map(Memfd::end).all(|end| end == MemfdEnd::Left),
        end,
        || {
            format!(
                "memfds of session \"{}\" are retrieved or finished, so it is asked for",
                memfd.session
            )
        },
    )
}

fn check_fault(scenario: &Scenario, spanned: &Spanned<Fault>) -> Result<(), Problem> {
    let fault = spanned.get_ref();
    let (dies, complains) = (fault.misbehave.is_some(), fault.provoke.is_some());
    require(dies || complains || fault.keep.is_some(), spanned, || {
        "found none of misbehave, provoke and keep, expected one of them".into()
    })?;
    require(!(dies && complains), spanned, || {
        "found misbehave and provoke, expected one of them: the guest ends at the first".into()
    })?;
    let kexecs = *scenario.kexecs.get_ref();
    require(fault.generation <= kexecs, spanned, || {
        format!(
            "found a fault in generation {}, expected 0 to {kexecs} (kexecs)",
            fault.generation
        )
    })?;
    let Some(name) = &fault.keep else { return Ok(()) };
    let known = |memfd: &Memfd| memfd.name.get_ref() == name.get_ref();
    require(scenario.memfd.iter().any(known), name, || {
        format!("no [[memfd]] is named \"{}\"", name.get_ref())
    })
}

fn check_dma(scenario: &Scenario, spanned: &Spanned<Dma>) -> Result<(), Problem> {
    let dma = spanned.get_ref();
    let rate = dma.rate.get_ref().0;
    require((MIN_RATE..=MAX_RATE).contains(&rate), &dma.rate, || {
        format!("found a rate of {rate} B/s, expected {MIN_RATE} to {MAX_RATE} B/s")
    })?;
    let Bytes(buffer) = *dma.buffer.get_ref();
    let page = PAGE_BYTES as u64;
    require(
        (64..=page).contains(&buffer) && buffer.is_power_of_two(),
        &dma.buffer,
        || {
            format!(
                "found a buffer of {}, expected a power of two from 64 B to 4 KiB",
                Bytes(buffer)
            )
        },
    )?;
    let period = buffer.saturating_mul(1_000_000_000) / rate;
    require(
        !dma.interrupts || period >= MIN_INTERRUPT_PERIOD,
        &dma.rate,
        || {
            format!(
                "a block every {period} ns, expected at least {MIN_INTERRUPT_PERIOD} ns with interrupts: \
             otherwise the guest has no time for anything else"
            )
        },
    )?;
    let ring = *dma.ring.get_ref();
    require((1..=MAX_RING_ENTRIES).contains(&ring), &dma.ring, || {
        format!("found a ring of {ring} entries, expected 1 to {MAX_RING_ENTRIES}")
    })?;
    let bits = *dma.address_bits.get_ref();
    require(
        (MIN_ADDRESS_BITS..=u64::BITS).contains(&bits),
        &dma.address_bits,
        || {
            format!(
                "found {bits} address bits, expected {MIN_ADDRESS_BITS} to {}",
                u64::BITS
            )
        },
    )?;
    if scenario.payload.is_some() {
        return Ok(());
    }
    let memfd = dma_memfd(scenario, dma).ok_or_else(|| match &dma.memfd {
        Some(name) => Problem {
            span: name.span(),
            message: format!("no [[memfd]] is named \"{}\"", name.get_ref()),
        },
        None => Problem {
            span: spanned.span(),
            message: "[dma] needs a [[memfd]] to keep its ring in".into(),
        },
    })?;
    require(memfd.end() == MemfdEnd::Retrieved, spanned, || {
        format!(
            "memfd \"{}\" holds the ring, so it has to be retrieved",
            memfd.name.get_ref()
        )
    })?;
    require(memfd.hops.is_none(), spanned, || {
        format!(
            "memfd \"{}\" holds the ring, so it goes over every kexec and cannot have hops",
            memfd.name.get_ref()
        )
    })?;
    let need = dma_room(dma);
    let Bytes(size) = *memfd.size.get_ref();
    require(need <= size, &memfd.size, || {
        format!(
            "found a memfd of {}, the ring of {ring} entries with its buffers needs {need} bytes",
            Bytes(size)
        )
    })
}

/// Bytes at the start of the ring's memfd that are the engine's. Ring and buffer have passed their checks.
pub(super) fn dma_room(dma: &Dma) -> u64 {
    let entries = *dma.ring.get_ref();
    let buffers = match dma.buffers {
        Buffers::Memfd => u64::from(entries) * dma.buffer.get_ref().0,
        Buffers::Unpreserved => 0,
    };
    crate::plan::bytes_before_buffers(entries) + buffers
}

/// The memfd that holds the ring.
pub(crate) fn dma_memfd<'a>(scenario: &'a Scenario, dma: &Dma) -> Option<&'a Memfd> {
    match &dma.memfd {
        Some(name) => scenario
            .memfd
            .iter()
            .find(|memfd| memfd.name.get_ref() == name.get_ref()),
        None => scenario.memfd.first(),
    }
}
