//! Power off and reset: the ACPI sleep registers, the ACPI reset register, and the two ways of a PC.

use serde::{Deserialize, Serialize};

/// I/O port of the ACPI sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// I/O port of the ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// I/O port of the ACPI reset register.
pub const RESET: u16 = 0x602;
/// The value that resets, according to the ACPI tables, when written to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5.
pub const SLEEP_TYPE_S5: u8 = 5;

const RESET_CONTROL: u16 = 0xcf9;
const RESET_CONTROL_CPU: u32 = 1 << 2;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u32 = 0xfe;
const DELAY: u16 = 0x80;
const SLEEP_ENABLE: u32 = 1 << 5;

/// A request to switch the machine off or to reset it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerRequest {
    /// ACPI S5.
    Off,
    /// A reset, by any of the ports.
    Reset,
}

/// The power ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    requested: Option<PowerRequest>,
    /// The injection that asked; `None` if the guest did.
    by: Option<u16>,
}

impl Power {
    /// Reads a port; `None` when it is not one of these.
    #[must_use]
    pub fn read(&self, port: u16, size: u8) -> Option<u32> {
        match (port, size) {
            (SLEEP_CONTROL | SLEEP_STATUS | RESET | DELAY, _) => Some(0),
            // The keyboard controller is always ready, so that a kernel that resets by it does not wait.
            (KEYBOARD_COMMAND, 1) => Some(0),
            (RESET_CONTROL, 1) => Some(0),
            _ => None,
        }
    }

    /// Writes a port; `false` when it is not one of these.
    pub fn write(&mut self, port: u16, size: u8, value: u32) -> bool {
        let request = match (port, size) {
            (SLEEP_CONTROL, 1) => {
                let s5 = value >> 2 & 0b111 == u32::from(SLEEP_TYPE_S5);
                (value & SLEEP_ENABLE != 0 && s5).then_some(PowerRequest::Off)
            }
            (RESET, 1) => (value == u32::from(RESET_VALUE)).then_some(PowerRequest::Reset),
            (RESET_CONTROL, 1) => (value & RESET_CONTROL_CPU != 0).then_some(PowerRequest::Reset),
            (KEYBOARD_COMMAND, 1) => (value == KEYBOARD_RESET).then_some(PowerRequest::Reset),
            (SLEEP_STATUS | DELAY, _) => None,
            _ => return false,
        };
        self.requested = self.requested.or(request);
        true
    }

    /// An injection asks, unless the guest has.
    pub fn inject(&mut self, injection: u16, request: PowerRequest) {
        if self.requested.is_none() {
            (self.requested, self.by) = (Some(request), Some(injection));
        }
    }

    /// The first request, if there was one, and the injection that made it; `None` if the guest did.
    #[must_use]
    pub fn requested(&self) -> Option<(PowerRequest, Option<u16>)> {
        self.requested.map(|request| (request, self.by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(port: u16, value: u32) -> Option<PowerRequest> {
        let mut power = Power::default();
        assert!(power.write(port, 1, value));
        power.requested().map(|(request, _)| request)
    }

    #[test]
    fn each_way_out_is_told_apart() {
        assert_eq!(after(SLEEP_CONTROL, 5 << 2 | 1 << 5), Some(PowerRequest::Off));
        assert_eq!(after(SLEEP_CONTROL, 5 << 2), None);
        assert_eq!(after(SLEEP_CONTROL, 3 << 2 | 1 << 5), None);
        assert_eq!(after(RESET, 1), Some(PowerRequest::Reset));
        assert_eq!(after(RESET_CONTROL, 0x0e), Some(PowerRequest::Reset));
        assert_eq!(after(RESET_CONTROL, 0x02), None);
        assert_eq!(after(KEYBOARD_COMMAND, 0xfe), Some(PowerRequest::Reset));
        assert_eq!(after(DELAY, 0xff), None);
        assert!(!Power::default().write(0xcf8, 4, 0x8000_0000));
    }

    #[test]
    fn the_first_request_counts_and_says_whose_it_is() {
        let mut power = Power::default();
        power.inject(3, PowerRequest::Reset);
        power.inject(4, PowerRequest::Off);
        assert!(power.write(SLEEP_CONTROL, 1, 5 << 2 | 1 << 5));
        assert_eq!(power.requested(), Some((PowerRequest::Reset, Some(3))));
        let mut power = Power::default();
        assert!(power.write(RESET, 1, 1));
        power.inject(3, PowerRequest::Off);
        assert_eq!(power.requested(), Some((PowerRequest::Reset, None)));
    }
}
