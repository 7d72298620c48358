//! The injections of a machine, and what has become of each.

use serde::{Deserialize, Serialize};

use super::{Deed, Delay, Done, Filter, Firing, Injection, Occurrence};
use crate::ledger::Kind;
use crate::phase::{Generation, Stamp};

/// Most firings, and most reasons why one could not fire, that are kept of an injection. Further ones are counted.
pub const MAX_KEPT: usize = 64;

/// All injections, in the order in which they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injections {
    all: Vec<Running>,
    /// A guest time, and the instructions retired until then. Later instructions take 1 ns each.
    counted: (u64, u64),
    /// How far the kernel of a generation lies above the addresses that it was linked for.
    kernel_offset: Option<(Generation, u64)>,
}

/// Bits of a kernel's virtual address that are the same wherever the kernel lies: it moves by multiples of 2 MiB
/// (`CONFIG_PHYSICAL_ALIGN` at the least).
pub const SAME_BITS: u64 = (2 << 20) - 1;

/// An injection in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The injection.
    pub injection: Injection,
    /// When it was armed: guest time in nanoseconds, generation and phase.
    pub armed: Option<(u64, Stamp)>,
    /// How often it has seen what its trigger waits for.
    pub seen: u64,
    /// How often it has fired.
    pub fired: u64,
    /// The first [`MAX_KEPT`] times that it fired.
    pub firings: Vec<Firing>,
    /// Why it could not fire when it was due: guest time and reason, of the first [`MAX_KEPT`] times.
    pub unable: Vec<(u64, String)>,
    /// How often it was due and done with, whether it fired or could not.
    attempts: u64,
    due: Due,
    answer: Answer,
}

/// When an injection is due next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Due {
    /// Its trigger has to occur first.
    Not,
    /// At this guest time.
    At(u64),
    /// When this many instructions have retired.
    Instructions(u64),
    /// A filter acts on writes: this many it has let pass since it acted.
    Open(u64),
}

/// The host's answer to what an injection asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    /// It has not been asked.
    None,
    /// It has been asked, and the machine stands until it answers.
    Wanted,
    /// The answer.
    Given(Deed),
    /// There is none, for good.
    Never,
}

impl Running {
    fn new(injection: Injection) -> Self {
        Self {
            injection,
            armed: None,
            seen: 0,
            fired: 0,
            firings: Vec::new(),
            unable: Vec::new(),
            attempts: 0,
            due: Due::Not,
            answer: Answer::None,
        }
    }

    /// The deed, once it is known.
    fn deed(&self) -> Option<&Deed> {
        match (&self.injection.deed, &self.answer) {
            (Deed::AskWhenArmed | Deed::AskWhenDue, Answer::Given(deed)) => Some(deed),
            (Deed::AskWhenArmed | Deed::AskWhenDue, _) => None,
            (deed, _) => Some(deed),
        }
    }

    /// The change of writes that it makes, if it is a filter and that is known.
    fn filter(&self) -> Option<Filter> {
        match self.deed()? {
            Deed::Filter(filter) => Some(*filter),
            _ => None,
        }
    }

    fn is_filter(&self) -> bool {
        // Only a filter is asked for when it is armed.
        matches!(self.injection.deed, Deed::Filter(_) | Deed::AskWhenArmed)
    }

    /// Whether it waits for something in this generation. A filter that acts on writes already does not.
    fn awaits_in(&self, generation: Generation) -> bool {
        let armed = self
            .armed
            .is_some_and(|(_, stamp)| stamp.generation == generation);
        armed && !self.is_over() && !matches!(self.due, Due::Open(_))
    }

    fn is_over(&self) -> bool {
        self.attempts >= self.injection.repeat.count || self.answer == Answer::Never
    }

    fn arm(&mut self, now: u64, stamp: Stamp, retired: u64) {
        self.armed = Some((now, stamp));
        if self.injection.deed == Deed::AskWhenArmed {
            self.answer = Answer::Wanted;
        }
        if self.injection.trigger.on == Occurrence::Begin {
            self.schedule(now, retired);
        }
    }

    fn schedule(&mut self, now: u64, retired: u64) {
        if self.due == Due::Not {
            self.due = match self.injection.trigger.delay {
                Delay::Time(ns) => Due::At(now.saturating_add(ns)),
                Delay::Instructions(count) => Due::Instructions(retired.saturating_add(count)),
            };
        }
    }

    fn occurred(&mut self, now: u64, retired: u64) {
        let (nth, every) = (self.injection.trigger.nth, self.injection.repeat.every.max(1));
        self.seen += 1;
        let again = !self.is_filter() && self.seen > nth && (self.seen - nth).is_multiple_of(every);
        if self.seen == nth || again {
            self.schedule(now, retired);
        }
    }

    fn has_come(&self, now: u64, retired: u64) -> bool {
        match self.due {
            Due::Not => false,
            Due::At(time) => time <= now,
            Due::Instructions(count) => count <= retired,
            Due::Open(_) => true,
        }
    }

    /// It was due and is done with: sets when it is due next.
    fn settle(&mut self) {
        self.attempts += 1;
        if self.injection.deed == Deed::AskWhenDue && self.answer != Answer::Never {
            self.answer = Answer::None;
        }
        let every = self.injection.repeat.every.max(1);
        self.due = match self.due {
            _ if self.is_over() => Due::Not,
            Due::Open(_) => Due::Open(0),
            Due::At(time) if self.injection.trigger.on == Occurrence::Begin => {
                Due::At(time.saturating_add(every))
            }
            Due::Instructions(count) if self.injection.trigger.on == Occurrence::Begin => {
                Due::Instructions(count.saturating_add(every))
            }
            _ => Due::Not,
        };
    }
}

impl Injections {
    /// Those of a machine that is switched on now.
    #[must_use]
    pub fn new(all: &[Injection]) -> Self {
        let mut injections = Self::default();
        injections.add(all);
        injections.arm_added(0, 0, Stamp::START, 0);
        injections
    }

    /// Adds some. [`Injections::arm_added`] is to follow.
    pub fn add(&mut self, added: &[Injection]) {
        self.all.extend(added.iter().cloned().map(Running::new));
    }

    /// Arms those that were added as number `first` and later, at guest time `now`, in the phase `stamp`, which began
    /// at `began`. If one waits for this phase's beginning, that counts if it is now.
    pub fn arm_added(&mut self, first: usize, now: u64, stamp: Stamp, began: u64) {
        let retired = self.retired(now);
        for running in self.all.iter_mut().skip(first) {
            let since = running.injection.trigger.since;
            if since.is_none() || since == Some(stamp) && began == now {
                running.arm(now, stamp, retired);
            }
        }
    }

    /// What has become of each.
    #[must_use]
    pub fn all(&self) -> &[Running] {
        &self.all
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// A phase begins at `now`.
    pub fn begin(&mut self, now: u64, stamp: Stamp) {
        let retired = self.retired(now);
        for running in &mut self.all {
            if running.injection.trigger.since == Some(stamp) && running.armed.is_none() {
                running.arm(now, stamp, retired);
            }
        }
    }

    /// Notes that `retired` instructions have retired at guest time `now`.
    pub fn count(&mut self, now: u64, retired: u64) {
        if !self.all.is_empty() {
            self.counted = (now, retired);
        }
    }

    fn retired(&self, now: u64) -> u64 {
        self.counted.1.saturating_add(now.saturating_sub(self.counted.0))
    }

    /// Something happened at `now` that triggers may wait for.
    pub fn occurred(&mut self, now: u64, what: impl Fn(Occurrence) -> bool) {
        let retired = self.retired(now);
        for running in &mut self.all {
            if running.armed.is_some() && !running.is_over() && what(running.injection.trigger.on) {
                running.occurred(now, retired);
            }
        }
    }

    /// Addresses of kernel instructions that the injections wait for, and the bits of them that count. If it is not
    /// known where the kernel lies, those are the lower ones.
    #[must_use]
    pub fn awaited_addresses(&self, generation: Generation) -> (Vec<u64>, u64) {
        let offset = self.kernel_offset_of(generation);
        let awaited = self.all.iter().filter(|running| running.awaits_in(generation));
        let addresses = awaited.filter_map(|running| match running.injection.trigger.on {
            Occurrence::Execute(address) => Some(address.wrapping_add(offset.unwrap_or(0))),
            _ => None,
        });
        let mask = if offset.is_some() { u64::MAX } else { SAME_BITS };
        (addresses.collect(), mask)
    }

    /// How far the kernel of a generation lies above the addresses that it was linked for, once that was found.
    #[must_use]
    pub fn kernel_offset_of(&self, generation: Generation) -> Option<u64> {
        let known = self.kernel_offset.filter(|(of, _)| *of == generation);
        known.map(|(_, offset)| offset)
    }

    /// Notes that.
    pub fn kernel_found(&mut self, generation: Generation, offset: u64) {
        self.kernel_offset = Some((generation, offset));
    }

    /// The kernel of a generation is about to execute the instruction at `rip`.
    pub fn on_execute(&mut self, now: u64, generation: Generation, rip: u64) {
        let Some(offset) = self.kernel_offset_of(generation) else {
            return;
        };
        let retired = self.retired(now);
        let linked = Occurrence::Execute(rip.wrapping_sub(offset));
        for running in &mut self.all {
            if running.injection.trigger.on == linked && running.awaits_in(generation) {
                running.occurred(now, retired);
            }
        }
    }

    /// A device is about to make a write of `kind`. Returns the first injection that changes it.
    pub fn on_write(&mut self, now: u64, kind: Kind) -> Option<(usize, Filter)> {
        if self.all.is_empty() {
            return None;
        }
        self.occurred(now, |on| matches!(on, Occurrence::Write(of) if of.has(kind)));
        let retired = self.retired(now);
        let mut acts = None;
        for (index, running) in self.all.iter_mut().enumerate() {
            let Some(filter) = running.filter().filter(|filter| filter.of.has(kind)) else {
                continue;
            };
            if running.is_over() || !running.has_come(now, retired) {
                continue;
            }
            let every = running.injection.repeat.every.max(1);
            // The first write is due at once.
            let passed = match running.due {
                Due::Open(passed) => passed + 1,
                _ => every,
            };
            running.due = Due::Open(passed);
            if passed >= every && acts.is_none() {
                acts = Some((index, filter));
            }
        }
        acts
    }

    /// The deed of the first injection that is due, other than a filter, with its index. Those whose deed is not known
    /// yet are asked for.
    pub fn take_due(&mut self, now: u64) -> Option<(usize, Deed)> {
        let retired = self.retired(now);
        for (index, running) in self.all.iter_mut().enumerate() {
            if running.is_filter() || running.is_over() || !running.has_come(now, retired) {
                continue;
            }
            match running.deed() {
                Some(deed) => return Some((index, deed.clone())),
                None => running.answer = Answer::Wanted,
            }
        }
        None
    }

    /// When [`Injections::take_due`] next has something to do, at the earliest.
    #[must_use]
    pub fn next_event(&self) -> Option<u64> {
        let due = self.all.iter().filter_map(|running| match running.due {
            _ if running.is_filter() || running.answer == Answer::Wanted => None,
            Due::At(time) => Some(time),
            Due::Instructions(count) => {
                let left = count.saturating_sub(self.counted.1);
                Some(self.counted.0.saturating_add(left))
            }
            Due::Not | Due::Open(_) => None,
        });
        due.min()
    }

    /// The first injection that asks the host what to do.
    #[must_use]
    pub fn asks(&self) -> Option<usize> {
        self.all
            .iter()
            .position(|running| running.answer == Answer::Wanted && !running.is_over())
    }

    /// The host's answer to what injection `index` asks: the deed, or why there is none. Returns whether it asked.
    pub fn answer(&mut self, index: usize, now: u64, answer: Result<Deed, String>) -> bool {
        let asks = |running: &&mut Running| running.answer == Answer::Wanted;
        let Some(running) = self.all.get_mut(index).filter(asks) else {
            return false;
        };
        let at_once = running.injection.deed == Deed::AskWhenArmed;
        let answer = match answer {
            Ok(deed) if at_once != matches!(deed, Deed::Filter(_)) => {
                Err("the host answered with a deed for another moment".into())
            }
            answer => answer,
        };
        match answer {
            Ok(deed) => running.answer = Answer::Given(deed),
            Err(reason) => {
                if at_once {
                    running.answer = Answer::Never;
                }
                self.failed(index, now, reason);
            }
        }
        true
    }

    /// Injection `index` has fired.
    pub fn fired(&mut self, index: usize, time: u64, stamp: Stamp, done: Done) {
        let Some(running) = self.all.get_mut(index) else {
            return;
        };
        running.fired += 1;
        if running.firings.len() < MAX_KEPT {
            running.firings.push(Firing { time, stamp, done });
        }
        running.settle();
    }

    /// Injection `index` was due and could not fire.
    pub fn failed(&mut self, index: usize, now: u64, reason: String) {
        let Some(running) = self.all.get_mut(index) else {
            return;
        };
        if running.unable.len() < MAX_KEPT {
            running.unable.push((now, reason));
        }
        running.settle();
    }

    /// Whether any injection needs the number of instructions retired.
    #[must_use]
    pub fn need_instructions(&self) -> bool {
        let counts = |running: &Running| matches!(running.injection.trigger.delay, Delay::Instructions(_));
        self.all.iter().any(counts)
    }

    /// Whether any trigger waits for accesses to registers.
    #[must_use]
    pub fn count_accesses(&self) -> bool {
        let accesses = |running: &Running| running.injection.trigger.on == Occurrence::Access;
        self.all.iter().any(accesses)
    }
}

#[cfg(test)]
mod tests;
