//! The injector: a device over the clock that does the deeds of injections at their moments.
//!
//! It has no state of its own: what is due, and what was done, is in the machine's [`crate::injection::Injections`].

use super::SystemBus;
use super::lapic::MODE_NMI;
use crate::injection::{Act, Deed, Done};
use crate::interrupt::{Message, Msi};

impl SystemBus {
    /// Does every deed that is due at `now`. Those that the host has to name are left until it has.
    pub fn inject(&mut self, now: u64) {
        while let Some((index, deed)) = self.view.injections.take_due(now) {
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            match self.act(now, number, &deed) {
                Ok(done) => {
                    let stamp = self.view.stamp();
                    self.view.injections.fired(index, now, stamp, done);
                }
                Err(reason) => self.view.injections.failed(index, now, reason),
            }
        }
    }

    fn act(&mut self, now: u64, number: u16, deed: &Deed) -> Result<Done, String> {
        match deed {
            Deed::Write(pokes) => {
                let mut first = None;
                for poke in pokes {
                    let entry = self.view.poke(now, number, poke.address, &poke.bytes)?;
                    first = first.or(Some((entry, poke.address)));
                }
                let (entry, address) = first.ok_or("there was nothing to write")?;
                let bytes = pokes.iter().map(|poke| poke.bytes.len() as u64).sum();
                Ok(Done::Wrote {
                    entry,
                    address,
                    bytes,
                })
            }
            Deed::Flip { address, bit } => {
                let address = *address;
                let byte = self.view.peek(address);
                let byte = byte.ok_or_else(|| format!("{address:#x} is not RAM"))? ^ 1 << (bit % 8);
                let entry = self.view.poke(now, number, address, &[byte])?;
                Ok(Done::Wrote {
                    entry,
                    address,
                    bytes: 1,
                })
            }
            Deed::Act(act) => self.act_at(now, number, *act).map(|()| Done::Acted(*act)),
            Deed::Filter(_) | Deed::AskWhenArmed | Deed::AskWhenDue => {
                Err("the host answered with what cannot be done at a moment".into())
            }
        }
    }

    fn act_at(&mut self, now: u64, number: u16, act: Act) -> Result<(), String> {
        match act {
            Act::Messages { vector, count, every } => {
                let msi = self.message(vector)?;
                self.view.send(now, number, msi, (count, every))
            }
            Act::Pend { vector } => {
                let msi = self.message(vector)?;
                let message = msi.message();
                let message = message.ok_or("the driver's message does not go to a local APIC")?;
                self.view.note_message(now, number, msi)?;
                self.lapics.pend(message);
                Ok(())
            }
            Act::Power(request) => {
                self.power.inject(number, request);
                Ok(())
            }
            Act::Nmi { processor } => {
                self.interrupt(Message {
                    vector: 0,
                    destination: processor,
                    logical: false,
                    mode: MODE_NMI,
                    level: false,
                });
                Ok(())
            }
            Act::Unstoppable { processor } => {
                self.lapics.make_unstoppable(processor);
                Ok(())
            }
            Act::ShiftTsc { by } => {
                self.lapics.shift_tsc(now, by);
                Ok(())
            }
            Act::DelayTimers { by } => match self.lapics.delay_timers(by) {
                0 => Err("no timer of a local APIC was armed".into()),
                _ => Ok(()),
            },
            Act::IgnoreStop { .. }
            | Act::Silence { .. }
            | Act::Burst { .. }
            | Act::BusMaster { .. }
            | Act::ResetFunction
            | Act::Remove
            | Act::MoveBar { .. }
            | Act::SlowAccesses { .. } => self.dma.act(now, &mut self.view, number, act),
        }
    }

    /// The message of the DMA engine (see [`crate::devices::dma::DmaEngine::message`]), with another vector if there is
    /// one.
    fn message(&self, vector: Option<u8>) -> Result<Msi, String> {
        let msi = self.dma.message();
        let msi = msi.ok_or("the driver has programmed no interrupt message")?;
        let data = match vector {
            Some(vector) => msi.data & !0xff | u32::from(vector),
            None => msi.data,
        };
        Ok(Msi { data, ..msi })
    }
}

#[cfg(test)]
mod tests;
