//! The transport: ringing the doorbell sends a message, and the host's answer is the next request.

use crate::failure::Failure;
use crate::pci::Function;
use crate::sys::Mapping;
use alloc::format;
use alloc::vec::Vec;
use guest_agent::device::MAILBOX_DEVICE_ID;
use guest_agent::device::mailbox::{
    BAR0_SIZE, DOORBELL, MAGIC, MAGIC_VALUE, REPLY_LENGTH, WINDOW, WINDOW_SIZE,
};
use guest_agent::protocol::{self, Reply, Request};
use rustix::thread::Timespec;

/// How often to yield while there is no answer, before sleeping.
const YIELDS: u32 = 64;
/// How long to sleep then.
const NAP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// The mailbox, mapped.
pub struct Mailbox {
    bar: Mapping,
}

impl Mailbox {
    /// Finds, enables and maps the mailbox.
    pub fn find() -> Result<Self, Failure> {
        Self::open(&Function::find(MAILBOX_DEVICE_ID)?)
    }

    fn open(function: &Function) -> Result<Self, Failure> {
        let bar = function.map_bar0(BAR0_SIZE)?;
        let magic = bar.read_u32(MAGIC);
        if magic != MAGIC_VALUE {
            return Err(Failure::refused(
                "mailbox",
                format!("MAGIC is {magic:#x}, not {MAGIC_VALUE:#x}"),
            ));
        }
        Ok(Self { bar })
    }

    /// Sends `reply` and returns as soon as the host resumes the guest, even without an answer.
    pub fn post(&self, reply: &Reply) {
        let message = match protocol::encode(reply) {
            Ok(message) if message.len() as u64 <= WINDOW_SIZE => message,
            Ok(message) => short(&format!(
                "reply of {} bytes; the window holds {WINDOW_SIZE}",
                message.len()
            )),
            Err(malformed) => short(&malformed.reason),
        };
        let mut offset = WINDOW;
        for chunk in message.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.bar.write_u64(offset, u64::from_le_bytes(word));
            offset += 8;
        }
        #[allow(clippy::cast_possible_truncation)] // at most WINDOW_SIZE
        self.bar.write_u32(DOORBELL, message.len() as u32);
    }

    /// Sends `reply` and waits for the next request.
    pub fn exchange(&self, reply: &Reply) -> Result<Request, Failure> {
        self.post(reply);
        let length = u64::from(self.wait());
        if length > WINDOW_SIZE {
            return Err(Failure::refused(
                "mailbox",
                format!("REPLY_LENGTH is {length}, more than {WINDOW_SIZE}"),
            ));
        }
        let mut message = Vec::new();
        for offset in (0..length).step_by(8) {
            message.extend(self.bar.read_u64(WINDOW + offset).to_le_bytes());
        }
        #[allow(clippy::cast_possible_truncation)] // at most WINDOW_SIZE
        message.truncate(length as usize);
        protocol::decode(&message)
            .map_err(|malformed| Failure::refused("decode request", format!("{malformed}")))
    }

    /// Waits for the host's answer. On baton's machine it is there at once.
    fn wait(&self) -> u32 {
        let mut turns = 0;
        loop {
            match self.bar.read_u32(REPLY_LENGTH) {
                0 if turns < YIELDS => {
                    turns += 1;
                    rustix::thread::sched_yield();
                }
                0 => {
                    // A short sleep is as good as a whole one.
                    let _ = rustix::thread::nanosleep(&NAP);
                }
                length => return length,
            }
        }
    }
}

/// What goes out when a reply cannot.
fn short(detail: &str) -> Vec<u8> {
    protocol::encode(&Reply::from(Failure::refused("encode reply", detail))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fake;
    use tempfile::TempDir;

    /// A mailbox whose registers are a file, and the host's view of the file.
    fn pair() -> (TempDir, Mailbox, Mapping) {
        let sysfs = fake::sysfs(MAILBOX_DEVICE_ID, BAR0_SIZE, MAGIC_VALUE);
        let mailbox =
            Mailbox::open(&Function::find_in(fake::path(&sysfs), MAILBOX_DEVICE_ID).unwrap()).unwrap();
        let host = fake::bar(&sysfs, BAR0_SIZE);
        (sysfs, mailbox, host)
    }

    fn message(host: &Mapping, length: u32) -> Vec<u8> {
        let words =
            (0..u64::from(length).div_ceil(8)).flat_map(|i| host.read_u64(WINDOW + i * 8).to_le_bytes());
        words.take(length as usize).collect()
    }

    #[test]
    fn a_message_stands_in_the_window_when_the_bell_rings() {
        let (_sysfs, mailbox, host) = pair();
        let reply = Reply::Digests((0..100).collect());
        mailbox.post(&reply);
        assert_eq!(
            protocol::decode(&message(&host, host.read_u32(DOORBELL))),
            Ok(reply)
        );
    }

    #[test]
    fn the_answer_is_the_next_request() {
        let (_sysfs, mailbox, host) = pair();
        let request = Request::CreateSession {
            name: "nine bytes".into(),
        };
        let answer = protocol::encode(&request).unwrap();
        let answering = std::thread::spawn(move || {
            while host.read_u32(DOORBELL) == 0 {
                std::thread::yield_now();
            }
            for (offset, chunk) in (WINDOW..).step_by(8).zip(answer.chunks(8)) {
                let mut word = [0xff; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                host.write_u64(offset, u64::from_le_bytes(word));
            }
            host.write_u32(REPLY_LENGTH, u32::try_from(answer.len()).unwrap());
        });
        assert_eq!(mailbox.exchange(&Reply::Done), Ok(request));
        answering.join().unwrap();
    }

    #[test]
    fn nonsense_from_the_host_is_a_failure() {
        let (_sysfs, mailbox, host) = pair();
        host.write_u32(REPLY_LENGTH, u32::MAX);
        assert_eq!(mailbox.exchange(&Reply::Done).unwrap_err().call, "mailbox");
        host.write_u64(WINDOW, u64::MAX);
        host.write_u32(REPLY_LENGTH, 8);
        assert_eq!(mailbox.exchange(&Reply::Done).unwrap_err().call, "decode request");
    }

    #[test]
    fn a_reply_too_long_goes_out_as_a_failure() {
        let (_sysfs, mailbox, host) = pair();
        mailbox.post(&Reply::Digests(vec![u64::MAX; 20_000]));
        let reply: Reply = protocol::decode(&message(&host, host.read_u32(DOORBELL))).unwrap();
        let Reply::Failed { call, errno, .. } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!((call.as_str(), errno), ("encode reply", 0));
    }

    #[test]
    fn another_device_is_not_a_mailbox() {
        let sysfs = fake::sysfs(MAILBOX_DEVICE_ID, BAR0_SIZE, 0xdead_beef);
        let function = Function::find_in(fake::path(&sysfs), MAILBOX_DEVICE_ID).unwrap();
        assert!(
            Mailbox::open(&function)
                .err()
                .unwrap()
                .detail
                .contains("0xdeadbeef")
        );
    }
}
