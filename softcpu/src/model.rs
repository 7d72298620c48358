//! What kind of processor this is: identity, frequencies, and what CPUID offers.
//!
//! CPUID offers exactly what the crate implements. The vendor is Intel because the kernel takes the TSC and local APIC timer
//! frequencies from leaf 0x15 only there, and so has nothing to calibrate.

use serde::{Deserialize, Serialize};

/// Identity and frequencies of a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    /// Local APIC identity (8 bits).
    pub apic_id: u32,
    /// TSC frequency in Hz; the TSC counts guest time, one tick per retired instruction.
    pub tsc_hz: u64,
    /// Frequency of the core crystal clock in Hz, at which the local APIC timer counts. Divides `tsc_hz`.
    pub crystal_hz: u64,
    /// Number of processors in the machine.
    pub processors: u32,
}

impl Default for CpuModel {
    fn default() -> Self {
        Self {
            apic_id: 0,
            tsc_hz: 1_000_000_000,
            crystal_hz: 25_000_000,
            processors: 1,
        }
    }
}

/// The four registers that CPUID returns: EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

/// Highest basic leaf.
const MAX_BASIC: u32 = 0x16;
/// Highest extended leaf.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Family 6, model 0x9e, stepping 10: a desktop part whose model-specific quirks in the kernel are few.
const SIGNATURE: u32 = 0x0009_06ea;

/// The bits that `names` (bit numbers) set.
const fn bits(numbers: &[u32]) -> u32 {
    let mut value = 0;
    let mut i = 0;
    while i < numbers.len() {
        value |= 1 << numbers[i];
        i += 1;
    }
    value
}

/// Leaf 1, ECX: CMPXCHG16B, POPCNT, TSC deadline timer, hypervisor present.
const FEATURES_1C: u32 = bits(&[13, 23, 24, 31]);
/// Leaf 1, EDX: FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2.
const FEATURES_1D: u32 = bits(&[0, 2, 3, 4, 5, 6, 8, 9, 13, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 7, EBX: FSGSBASE, enhanced REP MOVSB.
const FEATURES_7B: u32 = bits(&[0, 9]);
/// Leaf 7, EDX: fast short REP MOVSB.
const FEATURES_7D: u32 = bits(&[4]);
/// Leaf 0x80000001, EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const FEATURES_EXT_D: u32 = bits(&[11, 20, 26, 27, 29]);

fn text(four: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*four)
}

impl CpuModel {
    /// CPUID leaf `leaf`, sub-leaf `sub`.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, sub: u32) -> Leaf {
        match leaf {
            0 => [MAX_BASIC, text(b"Genu"), text(b"ntel"), text(b"ineI")],
            1 => {
                let ebx = (self.apic_id << 24) | ((self.processors & 0xff) << 16) | (8 << 8);
                [SIGNATURE, ebx, FEATURES_1C, FEATURES_1D]
            }
            // Thermal and power: the APIC timer never stops (ARAT).
            6 => [1 << 2, 0, 0, 0],
            7 if sub == 0 => [0, FEATURES_7B, 0, FEATURES_7D],
            0xb => self.topology(sub),
            0x15 => [
                1,
                to_u32(self.tsc_hz / self.crystal_hz.max(1)),
                to_u32(self.crystal_hz),
                0,
            ],
            0x16 => {
                let mhz = to_u32(self.tsc_hz / 1_000_000);
                [mhz, mhz, to_u32(self.crystal_hz / 1_000_000), 0]
            }
            0x4000_0000 => [0x4000_0000, text(b"bato"), text(b"n so"), text(b"ft  ")],
            0x8000_0000 => [MAX_EXTENDED, 0, 0, 0],
            // ECX bit 0: LAHF and SAHF in 64-bit mode.
            0x8000_0001 => [0, 0, 1, FEATURES_EXT_D],
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            // L2: 256 KiB, 64-byte lines.
            0x8000_0006 => [0, 0, 0x0100_6040, 0],
            // EDX bit 8: invariant TSC.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            // 40 physical and 48 linear address bits.
            0x8000_0008 => [(48 << 8) | 40, 0, 0, 0],
            _ => [0; 4],
        }
    }

    fn topology(&self, sub: u32) -> Leaf {
        // One thread a core; the core level spans all processors.
        match sub {
            0 => [0, 1, 0x100, self.apic_id],
            1 => [
                u32::BITS - self.processors.saturating_sub(1).leading_zeros(),
                self.processors,
                0x201,
                self.apic_id,
            ],
            _ => [0, 0, sub & 0xff, self.apic_id],
        }
    }
}

fn brand(part: u32) -> Leaf {
    const BRAND: &[u8; 48] = b"baton software processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut leaf = [0; 4];
    let start = part as usize * 16;
    for (register, bytes) in leaf.iter_mut().zip(BRAND[start..start + 16].chunks_exact(4)) {
        *register = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    leaf
}

fn to_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_told_by_leaf_0x15() {
        let [denominator, numerator, crystal, _] = CpuModel::default().cpuid(0x15, 0);
        assert_eq!(
            u64::from(crystal) * u64::from(numerator) / u64::from(denominator),
            1_000_000_000
        );
    }

    #[test]
    fn the_vendor_and_brand_read_as_text() {
        let [_, b, c, d] = CpuModel::default().cpuid(0, 0);
        let vendor: Vec<u8> = [b, d, c].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(vendor, b"GenuineIntel");
        let brand: Vec<u8> = (2..5u32)
            .flat_map(|i| CpuModel::default().cpuid(0x8000_0000 + i, 0))
            .flat_map(u32::to_le_bytes)
            .collect();
        assert!(brand.starts_with(b"baton software processor\0"));
    }

    #[test]
    fn nothing_beyond_baseline_is_offered() {
        let [_, _, c, _] = CpuModel::default().cpuid(1, 0);
        assert_eq!(
            c & bits(&[0, 9, 19, 20, 25, 26, 27, 28, 30]),
            0,
            "no SSE3 and up, AES, XSAVE, AVX, RDRAND"
        );
    }

    #[test]
    fn the_baseline_of_x86_64_is_offered() {
        // The psABI's x86-64 baseline, which glibc's loader checks before it starts a program.
        let baseline = [
            ("FPU", 0),
            ("CX8", 8),
            ("CMOV", 15),
            ("MMX", 23),
            ("FXSR", 24),
            ("SSE", 25),
            ("SSE2", 26),
        ];
        let [_, _, _, d] = CpuModel::default().cpuid(1, 0);
        for (name, bit) in baseline {
            assert_ne!(d & bits(&[bit]), 0, "{name}");
        }
    }
}
