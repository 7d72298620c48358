//! Each kind of record as an [`Item`].

use super::At;
use super::item::Item;
use super::text::millis;
use crate::evidence::{Captures, CpuWrite, EventCause, PAGE, PageContent, PhaseRecord, describe};
use guest_agent::pattern::Pattern;
use std::borrow::Cow;
use vmm::devices::{ioapic, lapic, pci, uart};
use vmm::ledger::{EngineEvent, EngineEventKind, Entry};
use vmm::phase::{Phase, Stamp};
use vmm::trace::{Kind, Record};

fn stamped(time: u64, stamp: Stamp) -> At {
    At {
        time_ns: Some(time),
        generation: Some(stamp.generation.into()),
        phase: Some(stamp.phase),
        ..At::default()
    }
}

/// A record of the trace.
#[derive(PartialEq)]
pub(super) struct Traced {
    pub record: Record,
    pub instructions: Option<u64>,
}

impl Item for Traced {
    fn at(&self) -> At {
        At {
            time_ns: Some(self.record.time),
            instructions: self.instructions,
            processor: Some(self.record.processor),
            ..At::default()
        }
    }

    fn words(&self) -> (String, &'static str, String) {
        let Record {
            address, value, size, ..
        } = self.record;
        let port = |what: &str| format!("{what} port {address:#x}{}{}", bytes(size), port_name(address));
        let memory = |what: &str| format!("{what} {address:#x}{}{}", bytes(size), memory_name(address));
        let msr = |what: &str| format!("{what} MSR {address:#x}");
        let sent = || format!("{address} bytes with XXH3 {value:#018x}");
        let number = || format!("{value:#x}");
        match self.record.kind {
            Kind::PortRead => (port("read of"), "gave", number()),
            Kind::PortWrite => (port("write to"), "set", number()),
            Kind::MmioRead => (memory("read of"), "gave", number()),
            Kind::MmioWrite => (memory("write to"), "set", number()),
            Kind::MsrRead => (msr("read of"), "gave", number()),
            Kind::MsrReadFault => (msr("read of"), "gave", "a general protection fault".into()),
            Kind::MsrWrite => (msr("write to"), "set", number()),
            Kind::MsrWriteFault => (
                msr("write to"),
                "gave",
                format!("a general protection fault for {value:#x}"),
            ),
            Kind::Interrupt => ("interrupt".into(), "had", format!("vector {value:#x}")),
            Kind::Nmi => ("NMI".into(), "came", String::new()),
            Kind::Message => ("message from the agent".into(), "had", sent()),
            Kind::Answer => ("answer of the host".into(), "had", sent()),
            Kind::Phase => {
                let phase = usize::try_from(value)
                    .ok()
                    .and_then(|index| Phase::ALL.get(index));
                let name = phase.map_or("no phase that is known", |phase| phase.name());
                (
                    "phase".into(),
                    "became",
                    format!("{name} of generation {address}"),
                )
            }
        }
    }
}

/// Size of an access in words; empty for one byte, the size of nearly every device register.
fn bytes(size: u8) -> String {
    match size {
        1 => String::new(),
        size => format!(", {size} bytes"),
    }
}

fn port_name(port: u64) -> &'static str {
    const UART: std::ops::Range<u64> = uart::PORT as u64..uart::PORT as u64 + uart::PORTS as u64;
    match port {
        port if UART.contains(&port) => " (serial port)",
        port if (pci::ADDRESS_PORT.into()..u64::from(pci::DATA_PORT) + 4).contains(&port) => {
            " (PCI configuration)"
        }
        _ => "",
    }
}

fn memory_name(address: u64) -> &'static str {
    match address & !(PAGE - 1) {
        lapic::BASE => " (local APIC)",
        ioapic::BASE => " (I/O APIC)",
        page if (pci::WINDOW_START.into()..=u64::from(pci::WINDOW_LAST)).contains(&page) => " (PCI function)",
        _ => "",
    }
}

impl Item for &Entry {
    fn at(&self) -> At {
        stamped(self.time, self.stamp)
    }

    fn words(&self) -> (String, &'static str, String) {
        let Entry {
            index,
            address,
            length,
            checksum,
            withheld,
            ..
        } = self;
        let withheld = withheld.map_or(String::new(), |by| format!(", withheld by injection {by}"));
        let value = format!(
            "{}, {length} bytes at {address:#x} with XXH3 {checksum:#018x}{withheld}",
            describe(self)
        );
        (format!("ledger entry {index}"), "was", value)
    }
}

impl Item for &EngineEvent {
    fn at(&self) -> At {
        stamped(self.time, self.stamp)
    }

    fn words(&self) -> (String, &'static str, String) {
        let value = match self.kind {
            EngineEventKind::Start => "enabled".into(),
            EngineEventKind::Stop => "disabled".into(),
            EngineEventKind::Reset => "reset".into(),
            EngineEventKind::BusMaster { on, obeyed } => format!(
                "bus master {}, {}",
                if on { "on" } else { "off" },
                if obeyed { "obeyed" } else { "not obeyed" }
            ),
            EngineEventKind::Fault {
                reason,
                address,
                length,
                descriptor,
            } => {
                let descriptor = descriptor.map_or(String::new(), |index| format!(", descriptor {index}"));
                format!(
                    "a fault, {}: {length} bytes at {address:#x}{descriptor}",
                    reason.text()
                )
            }
            EngineEventKind::WaitBegin => "waiting for a descriptor".into(),
            EngineEventKind::WaitEnd => "given a descriptor".into(),
            EngineEventKind::Injected { injection } => format!("acted on by injection {injection}"),
        };
        ("DMA engine".into(), "was", value)
    }
}

/// The cause of an engine event.
#[derive(PartialEq)]
pub(super) struct Caused<'a> {
    pub cause: &'a EventCause,
    pub event: Option<&'a EngineEvent>,
}

impl Item for Caused<'_> {
    fn at(&self) -> At {
        let at = self.event.map(|event| stamped(event.time, event.stamp));
        At {
            instructions: self.cause.instructions,
            ..at.unwrap_or_default()
        }
    }

    fn words(&self) -> (String, &'static str, String) {
        let EventCause { event, rip, cpl, .. } = self.cause;
        let value = format!("the instruction before {rip:#x} at privilege level {cpl}");
        (format!("cause of engine event {event}"), "was", value)
    }

    fn function(&self) -> Option<String> {
        self.cause.symbol.clone()
    }
}

impl Item for &CpuWrite {
    fn at(&self) -> At {
        At {
            time_ns: Some(self.time_ns),
            instructions: self.instructions,
            processor: None,
            generation: Some(self.generation),
            phase: Some(self.phase),
        }
    }

    fn words(&self) -> (String, &'static str, String) {
        let subject = format!("first CPU write to page {:#x}", self.address / PAGE);
        let by = match (self.rip, &self.symbol) {
            (_, Some(symbol)) => format!(" by {symbol}"),
            (Some(rip), None) => format!(" by {rip:#x}"),
            (None, None) => String::new(),
        };
        let level = self.cpl;
        (
            subject,
            "went",
            format!("to {:#x}{by} at privilege level {level}", self.address),
        )
    }

    fn function(&self) -> Option<String> {
        self.symbol.clone()
    }
}

/// A phase without its host time.
pub(super) struct Passed<'a>(pub &'a PhaseRecord);

impl PartialEq for Passed<'_> {
    fn eq(&self, other: &Self) -> bool {
        let timeless = |record: &PhaseRecord| PhaseRecord {
            wall_us: 0,
            ..record.clone()
        };
        timeless(self.0) == timeless(other.0)
    }
}

impl Item for Passed<'_> {
    fn at(&self) -> At {
        At {
            time_ns: Some(self.0.begin_ns.saturating_add(self.0.guest_ns)),
            generation: Some(self.0.generation),
            phase: Some(self.0.phase),
            ..At::default()
        }
    }

    fn words(&self) -> (String, &'static str, String) {
        let counted = |count| format!(", {count} instructions");
        let value = format!(
            "{} from {} on{}",
            millis(self.0.guest_ns),
            millis(self.0.begin_ns),
            self.0.instructions.map_or(String::new(), counted)
        );
        let PhaseRecord {
            generation, phase, ..
        } = self.0;
        (format!("phase {phase} of generation {generation}"), "took", value)
    }
}

/// A page of memory.
pub(super) struct Page<'a> {
    pub at: At,
    pub subject: String,
    pub bytes: Bytes<'a>,
}

/// Content of a page.
#[derive(PartialEq)]
pub(super) enum Bytes<'a> {
    /// Page `index` of the pattern of this seed.
    Pattern { seed: u64, index: u64 },
    /// These bytes.
    Raw(Cow<'a, [u8]>),
    /// Outside guest RAM.
    Unreadable,
}

impl Bytes<'_> {
    pub fn captured(captures: &Captures, content: PageContent, pattern: Option<(u64, u64)>) -> Self {
        match (content, pattern) {
            (PageContent::Pattern, Some((seed, index))) => Self::Pattern { seed, index },
            _ => captures
                .bytes_without_pattern(content)
                .map_or(Self::Unreadable, |bytes| Self::Raw(bytes.to_vec().into())),
        }
    }

    fn get(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Pattern { seed, index } => Some(Pattern::new(*seed).page(*index).to_vec().into()),
            Self::Raw(bytes) => Some(Cow::Borrowed(bytes)),
            Self::Unreadable => None,
        }
    }
}

impl PartialEq for Page<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, &self.subject) == (other.at, &other.subject)
            && (self.bytes == other.bytes || self.bytes.get() == other.bytes.get())
    }
}

impl Item for Page<'_> {
    fn at(&self) -> At {
        self.at
    }

    fn words(&self) -> (String, &'static str, String) {
        let value = match self.bytes.get() {
            Some(bytes) => format!("content with XXH3 {:#018x}", xxhash_rust::xxh3::xxh3_64(&bytes)),
            None => "no memory behind it".into(),
        };
        (self.subject.clone(), "had", value)
    }

    fn side_by_side(&self, other: &Self) -> Option<[String; 2]> {
        let (one, other) = (self.bytes.get()?, other.bytes.get()?);
        let at = one.iter().zip(&*other).position(|(one, other)| one != other)?;
        Some([one[at], other[at]].map(|byte| format!("{byte:#04x} at byte {at:#x}")))
    }
}

/// Anything else that has a name and a value.
#[derive(Debug, PartialEq)]
pub(super) struct Fact {
    pub at: At,
    pub subject: String,
    pub verb: &'static str,
    pub value: String,
}

impl Fact {
    /// A fact without a time.
    pub fn timeless(subject: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            at: At::default(),
            subject: subject.into(),
            verb: "was",
            value: value.into(),
        }
    }
}

impl Item for Fact {
    fn at(&self) -> At {
        self.at
    }

    fn words(&self) -> (String, &'static str, String) {
        (self.subject.clone(), self.verb, self.value.clone())
    }
}
