//! The `setup_data` node through which one kernel tells the next where its handover lies
//! (arch/x86/include/uapi/asm/setup_data.h).

use crate::bytes::Fields;
use crate::memory::Region;

/// The kernel's `struct kho_data`, the payload of a `setup_data` node of type `SETUP_KEXEC_KHO`:
///
/// ```c
/// struct kho_data { __u64 fdt_addr, fdt_size, scratch_addr, scratch_size; } __attribute__((packed));
/// ```
///
/// With the `serde` feature it is written as those four numbers (`fdt_address`, `fdt_bytes`, `scratch_address`,
/// `scratch_bytes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(from = "Written", into = "Written")
)]
pub struct KhoData {
    /// Address of the KHO FDT, and the bytes that are set aside for it.
    pub fdt: Region,
    /// The array of scratch areas, {u64 address, u64 size} each. Empty if unknown.
    pub scratch: Region,
}

impl KhoData {
    /// `SETUP_KEXEC_KHO`.
    pub const SETUP_TYPE: u32 = 10;
    /// Size of `struct kho_data`, in bytes.
    pub const SIZE: usize = 32;
    /// Size of a whole node, in bytes: {u64 next, u32 type, u32 length}, then `struct kho_data`.
    pub const NODE_SIZE: usize = 16 + Self::SIZE;
    /// Type and length of a node as one little-endian number.
    pub(crate) const NODE_HEADER: u64 = (Self::SIZE as u64) << 32 | Self::SETUP_TYPE as u64;

    /// Decodes `struct kho_data`. Returns `None` if `payload` is shorter than [`Self::SIZE`]; ignores what follows.
    pub fn from_bytes(payload: &[u8]) -> Option<Self> {
        Self::decode(&mut Fields::new(payload))
    }

    /// Decodes a whole node. Returns `None` if its type or its length is another, or if `node` is too short.
    pub fn from_node(node: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(node);
        let _next = fields.u64();
        (fields.u64() == Self::NODE_HEADER)
            .then(|| Self::decode(&mut fields))
            .flatten()
    }

    /// Encodes a whole node. `next` is the physical address of the next node, 0 if this is the last.
    pub fn to_node(&self, next: u64) -> [u8; Self::NODE_SIZE] {
        let words = [
            next,
            Self::NODE_HEADER,
            self.fdt.start,
            self.fdt.size,
            self.scratch.start,
            self.scratch.size,
        ];
        let mut node = [0; Self::NODE_SIZE];
        for (place, word) in node.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        node
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let fdt = Region::new(fields.u64(), fields.u64());
        let scratch = Region::new(fields.u64(), fields.u64());
        (!fields.short()).then_some(Self { fdt, scratch })
    }
}

/// The names under which serde reads and writes [`KhoData`].
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Written {
    fdt_address: u64,
    fdt_bytes: u64,
    scratch_address: u64,
    scratch_bytes: u64,
}

#[cfg(feature = "serde")]
impl From<Written> for KhoData {
    fn from(written: Written) -> Self {
        Self {
            fdt: Region::new(written.fdt_address, written.fdt_bytes),
            scratch: Region::new(written.scratch_address, written.scratch_bytes),
        }
    }
}

#[cfg(feature = "serde")]
impl From<KhoData> for Written {
    fn from(data: KhoData) -> Self {
        Self {
            fdt_address: data.fdt.start,
            fdt_bytes: data.fdt.size,
            scratch_address: data.scratch.start,
            scratch_bytes: data.scratch.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_node_is_decoded_as_it_was_encoded(numbers in any::<[u64; 4]>(), next in any::<u64>()) {
            let [fdt, fdt_size, scratch, scratch_size] = numbers;
            let data = KhoData { fdt: Region::new(fdt, fdt_size), scratch: Region::new(scratch, scratch_size) };
            let node = data.to_node(next);
            prop_assert_eq!(&node[..8], &next.to_le_bytes());
            prop_assert_eq!(KhoData::from_node(&node), Some(data));
            prop_assert_eq!(KhoData::from_bytes(&node[16..]), Some(data));
        }
    }

    #[test]
    fn other_nodes_and_short_ones_are_refused() {
        let data = KhoData {
            fdt: Region::new(0x1000, 0x2000),
            scratch: Region::new(0x3000, 48),
        };
        let node = data.to_node(0);
        assert_eq!(node[8..16], [10, 0, 0, 0, 32, 0, 0, 0]);
        for at in [8, 12] {
            let mut other = node;
            other[at] ^= 1;
            assert_eq!(KhoData::from_node(&other), None);
        }
        assert_eq!(KhoData::from_node(&node[..KhoData::NODE_SIZE - 1]), None);
        assert_eq!(KhoData::from_bytes(&node[16..KhoData::NODE_SIZE - 1]), None);
    }
}
