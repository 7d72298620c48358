//! Finds a kernel's panic in console output that comes in pieces.

use crate::conductor::PANIC;

/// Longest line that is kept, in bytes.
const MAX_LINE: usize = 1024;

/// What one kernel has printed, as far as a panic can be told from it.
#[derive(Debug, Default)]
pub(super) struct PanicWatch {
    /// The line that is being printed.
    line: Vec<u8>,
    found: Option<String>,
}

impl PanicWatch {
    /// Takes what the console has printed since the last call.
    pub fn print(&mut self, output: &[u8]) {
        for byte in output {
            if *byte == b'\n' {
                self.found = self.panic();
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            }
        }
    }

    /// The panic's message, from the kernel's prefix to the end of the line, if it has been printed.
    pub fn panic(&self) -> Option<String> {
        self.found.clone().or_else(|| {
            let line = String::from_utf8_lossy(&self.line);
            Some(line[line.find(PANIC)?..].trim_end().to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static OUTPUT: &[u8] = b"[ 1.0] ok\r\n[ 2.0] Kernel panic - not syncing: no init\r\n[ 2.1] CPU: 0\r\n";

    #[test]
    fn the_first_panic_is_kept_and_a_line_without_one_is_none() {
        let mut watch = PanicWatch::default();
        watch.print(OUTPUT);
        watch.print(b"Kernel panic - not syncing: again\n");
        let first = "Kernel panic - not syncing: no init";
        assert_eq!(watch.panic().as_deref(), Some(first));
        let mut quiet = PanicWatch::default();
        quiet.print(b"Kernel panic\n - not syncing: in two lines\n");
        assert_eq!(quiet.panic(), None);
        quiet.print(&[b'x'; 5000]);
        assert_eq!((quiet.panic(), quiet.line.len()), (None, MAX_LINE));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in prop::collection::vec(0..OUTPUT.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.extend([0, OUTPUT.len()]);
            cuts.sort_unstable();
            let mut watch = PanicWatch::default();
            for pair in cuts.windows(2) {
                watch.print(&OUTPUT[pair[0]..pair[1]]);
            }
            let found = watch.panic();
            prop_assert_eq!(found.as_deref(), Some("Kernel panic - not syncing: no init"));
        }
    }
}
