//! /proc/meminfo and /proc/zoneinfo.

use alloc::vec::Vec;

/// Memory of the machine in pages of 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meminfo {
    /// MemTotal: what the page allocator manages.
    pub total_pages: u64,
    /// MemFree: pages on the free lists, without those in per-CPU lists.
    pub free_pages: u64,
    /// CmaFree, the part of MemFree that only movable pages may use; 0 if there is no such line (without CONFIG_CMA).
    /// The scratch area of KHO is such memory.
    pub cma_free_pages: u64,
}

/// Reads MemTotal, MemFree and CmaFree; `None` if one of the first two lines is missing or is not `NAME: NUMBER kB`.
pub fn parse(text: &str) -> Option<Meminfo> {
    Some(Meminfo {
        total_pages: pages(text, "MemTotal")?,
        free_pages: pages(text, "MemFree")?,
        cma_free_pages: pages(text, "CmaFree").unwrap_or(0),
    })
}

/// A zone of /proc/zoneinfo. All numbers are pages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Zone {
    /// On the free lists.
    pub free: u64,
    /// Of these, the ones for movable memory only (nr_free_cma).
    pub free_cma: u64,
    /// The high watermark: with more than that the kernel reclaims nothing.
    pub high: u64,
    /// What is kept for allocations that can use no higher zone: the greatest number of `protection`.
    pub protection: u64,
    /// In the lists of each processor, which are free too but not counted in `free`: processor and pages.
    pub per_cpu: Vec<(usize, u64)>,
}

/// Reads /proc/zoneinfo (mm/vmstat.c, zoneinfo_show_print: the same in 6.17 to 7.3). What cannot be read is 0.
pub fn zones(zoneinfo: &str) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    let mut processor = None;
    for line in zoneinfo.lines() {
        if line.starts_with("Node ") {
            zones.push(Zone::default());
            processor = None;
        }
        let Some(zone) = zones.last_mut() else { continue };
        let (name, value) = match line.trim_start().strip_prefix("pages ") {
            Some(rest) => split(rest),
            None => split(line.trim_start()),
        };
        let number = || value.parse::<u64>().ok();
        match name {
            "free" => zone.free = number().unwrap_or(0),
            "high" => zone.high = number().unwrap_or(0),
            "nr_free_cma" => zone.free_cma = number().unwrap_or(0),
            "protection:" => zone.protection = greatest(value),
            "cpu:" => processor = value.parse().ok(),
            "count:" => zone.per_cpu.extend(processor.zip(number())),
            _ => {}
        }
    }
    zones
}

/// A line's first word, and the rest without spaces around it.
fn split(line: &str) -> (&str, &str) {
    let (name, value) = line.split_once(' ').unwrap_or((line, ""));
    (name, value.trim())
}

/// The greatest number in `(0, 467, 467)`.
fn greatest(list: &str) -> u64 {
    list.trim_matches(['(', ')'])
        .split(',')
        .filter_map(|number| number.trim().parse().ok())
        .max()
        .unwrap_or(0)
}

/// Pages in all per-CPU lists. They are free too but not in MemFree, and after a large release they are many.
pub fn per_cpu_pages(zones: &[Zone]) -> u64 {
    let counts = zones
        .iter()
        .flat_map(|zone| &zone.per_cpu)
        .map(|(_, count)| *count);
    counts.fold(0, u64::saturating_add)
}

/// Pages in the per-CPU lists of one processor.
pub fn pages_of_processor(zones: &[Zone], processor: usize) -> u64 {
    let own = zones
        .iter()
        .flat_map(|zone| &zone.per_cpu)
        .filter(|(number, _)| *number == processor);
    own.fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// Pages that a process can take so that each zone keeps its high watermark and what it is to keep for others. Memory
/// for movable pages only does not count as kept, because the kernel's own allocations cannot use it.
pub fn spare_pages(zones: &[Zone]) -> u64 {
    let spare = |zone: &Zone| {
        let kept = [zone.free_cma, zone.high, zone.protection];
        kept.iter()
            .fold(zone.free, |free, kept| free.saturating_sub(*kept))
    };
    zones.iter().map(spare).fold(0, u64::saturating_add)
}

/// The value of line `name`, from kB to pages.
fn pages(text: &str, name: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kilobytes / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        let text = "MemTotal:         507904 kB\nMemFree:          401236 kB\nMemAvailable:     392100 kB\n";
        assert_eq!(
            parse(text),
            Some(Meminfo {
                total_pages: 126_976,
                free_pages: 100_309,
                cma_free_pages: 0
            })
        );
    }

    const ZONES: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 5
  pages free     3840
        boost    0
        min      65
        low      81
        high     97
        cma      0
        protection: (0, 467, 480, 467)
      nr_free_pages 3840
      nr_free_cma  0
  pagesets
    cpu: 0
              count:    0
              high:     4
Node 0, zone    DMA32
  pages free     9000
        high     2000
        cma      4096
        protection: (0, 0, 0)
      nr_free_cma  3000
  pagesets
    cpu: 0
              count:    391
              high:     400
    cpu: 1
              count: 9
";

    #[test]
    fn scratch_is_told_apart() {
        let text = "MemTotal: 507904 kB\nMemFree: 401236 kB\nCmaTotal: 102752 kB\nCmaFree:  102604 kB\n";
        assert_eq!(parse(text).map(|info| info.cma_free_pages), Some(25_651));
        let without = "MemTotal: 507904 kB\nMemFree: 401236 kB\n";
        assert_eq!(parse(without).map(|info| info.cma_free_pages), Some(0));
    }

    #[test]
    fn reads_zones() {
        let zones = zones(ZONES);
        let dma = Zone {
            free: 3840,
            high: 97,
            protection: 480,
            per_cpu: std::vec![(0, 0)],
            ..Zone::default()
        };
        let dma32 = Zone {
            free: 9000,
            free_cma: 3000,
            high: 2000,
            per_cpu: std::vec![(0, 391), (1, 9)],
            ..Zone::default()
        };
        assert_eq!(zones, [dma, dma32]);
        assert_eq!(per_cpu_pages(&zones), 400);
        assert_eq!([0, 1, 2].map(|cpu| pages_of_processor(&zones, cpu)), [391, 9, 0]);
        assert_eq!(spare_pages(&zones), 3840 - 97 - 480 + 9000 - 3000 - 2000);
    }

    #[test]
    fn a_zone_below_its_mark_has_nothing_to_spare() {
        let text = ZONES.replace("9000", "4999");
        assert_eq!(spare_pages(&zones(&text)), 3840 - 97 - 480);
        assert_eq!(spare_pages(&[]), 0);
        assert_eq!(
            per_cpu_pages(&zones("Node 0\ncount: x\ncount\ncpu: 0\ncount: 1")),
            1
        );
    }

    #[test]
    fn refuses_what_is_not_meminfo() {
        for text in [
            "",
            "MemTotal: 4 kB",
            "MemTotal: 4 kB\nMemFree: 4",
            "MemTotal: 4 kB\nMemFree: x kB",
            "MemFreeish: 4 kB",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text: std::string::String) {
            parse(&text);
            spare_pages(&zones(&text));
            per_cpu_pages(&zones(&text));
        }
    }
}
