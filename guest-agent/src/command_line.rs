//! The kernel command line: the `baton.*` parameters, and the parameters that the kernel does not know.
//!
//! The kernel takes a name with a dot for a module parameter, so it neither warns about it nor passes it to init.

use alloc::string::String;
use alloc::vec::Vec;

/// Makes the agent do one live update on its own, without a mailbox.
pub const STANDALONE: &str = "baton.standalone";
/// Marks the kernel after the kexec; the agent adds it to the next kernel's command line.
pub const SECOND: &str = "baton.second";
/// Makes the agent a shell on the console, without a mailbox.
pub const SHELL: &str = "baton.shell";
/// `baton.memfd=SIZE`: bytes of the memfd of standalone mode; K, M and G multiply by powers of 1024.
pub const MEMFD: &str = "baton.memfd";

/// What the command line asks of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parameters {
    /// [`STANDALONE`] is there.
    pub standalone: bool,
    /// [`SECOND`] is there.
    pub second: bool,
    /// [`SHELL`] is there.
    pub shell: bool,
    /// Value of [`MEMFD`] in bytes; `None` if it is absent or not a size.
    pub memfd_bytes: Option<u64>,
}

impl Parameters {
    /// Reads a command line. Ignores other parameters; the last of a repeated parameter counts.
    pub fn parse(command_line: &str) -> Self {
        let mut parameters = Self::default();
        for word in command_line.split_ascii_whitespace() {
            match word.split_once('=') {
                None if word == STANDALONE => parameters.standalone = true,
                None if word == SHELL => parameters.shell = true,
                None if word == SECOND => parameters.second = true,
                Some((MEMFD, size)) => parameters.memfd_bytes = parse_size(size),
                _ => {}
            }
        }
        parameters
    }
}

/// Names of the parameters `NAME=VALUE` that the kernel passed on to init: those that stand in `environment`, the text
/// of /proc/self/environ, as they stand on the command line. The kernel does that with each parameter that it does not
/// know (init/main.c, `unknown_bootoption`).
pub fn unknown(command_line: &str, environment: &str) -> Vec<String> {
    let mut names = Vec::new();
    for word in command_line.split_ascii_whitespace() {
        if let Some((name, _)) = word.split_once('=')
            && environment.split('\0').any(|passed| passed == word)
            && !names.iter().any(|known| known == name)
        {
            names.push(String::from(name));
        }
    }
    names
}

/// A decimal number of bytes, optionally followed by K, M or G.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_that_init_was_given_are_unknown_to_the_kernel() {
        let line = "console=ttyS0 kho=on liveupdate=off quiet liveupdate=on";
        let passed = |environment: &str| unknown(line, environment);
        assert_eq!(
            passed("HOME=/\0TERM=linux\0kho=on\0liveupdate=on\0"),
            ["kho", "liveupdate"]
        );
        assert_eq!(passed("HOME=/\0kho=off\0console=tty0\0"), [""; 0]);
        assert_eq!(passed(""), [""; 0]);
    }

    #[test]
    fn finds_its_own_among_the_kernels() {
        let parameters =
            Parameters::parse("quiet console=ttyS0 baton.standalone baton.memfd=64M liveupdate=on\n");
        assert_eq!(
            parameters,
            Parameters {
                standalone: true,
                memfd_bytes: Some(64 << 20),
                ..Parameters::default()
            }
        );
        assert!(Parameters::parse("quiet baton.shell").shell);
        assert!(Parameters::parse("baton.standalone baton.second").second);
    }

    #[test]
    fn likeness_is_not_enough() {
        let parameters = Parameters::parse(
            "baton.standalonely xbaton.second baton.memfd baton.standalone=1 baton.shell=1",
        );
        assert_eq!(parameters, Parameters::default());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("2k", Some(2048)),
            ("1G", Some(1 << 30)),
            ("", None),
            ("K", None),
            ("-1", None),
            ("99999999999G", None),
            ("64ä", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_any_size_is_read(text: String, bytes: u64) {
            Parameters::parse(&text);
            let line = std::format!("{text} baton.memfd={bytes}");
            prop_assert_eq!(Parameters::parse(&line).memfd_bytes, Some(bytes));
        }
    }
}
