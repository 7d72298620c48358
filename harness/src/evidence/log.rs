//! What kernels said: the parts of the console output, and the records of /dev/kmsg.

use super::{Evidence, Phase};
use guest_agent::protocol::LogRecord;
use serde::{Deserialize, Serialize};

/// Most bytes of text kept of one generation's log.
const MAX_LOG_BYTES: usize = 512 << 10;

/// A part of [`Evidence::console`]: what the guest printed in one phase. It ends where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsolePart {
    /// Kernel generation.
    pub generation: u32,
    /// Phase.
    pub phase: Phase,
    /// Offset of its first byte in the console output.
    pub begin: u64,
    /// How many bytes of it were not kept.
    pub lost: u64,
}

/// What the agent read of one generation's kernel log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLog {
    /// Kernel generation.
    pub generation: u32,
    /// Records of the kernel itself, in order.
    pub records: Vec<LogRecord>,
    /// Records that the kernel overwrote before they were read, or that were too many to keep.
    pub lost: u64,
}

/// The name of an address in a report on the console or in a kernel log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSymbol {
    /// Kernel generation.
    pub generation: u32,
    /// Address in its kernel.
    pub address: u64,
    /// Symbol and offset.
    pub symbol: String,
}

impl KernelLog {
    /// Adds records, and returns whether the log is full. What does not fit counts as lost.
    pub fn add(&mut self, records: Vec<LogRecord>, lost: u64) -> bool {
        self.lost = self.lost.saturating_add(lost);
        let mut bytes: usize = self.records.iter().map(|record| record.text.len()).sum();
        for record in records {
            bytes = bytes.saturating_add(record.text.len());
            if bytes <= MAX_LOG_BYTES {
                self.records.push(record);
            } else {
                self.lost = self.lost.saturating_add(1);
            }
        }
        bytes > MAX_LOG_BYTES
    }
}

impl Evidence {
    /// The kernel log of a generation, an empty one at first.
    pub(crate) fn kernel_log(&mut self, generation: u32) -> &mut KernelLog {
        let known = self
            .kernel_logs
            .iter()
            .position(|log| log.generation == generation);
        let at = known.unwrap_or_else(|| {
            self.kernel_logs.push(KernelLog {
                generation,
                ..KernelLog::default()
            });
            self.kernel_logs.len() - 1
        });
        &mut self.kernel_logs[at]
    }

    /// What the kernel of a generation printed, and the offset of that in the console output. If no part of the console
    /// is on record, all of it is the first kernel's.
    pub fn console_of(&self, generation: u32) -> (usize, &str) {
        let begin_of = |generation: u32| {
            let parts = &self.console_parts;
            let first = parts.iter().find(|part| part.generation >= generation);
            let begin = first.map(|part| usize::try_from(part.begin).unwrap_or(usize::MAX));
            let begin = begin.unwrap_or(if generation == 0 { 0 } else { self.console.len() });
            // A console file can be shorter than it was, or have other text.
            let begin = begin.min(self.console.len());
            (0..=begin)
                .rev()
                .find(|at| self.console.is_char_boundary(*at))
                .unwrap_or(0)
        };
        let (begin, end) = (begin_of(generation), begin_of(generation.saturating_add(1)));
        (begin, self.console.get(begin..end).unwrap_or_default())
    }

    /// How many bytes of a generation's console output were not kept.
    pub fn console_lost(&self, generation: u32) -> u64 {
        let parts = self.console_parts.iter();
        parts
            .filter(|part| part.generation == generation)
            .fold(0, |sum, part| sum.saturating_add(part.lost))
    }

    /// The phase in which the byte at `offset` of the console output was printed.
    pub fn phase_printed(&self, offset: usize) -> Option<Phase> {
        let mut parts = self.console_parts.iter();
        let part = parts.rfind(|part| part.begin <= offset as u64)?;
        Some(part.phase)
    }

    /// Symbol and offset of an address in a report of a generation's kernel.
    pub fn log_symbol(&self, generation: u32, address: u64) -> Option<&str> {
        let named = |one: &&LogSymbol| one.generation == generation && one.address == address;
        self.log_symbols.iter().find(named).map(|one| one.symbol.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_generation_has_its_own_part_of_the_console() {
        let mut evidence = testing::good();
        let part = |generation, phase, begin| ConsolePart {
            generation,
            phase,
            begin,
            lost: begin,
        };
        evidence.console = "old\nkexec\nnew\n".into();
        evidence.console_parts = vec![
            part(0, Phase::BootOld, 0),
            part(0, Phase::Jump, 4),
            part(1, Phase::BootNew, 10),
        ];
        assert_eq!(evidence.console_of(0), (0, "old\nkexec\n"));
        assert_eq!(evidence.console_of(1), (10, "new\n"));
        assert_eq!(evidence.console_of(2), (14, ""));
        assert_eq!(evidence.phase_printed(3), Some(Phase::BootOld));
        assert_eq!(evidence.phase_printed(4), Some(Phase::Jump));
        assert_eq!((evidence.console_lost(0), evidence.console_lost(1)), (4, 10));
        // Shorter than it was, and with a character across the boundary.
        evidence.console = "old\u{e4}".into();
        assert_eq!(evidence.console_of(0), (0, "old\u{e4}"));
        assert_eq!(evidence.console_of(1).1, "");
        evidence.console_parts[2].begin = 4;
        assert_eq!(evidence.console_of(1), (3, "\u{e4}"));
        evidence.console_parts.clear();
        assert_eq!(evidence.console_of(0), (0, "old\u{e4}"));
        assert_eq!(evidence.console_of(1).1, "");
    }

    #[test]
    fn a_log_that_is_too_long_says_how_much_is_missing() {
        let mut log = KernelLog::default();
        let record = LogRecord {
            time_us: 1,
            level: 4,
            text: "x".repeat(MAX_LOG_BYTES / 4),
        };
        assert!(!log.add(vec![record.clone(); 4], 2));
        assert!(log.add(vec![record; 2], 0));
        assert_eq!((log.records.len(), log.lost), (4, 4));
    }
}
