//! Checks of injections that need more than one key, or the rest of the scenario.

use vmm::injection::MAX_INJECTIONS;
use vmm::phase::{Phase, Stamp};

use super::{Every, Inject, What, place};
use crate::scenario::check::{Problem, require};
use crate::scenario::{Scenario, Span};

/// Most times that one injection fires.
const MAX_COUNT: u64 = 1_000_000;

/// Checks all injections of a scenario.
pub(in crate::scenario) fn check(scenario: &Scenario) -> Result<(), Problem> {
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
    let needs_device = what.needs_device() || when.counted().next().is_some();
    require(dma || !needs_device, &inject.what, || {
        "it waits for the DMA engine or acts on it, and the scenario has no [dma]".into()
    })?;
    match what {
        What::Dma(fault) => fault.check(inject)?,
        What::Memory(fault) => fault.check(inject)?,
        What::Blob(fault) => fault.check(inject)?,
        What::Interrupt(fault) => fault.check(scenario, inject)?,
        What::Engine(fault) => fault.check(inject)?,
        What::Bus(fault) => fault.check(inject)?,
        What::Machine(fault) => fault.check(scenario, inject)?,
        What::Time(fault) => fault.check(inject)?,
    }
    what.target()
        .map_or(Ok(()), |target| place::check(scenario, &inject.what, target))
}

fn check_when(scenario: &Scenario, inject: &Inject) -> Result<(), Problem> {
    let (spanned, when) = (&inject.when, inject.when.get_ref());
    require(when.at.is_none() || when.phase.is_none(), spanned, || {
        "found at and phase, expected one of them".into()
    })?;
    let waits = when.counted().count() + usize::from(when.symbol.is_some());
    require(waits <= 1, spanned, || {
        "found several of write, read, msi, access and symbol, expected one of them".into()
    })?;
    check_within(inject)?;
    require(
        when.after.is_none() || when.instructions.is_none(),
        spanned,
        || "found after and instructions, expected one of them".into(),
    )?;
    let since = when.since();
    let anything = since.is_some() || when.waits() || when.after.is_some() || when.instructions.is_some();
    require(anything, spanned, || {
        "it says nothing of when: expected at, phase, write, read, msi, access, symbol, after or instructions"
            .into()
    })?;
    require(when.counted().all(|number| number > 0), spanned, || {
        "found number 0, and they are counted from 1".into()
    })?;
    require(since.is_some() || when.generation.is_none(), spanned, || {
        "found generation without at or phase".into()
    })?;
    let of_writes = matches!(inject.what.get_ref(), What::Dma(_)) || when.write.is_some();
    require(when.of.is_none() || of_writes, spanned, || {
        "found of, and nothing in it is about device writes".into()
    })?;
    let Some(Stamp { generation, phase }) = since else {
        return Ok(());
    };
    require(when.symbol.is_none() || phase != Phase::Jump, spanned, || {
        "found symbol at the jump, where the old kernel executes nothing more".into()
    })?;
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

fn check_within(inject: &Inject) -> Result<(), Problem> {
    let (spanned, when) = (&inject.when, inject.when.get_ref());
    match when.within {
        None => Ok(()),
        Some(Every::Number(0) | Every::Time(Span(0))) => {
            require(false, spanned, || "found within = 0, expected more".into())
        }
        Some(Every::Time(_)) => require(when.instructions.is_none(), spanned, || {
            "found within as a time beside instructions, expected a number of instructions".into()
        }),
        Some(Every::Number(_)) => {
            let counts = when.instructions.is_some() || when.counted().next().is_some();
            require(counts, spanned, || {
                "found within as a number, expected a time: nothing is counted".into()
            })
        }
    }
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
    !inject.what.get_ref().is_filter() && !inject.when.get_ref().waits()
}
