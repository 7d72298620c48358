//! Injections of a plan: what the machine is given, and what has to be found out while it runs.

use super::ObjectPlan;
use crate::scenario::inject::{Boundary, Class, DmaFault, Every, MemoryFault, Place, Target, What, When};
use crate::scenario::{Inject, Scenario};
use crate::seed::seed_for;
use serde::{Deserialize, Serialize};
use vmm::injection::{Change, Deed, Delay, Filter, Injection, Occurrence, Poke, Repeat, Trigger, WriteKind};

/// An injection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectionPlan {
    /// Trigger and deed in words.
    pub words: String,
    /// What the machine is given. If its deed is to be asked for, `ask` says what to find out.
    pub injection: Injection,
    /// What has to be found out while the machine runs, and what is then done.
    pub ask: Option<Ask>,
}

/// What has to be found out while the machine runs, and what is then done. [`crate::resolve`] answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Device writes go there.
    Redirect {
        /// Which writes.
        of: WriteKind,
        /// Where.
        to: Where,
    },
    /// These bytes are written.
    Write {
        /// Where.
        at: Where,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A bit is flipped.
    Flip {
        /// In which byte.
        at: Where,
        /// Which bit, 0 to 7.
        bit: u8,
    },
}

/// A byte of guest memory that has to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Where {
    /// What lies there.
    pub what: Thing,
    /// Which of its pages; `None` for one that the seed chooses.
    pub page: Option<u64>,
    /// Offset in the page.
    pub offset: u64,
}

/// What lies at a place in guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Thing {
    /// The object of this identity.
    Object(u32),
    /// One of a class of places.
    Class(Class),
}

impl std::fmt::Display for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.page {
            Some(page) => write!(f, "page {page} of ")?,
            None => f.write_str("a page of ")?,
        }
        match &self.what {
            Thing::Object(id) => write!(f, "object {id}")?,
            Thing::Class(class) => f.write_str(class.name())?,
        }
        write!(f, " at offset {:#x}", self.offset)
    }
}

/// The injections of a scenario in a run of this seed.
pub(super) fn of(scenario: &Scenario, seed: u64, objects: &[ObjectPlan]) -> Vec<InjectionPlan> {
    let one = |inject: &Inject| one(inject, seed, objects);
    scenario.inject.iter().map(one).collect()
}

fn one(inject: &Inject, seed: u64, objects: &[ObjectPlan]) -> InjectionPlan {
    let (when, what) = (inject.when.get_ref(), inject.what.get_ref());
    let (deed, ask) = match what {
        What::Dma(fault) => dma(fault, when, seed, objects),
        What::Memory(fault) => memory(fault, objects),
    };
    let trigger = Trigger {
        since: when.since(),
        on: occurrence(when, what),
        nth: counted(when).unwrap_or(1),
        delay: match (when.after, when.instructions) {
            (Some(after), _) => Delay::Time(after.0),
            (None, Some(instructions)) => Delay::Instructions(instructions),
            (None, None) => Delay::Time(0),
        },
    };
    let every = inject.every.as_ref().map_or(1, |every| match every.get_ref() {
        Every::Number(number) => *number,
        Every::Time(time) => time.0,
    });
    let count = *inject.count.get_ref();
    InjectionPlan {
        words: words(inject),
        injection: Injection {
            trigger,
            deed,
            repeat: Repeat { count, every },
        },
        ask,
    }
}

fn counted(when: &When) -> Option<u64> {
    when.write.or(when.read).or(when.msi).or(when.access)
}

fn occurrence(when: &When, what: &What) -> Occurrence {
    if when.write.is_some() {
        Occurrence::Write(writes(when, what))
    } else if when.read.is_some() {
        Occurrence::Read
    } else if when.msi.is_some() {
        Occurrence::Write(WriteKind::Message)
    } else if when.access.is_some() {
        Occurrence::Access
    } else {
        Occurrence::Begin
    }
}

/// Which device writes count and are changed.
fn writes(when: &When, what: &What) -> WriteKind {
    let usual = match what {
        What::Dma(DmaFault::Count { .. }) => WriteKind::Completion,
        What::Dma(_) => WriteKind::Block,
        What::Memory(_) => WriteKind::Any,
    };
    when.of.map_or(usual, WriteKind::from)
}

fn dma(fault: &DmaFault, when: &When, seed: u64, objects: &[ObjectPlan]) -> (Deed, Option<Ask>) {
    let of = writes(when, &What::Dma(fault.clone()));
    let change = match fault {
        DmaFault::Drop => Change::Drop,
        DmaFault::Reorder => Change::Reorder,
        DmaFault::Duplicate { after } => Change::Duplicate(after.0),
        DmaFault::Delay { by } => Change::Delay(by.0),
        DmaFault::Torn { after, at } => Change::Tear {
            at: *at,
            after: after.0,
        },
        DmaFault::Flip { bit } => Change::Flip(*bit),
        DmaFault::Content { block } => Change::Content {
            seed: seed_for(seed, "dma"),
            sequence: *block,
        },
        DmaFault::Count { by } => Change::Add(*by),
        DmaFault::Redirect { to } => match place(to, objects) {
            Ok(address) => Change::Redirect(address),
            Err(to) => return (Deed::AskWhenArmed, Some(Ask::Redirect { of, to })),
        },
    };
    (Deed::Filter(Filter { of, change }), None)
}

fn memory(fault: &MemoryFault, objects: &[ObjectPlan]) -> (Deed, Option<Ask>) {
    match fault {
        MemoryFault::Write { at, bytes } => {
            let bytes = bytes.0.clone();
            match place(at, objects) {
                Ok(address) => (Deed::Write(vec![Poke { address, bytes }]), None),
                Err(at) => (Deed::AskWhenDue, Some(Ask::Write { at, bytes })),
            }
        }
        MemoryFault::Flip { at, bit } => match place(at, objects) {
            Ok(address) => (Deed::Flip { address, bit: *bit }, None),
            Err(at) => (Deed::AskWhenDue, Some(Ask::Flip { at, bit: *bit })),
        },
    }
}

/// The address of a target, or what has to be found out for it.
fn place(target: &Target, objects: &[ObjectPlan]) -> Result<u64, Where> {
    let what = match &target.place {
        Place::Address(address) => return Ok(address.saturating_add(target.offset)),
        Place::Object(name) => {
            let object = objects.iter().find(|object| object.name == *name);
            Thing::Object(object.map_or(0, |object| object.id))
        }
        Place::Class(class) => Thing::Class(*class),
    };
    Err(Where {
        what,
        page: target.page,
        offset: target.offset,
    })
}

/// The injection in words.
fn words(inject: &Inject) -> String {
    let (when, what) = (inject.when.get_ref(), inject.what.get_ref());
    let since = when.since().map(|since| match when.at {
        Some(Boundary::Jump) => format!("the jump out of generation {}", since.generation),
        Some(Boundary::Entry) => format!("the entry of generation {}", since.generation),
        None => format!("{since}"),
    });
    let since = since.unwrap_or_else(|| "power-on".into());
    let counted = |number: Option<u64>, what: &str| number.map(|number| format!("{what} {number} since "));
    let on = counted(when.write, "device write")
        .or_else(|| counted(when.read, "device read"))
        .or_else(|| counted(when.msi, "interrupt message"))
        .or_else(|| counted(when.access, "register access"))
        .unwrap_or_default();
    let later = match (when.after, when.instructions) {
        (Some(after), _) => format!(", {after} later"),
        (None, Some(count)) => format!(", {count} instructions later"),
        (None, None) => String::new(),
    };
    let count = *inject.count.get_ref();
    let times = if count > 1 {
        format!(", up to {count} times")
    } else {
        String::new()
    };
    format!("at {on}{since}{later}: {what}{times}")
}
