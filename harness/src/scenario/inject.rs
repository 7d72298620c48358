//! `[[inject]]`: faults on purpose. `docs/injections.md` describes every key.

use super::{Scenario, Span};
use crate::hex;
use crate::scenario::check::{Problem, require};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use toml::Spanned;
use vmm::injection::{MAX_INJECTIONS, MAX_POKE, WriteKind};
use vmm::phase::{Generation, Phase, Stamp};

/// Most times that one injection fires.
const MAX_COUNT: u64 = 1_000_000;

/// A fault on purpose.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// When.
    pub when: Spanned<When>,
    /// What.
    pub what: Spanned<What>,
    /// How often at most.
    #[serde(default = "once")]
    pub count: Spanned<u64>,
    /// Distance between two times.
    pub every: Option<Spanned<Every>>,
}

fn once() -> Spanned<u64> {
    Spanned::new(0..0, 1)
}

/// Distance between two times that an injection fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// So many of what it waits for.
    Number(u64),
    /// So much guest time.
    Time(Span),
}

/// When an injection is due. Without `at` and `phase` it is armed at power-on.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The jump out of a kernel, or the entry of a kernel.
    #[serde(default)]
    pub at: Option<Boundary>,
    /// The beginning of a phase.
    #[serde(default, deserialize_with = "super::criteria::phase")]
    pub phase: Option<Phase>,
    /// Of which kernel generation. Default: the first that has the phase.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// The n-th write of a device since then.
    #[serde(default)]
    pub write: Option<u64>,
    /// The n-th read of the DMA engine since then.
    #[serde(default)]
    pub read: Option<u64>,
    /// The n-th interrupt message since then.
    #[serde(default)]
    pub msi: Option<u64>,
    /// The n-th access to a register of the DMA engine since then.
    #[serde(default)]
    pub access: Option<u64>,
    /// Which device writes count and are changed.
    #[serde(default)]
    pub of: Option<Of>,
    /// So much guest time later.
    #[serde(default)]
    pub after: Option<Span>,
    /// So many instructions later.
    #[serde(default)]
    pub instructions: Option<u64>,
}

/// A boundary between two kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boundary {
    /// The old kernel's last instruction.
    Jump,
    /// The new kernel's first instruction.
    Entry,
}

/// Kinds of device writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// Blocks.
    Block,
    /// Completion counts.
    Completion,
    /// Both.
    Any,
}

impl From<Of> for WriteKind {
    fn from(of: Of) -> Self {
        match of {
            Of::Block => Self::Block,
            Of::Completion => Self::Completion,
            Of::Any => Self::Any,
        }
    }
}

/// What an injection does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Something becomes of a device write.
    Dma(DmaFault),
    /// Memory changes.
    Memory(MemoryFault),
}

/// What becomes of a device write.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DmaFault {
    /// It is not made.
    Drop,
    /// It is made after the next one.
    Reorder,
    /// It is made, and again later.
    Duplicate {
        /// How much later.
        after: Span,
    },
    /// It is made later.
    Delay {
        /// How much later.
        by: Span,
    },
    /// The first bytes of it are made at once, and the others later.
    Torn {
        /// How much later.
        after: Span,
        /// Number of the first bytes. Default: half of it.
        #[serde(default)]
        at: u32,
    },
    /// One bit of it is flipped.
    Flip {
        /// Which one, counted from its first byte's bit 0.
        bit: u32,
    },
    /// It has the content of another block.
    Content {
        /// The number of that block.
        block: u64,
    },
    /// It goes to another address.
    Redirect {
        /// Where.
        to: Target,
    },
    /// A number is added to the completion count.
    Count {
        /// The number.
        by: i64,
    },
}

/// How memory changes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MemoryFault {
    /// Bytes are written.
    Write {
        /// Where.
        at: Target,
        /// The bytes.
        bytes: Hex,
    },
    /// One bit is flipped.
    Flip {
        /// In which byte.
        at: Target,
        /// Which bit of it, 0 to 7.
        #[serde(default)]
        bit: u8,
    },
}

/// A place in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What lies there.
    pub place: Place,
    /// Which of its pages; `None` for one that the seed chooses.
    pub page: Option<u64>,
    /// Offset in the page.
    pub offset: u64,
}

/// What lies at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Whatever is at this guest physical address.
    Address(u64),
    /// A memory object of the agent, by its name.
    Object(String),
    /// Something that is found while the machine runs.
    Class(Class),
}

/// What is found in memory while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Above all RAM.
    AboveRam,
    /// In the hole below 4 GiB.
    Hole,
}

impl Class {
    /// All, with their names in scenarios.
    pub const ALL: [(&'static str, Self); 2] = [("above-ram", Self::AboveRam), ("hole", Self::Hole)];

    /// The name in scenarios.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(_, class)| *class == self).map_or("", |(name, _)| name)
    }
}

/// Bytes, written as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::decode(&text).filter(|bytes| (1..=MAX_POKE).contains(&bytes.len()));
        bytes.map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "found bytes \"{text:.40}\", expected two hexadecimal digits for each of 1 to {MAX_POKE}, such as \"00ff\""
            ))
        })
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Every;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a time such as \"20 us\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Every, E> {
                let number = u64::try_from(number);
                let number = number.map_err(|_| E::custom("found a negative number, expected 1 or more"))?;
                Ok(Every::Number(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Every, E> {
                text.parse().map(Every::Time).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn class<E: de::Error>(name: &str) -> Result<Place, E> {
    let found = Class::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, class)| Place::Class(*class)).ok_or_else(|| {
        let names: Vec<_> = Class::ALL.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        E::custom(format!(
            "found place \"{name}\", expected an address, {}, or a table with object or place",
            names.join(", ")
        ))
    })
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            object: Option<String>,
            place: Option<String>,
            page: Option<u64>,
            #[serde(default)]
            offset: u64,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Target;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a guest physical address, a place, or a table with object or place")
            }
            fn visit_i64<E: de::Error>(self, address: i64) -> Result<Target, E> {
                let address = u64::try_from(address);
                let address = address.map_err(|_| E::custom("found a negative address"))?;
                Ok(Target {
                    place: Place::Address(address),
                    page: None,
                    offset: 0,
                })
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Target, E> {
                Ok(Target {
                    place: class(name)?,
                    page: None,
                    offset: 0,
                })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Target, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let place = match (table.object, table.place) {
                    (Some(object), None) => Place::Object(object),
                    (None, Some(name)) => class(&name)?,
                    _ => return Err(de::Error::custom("expected one of object and place")),
                };
                Ok(Target {
                    place,
                    page: table.page,
                    offset: table.offset,
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl When {
    /// The phase from whose beginning on it is armed; `None` is from power-on on.
    pub fn since(&self) -> Option<Stamp> {
        let phase = match self.at {
            Some(Boundary::Jump) => Phase::Jump,
            Some(Boundary::Entry) => Phase::BootNew,
            None => self.phase?,
        };
        let first = Generation::from(phase >= Phase::BootNew);
        Some(Stamp {
            generation: self.generation.unwrap_or(first),
            phase,
        })
    }

    /// How many of the things that are counted are given.
    fn counted(&self) -> impl Iterator<Item = u64> {
        [self.write, self.read, self.msi, self.access]
            .into_iter()
            .flatten()
    }
}

impl What {
    /// Whether it changes device writes on their way.
    pub fn is_filter(&self) -> bool {
        matches!(self, Self::Dma(_))
    }

    fn target(&self) -> Option<&Target> {
        match self {
            Self::Dma(DmaFault::Redirect { to }) => Some(to),
            Self::Memory(MemoryFault::Write { at, .. } | MemoryFault::Flip { at, .. }) => Some(at),
            Self::Dma(_) => None,
        }
    }
}

/// Checks all injections of a scenario.
pub(super) fn check(scenario: &Scenario) -> Result<(), Problem> {
    if let Some(more) = scenario.inject.get(MAX_INJECTIONS) {
        require(false, &more.when, || {
            format!("more than {MAX_INJECTIONS} injections")
        })?;
    }
    scenario
        .inject
        .iter()
        .try_for_each(|inject| check_one(scenario, inject))
}

fn check_one(scenario: &Scenario, inject: &Inject) -> Result<(), Problem> {
    let (when, what) = (inject.when.get_ref(), inject.what.get_ref());
    check_when(scenario, inject)?;
    let count = *inject.count.get_ref();
    require((1..=MAX_COUNT).contains(&count), &inject.count, || {
        format!("found count = {count}, expected 1 to {MAX_COUNT}")
    })?;
    check_every(inject)?;
    let dma = scenario.dma.is_some();
    let needs_device = what.is_filter() || when.counted().next().is_some();
    require(dma || !needs_device, &inject.what, || {
        "it waits for the DMA engine or changes its writes, and the scenario has no [dma]".into()
    })?;
    if let What::Dma(fault) = what {
        let of_block = matches!(when.of, None | Some(Of::Block));
        let of_count = matches!(when.of, None | Some(Of::Completion));
        match fault {
            DmaFault::Count { by } => {
                require(of_count, &inject.when, || {
                    "count is for completion counts alone".into()
                })?;
                require(*by != 0, &inject.what, || {
                    "found by = 0, which changes nothing".into()
                })?;
            }
            DmaFault::Content { .. } => {
                require(of_block, &inject.when, || "content is for blocks alone".into())?;
            }
            _ => {}
        }
    }
    if let What::Memory(MemoryFault::Flip { bit, .. }) = what {
        require(*bit < 8, &inject.what, || {
            format!("found bit {bit}, expected 0 to 7")
        })?;
    }
    what.target()
        .map_or(Ok(()), |target| check_target(scenario, inject, target))
}

fn check_when(scenario: &Scenario, inject: &Inject) -> Result<(), Problem> {
    let (spanned, when) = (&inject.when, inject.when.get_ref());
    require(when.at.is_none() || when.phase.is_none(), spanned, || {
        "found at and phase, expected one of them".into()
    })?;
    require(when.counted().count() <= 1, spanned, || {
        "found several of write, read, msi and access, expected one of them".into()
    })?;
    require(
        when.after.is_none() || when.instructions.is_none(),
        spanned,
        || "found after and instructions, expected one of them".into(),
    )?;
    let since = when.since();
    let anything = since.is_some()
        || when.counted().next().is_some()
        || when.after.is_some()
        || when.instructions.is_some();
    require(anything, spanned, || {
        "it says nothing of when: expected at, phase, write, read, msi, access, after or instructions".into()
    })?;
    require(when.counted().all(|number| number > 0), spanned, || {
        "found number 0, and they are counted from 1".into()
    })?;
    require(since.is_some() || when.generation.is_none(), spanned, || {
        "found generation without at or phase".into()
    })?;
    let of_writes = inject.what.get_ref().is_filter() || when.write.is_some();
    require(when.of.is_none() || of_writes, spanned, || {
        "found of, and nothing in it is about device writes".into()
    })?;
    let Some(Stamp { generation, phase }) = since else {
        return Ok(());
    };
    let kexecs = *scenario.kexecs.get_ref();
    let (least, most) = match phase {
        Phase::BootOld => (0, 0),
        Phase::Prepare | Phase::Armed | Phase::Handover | Phase::Jump => (0, kexecs - 1),
        Phase::BootNew | Phase::Restore => (1, kexecs),
        Phase::Done => (kexecs, kexecs),
    };
    require((least..=most).contains(&generation.into()), spanned, || {
        format!("generation {generation} has no phase {phase}: expected {least} to {most}")
    })
}

fn check_every(inject: &Inject) -> Result<(), Problem> {
    let Some(every) = &inject.every else {
        let repeated_in_time = *inject.count.get_ref() > 1 && is_timed(inject);
        return require(!repeated_in_time, &inject.count, || {
            "it fires several times at a moment: expected every, the time between two".into()
        });
    };
    match every.get_ref() {
        Every::Number(0) | Every::Time(Span(0)) => {
            require(false, every, || "found every = 0, expected more".into())
        }
        Every::Number(_) => require(!is_timed(inject), every, || {
            "found a number, expected a time: it waits for a moment".into()
        }),
        Every::Time(_) => require(is_timed(inject), every, || {
            "found a time, expected a number: it waits for something that is counted".into()
        }),
    }
}

/// Whether its times are a matter of guest time alone.
fn is_timed(inject: &Inject) -> bool {
    !inject.what.get_ref().is_filter() && inject.when.get_ref().counted().next().is_none()
}

fn check_target(scenario: &Scenario, inject: &Inject, target: &Target) -> Result<(), Problem> {
    let spanned = &inject.what;
    match &target.place {
        Place::Address(_) => Ok(()),
        Place::Object(name) => {
            let memfd = scenario.memfd.iter().find(|memfd| memfd.name.get_ref() == name);
            let Some(memfd) = memfd else {
                return require(false, spanned, || format!("no [[memfd]] is named \"{name}\""));
            };
            let pages = memfd.size.get_ref().0 / crate::evidence::PAGE;
            require(target.page.is_none_or(|page| page < pages), spanned, || {
                format!(
                    "found page {:?}, and \"{name}\" has {pages}",
                    target.page.unwrap_or(0)
                )
            })?;
            in_page(spanned, target)
        }
        Place::Class(_) => in_page(spanned, target),
    }
}

fn in_page(spanned: &Spanned<What>, target: &Target) -> Result<(), Problem> {
    let page = crate::evidence::PAGE;
    require(target.offset < page, spanned, || {
        format!("found offset {}, expected less than {page}", target.offset)
    })
}

#[cfg(test)]
mod tests;
