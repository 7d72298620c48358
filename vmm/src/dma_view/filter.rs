//! The filter that every device write passes, and writes that injections make.

use serde::{Deserialize, Serialize};

use super::DmaView;
use crate::content::block_content;
use crate::injection::{Change, Done, Filter, MAX_POKE};
use crate::interrupt::{Msi, is_message_address};
use crate::ledger::{Content, Injected, Kind, LedgerFull};

/// Most writes that wait to be made later, each of at most a page.
pub const MAX_LATE: usize = 1024;

/// A write that an injection makes later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Late {
    /// When, in guest nanoseconds; `None` is after the next write of a device.
    due: Option<u64>,
    what: Injected,
    address: u64,
    bytes: Vec<u8>,
}

impl Late {
    /// One that is due at this time.
    pub(super) fn new(due: u64, what: Injected, address: u64, bytes: &[u8]) -> Self {
        Self {
            due: Some(due),
            what,
            address,
            bytes: bytes.to_vec(),
        }
    }
}

impl DmaView {
    /// Lets an injection change a write that a device is about to make. Returns whether one did; the write is then made
    /// and recorded. After an error nothing has happened.
    pub(super) fn changes(
        &mut self,
        time: u64,
        kind: Kind,
        address: u64,
        data: &[u8],
    ) -> Result<bool, LedgerFull> {
        let Some((index, filter)) = self.injections.on_write(time, kind) else {
            return Ok(false);
        };
        if self.late.len() >= MAX_LATE {
            let reason = format!("{MAX_LATE} device writes wait to be made already");
            self.injections.failed(index, time, reason);
            return Ok(false);
        }
        // What is meant, and two parts of it.
        self.ledger.reserve_for(3, data.len())?;
        self.make_reordered(time)?;
        self.change(time, kind, address, data, (index, filter));
        Ok(true)
    }

    fn change(
        &mut self,
        time: u64,
        kind: Kind,
        address: u64,
        data: &[u8],
        (index, Filter { change, .. }): (usize, Filter),
    ) {
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let now = (time, self.stamp);
        let entry = self.ledger.made();
        if let Change::Duplicate(_) = change {
            self.put(address, data);
            self.ledger.record(time, self.stamp, kind, address, data);
        } else {
            self.ledger.record_withheld(now, kind, address, data, number);
        }
        let of = |content| Injected {
            injection: number,
            of: Some(entry),
            content,
        };
        let as_meant = |from: u32| of(Content::AsMeant { from });
        let late = |due, what, bytes: &[u8]| Late {
            due,
            what,
            address,
            bytes: bytes.to_vec(),
        };
        let after = |ns: u64| Some(time.saturating_add(ns));
        match change {
            Change::Drop => {}
            Change::Duplicate(ns) | Change::Delay(ns) => self.late.push(late(after(ns), as_meant(0), data)),
            Change::Reorder => self.late.push(late(None, as_meant(0), data)),
            Change::Tear { at, after: ns } => {
                let half = data.len() / 2;
                let at = usize::try_from(at)
                    .ok()
                    .filter(|at| (1..data.len()).contains(at))
                    .unwrap_or(half);
                let (first, rest) = data.split_at(at);
                self.make(time, as_meant(0), address, first);
                let from = u32::try_from(at).unwrap_or(u32::MAX);
                self.late.push(Late {
                    address: address + at as u64,
                    ..late(after(ns), as_meant(from), rest)
                });
            }
            Change::Redirect(address) => self.make(time, as_meant(0), address, data),
            Change::Flip(_) | Change::Content { .. } | Change::Add(_) | Change::Vector(_) => {
                let bytes = changed(data, change);
                self.make(time, of(Content::Bytes(bytes.clone())), address, &bytes);
            }
        }
        self.injections
            .fired(index, time, self.stamp, Done::Changed { entry, change });
    }

    /// Makes and records a write of an injection. Where no RAM is, it is lost.
    pub(super) fn make(&mut self, time: u64, what: Injected, address: u64, bytes: &[u8]) {
        self.put(address, bytes);
        self.ledger
            .record_injected((time, self.stamp), what, address, bytes);
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        if let Ok(data) = <[u8; 4]>::try_from(bytes)
            && is_message_address(address)
        {
            let data = u32::from_le_bytes(data);
            self.put_message(Msi { address, data });
        } else if self.ram.write(address, bytes).is_ok() {
            self.written.push((address, bytes.len() as u64));
        }
    }

    /// Makes the writes that wait for another one, which has been made now.
    pub(super) fn make_reordered(&mut self, time: u64) -> Result<(), LedgerFull> {
        self.make_late(time, |late| late.due.is_none())
    }

    /// Makes the writes of injections that are due at `now`. Those for which the ledger has no room are not made; the
    /// ledger is then full.
    pub fn advance(&mut self, now: u64) {
        // The ledger remembers that it was full.
        let _ = self.make_late(now, |late| late.due.is_some_and(|due| due <= now));
    }

    fn make_late(&mut self, time: u64, is_due: impl Fn(&Late) -> bool) -> Result<(), LedgerFull> {
        while let Some(at) = self.late.iter().position(&is_due) {
            self.ledger.reserve()?;
            let Late {
                what, address, bytes, ..
            } = self.late.remove(at);
            self.make(time, what, address, &bytes);
        }
        Ok(())
    }

    /// When [`DmaView::advance`] next has something to do.
    #[must_use]
    pub fn next_event(&self) -> Option<u64> {
        self.late.iter().filter_map(|late| late.due).min()
    }

    /// The injector writes memory, all of it or none. Returns the ledger's index of the write.
    pub fn poke(&mut self, time: u64, injection: u16, address: u64, bytes: &[u8]) -> Result<u64, String> {
        let length = bytes.len() as u64;
        if bytes.is_empty() || bytes.len() > MAX_POKE {
            return Err(format!(
                "{length} bytes were to be written to {address:#x}: expected 1 to {MAX_POKE}"
            ));
        }
        if !self.ram.contains(address, length) {
            return Err(format!("{length} bytes at {address:#x} are not all RAM"));
        }
        self.ledger
            .reserve_for(1, bytes.len())
            .map_err(|full| full.to_string())?;
        let what = Injected {
            injection,
            of: None,
            content: Content::Bytes(bytes.to_vec()),
        };
        let entry = self.ledger.made();
        self.make(time, what, address, bytes);
        Ok(entry)
    }

    /// A byte of memory, as the injector reads it.
    #[must_use]
    pub fn peek(&self, address: u64) -> Option<u8> {
        let mut byte = [0];
        self.ram.read(address, &mut byte).ok().map(|()| byte[0])
    }
}

/// The bytes of a write after a change of its content.
fn changed(data: &[u8], change: Change) -> Vec<u8> {
    let mut bytes = data.to_vec();
    match change {
        Change::Flip(bit) => {
            let bits = bytes.len() * 8;
            let bit = usize::try_from(bit).unwrap_or(0) % bits.max(1);
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Change::Content { seed, sequence } => block_content(seed, sequence, &mut bytes),
        Change::Add(number) => {
            if let Some(first) = bytes.first_chunk_mut::<8>() {
                *first = u64::from_le_bytes(*first)
                    .wrapping_add_signed(number)
                    .to_le_bytes();
            }
        }
        Change::Vector(vector) => {
            if let Some(first) = bytes.first_mut() {
                *first = vector;
            }
        }
        _ => {}
    }
    bytes
}

#[cfg(test)]
mod tests;
