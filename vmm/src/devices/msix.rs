//! The MSI-X table of a function and the delivery of its messages (PCI Local Bus Specification 3.0, section 6.8.2).

use serde::{Deserialize, Serialize};

use super::pci::ConfigSpace;
use crate::interrupt::Msi;

const ENTRY_BYTES: u64 = 16;
const VECTOR_MASKED: u32 = 1;
/// MSI-X table and pending bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msix {
    /// {address low, address high, data, vector control} per vector.
    table: Vec<[u32; 4]>,
    pending: u64,
    pba: u64,
    /// The last message that was sent.
    last: Option<Msi>,
}

impl Msix {
    /// A table of `vectors` (at most 64) masked vectors, with the pending bits at `pba` in the same BAR.
    #[must_use]
    pub fn new(vectors: u16, pba: u64) -> Self {
        Self {
            table: vec![[0, 0, 0, VECTOR_MASKED]; usize::from(vectors.min(64))],
            pending: 0,
            pba,
            last: None,
        }
    }

    /// Whether both have the same number of vectors and the same offset of the pending bits.
    #[must_use]
    pub fn has_shape_of(&self, other: &Self) -> bool {
        self.table.len() == other.table.len() && self.pba == other.pba
    }

    /// Reads the BAR.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let word = |at: u64| {
            if at / 4 * 4 == self.pba {
                (self.pending & 0xffff_ffff) as u32
            } else if at / 4 * 4 == self.pba + 4 {
                (self.pending >> 32) as u32
            } else {
                self.word(at).map_or(0, |(entry, field)| self.table[entry][field])
            }
        };
        match size {
            4 if offset.is_multiple_of(4) => word(offset).into(),
            8 if offset.is_multiple_of(8) => u64::from(word(offset)) | u64::from(word(offset + 4)) << 32,
            _ => u64::MAX,
        }
    }

    /// Writes the BAR; returns the pending messages that the write unmasked.
    pub fn write(&mut self, config: &ConfigSpace, offset: u64, size: u8, value: u64) -> Vec<Msi> {
        let mut put = |at: u64, word: u64| {
            if let Some((entry, field)) = self.word(at) {
                self.table[entry][field] = (word & 0xffff_ffff) as u32;
            }
        };
        match size {
            4 if offset.is_multiple_of(4) => put(offset, value),
            8 if offset.is_multiple_of(8) => {
                put(offset, value);
                put(offset + 4, value >> 32);
            }
            _ => {}
        }
        self.deliver_pending(config)
    }

    /// A reset of the function: every vector is masked and has no message.
    pub fn reset(&mut self) {
        self.table.fill([0, 0, 0, VECTOR_MASKED]);
        self.pending = 0;
        self.last = None;
    }

    /// The message that the driver has programmed for a vector, whether it is masked or not; else the last one that was
    /// sent; `None` if there is neither.
    #[must_use]
    pub fn programmed(&self, vector: u16) -> Option<Msi> {
        let [low, high, data, _] = *self.table.get(usize::from(vector))?;
        let address = u64::from(low & !3) | u64::from(high) << 32;
        let programmed = (address != 0).then_some(Msi { address, data });
        programmed.or(self.last)
    }

    /// Raises a vector. Returns the message to send; `None` if the vector is masked (it is then pending) or MSI-X is
    /// off.
    pub fn raise(&mut self, config: &ConfigSpace, vector: u16) -> Option<Msi> {
        let (enabled, unmasked) = config.msix_enabled();
        let [low, high, data, control] = *self.table.get(usize::from(vector))?;
        if !enabled {
            return None;
        }
        if !unmasked || control & VECTOR_MASKED != 0 {
            self.pending |= 1 << vector;
            return None;
        }
        self.last = Some(Msi {
            address: u64::from(low & !3) | u64::from(high) << 32,
            data,
        });
        self.last
    }

    /// Returns messages that are pending and no longer masked. To be called after writes to the capability's control
    /// register, too.
    pub fn deliver_pending(&mut self, config: &ConfigSpace) -> Vec<Msi> {
        let pending = std::mem::take(&mut self.pending);
        (0..64)
            .filter(|vector| pending >> vector & 1 == 1)
            .filter_map(|vector| self.raise(config, vector))
            .collect()
    }

    fn word(&self, offset: u64) -> Option<(usize, usize)> {
        let entry = usize::try_from(offset / ENTRY_BYTES)
            .ok()
            .filter(|&entry| entry < self.table.len())?;
        Some((entry, usize::from((offset % ENTRY_BYTES / 4) as u8)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(control: u32) -> ConfigSpace {
        let mut config = ConfigSpace::new(1, 2, 0)
            .with_bar(2, 0x1000, 0xe000_0000)
            .with_msix(1, 2, 0x800);
        config.write(0x42, 2, control);
        config
    }

    fn program(msix: &mut Msix, config: &ConfigSpace, control: u64) -> Vec<Msi> {
        msix.write(config, 0, 4, 0xfee0_1004);
        msix.write(config, 4, 4, 0);
        msix.write(config, 8, 4, 0x4031);
        msix.write(config, 12, 4, control)
    }

    #[test]
    fn an_unmasked_vector_is_sent_to_its_processor() {
        let (mut msix, config) = (Msix::new(1, 0x800), enabled(0x8000));
        program(&mut msix, &config, 0);
        let message = msix.raise(&config, 0).unwrap().message().unwrap();
        assert_eq!(
            (
                message.vector,
                message.destination,
                message.logical,
                message.level
            ),
            (0x31, 1, true, false)
        );
        assert_eq!(msix.raise(&config, 1), None);
        assert_eq!(
            Msi {
                address: 0x1000,
                data: 0
            }
            .message(),
            None
        );
    }

    #[test]
    fn a_masked_vector_waits_for_its_unmasking() {
        let (mut msix, config) = (Msix::new(1, 0x800), enabled(0x8000));
        program(&mut msix, &config, 1);
        assert_eq!(msix.raise(&config, 0), None);
        assert_eq!(msix.raise(&config, 0), None);
        assert_eq!(msix.read(0x800, 8), 1);
        assert_eq!(
            msix.write(&config, 12, 4, 0).len(),
            1,
            "one message for any number of raises"
        );
        assert_eq!(msix.read(0x800, 4), 0);
    }

    #[test]
    fn the_function_mask_holds_back_all_and_off_drops() {
        let mut msix = Msix::new(1, 0x800);
        program(&mut msix, &enabled(0x8000), 0);
        assert_eq!(msix.raise(&enabled(0xc000), 0), None);
        assert_eq!(msix.deliver_pending(&enabled(0x8000)).len(), 1);
        assert_eq!(msix.raise(&enabled(0), 0), None);
        assert_eq!(msix.read(0x800, 4), 0);
        msix.write(&enabled(0), 16, 4, 1);
        assert_eq!(msix.read(16, 4), 0, "beyond the table");
    }
}
