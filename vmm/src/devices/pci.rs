//! PCI configuration space (PCI Local Bus Specification 3.0, chapter 6) by configuration mechanism #1.

use serde::{Deserialize, Serialize};

/// I/O port of the configuration address register.
pub const ADDRESS_PORT: u16 = 0xcf8;
/// First of the four I/O ports of the configuration data window.
pub const DATA_PORT: u16 = 0xcfc;
/// Start of the window for BARs.
pub const WINDOW_START: u32 = 0xe000_0000;
/// Last address of that window.
pub const WINDOW_LAST: u32 = 0xefff_ffff;
/// Device identity of the host bridge, under [`guest_agent::device::VENDOR_ID`].
pub const HOST_BRIDGE_DEVICE_ID: u16 = 0x0000;
/// Class code of a host bridge.
pub const CLASS_HOST_BRIDGE: u32 = 0x06_0000;
/// Class code of a communication controller, other.
pub const CLASS_COMMUNICATION: u32 = 0x07_8000;

/// COMMAND: the function answers in memory space.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// COMMAND: the function may master the bus.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// COMMAND bits that can be written: I/O, memory, master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Offset of the COMMAND register.
pub const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const MSIX_AT: u8 = 0x40;
const MSIX: usize = MSIX_AT as usize;
const MSIX_ID: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// The configuration space of one function: 256 bytes and which of their bits can be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    bar_sizes: [u32; 6],
}

impl ConfigSpace {
    /// A type 0 header.
    #[must_use]
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut space = Self {
            bytes: vec![0; 256],
            writable: vec![0; 256],
            bar_sizes: [0; 6],
        };
        space.put(0x00, &vendor.to_le_bytes());
        space.put(0x02, &device.to_le_bytes());
        space.put(0x08, &(class << 8 | 1).to_le_bytes()); // revision 1
        space.put(0x2c, &vendor.to_le_bytes()); // subsystem
        space.put(0x2e, &device.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Whether both have the same writable bits and BAR sizes, which no guest can change.
    #[must_use]
    pub fn has_shape_of(&self, other: &Self) -> bool {
        self.bytes.len() == other.bytes.len()
            && self.writable == other.writable
            && self.bar_sizes == other.bar_sizes
    }

    /// Adds a 32-bit memory BAR of `size` bytes (a power of two), placed at `address` as firmware would, and turns
    /// memory decoding on.
    #[must_use]
    pub fn with_bar(mut self, index: usize, size: u64, address: u64) -> Self {
        let at = BARS + 4 * index;
        let size = low(size);
        self.bar_sizes[index] = size;
        self.put(at, &low(address).to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
        self.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        self
    }

    /// Adds an MSI-X capability whose table begins `bar`.
    #[must_use]
    pub fn with_msix(mut self, vectors: u16, bar: u8, pba_offset: u64) -> Self {
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.put(CAPABILITIES, &[MSIX_AT]);
        self.put(MSIX, &[MSIX_ID, 0]);
        self.put(MSIX + 2, &(vectors - 1).to_le_bytes());
        self.allow(MSIX + 2, &(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
        self.put(MSIX + 4, &u32::from(bar).to_le_bytes());
        self.put(MSIX + 8, &(low(pba_offset) | u32::from(bar)).to_le_bytes());
        self
    }

    /// Reads `size` bytes at `offset`. Bytes outside read as ones.
    #[must_use]
    pub fn read(&self, offset: usize, size: u8) -> u32 {
        let byte = |at: usize| self.bytes.get(at).copied().unwrap_or(0xff);
        (0..usize::from(size.min(4))).fold(0, |value, i| value | u32::from(byte(offset + i)) << (8 * i))
    }

    /// Writes `size` bytes at `offset`. Bits that are read-only keep their value.
    pub fn write(&mut self, offset: usize, size: u8, value: u32) {
        for (i, new) in value.to_le_bytes().into_iter().take(size.into()).enumerate() {
            let Some(byte) = self.bytes.get_mut(offset + i) else {
                return;
            };
            let mask = self.writable[offset + i];
            *byte = *byte & !mask | new & mask;
        }
    }

    /// A reset of the function: everything that can be written is 0, so that it answers nowhere.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(&self.writable) {
            *byte &= !mask;
        }
    }

    /// Moves a BAR, which keeps its size. Returns whether there is such a BAR, and `address` is a multiple of its size.
    pub fn move_bar(&mut self, index: usize, address: u32) -> bool {
        let size = self.bar_sizes.get(index).copied().unwrap_or(0);
        let fits = size > 0 && address.is_multiple_of(size);
        if fits {
            self.put(BARS + 4 * index, &address.to_le_bytes());
        }
        fits
    }

    /// The COMMAND register.
    #[must_use]
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// Whether MSI-X is on, and not masked as a whole.
    #[must_use]
    pub fn msix_enabled(&self) -> (bool, bool) {
        let control = u16::from_le_bytes([self.bytes[MSIX + 2], self.bytes[MSIX + 3]]);
        (control & MSIX_ENABLE != 0, control & MSIX_MASK == 0)
    }

    /// Which BAR decodes this address now, and the offset into it.
    #[must_use]
    pub fn decode(&self, address: u64) -> Option<(usize, u64)> {
        if self.command() & COMMAND_MEMORY == 0 {
            return None;
        }
        (0..6)
            .filter(|&index| self.bar_sizes[index] != 0)
            .find_map(|index| {
                let base = u64::from(self.read(BARS + 4 * index, 4) & !0xf);
                let offset = address.checked_sub(base)?;
                (offset < self.bar_sizes[index].into()).then_some((index, offset))
            })
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

/// The lower half: BARs are 32 bits wide.
fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The configuration address register of the host bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigAddress {
    value: u32,
}

/// Target of an access to the data window, on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigTarget {
    /// Device number.
    pub slot: u8,
    /// Offset into the configuration space of function 0.
    pub offset: usize,
}

impl ConfigAddress {
    /// Reads the register. Only 32-bit accesses reach it.
    #[must_use]
    pub fn read(&self, port: u16, size: u8) -> u32 {
        if port == ADDRESS_PORT && size == 4 {
            self.value
        } else {
            u32::MAX
        }
    }

    /// Writes the register. Only 32-bit accesses reach it.
    pub fn write(&mut self, port: u16, size: u8, value: u32) {
        if port == ADDRESS_PORT && size == 4 {
            self.value = value & 0x80ff_fffc;
        }
    }

    /// Target of an access to `port` of the data window; `None` if it reaches no function.
    #[must_use]
    pub fn target(&self, port: u16) -> Option<ConfigTarget> {
        let [register, devfn, bus, enable] = self.value.to_le_bytes();
        let function = devfn & 7;
        if enable & 0x80 == 0 || bus != 0 || function != 0 {
            return None;
        }
        let offset = usize::from(register) + usize::from(port.checked_sub(DATA_PORT)? & 3);
        Some(ConfigTarget {
            slot: devfn >> 3,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizing_a_bar_shows_its_size_and_leaves_it_be() {
        let mut space = ConfigSpace::new(1, 2, CLASS_COMMUNICATION).with_bar(0, 0x2_0000, 0xe000_0000);
        assert_eq!(space.decode(0xe001_ffff), Some((0, 0x1_ffff)));
        assert_eq!(space.decode(0xe002_0000), None);
        let command = space.read(COMMAND, 2);
        space.write(COMMAND, 2, command & !u32::from(COMMAND_MEMORY));
        assert_eq!(space.decode(0xe000_0000), None, "decoding is off");
        let old = space.read(BARS, 4);
        space.write(BARS, 4, u32::MAX);
        assert_eq!(!space.read(BARS, 4) + 1, 0x2_0000);
        space.write(BARS, 4, old);
        space.write(COMMAND, 2, command);
        assert_eq!(space.decode(0xe000_0004), Some((0, 4)));
        space.write(BARS + 4, 4, u32::MAX);
        assert_eq!(space.read(BARS + 4, 4), 0, "no second BAR");
    }

    #[test]
    fn a_reset_leaves_what_software_cannot_write() {
        let fresh = ConfigSpace::new(1, 2, 3);
        let mut space = ConfigSpace::new(1, 2, 3)
            .with_bar(2, 0x1000, 0xe000_0000)
            .with_msix(1, 2, 0x800);
        assert!(!space.move_bar(0, 0xe100_0000), "there is none");
        assert!(!space.move_bar(2, 0xe100_0800), "misaligned");
        assert!(space.move_bar(2, 0xe100_0000));
        assert_eq!(
            (space.decode(0xe000_0000), space.decode(0xe100_0004)),
            (None, Some((2, 4)))
        );
        space.write(0x42, 2, 0x8000);
        space.write(INTERRUPT_LINE, 1, 9);
        space.reset();
        assert_eq!(
            (space.command(), space.decode(0), space.msix_enabled().0),
            (0, None, false)
        );
        assert_eq!((space.read(BARS + 8, 4), space.read(INTERRUPT_LINE, 1)), (0, 0));
        assert_eq!(space.read(0, 4), fresh.read(0, 4));
        assert_eq!(space.read(0x40, 1), u32::from(MSIX_ID));
    }

    #[test]
    fn identity_cannot_be_written() {
        let mut space = ConfigSpace::new(0xba70, 7, CLASS_HOST_BRIDGE);
        for at in 0..256 {
            if !(COMMAND..COMMAND + 2).contains(&at) && at != INTERRUPT_LINE {
                space.write(at, 1, 0xff);
            }
        }
        assert_eq!(space.read(0, 4), 0x0007_ba70);
        assert_eq!(space.read(8, 4) >> 8, CLASS_HOST_BRIDGE);
        assert_eq!(space.read(0xfe, 4), 0xffff_0000, "beyond the end there are ones");
        space.write(0xfe, 4, 0);
    }

    #[test]
    fn the_msix_capability_is_where_the_list_says() {
        let mut space = ConfigSpace::new(1, 2, 0)
            .with_bar(2, 0x1000, 0xe000_0000)
            .with_msix(1, 2, 0x800);
        assert_ne!(space.read(STATUS, 2) & u32::from(STATUS_CAPABILITIES), 0);
        let at = space.read(CAPABILITIES, 1) as usize;
        assert_eq!(space.read(at, 2), u32::from(MSIX_ID));
        assert_eq!((space.read(at + 4, 4), space.read(at + 8, 4)), (2, 0x802));
        assert_eq!(space.msix_enabled(), (false, true));
        space.write(at + 2, 2, 0xffff);
        assert_eq!(
            (space.msix_enabled(), space.read(at + 2, 2)),
            ((true, false), 0xc000)
        );
    }

    #[test]
    fn the_address_register_picks_one_function() {
        let mut address = ConfigAddress::default();
        assert_eq!(address.target(DATA_PORT), None);
        address.write(ADDRESS_PORT, 1, 0x80);
        address.write(ADDRESS_PORT, 4, 0x8000_1006);
        assert_eq!(address.read(ADDRESS_PORT, 4), 0x8000_1004);
        assert_eq!(
            address.target(DATA_PORT + 2),
            Some(ConfigTarget { slot: 2, offset: 6 })
        );
        for absent in [0x0000_1004, 0x8001_1004, 0x8000_1104] {
            address.write(ADDRESS_PORT, 4, absent);
            assert_eq!(address.target(DATA_PORT), None, "{absent:#x}");
        }
    }
}
