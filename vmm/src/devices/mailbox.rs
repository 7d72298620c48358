//! The mailbox: the agent writes a message into the window and rings the doorbell. The machine then stands until the
//! host has answered.

use guest_agent::device::{MAILBOX_DEVICE_ID, VENDOR_ID, mailbox as map};
use serde::{Deserialize, Serialize};

use super::pci::{CLASS_COMMUNICATION, ConfigSpace};

/// A message that is longer than the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLong {
    /// Its length in bytes.
    pub length: u64,
}

/// The mailbox function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mailbox {
    /// Its configuration space.
    pub config: ConfigSpace,
    window: Vec<u8>,
    reply_length: u32,
    rung: Option<u32>,
}

impl Mailbox {
    /// A mailbox whose BAR firmware has placed at `address`.
    #[must_use]
    pub fn new(address: u64) -> Self {
        let config = ConfigSpace::new(VENDOR_ID, MAILBOX_DEVICE_ID, CLASS_COMMUNICATION);
        Self {
            config: config.with_bar(0, map::BAR0_SIZE, address),
            window: vec![0; usize::try_from(map::WINDOW_SIZE).unwrap_or(0)],
            reply_length: 0,
            rung: None,
        }
    }

    /// Whether both agree in the parts of configuration space that a guest cannot change, and in the size of the
    /// window.
    #[must_use]
    pub fn has_shape_of(&self, other: &Self) -> bool {
        self.config.has_shape_of(&other.config) && self.window.len() == other.window.len()
    }

    /// Reads BAR 0.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (map::MAGIC, 4) => map::MAGIC_VALUE.into(),
            (map::DOORBELL, 4) => 0,
            (map::REPLY_LENGTH, 4) => self.reply_length.into(),
            (map::WINDOW.., _) => self.window_range(offset, size).map_or(u64::MAX, |range| {
                let mut bytes = [0; 8];
                bytes[..range.len()].copy_from_slice(&self.window[range]);
                u64::from_le_bytes(bytes)
            }),
            _ => u64::MAX,
        }
    }

    /// Writes BAR 0.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (map::DOORBELL, 4) => self.rung = Some((value & 0xffff_ffff) as u32),
            (map::WINDOW.., _) => {
                if let Some(range) = self.window_range(offset, size) {
                    let length = range.len();
                    self.window[range].copy_from_slice(&value.to_le_bytes()[..length]);
                }
            }
            _ => {}
        }
    }

    /// Takes the message that the agent has announced, if there is one.
    pub fn take_message(&mut self) -> Option<Result<Vec<u8>, TooLong>> {
        let length = self.rung.take()?;
        self.reply_length = 0;
        let message = usize::try_from(length)
            .ok()
            .and_then(|length| self.window.get(..length));
        Some(message.map(<[u8]>::to_vec).ok_or(TooLong {
            length: length.into(),
        }))
    }

    /// Puts the host's message into the window. An empty one only lets the agent continue.
    pub fn reply(&mut self, message: &[u8]) -> Result<(), TooLong> {
        let length = message.len();
        let too_long = TooLong {
            length: length as u64,
        };
        self.window
            .get_mut(..length)
            .ok_or(too_long)?
            .copy_from_slice(message);
        self.reply_length = u32::try_from(length).map_err(|_| too_long)?;
        Ok(())
    }

    fn window_range(&self, offset: u64, size: u8) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(offset - map::WINDOW).ok()?;
        let end = start.checked_add(size.into())?;
        (end <= self.window.len() && size <= 8).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_and_its_reply_pass_through_the_window() {
        let mut mailbox = Mailbox::new(0xe000_0000);
        assert_eq!(mailbox.read(map::MAGIC, 4), u64::from(map::MAGIC_VALUE));
        mailbox.write(map::WINDOW, 8, u64::from_le_bytes(*b"greeting"));
        assert_eq!(mailbox.take_message(), None);
        mailbox.write(map::DOORBELL, 4, 5);
        assert_eq!(mailbox.take_message(), Some(Ok(b"greet".to_vec())));
        assert_eq!(mailbox.take_message(), None);
        mailbox.reply(b"answer").unwrap();
        assert_eq!(mailbox.read(map::REPLY_LENGTH, 4), 6);
        assert_eq!(
            mailbox.read(map::WINDOW + 1, 2),
            u64::from(u16::from_le_bytes(*b"ns"))
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut mailbox = Mailbox::new(0);
        mailbox.write(map::DOORBELL, 4, map::WINDOW_SIZE + 1);
        assert_eq!(
            mailbox.take_message(),
            Some(Err(TooLong {
                length: map::WINDOW_SIZE + 1
            }))
        );
        mailbox.write(map::DOORBELL, 4, map::WINDOW_SIZE);
        assert!(
            matches!(mailbox.take_message(), Some(Ok(message)) if message.len() as u64 == map::WINDOW_SIZE)
        );
        assert!(mailbox.reply(&vec![0; 0x2_0000]).is_err());
        assert_eq!(mailbox.read(map::BAR0_SIZE - 4, 8), u64::MAX);
        mailbox.write(map::BAR0_SIZE - 4, 8, 1);
        assert_eq!(mailbox.read(map::BAR0_SIZE - 4, 4), 0);
    }
}
