//! Finds out, while the machine stands, what an injection acts on: "page 3 of this memfd". What the plan says in such
//! words becomes a deed with addresses.
//!
//! Each answer is a function of the machine, the evidence so far and the seed. What cannot be found is told by a
//! reason, which becomes evidence. Guest memory is not trusted: what it says is checked or bounded.

mod blob;
mod handover;
mod kernel;
mod staged;

use crate::evidence::{Evidence, PAGE};
use crate::plan::{Ask, Plan, Thing, Where};
use crate::scenario::inject::Class;
use crate::seed::seed_for;
use vmm::injection::{Change, Deed, Filter, Poke};
use vmm::machine::Machine;
use vmm::phase::Phase;
use vmm::vcpu::RSI;

/// First address of the hole below 4 GiB in which no RAM is (see [`vmm::memory::ram_regions`]).
const HOLE: u64 = 0xd000_0000;

/// What is known when an injection asks.
pub(crate) struct Known<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The plan.
    pub plan: &'a Plan,
    /// The evidence so far.
    pub evidence: &'a Evidence,
    /// Number of the injection, from 0.
    pub number: usize,
    /// Page frames that nobody has written to since power-on, if that was asked for.
    pub never_written: Vec<u64>,
}

/// Whether [`Known::never_written`] is needed to answer.
pub(crate) fn needs_never_written(ask: &Ask) -> bool {
    match ask {
        Ask::Redirect { to: place, .. } | Ask::Write { at: place, .. } | Ask::Flip { at: place, .. } => {
            place.what == Thing::Class(Class::Free)
        }
        Ask::Blob(_) => false,
    }
}

/// The deed that an injection asks for, or why there is none.
pub(crate) fn deed(ask: &Ask, known: &Known<'_>) -> Result<Deed, String> {
    Ok(match ask {
        Ask::Redirect { of, to } => Deed::Filter(Filter {
            of: *of,
            change: Change::Redirect(known.address(to)?),
        }),
        Ask::Write { at, bytes } => Deed::Write(vec![Poke {
            address: known.address(at)?,
            bytes: bytes.clone(),
        }]),
        Ask::Blob(ask) => Deed::Write(blob::pokes(ask, known)?),
        Ask::Flip { at, bit } => Deed::Flip {
            address: known.address(at)?,
            bit: *bit,
        },
    })
}

impl Known<'_> {
    /// The address of a place.
    fn address(&self, place: &Where) -> Result<u64, String> {
        let frames = self.frames(&place.what)?;
        let page = match place.page {
            Some(page) => page,
            None => self.choice(frames.len() as u64),
        };
        let frame = usize::try_from(page).ok().and_then(|page| frames.get(page));
        let frame = frame.ok_or_else(|| match frames.len() {
            0 => format!("{place}: there is none"),
            pages => format!("{place}: there are {pages} pages of it"),
        })?;
        Ok(frame.saturating_mul(PAGE).saturating_add(place.offset))
    }

    /// The page frames of a thing, in order.
    fn frames(&self, what: &Thing) -> Result<Vec<u64>, String> {
        match what {
            Thing::Object(id) => {
                let generation = self.machine.moment().stamp.generation.into();
                let object = self.evidence.object(*id);
                let frames = object.map_or(Vec::new(), |object| object.frames(generation));
                if frames.is_empty() {
                    return Err(format!("the pages of object {id} are not known yet"));
                }
                Ok(frames)
            }
            Thing::Class(class) => self
                .frames_of_class(*class)
                .map_err(|reason| format!("{}: {reason}", class.name())),
        }
    }

    fn frames_of_class(&self, class: Class) -> Result<Vec<u64>, String> {
        match class {
            Class::Scratch => self.scratch(),
            Class::StagedKernel => Ok(self.next_kernel()?.kernel),
            Class::StagedInitrd => Ok(self.next_kernel()?.initrd),
            Class::Blob => self.blob(),
            Class::PageTable => self.page_tables(),
            Class::KernelText => self.kernel_text(),
            Class::Free => self.free(),
            Class::AboveRam => {
                let end = self.machine.ram().regions().last().map_or(0, |region| region.end);
                let end = end.max(1 << 32) / PAGE;
                Ok((end..end + 16).collect())
            }
            Class::Hole => Ok((HOLE / PAGE..HOLE / PAGE + 16).collect()),
        }
    }

    /// Address of the boot parameters, if a kernel is about to execute its first instruction.
    fn entered_with(&self) -> Option<u64> {
        let now = self.machine.moment();
        let began = self.machine.phases().last()?.start_ns;
        let at_entry = now.stamp.phase == Phase::BootNew && began == now.time;
        at_entry.then(|| self.machine.registers().gpr[RSI])
    }

    /// A number below `most` that the seed chooses, another one each time that the injection is due.
    fn choice(&self, most: u64) -> u64 {
        let running = self.machine.injections().get(self.number);
        let times = running.map_or(0, |running| running.fired + running.unable.len() as u64);
        let seed = seed_for(self.plan.seed, &format!("inject/{}/{times}", self.number));
        seed.checked_rem(most).unwrap_or(0)
    }
}
