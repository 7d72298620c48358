//! Interrupt messages: MSI as devices send them, and the form that local APICs accept.

use serde::{Deserialize, Serialize};

/// An interrupt message to local APICs. An MSI encodes the same fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Interrupt vector.
    pub vector: u8,
    /// Physical or logical destination.
    pub destination: u8,
    /// Whether the destination is logical.
    pub logical: bool,
    /// Delivery mode: 0 fixed, 1 lowest priority.
    pub mode: u8,
    /// Level-triggered.
    pub level: bool,
}

/// First address of MSIs to local APICs (Intel SDM volume 3, "Message Signalled Interrupts").
const MESSAGE_BASE: u64 = 0xfee0_0000;
const MESSAGE_SIZE: u64 = 0x10_0000;

/// Whether a write of a device to this address is a message to local APICs. Anywhere else it goes to memory.
#[must_use]
pub fn is_message_address(address: u64) -> bool {
    (MESSAGE_BASE..MESSAGE_BASE + MESSAGE_SIZE).contains(&address)
}

/// A message-signalled interrupt: the memory write of a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msi {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

impl Msi {
    /// The same as a message to local APICs; `None` if the address is not theirs.
    #[must_use]
    pub fn message(self) -> Option<Message> {
        let offset = is_message_address(self.address).then(|| self.address - MESSAGE_BASE)?;
        Some(Message {
            vector: self.data.to_le_bytes()[0],
            destination: (offset >> 12 & 0xff) as u8,
            logical: offset & 1 << 2 != 0,
            mode: (self.data >> 8 & 0b111) as u8,
            level: self.data & 1 << 15 != 0,
        })
    }
}

/// Encodes an I/O APIC's message as an MSI, because KVM's local APICs accept only MSIs.
impl From<Message> for Msi {
    fn from(message: Message) -> Self {
        const LOGICAL: u64 = 1 << 2;
        const LOWEST_PRIORITY_HINT: u64 = 1 << 3;
        const ASSERT: u32 = 1 << 14;
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let level = if message.level { 1 << 15 | ASSERT } else { 0 };
        Self {
            address: MESSAGE_BASE
                | u64::from(message.destination) << 12
                | flag(message.logical, LOGICAL)
                | flag(message.mode == 1, LOWEST_PRIORITY_HINT),
            data: u32::from(message.vector) | u32::from(message.mode) << 8 | level,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_apics_message_survives_as_msi() {
        for (logical, mode, level) in [(false, 0, false), (true, 1, false), (true, 0, true)] {
            let message = Message {
                vector: 0x31,
                destination: 3,
                logical,
                mode,
                level,
            };
            assert_eq!(Msi::from(message).message(), Some(message));
        }
    }
}
