//! Interrupt messages that no device meant to send.

use super::DmaView;
use super::filter::{Late, MAX_LATE};
use crate::interrupt::Msi;
use crate::ledger::{Content, Injected};

impl DmaView {
    /// An injection sends `count` messages, one now and one after each `every` nanoseconds.
    pub fn send(
        &mut self,
        time: u64,
        injection: u16,
        msi: Msi,
        (count, every): (u32, u64),
    ) -> Result<(), String> {
        let later = count.saturating_sub(1);
        let room = MAX_LATE - self.late.len().min(MAX_LATE);
        if usize::try_from(later).map_or(true, |later| later > room) {
            return Err(format!("{count} messages are too many: there is room for {room}"));
        }
        self.reserve_message()?;
        let (what, bytes) = message(injection, msi);
        self.make(time, what.clone(), msi.address, &bytes);
        let late = (1..=u64::from(later)).map(|number| {
            let due = time.saturating_add(every.saturating_mul(number));
            Late::new(due, what.clone(), msi.address, &bytes)
        });
        self.late.extend(late);
        Ok(())
    }

    /// Records a message of an injection that does not go to the local APIC by itself.
    pub fn note_message(&mut self, time: u64, injection: u16, msi: Msi) -> Result<(), String> {
        self.reserve_message()?;
        let (what, bytes) = message(injection, msi);
        let stamp = self.stamp;
        self.ledger
            .record_injected((time, stamp), what, msi.address, &bytes);
        Ok(())
    }

    fn reserve_message(&mut self) -> Result<(), String> {
        let bytes = size_of::<u32>();
        self.ledger.reserve_for(1, bytes).map_err(|full| full.to_string())
    }
}

/// A message as a write of an injection.
fn message(injection: u16, msi: Msi) -> (Injected, [u8; 4]) {
    let bytes = msi.data.to_le_bytes();
    let what = Injected {
        injection,
        of: None,
        content: Content::Bytes(bytes.to_vec()),
    };
    (what, bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::{Entry, Ledger};
    use crate::memory::{GuestRam, MIN_RAM};

    const MSI: Msi = Msi {
        address: 0xfee0_1000,
        data: 0x41,
    };

    fn view() -> DmaView {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        DmaView::new(Arc::clone(&ram), Ledger::new(8))
    }

    #[test]
    fn a_storm_is_one_message_now_and_the_others_later() {
        let mut view = view();
        view.send(100, 2, MSI, (3, 10)).unwrap();
        assert_eq!((view.take_messages(), view.next_event()), (vec![MSI], Some(110)));
        view.advance(115);
        assert_eq!(view.take_messages(), [MSI]);
        view.advance(1_000);
        assert_eq!((view.take_messages(), view.next_event()), (vec![MSI], None));
        let entries = view.ledger.entries();
        assert_eq!(entries.len(), 3);
        assert!(
            entries
                .iter()
                .all(|entry| !entry.was_meant() && !entry.goes_to_memory())
        );
        let all = view.ledger.to_record().injected;
        assert!(all.iter().all(|made| (made.injection, made.of) == (2, None)));
    }

    #[test]
    fn too_many_are_refused_and_one_that_is_noted_goes_nowhere() {
        let mut view = view();
        let many = u32::try_from(MAX_LATE).unwrap() + 2;
        assert!(view.send(1, 0, MSI, (many, 1)).unwrap_err().contains("too many"));
        view.note_message(1, 0, MSI).unwrap();
        assert!(view.take_messages().is_empty());
        let [entry] = view.ledger.entries() else { panic!() };
        assert_eq!((entry.address, Entry::was_meant(entry)), (MSI.address, false));
        view.ledger = Ledger::new(1);
        view.send(2, 0, MSI, (1, 1)).unwrap();
        assert!(view.send(3, 0, MSI, (1, 1)).is_err(), "the ledger is full");
    }
}
