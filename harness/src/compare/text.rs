//! Differences in sentences.

use super::inputs::InputDifference;
use super::{At, Compared, Comparison, Difference, RecordDifference, Told};
use std::fmt::{Display, Formatter, Result};

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Equal(compared) => compared.fmt(f),
            Self::Different(difference) => difference.fmt(f),
            Self::Incomparable { reason } => write!(f, "not comparable: {reason}"),
        }
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for input in &self.inputs {
            writeln!(f, "different inputs: {input}")?;
        }
        match &self.record {
            Some(record) => record.fmt(f),
            None => f.write_str("every record is equal; only the inputs differ"),
        }
    }
}

impl Display for InputDifference {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { what, first, second } = self;
        write!(f, "{what} was {first} in the first and {second} in the second")
    }
}

impl RecordDifference {
    /// The difference and its place, in one line.
    pub fn sentence(&self) -> String {
        let place = place(self.at);
        let at = if place.is_empty() {
            String::new()
        } else {
            format!("at {place}: ")
        };
        format!("first difference: {at}{}", self.contrast())
    }

    fn contrast(&self) -> String {
        let (first, second) = match (&self.first, &self.second) {
            (Some(first), Some(second)) => (first, second),
            (Some(only), None) => return format!("{only} in the first, and the second has no more of these"),
            (None, Some(only)) => return format!("{only} in the second, and the first has no more of these"),
            (None, None) => return "nothing".into(),
        };
        if (first.at.time_ns, first.at.instructions) != (second.at.time_ns, second.at.instructions) {
            let here = place(self.at);
            let placed = |told: &Told| match place(told.at) {
                place if place.is_empty() || place == here => told.to_string(),
                place => format!("{told} at {place}"),
            };
            if first.to_string() != second.to_string() {
                return format!("{} in the first; {} in the second", placed(first), placed(second));
            }
            let (earlier, one, later, other) = if place(first.at) == here {
                (first, "first", second, "second")
            } else {
                (second, "second", first, "first")
            };
            return format!(
                "{earlier} in the {one}; the same at {} in the {other}",
                place(later.at)
            );
        }
        if (&first.subject, first.verb) == (&second.subject, second.verb) {
            let Told {
                subject, verb, value, ..
            } = first;
            let processors = match [first, second].map(|told| told.at.processor) {
                [Some(one), Some(other)] if one != other => {
                    format!(" (processor {one} in the first, {other} in the second)")
                }
                _ => String::new(),
            };
            return format!(
                "{subject} {verb} {value} in the first and {} in the second{processors}",
                second.value
            );
        }
        format!("{first} in the first; {second} in the second")
    }
}

impl Display for RecordDifference {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.sentence())?;
        let phase = self.at.phase.map(|phase| phase.to_string());
        let generation = self
            .at
            .generation
            .map(|generation| format!("generation {generation}"));
        let within: Vec<String> = phase.into_iter().chain(generation).collect();
        if !within.is_empty() {
            write!(f, "\n  in {}", within.join(" of "))?;
        }
        if let Some(function) = &self.function {
            write!(f, "\n  in function {function}")?;
        }
        if let Some(end) = self.trace_ends_ns {
            write!(
                f,
                "\n  the trace was full at {}: the runs may have parted after that and before this",
                millis(end)
            )?;
        }
        if !self.before.is_empty() {
            f.write_str("\n  before it, equal in both:")?;
        }
        for told in &self.before {
            match place(told.at).as_str() {
                "" => write!(f, "\n    {told}")?,
                place => write!(f, "\n    {place}: {told}")?,
            }
        }
        Ok(())
    }
}

impl Display for Told {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            subject, verb, value, ..
        } = self;
        write!(f, "{subject} {verb}")?;
        if value.is_empty() {
            Ok(())
        } else {
            write!(f, " {value}")
        }
    }
}

impl Display for Compared {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let counts = [
            (self.ledger_entries, "ledger entries"),
            (self.engine_events, "engine events"),
            (self.cpu_writes, "first CPU writes"),
            (self.phases, "phases"),
            (self.retrievals, "retrievals"),
            (self.captured_pages, "captured pages"),
            (self.digests, "digests of pages"),
            (self.blob_pages, "pages of handover blobs"),
            (self.console_bytes, "bytes on the console"),
        ];
        f.write_str("equal")?;
        if self.trace_dropped > 0 {
            f.write_str(" as far as recorded")?;
        }
        let [records, messages] = [self.trace_records, self.messages].map(thousands);
        write!(f, ": {records} trace records ({messages} of them messages)")?;
        if self.trace_dropped > 0 {
            let further = thousands(self.trace_dropped);
            write!(f, " and {further} more by digest only")?;
        }
        for (count, what) in counts {
            write!(f, ", {} {what}", thousands(count))?;
        }
        write!(f, ", state hash {}", self.state_hash)
    }
}

fn place(at: At) -> String {
    let time = at.time_ns.map(millis);
    let instructions = at.instructions.map(|count| format!("instruction {count}"));
    let processor = at.processor.map(|index| format!("processor {index}"));
    let parts: Vec<String> = [time, instructions, processor].into_iter().flatten().collect();
    parts.join(", ")
}

/// A time to the nanosecond, because times may differ by one.
pub(super) fn millis(ns: u64) -> String {
    format!("{}.{:06} ms", ns / 1_000_000, ns % 1_000_000)
}

/// With a comma between groups of three digits.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
