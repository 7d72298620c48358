//! Complaints of a kernel about itself, found in what it logged: its console output, or records of /dev/kmsg.
//!
//! A report is recognised by its first line ([`head`] has the forms of Linux 6.17 to 7.3), which has to stand at the
//! beginning of a log line. So a command line that is echoed, or a word inside another message, is no report. Log text
//! comes from the guest: whatever it holds, parsing neither fails nor takes more memory than the bounds here allow.

mod head;
mod line;
mod report;
#[cfg(test)]
mod tests;

pub use head::Kind;
pub use line::{Line, console_lines, record_lines};

use crate::evidence::Evidence;
use report::Reader;
use std::fmt;

/// Most lines kept of one report. Register dumps and separators are left out.
pub const MAX_LINES: usize = 16;
/// Most bytes kept of one line.
pub const MAX_LINE_BYTES: usize = 240;
/// Most complaints kept of one log; further ones are only counted.
pub const MAX_COMPLAINTS: usize = 256;

/// One complaint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// What it is about.
    pub kind: Kind,
    /// Offset of its first line in the console output; `None` if it was found in records only.
    pub at: Option<usize>,
    /// Time of the kernel's log at its first line, in microseconds; `None` if the log has no times.
    pub begin_us: Option<u64>,
    /// Its headline: the line by which it was recognised.
    pub headline: String,
    /// Time of that line, likewise. Every reading of a log has the same.
    pub headline_us: Option<u64>,
    /// Its first lines in order, at most [`MAX_LINES`]; the headline is among them.
    pub lines: Vec<String>,
    /// The code that it names, if it does.
    pub code: Option<Code>,
}

/// Code that a complaint names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// Symbol and offset: `luo_session_create+0x12`.
    Symbol(String),
    /// Address, from a kernel without CONFIG_KALLSYMS.
    Address(u64),
}

impl Code {
    /// From the kernel's `%pS`: `symbol+0x12/0x34 [module]`, or an address such as `0xffffffff81000000`.
    fn parse(text: &str) -> Option<Self> {
        let token = text.split_whitespace().next()?;
        if let Some(digits) = token.strip_prefix("0x") {
            return u64::from_str_radix(digits, 16).ok().map(Self::Address);
        }
        let symbol = token.split('/').next()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.+$".contains(c);
        let named = !symbol.is_empty() && symbol.len() <= MAX_LINE_BYTES && symbol.chars().all(plain);
        named.then(|| Self::Symbol(symbol.to_owned()))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(symbol) => f.write_str(symbol),
            Self::Address(address) => write!(f, "{address:#x}"),
        }
    }
}

/// The complaints of one log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Complaints {
    /// The first [`MAX_COMPLAINTS`], in order.
    pub kept: Vec<Complaint>,
    /// How many more there were.
    pub more: u64,
    /// How many lines were read.
    pub lines: u64,
    /// Whether the kernel says that it had to leave out messages on this console.
    pub messages_dropped: bool,
}

/// Finds the complaints in a kernel's log.
pub fn complaints<'a>(lines: impl IntoIterator<Item = Line<'a>>) -> Complaints {
    let mut reader = Reader::default();
    for line in lines {
        reader.read(&line);
    }
    reader.finish()
}

/// The complaints of one generation's kernel, from its console output and its log: each once, in the order of the log.
pub fn of_generation(evidence: &Evidence, generation: u32) -> Complaints {
    let (begin, text) = evidence.console_of(generation);
    let mut found = complaints(console_lines(text));
    for one in &mut found.kept {
        one.at = one.at.map(|at| at + begin);
    }
    if let Some(log) = evidence
        .kernel_logs
        .iter()
        .find(|log| log.generation == generation)
    {
        found.merge(complaints(record_lines(&log.records)));
        found.kept.sort_by_key(|one| one.begin_us);
    }
    found
}

impl Complaints {
    /// Adds those of `others`, another reading of the same log, that are not here already.
    pub fn merge(&mut self, others: Self) {
        // Each is matched once: a kernel without times may say the same twice.
        let mut free = vec![true; self.kept.len()];
        for other in others.kept {
            let mut pairs = self.kept.iter().zip(&free);
            let same = pairs.position(|(one, free)| *free && one.is_same(&other));
            match same {
                Some(index) => {
                    free[index] = false;
                    self.kept[index].fill_in(other);
                }
                None if self.kept.len() < MAX_COMPLAINTS => self.kept.push(other),
                None => self.more += 1,
            }
        }
        self.more = self.more.max(others.more);
        self.lines = self.lines.max(others.lines);
        self.messages_dropped |= others.messages_dropped;
    }
}

/// Most microseconds between the beginnings of two readings of one report of which one has lost its headline.
const SAME_BEGIN_US: u64 = 1000;

impl Complaint {
    /// Whether this and `other` are the same report, read in two ways.
    fn is_same(&self, other: &Self) -> bool {
        // A reading without a headline is only what is left of a report.
        if (self.is_headless() || other.is_headless())
            && let (Some(one), Some(another)) = (self.begin_us, other.begin_us)
        {
            return one.abs_diff(another) <= SAME_BEGIN_US;
        }
        // Lines before the headline may be missing in one reading, so the beginnings are as far apart as the kernel is slow.
        let simultaneous = match (self.headline_us, other.headline_us) {
            (Some(one), Some(another)) => one == another,
            _ => true,
        };
        simultaneous && self.headline == other.headline
    }

    /// Takes from `other`, another reading of this report, what that has more of.
    fn fill_in(&mut self, other: Self) {
        let at = self.at;
        if !other.is_headless() && (self.is_headless() || other.lines.len() > self.lines.len()) {
            let code = self.code.take();
            *self = other;
            self.code = self.code.take().or(code);
        }
        self.at = at.or(self.at);
    }

    fn is_headless(&self) -> bool {
        self.headline.contains(head::CUT_HERE)
    }

    /// Kernel addresses in its lines, each once: what a System.map can give names to.
    pub fn addresses(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.lines.iter().flat_map(|line| addresses(line)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Addresses of the kernel's half in a line, as `%pS` prints them without CONFIG_KALLSYMS.
fn addresses(line: &str) -> impl Iterator<Item = u64> {
    line.match_indices("0xffffffff").filter_map(|(at, _)| {
        let digits = line.get(at + 2..at + 18)?;
        let ends = !line[at + 18..].starts_with(|c: char| c.is_ascii_hexdigit());
        u64::from_str_radix(digits, 16).ok().filter(|_| ends)
    })
}

/// The line with its addresses replaced by the names that `symbol` knows.
pub fn with_symbols(line: &str, symbol: impl Fn(u64) -> Option<String>) -> String {
    let mut named = line.to_owned();
    for address in addresses(line) {
        if let Some(name) = symbol(address) {
            named = named.replace(&format!("{address:#018x}"), &name);
        }
    }
    named
}
