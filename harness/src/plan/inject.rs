//! Injections of a plan: what the machine is given, and what has to be found out while it runs.

mod acts;

use super::ObjectPlan;
use crate::scenario::inject::{
    BlobFault, Boundary, Class, DmaFault, Every, MemoryFault, NodeFault, Place, Setting, Target, What, When,
};
use crate::scenario::{Inject, Scenario};
use crate::seed::seed_for;
use serde::{Deserialize, Serialize};
use vmm::injection::{Change, Deed, Delay, Filter, Injection, Occurrence, Poke, Repeat, Trigger, WriteKind};
use vmm::phase::Generation;

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
    /// The handover is changed.
    Blob(BlobAsk),
}

/// How a handover is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobAsk {
    /// A field of it.
    Field {
        /// Its path.
        path: String,
        /// How.
        change: FieldChange,
    },
    /// The `setup_data` node that announces it.
    Node(NodeFault),
}

/// How a field is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FieldChange {
    /// It gets a value, given by its name or as [`crate::bend::literal`] reads it.
    Set(String),
    /// This bit of it is flipped.
    Flip(u32),
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
/// `linked` says at which address the kernel of a generation was linked to have a symbol.
pub(super) fn of(
    scenario: &Scenario,
    seed: u64,
    objects: &[ObjectPlan],
    linked: &dyn Fn(Generation, &str) -> Option<u64>,
) -> Vec<InjectionPlan> {
    let all = (0..).zip(&scenario.inject);
    all.map(|(number, inject)| {
        let later = |most: u64| chosen(seed, number, most);
        one(inject, seed, objects, linked, &later)
    })
    .collect()
}

/// A number below `most` that the seed chooses for injection `number`.
fn chosen(seed: u64, number: u64, most: u64) -> u64 {
    let random = seed_for(seed, &format!("inject/{number}/within"));
    random.checked_rem(most).unwrap_or(0)
}

fn one(
    inject: &Inject,
    seed: u64,
    objects: &[ObjectPlan],
    linked: &dyn Fn(Generation, &str) -> Option<u64>,
    later: &dyn Fn(u64) -> u64,
) -> InjectionPlan {
    let (when, what) = (inject.when.get_ref(), inject.what.get_ref());
    let (deed, ask) = match what {
        What::Dma(fault) => dma(fault, when, seed, objects),
        What::Memory(fault) => memory(fault, objects),
        What::Blob(fault) => blob(fault),
        What::Interrupt(fault) => (acts::interrupt(*fault), None),
        What::Engine(fault) => (Deed::Act(acts::engine(*fault)), None),
        What::Bus(fault) => (Deed::Act(acts::bus(*fault)), None),
        What::Machine(fault) => (Deed::Act(acts::machine(*fault)), None),
        What::Time(fault) => (Deed::Act(acts::time(*fault)), None),
    };
    let trigger = Trigger {
        since: when.since(),
        on: occurrence(when, what, linked),
        nth: counted(when).map_or(1, |number| number + more_counted(when, later)),
        delay: delay(when, later),
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

/// How many more of what it counts `within` adds.
fn more_counted(when: &When, later: &dyn Fn(u64) -> u64) -> u64 {
    match (when.within, when.instructions) {
        (Some(Every::Number(most)), None) => later(most),
        _ => 0,
    }
}

fn delay(when: &When, later: &dyn Fn(u64) -> u64) -> Delay {
    match (when.instructions, when.within) {
        (Some(count), Some(Every::Number(most))) => Delay::Instructions(count.saturating_add(later(most))),
        (Some(count), _) => Delay::Instructions(count),
        (None, within) => {
            let more = match within {
                Some(Every::Time(most)) => later(most.0),
                _ => 0,
            };
            Delay::Time(when.after.map_or(0, |after| after.0).saturating_add(more))
        }
    }
}

fn occurrence(when: &When, what: &What, linked: &dyn Fn(Generation, &str) -> Option<u64>) -> Occurrence {
    if let (Some(symbol), Some(since)) = (&when.symbol, when.since()) {
        // A plan with a symbol that the kernel lacks is refused; nothing executes at 0.
        return Occurrence::Execute(linked(since.generation, symbol).unwrap_or(0));
    }
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
        _ => WriteKind::Any,
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

fn blob(fault: &BlobFault) -> (Deed, Option<Ask>) {
    let BlobFault {
        field,
        set,
        flip,
        node,
    } = fault;
    let change = match (set, flip) {
        (Some(Setting(value)), _) => Some(FieldChange::Set(value.clone())),
        (None, bit) => bit.map(FieldChange::Flip),
    };
    let of_field = field.clone().zip(change);
    let of_field = of_field.map(|(path, change)| BlobAsk::Field { path, change });
    let ask = of_field.or(node.map(BlobAsk::Node));
    (Deed::AskWhenDue, ask.map(Ask::Blob))
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
        .or_else(|| {
            let symbol = when.symbol.as_ref()?;
            Some(format!("the first execution of {symbol} since "))
        })
        .unwrap_or_default();
    let later = match (when.after, when.instructions) {
        (Some(after), _) => format!(", {after} later"),
        (None, Some(count)) => format!(", {count} instructions later"),
        (None, None) => String::new(),
    };
    let later = match when.within {
        Some(within) => format!("{later}, up to {within} later"),
        None => later,
    };
    let count = *inject.count.get_ref();
    let times = if count > 1 {
        format!(", up to {count} times")
    } else {
        String::new()
    };
    format!("at {on}{since}{later}: {what}{times}")
}
