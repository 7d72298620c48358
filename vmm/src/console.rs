//! Console output, bounded, with the offsets at which a new kernel took over.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::phase::Generation;

/// Bytes kept from the beginning, and again from the end.
pub const HALF_BYTES: usize = 512 * 1024;

/// A console's output: its first and its last half megabyte.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
    marks: Vec<(Generation, u64)>,
}

impl Console {
    /// Appends output.
    pub fn write(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = (HALF_BYTES - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        self.tail.extend(&bytes[room..]);
        let surplus = self.tail.len().saturating_sub(HALF_BYTES);
        self.tail.drain(..surplus);
    }

    /// Output from here on is this generation's.
    pub fn mark(&mut self, generation: Generation) {
        self.marks.push((generation, self.total));
    }

    /// Bytes printed in all, kept or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes from the middle that were not kept.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }

    /// Where each generation after the first begins: (generation, offset into everything printed).
    #[must_use]
    pub fn marks(&self) -> &[(Generation, u64)] {
        &self.marks
    }

    /// All output that was kept. One line says how many bytes are missing in the middle.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        self.slice(0, self.total)
    }

    /// What was printed after the first `offset` bytes, as far as it was kept. To follow the output, pass the
    /// [`Console::total`] of the last call.
    #[must_use]
    pub fn text_since(&self, offset: u64) -> Vec<u8> {
        self.slice(offset.min(self.total), self.total)
    }

    /// Whether the sizes are consistent; they may not be in a state from an untrusted file.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let kept = self.head.len().max(self.tail.len()) <= HALF_BYTES;
        let marks = self.marks.iter().all(|mark| mark.1 <= self.total);
        kept && marks
            && self.marks.is_sorted()
            && self.total >= (self.head.len() + self.tail.len()) as u64
            && (self.tail.is_empty() || self.head.len() == HALF_BYTES)
    }

    /// What one generation printed, as far as it was kept.
    #[must_use]
    pub fn text_of(&self, generation: Generation) -> Vec<u8> {
        let start = match generation {
            0 => Some(0),
            _ => self
                .marks
                .iter()
                .find(|mark| mark.0 == generation)
                .map(|mark| mark.1),
        };
        let end = self
            .marks
            .iter()
            .find(|mark| mark.0 > generation)
            .map_or(self.total, |mark| mark.1);
        start.map_or_else(Vec::new, |start| self.slice(start, end))
    }

    /// What was printed from byte `start` to byte `end` of everything, as far as it was kept, and how many of these
    /// bytes were not.
    #[must_use]
    pub fn between(&self, start: u64, end: u64) -> (Vec<u8>, u64) {
        let (start, end) = (start.min(self.total), end.min(self.total));
        (self.slice(start, end.max(start)), self.lost(start, end))
    }

    /// How many of the bytes from `start` to `end` were not kept.
    fn lost(&self, start: u64, end: u64) -> u64 {
        let (head_end, tail_start) = (self.head.len() as u64, self.total - self.tail.len() as u64);
        end.min(tail_start).saturating_sub(start.max(head_end))
    }

    fn slice(&self, start: u64, end: u64) -> Vec<u8> {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let head_end = self.head.len() as u64;
        let tail_start = self.total - self.tail.len() as u64;
        let mut text = self.head[at(start.min(head_end))..at(end.min(head_end))].to_vec();
        let lost = self.lost(start, end);
        if lost > 0 {
            text.extend_from_slice(format!("\n[{lost} bytes not kept]\n").as_bytes());
        }
        if end > tail_start {
            let (from, to) = (start.max(tail_start) - tail_start, end - tail_start);
            text.extend(self.tail.range(at(from)..at(to)));
        }
        text
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("total", &self.total)
            .field("marks", &self.marks)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_kept_apart() {
        let mut console = Console::default();
        console.write(b"old\n");
        console.mark(1);
        console.write(b"new\n");
        console.mark(2);
        assert_eq!(console.text(), b"old\nnew\n");
        assert_eq!(console.text_of(0), b"old\n");
        assert_eq!(console.text_of(1), b"new\n");
        assert_eq!(console.text_of(2), b"");
        assert_eq!(console.text_of(3), b"");
        assert_eq!(console.text_since(5), b"ew\n");
        assert_eq!(console.text_since(99), b"");
        assert_eq!(console.between(2, 6), (b"d\nne".to_vec(), 0));
        assert_eq!(console.between(6, 99), (b"w\n".to_vec(), 0));
        assert_eq!(console.between(9, 2), (Vec::new(), 0));
    }

    #[test]
    fn the_middle_of_a_flood_goes_first() {
        let mut console = Console::default();
        for number in 0..40_000 {
            console.write(format!("line {number:026}\n").as_bytes());
        }
        console.mark(1);
        console.write(b"end");
        assert_eq!(console.total(), 40_000 * 32 + 3);
        assert_eq!(console.dropped(), console.total() - 2 * HALF_BYTES as u64);
        let text = String::from_utf8(console.text()).unwrap();
        assert!(text.starts_with("line 00000000000000000000000000\n"));
        assert!(text.ends_with("line 00000000000000000000039999\nend"));
        assert!(text.contains(&format!("[{} bytes not kept]", console.dropped())));
        assert!(text.len() < 2 * HALF_BYTES + 100);
        let (half, flood) = (HALF_BYTES as u64, console.total());
        assert_eq!(console.between(half - 1, half + 2).1, 2);
        assert_eq!(console.between(0, half).1, 0);
        assert_eq!(console.between(half, flood).1, console.dropped());
        assert_eq!(console.text_of(1), b"end");
    }
}
