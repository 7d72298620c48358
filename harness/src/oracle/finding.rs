//! Findings: one proven deviation each.

use super::RuleName;
use crate::evidence::{CpuWrite, EventCause, Phase, describe, injected, meant};
use crate::hex;
use serde::{Deserialize, Serialize, Serializer};
use vmm::ledger::{EngineEvent, Entry, LedgerRecord};

/// Maximum number of findings kept per rule; further ones are only counted.
pub const MAX_KEPT: usize = 64;

/// Most differing bytes that a finding shows.
const SHOWN_BYTES: usize = 16;

/// One proven deviation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which rule found it.
    pub rule: RuleName,
    /// Page frame number, where it is about a page.
    pub page: Option<u64>,
    /// Guest physical address of the first byte concerned; `None` if the finding is not about bytes.
    pub address: Option<u64>,
    /// Whose page it is.
    pub owner: String,
    /// The expected state: bytes in hexadecimal, or words.
    pub expected: String,
    /// What is.
    pub actual: String,
    /// Who wrote there last.
    pub last_writer: Writer,
    /// The finding in one sentence.
    pub text: String,
    /// The question about the author that a second run could answer.
    #[serde(skip)]
    pub question: Option<Question>,
    /// Numbers of the injections, from 0, that explain it.
    pub explained_by: Vec<u32>,
}

/// "Who wrote this byte last, as of this checkpoint?"
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Checkpoint, by index.
    pub checkpoint: usize,
    /// Guest physical address of the byte.
    pub address: u64,
}

/// The author of a finding: who wrote a byte last, or caused an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "who", rename_all = "kebab-case")]
pub enum Writer {
    /// The DMA engine.
    Device {
        /// Index in the ledger.
        ledger_index: u64,
        /// What was written: `block 17`.
        what: String,
        /// When, in guest nanoseconds.
        time_ns: u64,
        /// Kernel generation.
        generation: u32,
        /// Phase.
        #[serde(serialize_with = "by_name")]
        phase: Phase,
    },
    /// A processor.
    Cpu {
        /// Kernel generation.
        generation: u32,
        /// Symbol and offset, or the bare address in user space or without symbols.
        symbol: String,
        /// Instruction pointer.
        rip: u64,
        /// Phase.
        #[serde(serialize_with = "by_name")]
        phase: Phase,
        /// When, in guest nanoseconds.
        time_ns: u64,
        /// Instructions retired since power-on; `None` if the backend does not count them.
        instructions: Option<u64>,
        /// Privilege level: 0 kernel, 3 user.
        cpl: u8,
    },
    /// A processor, from a log of pages: the page and the phase are known, but not the time or the instruction.
    CpuPage {
        /// Kernel generation.
        generation: u32,
        /// Phase.
        #[serde(serialize_with = "by_name")]
        phase: Phase,
        /// Earliest time of the write, in guest nanoseconds.
        since_ns: u64,
    },
    /// An injection: it wrote there, or kept the device from it.
    Injected {
        /// Number of the injection, from 0.
        injection: u32,
        /// What it did: `changed block 17`.
        what: String,
        /// When, in guest nanoseconds.
        time_ns: u64,
        /// Kernel generation.
        generation: u32,
        /// Phase.
        #[serde(serialize_with = "by_name")]
        phase: Phase,
    },
    /// Not known.
    Unknown {
        /// Why.
        reason: String,
    },
    /// There is no writer, because the finding is about something that did not happen.
    Nobody,
}

impl Writer {
    /// The device, by a write.
    pub fn device(write: &Entry) -> Self {
        Self::Device {
            ledger_index: write.index,
            what: describe(write),
            time_ns: write.time,
            generation: write.stamp.generation.into(),
            phase: write.stamp.phase,
        }
    }

    /// Who made an entry of `ledger`, or kept a device from making it.
    pub fn of(ledger: &LedgerRecord, entry: &Entry) -> Self {
        let (injection, what) = match (entry.withheld, injected(ledger, entry)) {
            (Some(by), _) => (by, format!("kept back {}", describe(entry))),
            (None, Some(injected)) => match meant(ledger, injected) {
                Some(meant) => (injected.injection, format!("changed {}", describe(meant))),
                None if entry.goes_to_memory() => (
                    injected.injection,
                    format!("wrote {}", many(entry.length, "byte")),
                ),
                None => (injected.injection, "sent an interrupt message".into()),
            },
            (None, None) => return Self::device(entry),
        };
        Self::Injected {
            injection: injection.into(),
            what,
            time_ns: entry.time,
            generation: entry.stamp.generation.into(),
            phase: entry.stamp.phase,
        }
    }

    /// A processor, by a write.
    pub fn cpu(write: &CpuWrite) -> Self {
        let Some(rip) = write.rip else {
            return Self::CpuPage {
                generation: write.generation,
                phase: write.phase,
                since_ns: write.time_ns,
            };
        };
        Self::Cpu {
            generation: write.generation,
            symbol: symbol(write.symbol.as_deref(), rip),
            rip,
            phase: write.phase,
            time_ns: write.time_ns,
            instructions: write.instructions,
            cpl: write.cpl,
        }
    }

    /// The processor whose access to the device caused `event`.
    pub fn access(event: &EngineEvent, cause: Option<&EventCause>) -> Self {
        match cause {
            Some(cause) => Self::Cpu {
                generation: event.stamp.generation.into(),
                symbol: symbol(cause.symbol.as_deref(), cause.rip),
                rip: cause.rip,
                phase: event.stamp.phase,
                time_ns: event.time,
                instructions: cause.instructions,
                cpl: cause.cpl,
            },
            None => Self::Unknown {
                reason: "no processor's access to the device is on record for it".into(),
            },
        }
    }
}

/// A phase by its name in reports.
pub(crate) fn by_name<S: Serializer>(phase: &Phase, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(phase.name())
}

fn symbol(symbol: Option<&str>, rip: u64) -> String {
    symbol.map_or_else(|| format!("{rip:#x}"), str::to_owned)
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device {
                ledger_index,
                what,
                time_ns,
                generation,
                phase,
            } => {
                write!(f, "device, {what} (ledger entry {ledger_index}) ")?;
                write!(
                    f,
                    "in {phase} of generation {generation}, at {}",
                    millis(*time_ns)
                )
            }
            Self::Cpu {
                generation,
                symbol,
                phase,
                time_ns,
                instructions,
                cpl,
                ..
            } => {
                let who = if *cpl == 0 { "kernel" } else { "user space" };
                write!(
                    f,
                    "CPU, {who} of generation {generation} at {symbol} in {phase}, at {}",
                    millis(*time_ns)
                )?;
                instructions.map_or(Ok(()), |count| write!(f, ", instruction {count}"))
            }
            Self::CpuPage {
                generation,
                phase,
                since_ns,
            } => write!(
                f,
                "CPU, some instruction of generation {generation} in {phase}, after {} (KVM's dirty log tells page and phase)",
                millis(*since_ns)
            ),
            Self::Injected {
                injection,
                what,
                time_ns,
                generation,
                phase,
            } => write!(
                f,
                "injection {injection}, which {what} in {phase} of generation {generation}, at {}",
                millis(*time_ns)
            ),
            Self::Unknown { reason } => write!(f, "unknown: {reason}"),
            Self::Nobody => f.write_str("nobody"),
        }
    }
}

/// Nanoseconds as milliseconds for people.
pub(crate) fn millis(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000)
}

/// How many of a thing: `1 byte`, `2 bytes`.
pub(crate) fn many(count: impl Into<u64>, thing: &str) -> String {
    match count.into() {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

/// A bounded list of findings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The first [`MAX_KEPT`].
    pub kept: Vec<Finding>,
    /// How many there were in all.
    pub total: u64,
}

impl Findings {
    /// Adds the finding that `make` returns. Only counts it, without calling `make`, if the rule has reached the
    /// limit.
    pub fn add(&mut self, make: impl FnOnce() -> Finding) {
        self.total += 1;
        if self.kept.len() < MAX_KEPT {
            self.kept.push(make());
        }
    }
}

/// The first run of differing bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// Where it begins in the page.
    pub offset: usize,
    /// How many bytes of the page differ in all.
    pub bytes: usize,
    /// Expected bytes from there, in hexadecimal.
    pub expected: String,
    /// Actual bytes from there, in hexadecimal.
    pub actual: String,
}

/// Compares two pages within `ranges`.
pub(super) fn difference(
    expected: &[u8],
    actual: &[u8],
    range: std::ops::Range<usize>,
) -> Option<Difference> {
    let (expected, actual) = (expected.get(range.clone())?, actual.get(range.clone())?);
    if expected == actual {
        return None;
    }
    let pairs = || expected.iter().zip(actual);
    let first = pairs().position(|(a, b)| a != b)?;
    let run = pairs()
        .skip(first)
        .take_while(|(a, b)| a != b)
        .count()
        .min(SHOWN_BYTES);
    Some(Difference {
        offset: range.start + first,
        bytes: pairs().filter(|(a, b)| a != b).count(),
        expected: hex::encode(&expected[first..first + run]),
        actual: hex::encode(&actual[first..first + run]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_of_differing_bytes_is_shown() {
        let (mut a, b) = ([0u8; 32], [0u8; 32]);
        assert_eq!(difference(&a, &b, 0..32), None);
        (a[5], a[6], a[9]) = (0xaa, 0xbb, 0xcc);
        let found = difference(&a, &b, 0..32).unwrap();
        assert_eq!((found.offset, found.bytes), (5, 3));
        assert_eq!((found.expected.as_str(), found.actual.as_str()), ("aabb", "0000"));
        assert_eq!(difference(&a, &b, 6..32).unwrap().offset, 6);
        assert_eq!(difference(&a, &b, 10..32), None);
        assert_eq!(difference(&a, &b, 10..99), None);
    }

    #[test]
    fn findings_are_bounded_and_counted() {
        let mut findings = Findings::default();
        for _ in 0..MAX_KEPT as u64 + 10 {
            findings.add(|| Finding {
                rule: RuleName::NothingLeaked,
                page: None,
                address: None,
                owner: String::new(),
                expected: String::new(),
                actual: String::new(),
                last_writer: Writer::Nobody,
                text: String::new(),
                question: None,
                explained_by: Vec::new(),
            });
        }
        assert_eq!(
            (findings.kept.len(), findings.total),
            (MAX_KEPT, MAX_KEPT as u64 + 10)
        );
    }
}
