//! Exit statuses of `baton boot`. 0 to 3 mean what they mean for every command; a guest that ends otherwise than by
//! switching the machine off has one of its own.

use harness::boot::End;

/// The exit status for an end.
pub(in crate::cli) fn status(end: End) -> u8 {
    match end {
        End::PowerOff | End::Stopped => 0,
        End::MachineFailed => 3,
        End::Reset => 4,
        End::Panic => 5,
        End::Hang => 6,
        End::Timeout => 7,
        End::TripleFault => 8,
        End::UnknownInstruction => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::boot::EXIT_HELP;

    #[test]
    fn each_end_has_a_status_that_the_help_names() {
        let ends = [
            (End::PowerOff, "switched the machine off"),
            (End::MachineFailed, "machine could not be run"),
            (End::Reset, "reset"),
            (End::Panic, "panic"),
            (End::Hang, "hang"),
            (End::Timeout, "timeout"),
            (End::TripleFault, "triple fault"),
            (End::UnknownInstruction, "instruction"),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for (end, words) in ends {
            let number = status(end);
            assert!(seen.insert(number), "{end:?}");
            let told = EXIT_HELP.split([',', ';', ':']).any(|part| {
                let part = part.trim();
                part.starts_with(&format!("{number} ")) && part.contains(words)
            });
            assert!(told, "{number} {words}");
        }
        assert_eq!(status(End::Stopped), 0);
    }
}
