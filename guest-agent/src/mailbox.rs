//! The transport: a message goes out with the doorbell, and the host's answer is the next request.

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

/// How often to yield to others while there is no answer, before sleeping.
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
        let bar = Function::find(MAILBOX_DEVICE_ID)?.map_bar0(BAR0_SIZE)?;
        let magic = bar.read_u32(MAGIC);
        if magic != MAGIC_VALUE {
            return Err(Failure::refused(
                "mailbox",
                format!("MAGIC is {magic:#x}, not {MAGIC_VALUE:#x}"),
            ));
        }
        Ok(Self { bar })
    }

    /// Sends `reply` and returns as soon as the host lets the guest run on, whether or not it has answered.
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

    /// Waits until the host's answer is there. On baton's own machine it is there at once.
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
