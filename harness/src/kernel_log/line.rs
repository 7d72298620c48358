//! Lines of a kernel's log.

use guest_agent::protocol::LogRecord;

/// A line of a kernel's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Offset of its first byte in the console output; `None` in a record.
    pub at: Option<usize>,
    /// Its time in microseconds; `None` without CONFIG_PRINTK_TIME, and for a line of user space.
    pub time_us: Option<u64>,
    /// Its text, without time and line break.
    pub text: &'a str,
}

/// The lines of console output. What user space prints can stand in front of a line of the kernel, because only the
/// kernel's output ends with a line break for sure: a line is divided before each time in it.
pub fn console_lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    text.split_inclusive('\n').flat_map(move |line| {
        let at = start;
        start += line.len();
        divide(at, line.trim_end_matches(['\n', '\r']))
    })
}

/// The lines of records of /dev/kmsg.
pub fn record_lines(records: &[LogRecord]) -> impl Iterator<Item = Line<'_>> {
    records.iter().flat_map(|record| {
        let line = |text| Line {
            at: None,
            time_us: Some(record.time_us),
            text,
        };
        record.text.split('\n').map(line)
    })
}

/// The parts of a line of output that begins at `at`, divided before each time.
fn divide(at: usize, line: &str) -> Vec<Line<'_>> {
    let stamps: Vec<(usize, Stamp)> = line
        .match_indices('[')
        .filter_map(|(from, _)| Some((from, Stamp::parse(&line[from..])?)))
        .collect();
    let first = stamps.first().map_or(line.len(), |(from, _)| *from);
    let mut parts = Vec::new();
    if stamps.is_empty() || !line[..first].trim().is_empty() {
        parts.push(Line {
            at: Some(at),
            time_us: None,
            text: &line[..first],
        });
    }
    for (index, (from, stamp)) in stamps.iter().enumerate() {
        let end = stamps.get(index + 1).map_or(line.len(), |(next, _)| *next);
        parts.push(Line {
            at: Some(at + from),
            time_us: Some(stamp.time_us),
            text: &line[(from + stamp.length).min(end)..end],
        });
    }
    parts
}

/// A time at the beginning of a line, with the caller if CONFIG_PRINTK_CALLER is on (kernel/printk/printk.c, print_time
/// and print_caller): `[    1.234567] ` or `[    1.234567][    T1] `.
struct Stamp {
    time_us: u64,
    /// Bytes that it takes.
    length: usize,
}

impl Stamp {
    fn parse(text: &str) -> Option<Self> {
        let inside = text.strip_prefix('[')?;
        let (time, mut rest) = inside.split_once(']')?;
        let (seconds, micros) = time.trim_start_matches(' ').split_once('.')?;
        let number = |digits: &str| {
            let decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| decimal)
        };
        if micros.len() != 6 || seconds.len() > 12 {
            return None;
        }
        let time_us = number(seconds)? * 1_000_000 + number(micros)?;
        if let Some((caller, behind)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            // A thread or a processor.
            let caller = caller.trim_start_matches(' ');
            if caller
                .strip_prefix(['T', 'C'])
                .is_some_and(|id| number(id).is_some())
            {
                rest = behind;
            }
        }
        if !rest.is_empty() && !rest.starts_with(' ') {
            return None;
        }
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        Some(Self {
            time_us,
            length: text.len() - rest.len(),
        })
    }
}
