//! The terminal of a guest's serial console: standard input and output, and a file.

use harness::boot::{Input, Terminal as Console};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Ctrl-A, which begins a command to baton itself; the only command is `x`, which ends the machine.
const ESCAPE: u8 = 1;
/// Host time between two looks at the keyboard while the guest sleeps: as much as a turn takes in guest time.
const NAP: Duration = Duration::from_millis(5);
/// Most bytes of the console that go to a file: a guest may print for ever.
const MAX_FILE: u64 = 1 << 30;
/// Bytes that are read from a file at a time.
const BLOCK: usize = 4096;

/// Where the console is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Screen {
    /// On standard output.
    Output,
    /// On standard error.
    Error,
    /// Nowhere.
    Nowhere,
}

/// Where keys come from.
pub(in crate::cli) enum Keys {
    /// A terminal, a pipe or a socket: bytes come when they come.
    Live {
        /// Read by a thread that ends with the input.
        bytes: Receiver<u8>,
        /// A person waits at it, so a guest that sleeps need not be faster than time.
        person: bool,
    },
    /// A file or a device such as /dev/null: what it has is there at once, so a run with it is a function of its
    /// inputs.
    File(Box<dyn Read>),
    /// None.
    None,
}

impl Keys {
    /// Those of standard input.
    pub fn of_standard_input() -> Self {
        let input = std::io::stdin();
        let person = input.is_terminal();
        let kind =
            rustix::fs::fstat(input.as_fd()).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        match kind {
            Ok(rustix::fs::FileType::RegularFile | rustix::fs::FileType::CharacterDevice) if !person => {
                Self::File(Box::new(input.lock()))
            }
            Ok(_) => Self::live(input, person),
            // Standard input is closed.
            Err(_) => Self::None,
        }
    }

    fn live(input: impl Read + Send + 'static, person: bool) -> Self {
        let (sender, bytes) = channel();
        std::thread::spawn(move || {
            for byte in BufReader::new(input).bytes().map_while(Result::ok) {
                if sender.send(byte).is_err() {
                    return;
                }
            }
        });
        Self::Live { bytes, person }
    }
}

/// The terminal.
pub(in crate::cli) struct Terminal {
    screen: Screen,
    file: Option<(String, File)>,
    /// Bytes that the file may still take.
    room: u64,
    failed: Option<String>,
    keys: Keys,
    /// Typed, and not yet taken by the guest.
    pending: VecDeque<u8>,
    escaped: bool,
    ended: bool,
    looked: Instant,
}

impl Terminal {
    /// A terminal that shows the console there, and writes it to `file` too. Fails if that cannot be made.
    pub fn new(screen: Screen, file: Option<&Path>, keys: Keys) -> Result<Self, String> {
        let create = |path: &Path| {
            let name = path.display().to_string();
            let file = File::create(path).map_err(|error| format!("{name}: cannot be written: {error}"))?;
            Ok::<_, String>((name, file))
        };
        Ok(Self {
            screen,
            file: file.map(create).transpose()?,
            room: MAX_FILE,
            failed: None,
            keys,
            pending: VecDeque::new(),
            escaped: false,
            ended: false,
            looked: Instant::now(),
        })
    }

    /// Why the file does not have all of the console, if so.
    pub fn finish(self) -> Result<(), String> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Takes a key. Returns whether it ends the machine.
    fn take(&mut self, key: u8) -> bool {
        match (std::mem::replace(&mut self.escaped, false), key) {
            (true, b'x') => return true,
            (false, ESCAPE) => self.escaped = true,
            _ => self.pending.push_back(key),
        }
        false
    }

    /// Reads the keys that are there. Returns whether they end the machine.
    fn read_live(&mut self) -> bool {
        let mut wait = match &self.keys {
            Keys::Live { person: true, .. } => NAP.saturating_sub(self.looked.elapsed()),
            _ => Duration::ZERO,
        };
        loop {
            let Keys::Live { bytes, .. } = &self.keys else {
                return false;
            };
            let next = if wait.is_zero() {
                bytes.try_recv()
            } else {
                bytes
                    .recv_timeout(std::mem::take(&mut wait))
                    .map_err(|error| match error {
                        RecvTimeoutError::Timeout => TryRecvError::Empty,
                        RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                    })
            };
            match next {
                Ok(key) if self.take(key) => return true,
                Ok(_) => {}
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => {
                    self.ended = true;
                    return false;
                }
            }
        }
    }

    /// Reads a block of the file if nothing waits.
    fn read_file(&mut self) {
        let Keys::File(file) = &mut self.keys else { return };
        if self.ended || !self.pending.is_empty() {
            return;
        }
        let mut block = [0; BLOCK];
        match file.read(&mut block) {
            Ok(0) | Err(_) => self.ended = true,
            Ok(count) => self.pending.extend(&block[..count]),
        }
    }
}

impl Console for Terminal {
    fn show(&mut self, output: &[u8]) {
        // An error means that the terminal is closed, so that it cannot be reported there either.
        let _ = match self.screen {
            Screen::Output => show_on(&mut std::io::stdout(), output),
            Screen::Error => show_on(&mut std::io::stderr(), output),
            Screen::Nowhere => Ok(()),
        };
        let Some((name, file)) = &mut self.file else {
            return;
        };
        let fits = usize::try_from(self.room).map_or(output.len(), |room| room.min(output.len()));
        self.room -= fits as u64;
        let written = file.write_all(&output[..fits]);
        let failure = match written {
            Err(error) => format!("{name}: cannot be written: {error}"),
            Ok(()) if fits < output.len() => {
                format!("{name}: it holds the first {MAX_FILE} bytes of the console, and the rest is lost")
            }
            Ok(()) => return,
        };
        self.failed.get_or_insert(failure);
    }

    fn typed(&mut self, most: usize) -> Input {
        let stop = match self.keys {
            Keys::Live { .. } => self.read_live(),
            Keys::File(_) => {
                self.read_file();
                false
            }
            Keys::None => {
                self.ended = true;
                false
            }
        };
        self.looked = Instant::now();
        let count = most.min(self.pending.len());
        Input {
            bytes: self.pending.drain(..count).collect(),
            waiting: !self.pending.is_empty(),
            ended: self.ended,
            stop,
        }
    }
}

fn show_on(stream: &mut dyn Write, output: &[u8]) -> std::io::Result<()> {
    stream.write_all(output)?;
    stream.flush()
}

/// Keeps the terminal in raw mode; dropping it restores the former settings.
pub(in crate::cli) struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` if standard input is not a terminal or its settings cannot be changed.
    pub fn enter() -> Option<Self> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return None;
        }
        let before = tcgetattr(&input).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Restoring fails only if the terminal is closed; there is then nothing to restore.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn terminal(keys: Keys) -> Terminal {
        Terminal::new(Screen::Nowhere, None, keys).unwrap()
    }

    /// What is typed at the next look at which something is.
    fn next(terminal: &mut Terminal, most: usize) -> Input {
        loop {
            let input = terminal.typed(most);
            if input != Input::default() {
                return input;
            }
        }
    }

    #[test]
    fn a_file_is_typed_in_pieces_and_its_end_is_told() {
        let mut terminal = terminal(Keys::File(Box::new(Cursor::new(b"ab\x01xcd".to_vec()))));
        let first = terminal.typed(0);
        assert!(
            first.bytes.is_empty() && first.waiting && !first.ended,
            "the guest takes none"
        );
        assert_eq!(
            terminal.typed(4).bytes,
            b"ab\x01x",
            "a file has no commands to baton"
        );
        let last = terminal.typed(4);
        assert_eq!(
            (last.bytes.as_slice(), last.waiting, last.stop),
            (&b"cd"[..], false, false)
        );
        assert!(terminal.typed(4).ended);
    }

    #[test]
    fn keys_come_when_they_come_and_ctrl_a_x_stops() {
        let mut terminal = terminal(Keys::live(Cursor::new(b"a\x01\x01b".to_vec()), false));
        let mut typed = Vec::new();
        loop {
            let input = next(&mut terminal, 9);
            typed.extend(input.bytes);
            if input.ended {
                break;
            }
        }
        assert_eq!(typed, b"a\x01b", "the second Ctrl-A is typed");
        let mut stopped = self::terminal(Keys::live(Cursor::new(b"a\x01x".to_vec()), true));
        while !next(&mut stopped, 9).stop {}
    }

    #[test]
    fn a_guest_that_prints_for_ever_fills_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("console");
        let mut terminal = Terminal::new(Screen::Nowhere, Some(&file), Keys::None).unwrap();
        terminal.room = 8;
        terminal.show(b"12345678");
        assert_eq!(terminal.failed, None);
        for _ in 0..3 {
            terminal.show(b"9");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"12345678");
        let lost = terminal.finish().unwrap_err();
        assert!(lost.contains("the rest is lost"), "{lost}");
        let mut whole = Terminal::new(Screen::Nowhere, Some(&file), Keys::None).unwrap();
        whole.show(b"x");
        assert_eq!(whole.finish(), Ok(()));
    }

    #[test]
    fn without_keys_the_input_has_ended() {
        let input = terminal(Keys::None).typed(5);
        assert!(input.ended && !input.waiting && !input.stop);
    }
}
