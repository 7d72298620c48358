//! The local APIC of one processor, in xAPIC mode (Intel SDM volume 3, chapter "Advanced Programmable Interrupt
//! Controller").

mod all;

use serde::{Deserialize, Serialize};

pub use all::LocalApics;

/// Guest physical address of the register page; it does not move.
pub const BASE: u64 = BASE_32 as u64;
/// The same as a 32-bit number, for the MADT.
pub const BASE_32: u32 = 0xfee0_0000;
/// Bytes of the register page.
pub const SIZE: u64 = 0x1000;
/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

const BASE_BSP: u64 = 1 << 8;
const BASE_ENABLE: u64 = 1 << 11;

const ID: u64 = 0x020;
const VERSION: u64 = 0x030;
/// Offset of the task priority register.
pub const TPR: u64 = 0x080;
const APR: u64 = 0x090;
const PPR: u64 = 0x0a0;
const EOI: u64 = 0x0b0;
const LDR: u64 = 0x0d0;
const DFR: u64 = 0x0e0;
const SVR: u64 = 0x0f0;
const ISR: u64 = 0x100;
const TMR: u64 = 0x180;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
/// Offset of the interrupt command register's lower half.
pub const ICR_LOW: u64 = 0x300;
/// Offset of the interrupt command register's upper half.
pub const ICR_HIGH: u64 = 0x310;
/// Offset of the timer's entry in the local vector table.
pub const LVT_TIMER: u64 = 0x320;
const LVT_LAST: u64 = 0x370;
/// Offset of the timer's initial count.
pub const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
/// Offset of the timer's divide configuration.
pub const TIMER_DIVIDE: u64 = 0x3e0;

/// Version 0x14, six LVT entries, no suppression of EOI broadcasts.
const VERSION_VALUE: u32 = 0x0005_0014;
const SVR_ENABLE: u32 = 1 << 8;
/// Local vector table: the entry is masked.
pub const LVT_MASKED: u32 = 1 << 16;
const TIMER_MODE: u32 = 0b11 << 17;
const TIMER_PERIODIC: u32 = 0b01 << 17;
const TIMER_DEADLINE: u32 = 0b10 << 17;
/// Bits that software may write, per LVT entry from the timer (0x320) to the error entry (0x370).
const LVT_WRITABLE: [u32; 6] = [
    0x0007_00ff,
    0x0001_07ff,
    0x0001_07ff,
    0x0001_a7ff,
    0x0001_a7ff,
    0x0001_00ff,
];
const LVT_ERROR: usize = 5;
/// ICR: the level of an INIT that is asserted.
const LEVEL_ASSERT: u32 = 1 << 14;
/// ICR: upper bit of the destination shorthand; set for all including and for all excluding the sender.
const SHORTHAND_OTHERS: u32 = 1 << 19;
const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// A 256-bit register such as IRR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8, value: bool) {
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        if value {
            self.0[word] |= bit
        } else {
            self.0[word] &= !bit
        }
    }

    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 32)] >> (vector % 32) & 1 == 1
    }

    fn highest(&self) -> Option<u8> {
        let word = (0..8).rev().find(|&word| self.0[word] != 0)?;
        u8::try_from(word * 32 + 31 - self.0[word].leading_zeros() as usize).ok()
    }
}

/// Delivery mode: the vector goes to every processor addressed.
pub const MODE_FIXED: u8 = 0;
/// Delivery mode: the vector goes to one of the processors addressed.
pub const MODE_LOWEST_PRIORITY: u8 = 1;
/// Delivery mode: a non-maskable interrupt.
pub const MODE_NMI: u8 = 4;
/// Delivery mode: reset, and wait for a start-up interrupt; its de-assertion has done nothing since the Pentium 4.
pub const MODE_INIT: u8 = 5;

/// An interprocessor interrupt that a local APIC sends to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipi {
    /// Whether it goes to all others, regardless of `destination`.
    pub all_others: bool,
    /// Destination field of the ICR.
    pub destination: u8,
    /// Whether the destination is logical.
    pub logical: bool,
    /// Delivery mode: 0 fixed, 1 lowest priority, 4 NMI, 5 INIT, 6 start-up.
    pub mode: u8,
    /// Vector field.
    pub vector: u8,
}

/// A local APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApic {
    apic_base: u64,
    id: u8,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    esr: u32,
    esr_pending: u32,
    icr_low: u32,
    icr_high: u32,
    lvt: [u32; 6],
    timer_initial: u32,
    timer_divide: u32,
    /// When the current count began.
    timer_start: u64,
    /// When a one-shot or periodic count ends; `None` while stopped.
    timer_end: Option<u64>,
    /// IA32_TSC_DEADLINE, a value of the TSC; 0 while disarmed.
    tsc_deadline: u64,
    /// What the TSC reads beyond guest time.
    tsc_offset: u64,
    /// Guest time at which the TSC reaches the deadline.
    deadline_due: Option<u64>,
    /// Nanoseconds per tick of the crystal clock.
    tick_ns: u64,
    /// An interprocessor interrupt that has not been delivered yet.
    sent: Option<Ipi>,
    /// A non-maskable interrupt waits for the processor.
    nmi: bool,
}

impl LocalApic {
    /// A local APIC after reset whose timer counts at `crystal_hz`, a divisor of 1 GHz. Processor 0 is the bootstrap
    /// processor.
    #[must_use]
    pub fn new(id: u8, crystal_hz: u64) -> Self {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        Self {
            apic_base: BASE | BASE_ENABLE | bsp,
            id,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            esr_pending: 0,
            icr_low: 0,
            icr_high: 0,
            lvt: [LVT_MASKED; 6],
            timer_initial: 0,
            timer_divide: 0,
            timer_start: 0,
            timer_end: None,
            tsc_deadline: 0,
            tsc_offset: 0,
            deadline_due: None,
            tick_ns: (1_000_000_000 / crystal_hz).max(1),
            sent: None,
            nmi: false,
        }
    }

    /// Whether the timers of both count at the same rate.
    #[must_use]
    pub fn counts_like(&self, other: &Self) -> bool {
        self.tick_ns == other.tick_ns
    }

    /// Takes the interprocessor interrupt that the last write sent, if it sent one. To be called after each write.
    #[must_use]
    pub fn take_sent(&mut self) -> Option<Ipi> {
        self.sent.take()
    }

    /// Accepts a non-maskable interrupt, even if the local APIC is disabled.
    pub fn raise_nmi(&mut self) {
        self.nmi = true;
    }

    /// Whether a non-maskable interrupt waits for the processor.
    #[must_use]
    pub fn nmi_pending(&self) -> bool {
        self.nmi
    }

    /// The processor takes the non-maskable interrupt.
    pub fn acknowledge_nmi(&mut self) {
        self.nmi = false;
    }

    /// Reads the register at `offset` into the page.
    #[must_use]
    pub fn read(&self, now: u64, offset: u64) -> u32 {
        match offset & !0xf {
            ID => u32::from(self.id) << 24,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            APR => 0,
            PPR => self.processor_priority(0).into(),
            LDR => self.ldr,
            DFR => self.dfr,
            SVR => self.svr,
            at @ ISR..TMR => self.isr.0[bank(at, ISR)],
            at @ TMR..IRR => self.tmr.0[bank(at, TMR)],
            at @ IRR..ESR => self.irr.0[bank(at, IRR)],
            ESR => self.esr,
            ICR_LOW => self.icr_low,
            ICR_HIGH => self.icr_high,
            at @ LVT_TIMER..=LVT_LAST => self.lvt[lvt_index(at)],
            TIMER_INITIAL => self.timer_initial,
            TIMER_CURRENT => self.current_count(now),
            TIMER_DIVIDE => self.timer_divide,
            _ => 0,
        }
    }

    /// Writes a register. Returns the vector of a level-triggered interrupt that this ended, for the I/O APIC.
    pub fn write(&mut self, now: u64, offset: u64, value: u32) -> Option<u8> {
        match offset & !0xf {
            ID => self.id = value.to_le_bytes()[3],
            TPR => self.tpr = value.to_le_bytes()[0],
            EOI => return self.end_of_interrupt(),
            LDR => self.ldr = value & 0xff00_0000,
            DFR => self.dfr = value | 0x0fff_ffff,
            SVR => self.write_svr(value),
            ESR => {
                self.esr = self.esr_pending;
                self.esr_pending = 0;
            }
            ICR_LOW => self.send(value),
            ICR_HIGH => self.icr_high = value & 0xff00_0000,
            at @ LVT_TIMER..=LVT_LAST => self.write_lvt(lvt_index(at), value),
            TIMER_INITIAL => {
                // In TSC-deadline mode the count register is ignored.
                if self.lvt[0] & TIMER_MODE != TIMER_DEADLINE {
                    self.timer_initial = value;
                    self.start_count(now);
                }
            }
            TIMER_DIVIDE => {
                self.timer_divide = value & 0b1011;
                if self.timer_end.is_some() {
                    self.start_count(now);
                }
            }
            // Read-only registers.
            VERSION | APR | PPR | ISR..ESR | TIMER_CURRENT => {}
            _ => self.error(ESR_ILLEGAL_REGISTER),
        }
        None
    }

    /// Reads one of the two model-specific registers that belong to the local APIC.
    #[must_use]
    pub fn msr_read(&self, index: u32) -> Option<u64> {
        match index {
            MSR_APIC_BASE => Some(self.apic_base),
            MSR_TSC_DEADLINE => Some(self.tsc_deadline),
            _ => None,
        }
    }

    /// Writes one of them; `false` is a general protection fault.
    pub fn msr_write(&mut self, now: u64, index: u32, value: u64) -> bool {
        match index {
            // x2APIC mode and other addresses are not supported.
            MSR_APIC_BASE if value & !(BASE_BSP | BASE_ENABLE) == BASE => {
                self.apic_base = value;
                true
            }
            MSR_TSC_DEADLINE => {
                if self.lvt[0] & TIMER_MODE == TIMER_DEADLINE {
                    self.arm_deadline(now, value);
                }
                true
            }
            _ => false,
        }
    }

    /// The processor's TSC reads `offset` more than guest time from now on. An armed deadline stays the same value of
    /// the TSC, so it comes at another time.
    pub fn set_tsc_offset(&mut self, now: u64, offset: u64) {
        self.tsc_offset = offset;
        self.arm_deadline(now, self.tsc_deadline);
    }

    /// The processor's TSC jumps by so many nanoseconds.
    pub fn shift_tsc(&mut self, now: u64, by: i64) {
        self.set_tsc_offset(now, self.tsc_offset.wrapping_add_signed(by));
    }

    /// Lets the timer expire so much later, if it is armed. Returns whether it is.
    pub fn delay_timer(&mut self, by: u64) -> bool {
        let due = [&mut self.deadline_due, &mut self.timer_end];
        let armed = due.into_iter().flatten();
        armed.map(|due| *due = due.saturating_add(by)).count() > 0
    }

    /// Makes a vector pending although the local APIC may be off.
    pub fn pend(&mut self, vector: u8) {
        if vector >= 16 {
            self.irr.set(vector, true);
            self.tmr.set(vector, false);
        }
    }

    /// Arms the timer with a value of the TSC, one that has passed included; 0 disarms it.
    fn arm_deadline(&mut self, now: u64, deadline: u64) {
        let ahead = deadline.saturating_sub(now.wrapping_add(self.tsc_offset));
        self.tsc_deadline = deadline;
        self.deadline_due = (deadline != 0).then(|| now.saturating_add(ahead));
    }

    /// Lets the timer expire if it is due.
    pub fn advance(&mut self, now: u64) {
        if self.deadline_due.is_some_and(|due| due <= now) {
            self.arm_deadline(now, 0);
            self.raise_lvt(0);
        }
        if let Some(end) = self.timer_end
            && end <= now
        {
            self.timer_end = None;
            if self.lvt[0] & TIMER_MODE == TIMER_PERIODIC {
                let period = self.period();
                self.timer_start = end + (now - end) / period * period;
                self.timer_end = Some(self.timer_start + period);
            }
            self.raise_lvt(0);
        }
    }

    /// When [`LocalApic::advance`] next has something to do.
    #[must_use]
    pub fn next_event(&self) -> Option<u64> {
        self.deadline_due.into_iter().chain(self.timer_end).min()
    }

    /// Accepts a fixed interrupt from the bus.
    pub fn raise(&mut self, vector: u8, level: bool) {
        if !self.enabled() {
            return;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
    }

    /// Whether a message with this destination is for this local APIC.
    #[must_use]
    pub fn matches(&self, destination: u8, logical: bool) -> bool {
        if destination == 0xff {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        let ours = self.ldr.to_le_bytes()[3];
        if self.dfr >> 28 == 0 {
            // Cluster model: upper half names the cluster, lower half its members.
            destination >> 4 == ours >> 4 && destination & ours & 0xf != 0
        } else {
            destination & ours != 0
        }
    }

    /// The vector that would be delivered now, given the processor's CR8.
    #[must_use]
    pub fn deliverable(&self, cr8: u8) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.enabled() && vector >> 4 > self.processor_priority(cr8) >> 4).then_some(vector)
    }

    /// The processor takes `vector`.
    pub fn acknowledge(&mut self, vector: u8) {
        self.irr.set(vector, false);
        self.isr.set(vector, true);
    }

    fn enabled(&self) -> bool {
        self.apic_base & BASE_ENABLE != 0 && self.svr & SVR_ENABLE != 0
    }

    fn processor_priority(&self, cr8: u8) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        let task = self.tpr.max(cr8 << 4);
        if task >> 4 >= in_service >> 4 {
            task
        } else {
            in_service & 0xf0
        }
    }

    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.set(vector, false);
        self.tmr.has(vector).then_some(vector)
    }

    fn write_svr(&mut self, value: u32) {
        self.svr = value & 0x3ff;
        if self.svr & SVR_ENABLE == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[index];
        if self.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if index == 0 && (value ^ self.lvt[0]) & TIMER_MODE & TIMER_DEADLINE != 0 {
            // Going to or from TSC-deadline mode disarms the timer.
            self.timer_end = None;
            (self.tsc_deadline, self.deadline_due) = (0, None);
        }
        self.lvt[index] = value;
    }

    fn raise_lvt(&mut self, index: usize) {
        let entry = self.lvt[index];
        if entry & LVT_MASKED == 0 {
            self.raise(entry.to_le_bytes()[0], false);
        }
    }

    fn error(&mut self, bit: u32) {
        let news = self.esr_pending & bit == 0;
        self.esr_pending |= bit;
        // A bad vector in the error entry itself must not recurse without end.
        if news && self.lvt[LVT_ERROR].to_le_bytes()[0] >= 16 {
            self.raise_lvt(LVT_ERROR);
        }
    }

    fn send(&mut self, value: u32) {
        self.icr_low = value & 0x000c_cfff;
        let [vector, ..] = value.to_le_bytes();
        let mode = (value >> 8 & 0b111) as u8;
        let logical = value & 1 << 11 != 0;
        let destination = self.icr_high.to_le_bytes()[3];
        let (to_self, to_others) = match value >> 18 & 0b11 {
            0b01 => (true, false),
            0b10 => (true, true),
            0b11 => (false, true),
            _ => {
                let to_self = self.matches(destination, logical);
                (to_self, !to_self || logical || destination == 0xff)
            }
        };
        if mode <= MODE_LOWEST_PRIORITY && vector < 16 {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return;
        }
        if to_self && mode <= MODE_LOWEST_PRIORITY {
            self.raise(vector, false);
            if mode == MODE_LOWEST_PRIORITY {
                return;
            }
        }
        if to_self && mode == MODE_NMI {
            self.raise_nmi();
        }
        let deasserts = mode == MODE_INIT && value & LEVEL_ASSERT == 0;
        if to_others && !deasserts {
            self.sent = Some(Ipi {
                all_others: value & SHORTHAND_OTHERS != 0,
                destination,
                logical,
                mode,
                vector,
            });
        }
    }

    fn divisor(&self) -> u64 {
        let code = self.timer_divide & 0b11 | self.timer_divide >> 1 & 0b100;
        if code == 0b111 { 1 } else { 2 << code }
    }

    fn period(&self) -> u64 {
        (u64::from(self.timer_initial) * self.divisor() * self.tick_ns).max(1)
    }

    fn start_count(&mut self, now: u64) {
        self.timer_start = now;
        self.timer_end = (self.timer_initial != 0).then(|| now + self.period());
    }

    fn current_count(&self, now: u64) -> u32 {
        let Some(end) = self.timer_end else { return 0 };
        let left = end.saturating_sub(now).div_ceil(self.divisor() * self.tick_ns);
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}

fn bank(offset: u64, first: u64) -> usize {
    usize::from(((offset - first) >> 4 & 7) as u8)
}

fn lvt_index(offset: u64) -> usize {
    usize::from(((offset - LVT_TIMER) >> 4 & 7) as u8)
}

#[cfg(test)]
mod tests;
