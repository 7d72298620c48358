//! ACPI tables of a hardware-reduced platform with one PCI bus, one I/O APIC and one serial port.
//!
//! The bridge is conventional PCI (PNP0A03), because its functions need only configuration mechanism #1. A kernel then
//! looks for neither MCFG nor _OSC.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use crate::boot::layout::ACPI_TABLES;
use crate::boot::wakeup;
use crate::devices::{ioapic, lapic, pci, power, uart};
use crate::memory::{GuestRam, MemoryError};

const OEM: [u8; 6] = *b"BATON ";
const OEM_TABLE: [u8; 8] = *b"BATON   ";
const OEM_REVISION: u32 = 1;
/// IAPC_BOOT_ARCH: no VGA (bit 2), no CMOS clock (bit 5), no legacy devices and no 8042 (bits 0 and 1 clear). The
/// machine does have a CMOS clock, because kernels read one at boot regardless of this bit.
const IAPC_BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
const SCI: u16 = 9;
const TABLE_ALIGNMENT: u64 = 64;

/// Writes all tables and returns the address of the RSDP. With `mailbox` the processors beyond the first are started
/// through the multiprocessor wakeup mailbox of [`wakeup`], without it by INIT and start-up interrupts.
pub fn write(ram: &GuestRam, processors: u8, mailbox: bool) -> Result<u64, MemoryError> {
    let rsdp_address = ACPI_TABLES;
    let mut next = rsdp_address + TABLE_ALIGNMENT;
    let mut place = |bytes: Vec<u8>| -> Result<u64, MemoryError> {
        let address = next;
        ram.write(address, &bytes)?;
        next = (address + bytes.len() as u64).next_multiple_of(TABLE_ALIGNMENT);
        Ok(address)
    };
    let dsdt = place(dsdt())?;
    let fadt = place(fadt(dsdt))?;
    let madt = place(madt(processors, mailbox))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes(&xsdt))?;
    ram.write(rsdp_address, &bytes(&Rsdp::new(OEM, xsdt)))?;
    Ok(rsdp_address)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // These two flags mean that there are no fixed-hardware buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.sci_int = SCI.into();
    fadt.iapc_boot_arch = IAPC_BOOT_ARCH.into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    bytes(&fadt.finalize())
}

/// Local APICs and the I/O APIC. The table's flags are 0: there is no pair of 8259s.
fn madt(processors: u8, mailbox: bool) -> Vec<u8> {
    let address = LocalInterruptController::Address(lapic::BASE_32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, address);
    for id in 0..processors {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(ioapic::ID, ioapic::BASE_32, 0));
    let mut bytes = bytes(&madt);
    if mailbox {
        append(&mut bytes, &multiprocessor_wakeup());
    }
    bytes
}

/// Multiprocessor wakeup structure, version 1 (ACPI 6.6, section 5.2.12.19). Version 1 adds the reset vector. Without
/// it a kernel cannot return a processor to the firmware, and the next kernel cannot start it.
fn multiprocessor_wakeup() -> Vec<u8> {
    const TYPE: u8 = 0x10;
    const LENGTH: u8 = 24;
    const VERSION: u16 = 1;
    let mut structure = vec![TYPE, LENGTH];
    structure.extend(VERSION.to_le_bytes());
    structure.extend(0_u32.to_le_bytes());
    structure.extend(wakeup::MAILBOX.to_le_bytes());
    structure.extend(wakeup::RESET_VECTOR.to_le_bytes());
    structure
}

/// Appends to a finished table, and updates its length and checksum.
fn append(table: &mut Vec<u8>, more: &[u8]) {
    table.extend(more);
    let length = u32::try_from(table.len()).unwrap_or(u32::MAX);
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
}

fn dsdt() -> Vec<u8> {
    let mut code = [pci_bridge(), com1()].concat();
    let s5 = power::SLEEP_TYPE_S5;
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&s5, &s5, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut code);
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table.as_slice().to_vec()
}

/// A device under \_SB as finished bytes: the builders of acpi_tables borrow their parts.
fn system_device(name: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    bytes(&Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(Path::new(name), children)],
    ))
}

fn pci_bridge() -> Vec<u8> {
    system_device(
        "PCI0",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_BBN"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0_u16, 0_u16),
                    &IO::new(pci::ADDRESS_PORT, pci::ADDRESS_PORT, 1, 8),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        pci::WINDOW_START,
                        pci::WINDOW_LAST,
                        None,
                    ),
                ]),
            ),
        ],
    )
}

fn com1() -> Vec<u8> {
    system_device(
        "COM1",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(uart::PORT, uart::PORT, 1, uart::PORTS),
                    &Interrupt::new(true, true, false, false, uart::IRQ.into()),
                ]),
            ),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM;

    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let mut header = [0; 36];
        ram.read(address, &mut header).unwrap();
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let mut bytes = vec![0; length as usize];
        ram.read(address, &mut bytes).unwrap();
        assert_eq!(
            bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0,
            "checksum"
        );
        bytes
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let rsdp = write(&ram, 2, false).unwrap();
        let mut root = [0; 36];
        ram.read(rsdp, &mut root).unwrap();
        assert_eq!(&root[..8], b"RSD PTR ");
        let xsdt = table(&ram, u64_at(&root, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&ram, u64_at(&xsdt, 36));
        assert_eq!((&fadt[..4], fadt[8], fadt.len()), (&b"FACP"[..], 6, 276));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0x24, "IAPC_BOOT_ARCH");
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4);
        assert_eq!(
            (fadt[116], u64_at(&fadt, 120), fadt[128]),
            (1, power::RESET.into(), power::RESET_VALUE)
        );
        assert_eq!((u64_at(&fadt, 248), u64_at(&fadt, 260)), (0x600, 0x601));
        let dsdt = table(&ram, u64_at(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(dsdt.windows(4).any(|name| name == b"PCI0") && dsdt.windows(4).any(|name| name == b"_S5_"));
        let madt = table(&ram, u64_at(&xsdt, 44));
        assert_eq!(
            (&madt[..4], u32::from_le_bytes(madt[40..44].try_into().unwrap())),
            (&b"APIC"[..], 0)
        );
        assert_eq!(madt.len(), 44 + 2 * 8 + 12);
        write(&ram, 2, true).unwrap();
        let madt = table(&ram, u64_at(&xsdt, 44));
        let wakeup = &madt[44 + 2 * 8 + 12..];
        assert_eq!((wakeup[..4].to_vec(), wakeup.len()), (vec![0x10, 24, 1, 0], 24));
        assert_eq!(
            (u64_at(wakeup, 8), u64_at(wakeup, 16)),
            (wakeup::MAILBOX, wakeup::RESET_VECTOR)
        );
    }
}
