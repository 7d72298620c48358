//! A vCPU's accesses to devices: from the data of a KVM exit to the bus and back.

use crate::vcpu::Bus;

/// KVM_EXIT_IO, output. A string instruction gives more bytes than one access has.
pub(super) fn write_port(bus: &mut dyn Bus, now: u64, port: u16, data: &[u8]) {
    for part in data.chunks(port_access_size(data.len())) {
        let (value, size) = number(part);
        bus.port_write(now, port, size, (value & 0xffff_ffff) as u32);
    }
}

/// KVM_EXIT_IO, input.
pub(super) fn read_port(bus: &mut dyn Bus, now: u64, port: u16, data: &mut [u8]) {
    let size = port_access_size(data.len());
    for part in data.chunks_mut(size) {
        let value = bus.port_read(now, port, number(part).1).to_le_bytes();
        let size = part.len();
        part.copy_from_slice(&value[..size]);
    }
}

/// KVM_EXIT_MMIO, write.
pub(super) fn write_memory(bus: &mut dyn Bus, now: u64, address: u64, data: &[u8]) {
    let (value, size) = number(data);
    bus.mmio_write(now, address, size, value);
}

/// KVM_EXIT_MMIO, read; KVM gives at most 8 bytes.
pub(super) fn read_memory(bus: &mut dyn Bus, now: u64, address: u64, data: &mut [u8]) {
    let value = bus.mmio_read(now, address, number(data).1).to_le_bytes();
    for (byte, read) in data.iter_mut().zip(value) {
        *byte = read;
    }
}

/// Bytes of one port access. `kvm-ioctls` does not tell the access size of a string instruction; only byte-wide devices
/// are driven by those.
fn port_access_size(length: usize) -> usize {
    if matches!(length, 2 | 4) { length } else { 1 }
}

/// A little-endian number of at most 8 bytes, and its size in bytes.
fn number(data: &[u8]) -> (u64, u8) {
    let (mut bytes, mut size) = ([0; 8], 0);
    for (byte, given) in bytes.iter_mut().zip(data) {
        *byte = *given;
        size += 1;
    }
    (u64::from_le_bytes(bytes), size)
}
