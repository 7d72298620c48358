//! The injector: a device over the clock that does the deeds of injections at their moments.
//!
//! It has no state of its own: what is due, and what was done, is in the machine's [`crate::injection::Injections`].

use super::SystemBus;
use crate::injection::{Deed, Done};

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
            Deed::Filter(_) | Deed::AskWhenArmed | Deed::AskWhenDue => {
                Err("the host answered with what cannot be done at a moment".into())
            }
        }
    }
}
