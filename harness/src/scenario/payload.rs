//! `[payload]`: programs of the user's own instead of the agent's objects.

use super::check::{Problem, require};
use super::{Buffers, Scenario, Start, WhenFull};
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// Most words of one program's command.
const MAX_WORDS: usize = 64;
/// Most bytes of one program's command; it travels through the mailbox.
const MAX_COMMAND: usize = 8 << 10;
/// Fewest characters of a text that tells success or failure. A shorter one would be found anywhere.
const MIN_TEXT: usize = 3;

/// The user's own programs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// The initramfs they are in: an archive in any form that the kernel takes, or a folder. A relative path is relative
    /// to the scenario file.
    pub initramfs: Spanned<String>,
    /// The program of each generation, with its arguments. The agent starts it and waits for its end.
    #[serde(default)]
    pub run: Vec<Spanned<Command>>,
    /// A program that is PID 1 in every generation, in the agent's place.
    pub init: Option<Spanned<Command>>,
    /// Who kexecs. Default: an init does it by itself, and for other programs baton does it.
    pub kexec: Option<Spanned<KexecBy>>,
    /// Where the programs find the next kernel.
    pub kernel_at: Option<Spanned<String>>,
    /// Where the programs find the initramfs of the next kernel.
    pub initrd_at: Option<Spanned<String>>,
    /// Texts that lines of the console must have.
    #[serde(default)]
    pub passed: Vec<Spanned<String>>,
    /// Texts that no line of the console may have.
    #[serde(default)]
    pub failed: Vec<Spanned<String>>,
    /// Whether the console has results in KTAP, of which none may be a failure.
    #[serde(default)]
    pub ktap: bool,
}

/// A command: one line of words, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// Words with blanks between them.
    Line(String),
    /// Words, which may have blanks in them.
    Words(Vec<String>),
}

impl Command {
    /// The words.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Line(line) => line.split_whitespace().map(str::to_owned).collect(),
            Self::Words(words) => words.clone(),
        }
    }
}

/// Who kexecs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KexecBy {
    /// The payload, whenever it wants to.
    Payload,
    /// baton, once the program of a generation has ended.
    Baton,
}

impl Payload {
    /// Who kexecs.
    pub fn kexec_by(&self) -> KexecBy {
        let usual = match self.init {
            Some(_) => KexecBy::Payload,
            None => KexecBy::Baton,
        };
        self.kexec.as_ref().map_or(usual, |by| *by.get_ref())
    }
}

/// Checks `[payload]`, and that nothing beside it asks for what the agent does otherwise.
pub(super) fn check(scenario: &Scenario, spanned: &Spanned<Payload>) -> Result<(), Problem> {
    let payload = spanned.get_ref();
    let beside = [
        ("[handover]", scenario.handover.is_some()),
        ("[[memfd]]", !scenario.memfd.is_empty()),
        ("[[reserve_mem]]", !scenario.reserve_mem.is_empty()),
        ("[test_kho]", scenario.test_kho.is_some()),
        ("[fault]", scenario.fault.is_some()),
        ("workload", scenario.run.workload.is_some()),
    ];
    require(!scenario.gives_steps(), spanned, || {
        "found steps beside it: with [payload] the programs do all that is done in the guest, and the agent has no \
         objects of its own for a step to act on"
            .into()
    })?;
    for (what, found) in beside {
        require(!found, spanned, || {
            format!("found {what} beside it, and with [payload] the agent makes nothing of its own")
        })?;
    }
    let generations = scenario.kexecs.get_ref().saturating_add(1) as usize;
    match &payload.init {
        Some(init) => {
            require(payload.run.is_empty(), init, || {
                "found run beside it, expected one of them".into()
            })?;
            check_command(init)?;
            let told = payload.ktap || !payload.passed.is_empty();
            require(told, init, || {
                "an init has no exit status to tell success by: expected passed = [\"TEXT\"] or ktap = true"
                    .into()
            })?;
        }
        None => require(payload.run.len() == generations, spanned, || {
            format!(
                "found {} programs to run, expected {generations}, one for each kernel (kexecs + 1), or an init",
                payload.run.len()
            )
        })?,
    }
    payload.run.iter().try_for_each(check_command)?;
    if let (Some(by), Some(_)) = (&payload.kexec, &payload.init) {
        require(*by.get_ref() == KexecBy::Payload, by, || {
            "an init kexecs by itself: nobody else knows when it is ready".into()
        })?;
    }
    for place in [&payload.kernel_at, &payload.initrd_at].into_iter().flatten() {
        let path = place.get_ref();
        let plain = path.starts_with('/') && !path.ends_with('/') && path.len() < 256;
        let odd = path
            .split('/')
            .skip(1)
            .any(|part| part.is_empty() || part == "." || part == "..");
        require(plain && !odd && !path.contains('\0'), place, || {
            format!("found \"{path}\", expected the absolute path of a file")
        })?;
        require(payload.kexec_by() == KexecBy::Payload, place, || {
            "baton kexecs, so the payload needs no kernel and no initramfs: expected kexec = \"payload\" with it".into()
        })?;
    }
    for text in payload.passed.iter().chain(&payload.failed) {
        require(text.get_ref().trim().len() >= MIN_TEXT, text, || {
            format!(
                "found \"{}\", expected a text of {MIN_TEXT} characters or more",
                text.get_ref()
            )
        })?;
    }
    check_dma(scenario)
}

fn check_command(command: &Spanned<Command>) -> Result<(), Problem> {
    let words = command.get_ref().words();
    let absolute = words.first().is_some_and(|path| path.starts_with('/'));
    require(absolute, command, || {
        "expected the absolute path of a program in the initramfs, and its arguments".into()
    })?;
    let bytes: usize = words.iter().map(String::len).sum();
    require(words.len() <= MAX_WORDS && bytes <= MAX_COMMAND, command, || {
        format!(
            "found {} words of {bytes} bytes, expected at most {MAX_WORDS} of {MAX_COMMAND}",
            words.len()
        )
    })?;
    let clean = words.iter().all(|word| !word.contains('\0'));
    require(clean, command, || "found a NUL byte in it".into())
}

/// The engine beside a payload has memory of its own, and no driver in the guest.
fn check_dma(scenario: &Scenario) -> Result<(), Problem> {
    let Some(spanned) = &scenario.dma else {
        return Ok(());
    };
    let dma = spanned.get_ref();
    let drivers = [
        ("memfd", dma.memfd.is_some()),
        ("buffers", dma.buffers != Buffers::default()),
        ("start", dma.start != Start::default()),
        ("interrupts", dma.interrupts),
        ("when_full = \"wait\"", dma.when_full == WhenFull::Wait),
    ];
    for (what, found) in drivers {
        require(!found, spanned, || {
            format!(
                "found {what}: beside a [payload] the engine has memory of its own and no driver in the guest"
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::KexecBy;
    use crate::scenario::parse;

    const GOOD: &str = "name = \"a\"\n[payload]\ninitramfs = \"i\"\n";

    fn error(text: &str) -> String {
        parse("s.toml", text).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_payload_runs_a_program_in_each_kernel_or_is_init() {
        let run = parse(
            "s.toml",
            &format!("{GOOD}run = [\"/t -s 1\", [\"/t\", \"a b\"]]\n"),
        )
        .unwrap();
        let payload = run.payload.unwrap().into_inner();
        assert_eq!(payload.run[0].get_ref().words(), ["/t", "-s", "1"]);
        assert_eq!(payload.run[1].get_ref().words(), ["/t", "a b"]);
        assert_eq!(payload.kexec_by(), KexecBy::Baton);
        let init = parse(
            "s.toml",
            &format!("{GOOD}init = \"/init\"\npassed = [\"PASSED\"]\n"),
        )
        .unwrap();
        assert_eq!(init.payload.unwrap().get_ref().kexec_by(), KexecBy::Payload);
    }

    #[test]
    fn what_contradicts_is_named() {
        let run = "run = [\"/t\", \"/t\"]\n";
        let init = "init = \"/init\"\npassed = [\"PASSED\"]\n";
        for (text, said) in [
            ("run = [\"/t\"]\n".into(), "found 1 programs to run, expected 2"),
            ("run = [\"t\", \"/t\"]\n".into(), "absolute path"),
            ("run = [\"\", \"/t\"]\n".into(), "absolute path"),
            ("init = \"/init\"\n".into(), "no exit status"),
            (format!("{run}{init}"), "expected one of them"),
            (format!("{init}kexec = \"baton\"\n"), "an init kexecs by itself"),
            (format!("{run}kernel_at = \"/kernel\"\n"), "baton kexecs"),
            (
                format!("{init}kernel_at = \"kernel\"\n"),
                "absolute path of a file",
            ),
            (
                format!("{init}initrd_at = \"/a/../b\"\n"),
                "absolute path of a file",
            ),
            (format!("{run}failed = [\"ok\"]\n"), "3 characters"),
            (format!("{run}[test_kho]\n"), "makes nothing of its own"),
            (
                format!("{run}[[step]]\ndo = \"drop-caches\"\n"),
                "no objects of its own for a step to act on",
            ),
            (
                format!("{run}[dma]\nrate = \"1 MB/s\"\nwhen_full = \"wait\"\n"),
                "memory of its own",
            ),
        ] {
            let message = error(&format!("{GOOD}{text}"));
            assert!(message.contains(said), "{text}: {message}");
        }
    }
}
