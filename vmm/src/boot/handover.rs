//! Reads the `struct boot_params` that one kernel handed to the next from guest RAM. No value in it is trusted.

use std::sync::Arc;

use kho_core::KhoData;
use thiserror::Error;

use super::bzimage::{u16_at, u32_at, u64_at};
use super::layout::{
    BOOT_FLAG, BOOT_PARAMS_SIZE, COMMAND_LINE_ROOM, E820_ENTRY_BYTES, E820_MAX, HEADER_MAGIC,
    SETUP_DATA_HEADER, SETUP_INDIRECT, SETUP_KEXEC_KHO, offset,
};
use crate::memory::{GuestRam, MemoryError};

/// Most nodes that are followed. Kernels link far fewer; a longer chain is a loop or garbage.
const MAX_NODES: usize = 64;

/// What is wrong with a `struct boot_params` or its setup_data chain.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// A structure lies outside RAM.
    #[error("{what} cannot be read")]
    Unreadable {
        /// Which structure.
        what: &'static str,
        /// Where it would be.
        #[source]
        source: MemoryError,
    },
    /// The page holds no boot parameters.
    #[error(
        "no boot parameters at {address:#x}: expected {expected:#x} at offset {offset:#x}, found {found:#x}"
    )]
    NoBootParams {
        /// Guest physical address of the page.
        address: u64,
        /// Offset of the magic number.
        offset: usize,
        /// The right value.
        expected: u32,
        /// The value found.
        found: u32,
    },
    /// The chain has a loop or too many nodes.
    #[error("setup_data chain from {first:#x} comes back to {address:#x} or has more than {MAX_NODES} nodes")]
    EndlessChain {
        /// Its first node.
        first: u64,
        /// The node at which reading stopped.
        address: u64,
    },
    /// The KHO node is too short.
    #[error(
        "setup_data node of type {SETUP_KEXEC_KHO} at {address:#x} has {found} bytes: expected {}",
        KhoData::SIZE
    )]
    ShortKhoData {
        /// Address of the node's payload.
        address: u64,
        /// Its length.
        found: u64,
    },
    /// The command line has no terminating NUL.
    #[error("command line at {address:#x} has no NUL within {COMMAND_LINE_ROOM} bytes")]
    EndlessCommandLine {
        /// Its address.
        address: u64,
    },
}

/// Memory from which boot parameters are read: guest RAM, or RAM as it will be when a kernel is entered.
pub trait BootMemory {
    /// Reads memory. Fails if the range is not wholly RAM.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError>;
}

impl BootMemory for GuestRam {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        Self::read(self, address, buffer)
    }
}

impl BootMemory for Arc<GuestRam> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.as_ref().read(address, buffer)
    }
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// Start address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
    /// Type: 1 is RAM.
    pub kind: u32,
}

/// One node of the setup_data chain, an indirection already followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetupData {
    /// `SETUP_*` type.
    pub kind: u32,
    /// Guest physical address of the payload.
    pub address: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// The fields of `struct boot_params` that matter to a live update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootParams {
    /// Where the structure is.
    pub address: u64,
    /// Boot protocol version.
    pub version: u16,
    /// Address of the command line.
    pub command_line_address: u64,
    /// Address of the initrd.
    pub initrd_address: u64,
    /// Size of the initrd in bytes.
    pub initrd_bytes: u64,
    /// Alignment that the kernel asked for.
    pub kernel_alignment: u32,
    /// Bytes that the kernel needs from its load address on before it has looked at the memory map.
    pub init_size: u32,
    /// Address of the ACPI RSDP.
    pub acpi_rsdp: u64,
    /// Address of the first setup_data node, 0 for none.
    pub first_setup_data: u64,
    /// Memory map.
    pub e820: Vec<E820Entry>,
}

impl BootParams {
    /// Reads the structure at `address`.
    pub fn read(ram: &dyn BootMemory, address: u64) -> Result<Self, HandoverError> {
        let mut page = [0; BOOT_PARAMS_SIZE];
        read(ram, "boot parameters", address, &mut page)?;
        let magic = |offset, expected, found| {
            if expected == found {
                Ok(())
            } else {
                Err(HandoverError::NoBootParams {
                    address,
                    offset,
                    expected,
                    found,
                })
            }
        };
        magic(
            offset::BOOT_FLAG,
            BOOT_FLAG.into(),
            u16_at(&page, offset::BOOT_FLAG).into(),
        )?;
        magic(
            offset::HEADER_MAGIC,
            HEADER_MAGIC,
            u32_at(&page, offset::HEADER_MAGIC),
        )?;
        let wide = |low, high| u64::from(u32_at(&page, low)) | u64::from(u32_at(&page, high)) << 32;
        let entries = usize::from(page[offset::E820_ENTRIES]).min(E820_MAX);
        let e820 = (0..entries)
            .map(|index| offset::E820_TABLE + index * E820_ENTRY_BYTES)
            .map(|at| E820Entry {
                address: u64_at(&page, at),
                length: u64_at(&page, at + 8),
                kind: u32_at(&page, at + 16),
            })
            .collect();
        Ok(Self {
            address,
            version: u16_at(&page, offset::VERSION),
            command_line_address: wide(offset::CMD_LINE_PTR, offset::EXT_CMD_LINE_PTR),
            initrd_address: wide(offset::RAMDISK_IMAGE, offset::EXT_RAMDISK_IMAGE),
            initrd_bytes: wide(offset::RAMDISK_SIZE, offset::EXT_RAMDISK_SIZE),
            kernel_alignment: u32_at(&page, offset::KERNEL_ALIGNMENT),
            init_size: u32_at(&page, offset::INIT_SIZE),
            acpi_rsdp: u64_at(&page, offset::ACPI_RSDP_ADDR),
            first_setup_data: u64_at(&page, offset::SETUP_DATA),
            e820,
        })
    }

    /// The command line, without its NUL.
    pub fn command_line(&self, ram: &dyn BootMemory) -> Result<Vec<u8>, HandoverError> {
        let mut line = Vec::new();
        let start = self.command_line_address;
        for at in start..start.saturating_add(COMMAND_LINE_ROOM) {
            let mut byte = [0];
            read(ram, "command line", at, &mut byte)?;
            if byte == [0] {
                return Ok(line);
            }
            line.push(byte[0]);
        }
        Err(HandoverError::EndlessCommandLine { address: start })
    }

    /// All nodes of the setup_data chain, in order.
    pub fn setup_data(&self, ram: &dyn BootMemory) -> Result<Vec<SetupData>, HandoverError> {
        let mut nodes: Vec<SetupData> = Vec::new();
        let mut seen = Vec::new();
        let mut address = self.first_setup_data;
        while address != 0 {
            if seen.contains(&address) || seen.len() == MAX_NODES {
                return Err(HandoverError::EndlessChain {
                    first: self.first_setup_data,
                    address,
                });
            }
            seen.push(address);
            let mut header = [0; 16];
            read(ram, "setup_data node", address, &mut header)?;
            let payload = address + SETUP_DATA_HEADER;
            nodes.push(node(
                ram,
                u32_at(&header, 8),
                payload,
                u32_at(&header, 12).into(),
            )?);
            address = u64_at(&header, 0);
        }
        Ok(nodes)
    }

    /// Address of the KHO node's header, if the chain has such a node and it is not behind an indirection.
    pub fn kho_node(&self, ram: &dyn BootMemory) -> Result<Option<u64>, HandoverError> {
        let nodes = self.setup_data(ram)?;
        let node = nodes.iter().find(|node| node.kind == SETUP_KEXEC_KHO);
        let Some(at) = node.and_then(|node| node.address.checked_sub(SETUP_DATA_HEADER)) else {
            return Ok(None);
        };
        let mut header = [0; 16];
        read(ram, "setup_data node", at, &mut header)?;
        Ok((u32_at(&header, 8) == SETUP_KEXEC_KHO).then_some(at))
    }

    /// The KHO node, if the chain has one; the first counts, as in the kernel.
    pub fn kho_data(&self, ram: &dyn BootMemory) -> Result<Option<KhoData>, HandoverError> {
        let nodes = self.setup_data(ram)?;
        let Some(node) = nodes.iter().find(|node| node.kind == SETUP_KEXEC_KHO) else {
            return Ok(None);
        };
        let short = || HandoverError::ShortKhoData {
            address: node.address,
            found: node.length,
        };
        let mut bytes = [0; KhoData::SIZE];
        let stated = usize::try_from(node.length).unwrap_or(usize::MAX);
        let payload = &mut bytes[..stated.min(KhoData::SIZE)];
        read(ram, "KHO setup_data", node.address, payload)?;
        KhoData::from_bytes(payload).map(Some).ok_or_else(short)
    }
}

/// Follows a `setup_indirect` {u32 type, u32 reserved, u64 len, u64 addr}, one level deep as in the kernel.
fn node(ram: &dyn BootMemory, kind: u32, address: u64, length: u64) -> Result<SetupData, HandoverError> {
    if kind != SETUP_INDIRECT || length < 24 {
        return Ok(SetupData {
            kind,
            address,
            length,
        });
    }
    let mut bytes = [0; 24];
    read(ram, "setup_indirect", address, &mut bytes)?;
    let kind = u32_at(&bytes, 0) & !SETUP_INDIRECT;
    Ok(SetupData {
        kind,
        address: u64_at(&bytes, 16),
        length: u64_at(&bytes, 8),
    })
}

fn read(
    ram: &dyn BootMemory,
    what: &'static str,
    address: u64,
    buffer: &mut [u8],
) -> Result<(), HandoverError> {
    ram.read(address, buffer)
        .map_err(|source| HandoverError::Unreadable { what, source })
}

#[cfg(test)]
mod tests {
    use kho_core::Region;
    use proptest::prelude::*;

    use super::*;
    use crate::memory::MIN_RAM;

    const PARAMS: u64 = 0x10_0000;

    fn ram_with(first: u64, nodes: &[(u64, u64, u32, Vec<u8>)]) -> Arc<GuestRam> {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        ram.write(PARAMS + 0x1fe, &BOOT_FLAG.to_le_bytes()).unwrap();
        ram.write(PARAMS + 0x202, b"HdrS").unwrap();
        ram.write(PARAMS + 0x250, &first.to_le_bytes()).unwrap();
        for (address, next, kind, payload) in nodes {
            ram.write(*address, &next.to_le_bytes()).unwrap();
            ram.write(address + 8, &kind.to_le_bytes()).unwrap();
            ram.write(address + 12, &u32::try_from(payload.len()).unwrap().to_le_bytes())
                .unwrap();
            ram.write(address + 16, payload).unwrap();
        }
        ram
    }

    fn kho_payload() -> Vec<u8> {
        [0x1000_u64, 405, 0x2000, 48]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    const KHO: KhoData = KhoData {
        fdt: Region::new(0x1000, 405),
        scratch: Region::new(0x2000, 48),
    };

    #[test]
    fn the_kho_node_is_found_in_a_chain() {
        let ram = ram_with(
            0x5000,
            &[
                (0x5000, 0x6000, 9, vec![1; 32]),
                (0x6000, 0, SETUP_KEXEC_KHO, kho_payload()),
            ],
        );
        let params = BootParams::read(&ram, PARAMS).unwrap();
        assert_eq!(params.kho_data(&ram).unwrap(), Some(KHO));
        assert_eq!(params.kho_node(&ram).unwrap(), Some(0x6000));
        assert_eq!(params.setup_data(&ram).unwrap().len(), 2);
    }

    #[test]
    fn an_indirect_node_is_followed() {
        let mut indirect = Vec::new();
        indirect.extend_from_slice(&(SETUP_INDIRECT | SETUP_KEXEC_KHO).to_le_bytes());
        indirect.extend_from_slice(&[0; 4]);
        indirect.extend_from_slice(&32_u64.to_le_bytes());
        indirect.extend_from_slice(&0x9000_u64.to_le_bytes());
        let ram = ram_with(0x5000, &[(0x5000, 0, SETUP_INDIRECT, indirect)]);
        ram.write(0x9000, &kho_payload()).unwrap();
        let params = BootParams::read(&ram, PARAMS).unwrap();
        assert_eq!(params.kho_data(&ram).unwrap(), Some(KHO));
        assert_eq!(
            params.kho_node(&ram).unwrap(),
            None,
            "there is no node of that type"
        );
    }

    #[test]
    fn loops_short_nodes_and_wild_pointers_are_errors() {
        let kho = |first, nodes: &[_]| {
            let ram = ram_with(first, nodes);
            BootParams::read(&ram, PARAMS).unwrap().kho_data(&ram)
        };
        let to_itself = kho(0x5000, &[(0x5000, 0x5000, 1, vec![])]);
        assert!(matches!(
            to_itself,
            Err(HandoverError::EndlessChain { address: 0x5000, .. })
        ));
        let around = kho(
            0x5000,
            &[(0x5000, 0x6000, 1, vec![]), (0x6000, 0x5000, 1, vec![])],
        );
        assert!(matches!(around, Err(HandoverError::EndlessChain { .. })));
        let wild = kho(0xffff_ffff_ffff_fff8, &[]);
        assert!(matches!(
            wild,
            Err(HandoverError::Unreadable {
                what: "setup_data node",
                ..
            })
        ));
        let short = kho(0x5000, &[(0x5000, 0, SETUP_KEXEC_KHO, vec![0; 31])]);
        assert!(matches!(
            short,
            Err(HandoverError::ShortKhoData { found: 31, .. })
        ));
        assert!(matches!(kho(0, &[]), Ok(None)));
        let long: Vec<_> = (0..80)
            .map(|i| (0x5000 + i * 64, 0x5000 + (i + 1) * 64, 1, vec![]))
            .collect();
        assert!(matches!(
            kho(0x5000, &long),
            Err(HandoverError::EndlessChain { .. })
        ));
    }

    #[test]
    fn a_page_without_magic_is_no_boot_params() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        assert!(matches!(
            BootParams::read(&ram, PARAMS),
            Err(HandoverError::NoBootParams {
                offset: 0x1fe,
                found: 0,
                ..
            })
        ));
        assert!(matches!(
            BootParams::read(&ram, MIN_RAM - 1),
            Err(HandoverError::Unreadable { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_chain_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 64), first in 0x5000_u64..0x5040,
                                        next in 0_u64..0x5040) {
            let ram = ram_with(first, &[]);
            ram.write(0x5000, &bytes).unwrap();
            ram.write(first, &next.to_le_bytes()).unwrap();
            let params = BootParams::read(&ram, PARAMS).unwrap();
            if let Ok(nodes) = params.setup_data(&ram) {
                prop_assert!(nodes.len() <= MAX_NODES);
            }
            let _ = params.kho_data(&ram);
            let _ = params.command_line(&ram);
        }
    }
}
