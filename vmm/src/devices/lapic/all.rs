//! The local APICs of all processors, and the delivery of interrupts to them.

use serde::{Deserialize, Serialize};

use super::{Ipi, LocalApic, MODE_FIXED, MODE_INIT, MODE_LOWEST_PRIORITY, MODE_NMI};
use crate::interrupt::Message;

/// Vector with which Linux asks other processors to stop (`REBOOT_VECTOR` of arch/x86/include/asm/irq_vectors.h). If a
/// processor does not answer, Linux sends it an NMI (`native_stop_other_cpus` of arch/x86/kernel/smp.c).
const STOP_VECTOR: u8 = 0xf8;

/// One local APIC per processor, in order of their identities, which begin at 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApics {
    apics: Vec<LocalApic>,
    accessing: usize,
    unserved: Option<Ipi>,
    /// Bit i: an injection keeps the requests of other processors to stop from processor i.
    unstoppable: u64,
    /// How far the time stamp counters have jumped that the processors have yet to take over, in nanoseconds.
    tsc_shift: i64,
}

impl LocalApics {
    /// Local APICs after reset for `count` processors, at least one; their timers count at `crystal_hz`.
    #[must_use]
    pub fn new(count: u8, crystal_hz: u64) -> Self {
        Self {
            apics: (0..count.max(1))
                .map(|id| LocalApic::new(id, crystal_hz))
                .collect(),
            accessing: 0,
            unserved: None,
            unstoppable: 0,
            tsc_shift: 0,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u8 {
        u8::try_from(self.apics.len()).unwrap_or(u8::MAX)
    }

    /// Makes `index` the processor that accesses the register page and the model-specific registers.
    pub fn select(&mut self, index: usize) {
        if index < self.apics.len() {
            self.accessing = index;
        }
    }

    /// The processor that accesses the register page.
    #[must_use]
    pub fn accessing(&self) -> u8 {
        u8::try_from(self.accessing).unwrap_or(u8::MAX)
    }

    /// The local APIC of the processor that accesses the register page.
    #[must_use]
    pub fn current(&self) -> &LocalApic {
        &self.apics[self.accessing]
    }

    /// The same, mutably.
    pub fn current_mut(&mut self) -> &mut LocalApic {
        &mut self.apics[self.accessing]
    }

    /// The local APIC of processor `index`; that of the last one if there are fewer.
    #[must_use]
    pub fn of(&self, index: usize) -> &LocalApic {
        &self.apics[index.min(self.apics.len() - 1)]
    }

    /// The same, mutably.
    pub fn of_mut(&mut self, index: usize) -> &mut LocalApic {
        let last = self.apics.len() - 1;
        &mut self.apics[index.min(last)]
    }

    /// Writes a register of the current local APIC, and delivers the interrupt that this sends to others. Returns the
    /// vector of a level-triggered interrupt that this ended, for the I/O APIC.
    pub fn write(&mut self, now: u64, offset: u64, value: u32) -> Option<u8> {
        let current = self.current_mut();
        let ended = current.write(now, offset, value);
        if let Some(ipi) = current.take_sent() {
            self.send(ipi);
        }
        ended
    }

    /// Delivers an interrupt of the I/O APIC or an MSI.
    pub fn deliver(&mut self, message: Message) {
        let receivers: Vec<usize> = (0..self.apics.len())
            .filter(|&index| self.apics[index].matches(message.destination, message.logical))
            .collect();
        self.hand_over(message.mode, message.vector, message.level, &receivers);
    }

    /// Makes a message pending that came before the local APICs were switched off, and was not taken.
    pub fn pend(&mut self, message: Message) {
        for apic in &mut self.apics {
            if apic.matches(message.destination, message.logical) {
                apic.pend(message.vector);
            }
        }
    }

    /// From now on no request of another processor to stop reaches processor `index`.
    pub fn make_unstoppable(&mut self, index: u8) {
        self.unstoppable |= 1_u64.checked_shl(index.into()).unwrap_or(0);
    }

    /// The time stamp counters of all processors jump. Timers follow at once; the processors take the jump from
    /// [`LocalApics::take_tsc_shift`].
    pub fn shift_tsc(&mut self, now: u64, by: i64) {
        self.apics.iter_mut().for_each(|apic| apic.shift_tsc(now, by));
        self.tsc_shift = self.tsc_shift.wrapping_add(by);
    }

    /// How far the time stamp counters have jumped since the last call, in nanoseconds.
    pub fn take_tsc_shift(&mut self) -> i64 {
        std::mem::take(&mut self.tsc_shift)
    }

    /// Puts off every timer that is armed. Returns how many were.
    pub fn delay_timers(&mut self, by: u64) -> usize {
        let delayed = self.apics.iter_mut().map(|apic| apic.delay_timer(by));
        delayed.filter(|delayed| *delayed).count()
    }

    /// Delivers an interrupt of the current local APIC to others.
    fn send(&mut self, ipi: Ipi) {
        let addressed = |apic: &LocalApic| ipi.all_others || apic.matches(ipi.destination, ipi.logical);
        let stops = ipi.vector == STOP_VECTOR && ipi.mode <= MODE_LOWEST_PRIORITY
            || matches!(ipi.mode, MODE_NMI | MODE_INIT);
        let kept_back = |index: usize| stops && self.unstoppable >> index & 1 == 1;
        let receivers: Vec<usize> = (0..self.apics.len())
            .filter(|&index| index != self.accessing && addressed(&self.apics[index]) && !kept_back(index))
            .collect();
        if !self.hand_over(ipi.mode, ipi.vector, false, &receivers) && !receivers.is_empty() {
            self.unserved.get_or_insert(ipi);
        }
    }

    /// Returns `false` if the delivery mode is not implemented.
    fn hand_over(&mut self, mode: u8, vector: u8, level: bool, receivers: &[usize]) -> bool {
        // The lowest priority is not looked for: a fixed choice is as good, and the same in every run.
        let receivers = match mode {
            MODE_LOWEST_PRIORITY => &receivers[..receivers.len().min(1)],
            _ => receivers,
        };
        for &index in receivers {
            match mode {
                MODE_FIXED | MODE_LOWEST_PRIORITY => self.apics[index].raise(vector, level),
                MODE_NMI => self.apics[index].raise_nmi(),
                _ => return false,
            }
        }
        true
    }

    /// The first interprocessor interrupt that could not be delivered because its mode is not implemented: INIT,
    /// start-up, SMI.
    #[must_use]
    pub fn unserved(&self) -> Option<Ipi> {
        self.unserved
    }

    /// Lets timers expire that are due.
    pub fn advance(&mut self, now: u64) {
        self.apics.iter_mut().for_each(|apic| apic.advance(now));
    }

    /// When [`LocalApics::advance`] next has something to do.
    #[must_use]
    pub fn next_event(&self) -> Option<u64> {
        self.apics.iter().filter_map(LocalApic::next_event).min()
    }

    /// Whether this state is possible for `count` processors whose timers count at `crystal_hz`.
    #[must_use]
    pub fn are_sound(&self, count: usize, crystal_hz: u64) -> bool {
        let fresh = LocalApic::new(0, crystal_hz);
        self.apics.len() == count
            && self.accessing < count
            && self.apics.iter().all(|apic| apic.counts_like(&fresh))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ICR_LOW: u64 = 0x300;
    const ICR_HIGH: u64 = 0x310;

    /// Enabled local APICs with flat logical identities, as Linux sets them up.
    fn apics(count: u8) -> LocalApics {
        let mut apics = LocalApics::new(count, 25_000_000);
        for index in 0..count {
            apics.select(index.into());
            apics.write(0, 0xf0, 0x1ff);
            apics.write(0, 0xd0, 1 << (24 + index));
        }
        apics.select(0);
        apics
    }

    fn pending(apics: &LocalApics, count: usize) -> Vec<Option<u8>> {
        (0..count).map(|index| apics.of(index).deliverable(0)).collect()
    }

    #[test]
    fn each_processor_sees_its_own() {
        let mut apics = apics(3);
        let identities = (0..3).map(|index| {
            apics.select(index);
            apics.current().read(0, 0x20) >> 24
        });
        assert_eq!(identities.collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(
            apics.of(0).msr_read(0x1b).unwrap() >> 8 & 1,
            1,
            "bootstrap processor"
        );
        assert_eq!(apics.of(2).msr_read(0x1b).unwrap() >> 8 & 1, 0);
    }

    #[test]
    fn interprocessor_interrupts_reach_whom_they_name() {
        let mut apics = apics(4);
        apics.write(0, ICR_HIGH, 2 << 24);
        apics.write(0, ICR_LOW, 0x40);
        assert_eq!(pending(&apics, 4), [None, None, Some(0x40), None], "physical");
        apics.write(0, ICR_HIGH, 0b1011 << 24);
        apics.write(0, ICR_LOW, 0x800 | 0x50);
        assert_eq!(
            pending(&apics, 4),
            [Some(0x50), Some(0x50), Some(0x40), Some(0x50)],
            "logical"
        );
        apics.select(3);
        apics.write(0, ICR_LOW, 0b11 << 18 | 0x60);
        assert_eq!(
            pending(&apics, 4),
            [Some(0x60), Some(0x60), Some(0x60), Some(0x50)],
            "all but self"
        );
        apics.write(0, ICR_LOW, 0b10 << 18 | 0x70);
        assert_eq!(pending(&apics, 4), [Some(0x70); 4], "all");
        assert_eq!(apics.unserved(), None);
    }

    #[test]
    fn messages_go_to_all_or_to_the_first_of_those_addressed() {
        let message = |mode, vector| Message {
            vector,
            destination: 0b0110,
            logical: true,
            mode,
            level: false,
        };
        let mut apics = apics(4);
        apics.deliver(message(MODE_LOWEST_PRIORITY, 0x41));
        assert_eq!(pending(&apics, 4), [None, Some(0x41), None, None]);
        apics.deliver(message(MODE_FIXED, 0x42));
        assert_eq!(pending(&apics, 4), [None, Some(0x42), Some(0x42), None]);
    }

    #[test]
    fn requests_to_stop_do_not_reach_a_processor_that_is_unstoppable() {
        let mut apics = apics(3);
        apics.make_unstoppable(1);
        apics.write(0, ICR_LOW, 0b11 << 18 | u32::from(STOP_VECTOR));
        assert_eq!(pending(&apics, 3), [None, None, Some(STOP_VECTOR)]);
        apics.write(0, ICR_LOW, 0b11 << 18 | 0x400);
        assert!(!apics.of(1).nmi_pending() && apics.of(2).nmi_pending());
        apics.write(0, ICR_LOW, 0b11 << 18 | 0x41);
        assert_eq!(pending(&apics, 3)[1], Some(0x41), "any other interrupt comes");
        apics.make_unstoppable(u8::MAX);
    }

    #[test]
    fn a_pending_message_outlasts_the_local_apic_being_off() {
        let mut apics = apics(2);
        let message = Message {
            vector: 0x41,
            destination: 0b10,
            logical: true,
            mode: MODE_FIXED,
            level: false,
        };
        apics.select(1);
        apics.write(0, 0xf0, 0xff);
        apics.deliver(message);
        apics.pend(message);
        assert_eq!(pending(&apics, 2), [None, None], "it is off");
        apics.write(0, 0xf0, 0x1ff);
        assert_eq!(pending(&apics, 2), [None, Some(0x41)]);
    }

    #[test]
    fn timers_are_put_off_and_follow_the_time_stamp_counter() {
        let mut apics = apics(2);
        assert_eq!(apics.delay_timers(100), 0, "none is armed");
        apics.write(0, 0x320, 0b10 << 17 | 0x41);
        assert!(apics.current_mut().msr_write(0, 0x6e0, 1_000));
        assert_eq!(apics.next_event(), Some(1_000));
        assert_eq!(apics.delay_timers(500), 1);
        assert_eq!(apics.next_event(), Some(1_500));
        assert!(apics.current_mut().msr_write(0, 0x6e0, 1_000));
        apics.shift_tsc(100, 300);
        assert_eq!((apics.next_event(), apics.take_tsc_shift()), (Some(700), 300));
        apics.shift_tsc(100, -400);
        assert_eq!((apics.next_event(), apics.take_tsc_shift()), (Some(1_100), -400));
        assert_eq!(apics.take_tsc_shift(), 0, "once");
    }

    #[test]
    fn what_cannot_be_served_is_not_lost() {
        let mut apics = apics(2);
        apics.write(0, ICR_LOW, 0b11 << 18 | 0x400);
        assert!(apics.of(1).nmi_pending() && !apics.of(0).nmi_pending());
        apics.write(0, ICR_HIGH, 5 << 24);
        apics.write(0, ICR_LOW, 0x4500);
        assert_eq!(apics.unserved(), None, "INIT to nobody");
        apics.write(0, ICR_HIGH, 1 << 24);
        apics.write(0, ICR_LOW, 0x8500);
        assert_eq!(apics.unserved(), None, "INIT de-asserted");
        apics.write(0, ICR_LOW, 0x4500);
        apics.write(0, ICR_LOW, 0x4699);
        assert_eq!(apics.unserved().map(|ipi| ipi.mode), Some(5), "the first one");
    }
}
