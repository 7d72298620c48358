//! Reads a log line by line and puts its reports together.

use super::head::{CUT_HERE, END_TRACE, Kind, PANIC, head};
use super::{Code, Complaint, Complaints, Line, MAX_COMPLAINTS, MAX_LINE_BYTES, MAX_LINES};

/// Most lines after the last headline that are still read as part of a report.
const MAX_REPORT_LINES: usize = 80;
/// Most microseconds between two lines of a report.
const MAX_PAUSE_US: u64 = 1_000_000;
/// Most lines between "cut here" and the headline.
const MAX_LINES_BEFORE: usize = 6;
/// Most lines between the headlines of one report: a WARN with its message, "unable to handle" and "Oops".
const MAX_LINES_BETWEEN: usize = 8;

/// Beginnings of lines that say nothing to a reader of the report: registers, code bytes, list of modules, stack names.
const NOISE: [&str; 19] = [
    "RSP: ",
    "RAX: ",
    "RDX: ",
    "RBP: ",
    "R10: ",
    "R13: ",
    "FS: ",
    "CS: ",
    "CR2: ",
    "DR0: ",
    "DR3: ",
    "PKRU: ",
    "Code: ",
    "Modules linked in:",
    "====",
    "----",
    "<TASK>",
    "</TASK>",
    "Call Trace:",
];

/// A log that is being read.
#[derive(Default)]
pub(super) struct Reader {
    found: Complaints,
    open: Option<Open>,
    after_rule: bool,
}

/// A report that is being read.
struct Open {
    report: Complaint,
    /// Whether its headline has been read. Before, its headline is "cut here".
    headed: bool,
    /// Lines since the last headline.
    since: usize,
    last_us: Option<u64>,
}

impl Reader {
    pub fn read(&mut self, line: &Line<'_>) {
        self.found.lines += 1;
        let text = line.text.trim_start();
        self.found.messages_dropped |= text.starts_with("** ") && text.contains(" printk messages dropped");
        // Who prints into a report without a time is user space, if the report has times.
        let foreign = |open: &Open| open.last_us.is_some() && line.time_us.is_none();
        if self.open.as_ref().is_some_and(foreign) && head(text, false).is_none() {
            return;
        }
        if self.open.as_ref().is_some_and(|open| open.is_over(line)) {
            self.close();
        }
        if text.starts_with(CUT_HERE) && self.open.as_ref().is_some_and(Open::has_only_a_message) {
            // The BUG or WARN of a message that was printed before.
        } else if text.starts_with(CUT_HERE) {
            self.close();
            self.open = Some(Open::new(Kind::Warning, line, false));
        } else if text.starts_with(PANIC) || text.starts_with(END_TRACE) {
            self.close();
        } else if let Some((kind, code)) = head(text, self.after_rule) {
            self.headline(kind, code, line);
        } else if let Some(open) = &mut self.open {
            open.line(line.time_us, text);
        }
        self.after_rule = text.len() >= 10 && text.bytes().all(|byte| byte == b'=');
    }

    fn headline(&mut self, kind: Kind, code: Option<Code>, line: &Line<'_>) {
        if let Some(open) = &mut self.open
            && let Some(kind) = open.continued_by(kind)
        {
            if !open.headed {
                open.report.headline = cut(line.text.trim_start());
                open.report.headline_us = line.time_us;
            }
            (open.headed, open.report.kind) = (true, kind);
            open.report.code = open.report.code.take().or(code);
            open.line(line.time_us, line.text.trim_start());
            open.since = 0;
            return;
        }
        self.close();
        let mut open = Open::new(kind, line, true);
        open.report.code = code;
        self.open = Some(open);
    }

    fn close(&mut self) {
        let Some(Open { report, .. }) = self.open.take() else {
            return;
        };
        if self.found.kept.len() < MAX_COMPLAINTS {
            self.found.kept.push(report);
        } else {
            self.found.more += 1;
        }
    }

    pub fn finish(mut self) -> Complaints {
        self.close();
        self.found
    }
}

impl Open {
    fn new(kind: Kind, line: &Line<'_>, headed: bool) -> Self {
        let text = cut(line.text.trim_start());
        Self {
            report: Complaint {
                kind,
                at: line.at,
                begin_us: line.time_us,
                lines: if headed { vec![text.clone()] } else { Vec::new() },
                headline: text,
                headline_us: line.time_us,
                code: None,
            },
            headed,
            since: 0,
            last_us: line.time_us,
        }
    }

    /// Adds a line that is no headline.
    fn line(&mut self, time_us: Option<u64>, text: &str) {
        self.since += 1;
        self.last_us = time_us.or(self.last_us);
        let lines = &mut self.report.lines;
        if lines.len() < MAX_LINES && !text.is_empty() && !NOISE.iter().any(|noise| text.starts_with(noise)) {
            lines.push(cut(text));
        }
        if self.report.code.is_none() {
            self.report.code = kernel_rip(text);
        }
    }

    /// Whether nothing but the message of a damaged list has been read (CHECK_DATA_CORRUPTION in include/linux/bug.h).
    fn has_only_a_message(&self) -> bool {
        self.report.kind == Kind::List && self.since == 0
    }

    /// Whether `line` is too far from the last one to belong to this report.
    fn is_over(&self, line: &Line<'_>) -> bool {
        let most = if self.headed {
            MAX_REPORT_LINES
        } else {
            MAX_LINES_BEFORE
        };
        let pause = self.last_us.zip(line.time_us);
        self.since >= most || pause.is_some_and(|(last, now)| now.saturating_sub(last) > MAX_PAUSE_US)
    }

    /// The kind of this report if a headline of `next` belongs to it; `None` if that begins another report.
    fn continued_by(&self, next: Kind) -> Option<Kind> {
        if !self.headed {
            return Some(next);
        }
        if self.since > MAX_LINES_BETWEEN {
            return None;
        }
        match (self.report.kind, next) {
            // The message of a WARN or BUG comes before or after its headline, and says more than that.
            (kind @ (Kind::Refcount | Kind::List), Kind::Warning | Kind::Bug) => Some(kind),
            (Kind::Warning | Kind::Bug, Kind::Refcount | Kind::List) => Some(next),
            // What happened, and then "Oops" with the registers.
            (kind @ (Kind::Bug | Kind::Oops | Kind::List), Kind::Oops) => Some(kind),
            _ => None,
        }
    }
}

/// The code at the instruction pointer, if the line tells that of the kernel: "RIP: 0010:symbol+0x12/0x34".
fn kernel_rip(text: &str) -> Option<Code> {
    let (selector, code) = text.strip_prefix("RIP: ")?.split_once(':')?;
    let selector = u16::from_str_radix(selector, 16).ok()?;
    // The two low bits are the privilege level.
    if selector & 3 == 0 {
        Code::parse(code)
    } else {
        None
    }
}

/// At most [`MAX_LINE_BYTES`] of a line, without control characters.
fn cut(text: &str) -> String {
    let mut line: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_LINE_BYTES)
        .collect();
    while line.len() > MAX_LINE_BYTES {
        line.pop();
    }
    line.truncate(line.trim_end().len());
    line
}
