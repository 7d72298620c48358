//! Objects that the kernel makes and preserves by itself, so that they need no LUO: memory reserved by name
//! (`reserve_mem=`), and the data of the kernel's own test of Kexec HandOver (lib/test_kho.c).

use super::check::{Problem, require, require_pages, require_room};
use super::{Bytes, Scenario};
use crate::payload::PayloadPlan;
use guest_agent::pattern::PAGE_BYTES;
use serde::Deserialize;
use std::collections::BTreeSet;
use toml::Spanned;

/// Entries of the kernel's table (mm/memblock.c, `RESERVE_MEM_MAX_ENTRIES`).
pub(crate) const MAX_REGIONS: usize = 8;
/// Bytes of a name in it with its NUL (mm/memblock.c, `RESERVE_MEM_NAME_SIZE`).
pub(crate) const REGION_NAME_BYTES: usize = 16;
/// Most bytes of a name.
const MAX_NAME: usize = REGION_NAME_BYTES - 1;
/// Most memory that the kernel's test preserves. It fills it with random numbers at every boot.
const MAX_TEST: u64 = 64 << 20;

/// Memory that the kernel reserves by name and preserves by itself. It is never closed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveMem {
    /// Name, for the kernel and in reports.
    pub name: Spanned<String>,
    /// Size, a multiple of 4 KiB.
    pub size: Spanned<Bytes>,
    /// Alignment of its address, a power of two.
    #[serde(default = "page")]
    pub align: Spanned<Bytes>,
}

/// The kernel's own test of Kexec HandOver (CONFIG_TEST_KEXEC_HANDOVER).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestKho {
    /// How much memory it preserves.
    #[serde(default = "small")]
    pub max_mem: Spanned<Bytes>,
}

fn page() -> Spanned<Bytes> {
    Spanned::new(0..0, Bytes(PAGE_BYTES as u64))
}

fn small() -> Spanned<Bytes> {
    Spanned::new(0..0, Bytes(1 << 20))
}

impl Scenario {
    /// The parameters that make every kernel of a run have these objects.
    pub(crate) fn own_parameters(&self) -> String {
        let region = |region: &ReserveMem| {
            let (size, align) = (region.size.get_ref().0, region.align.get_ref().0);
            format!("reserve_mem={size}:{align}:{}", region.name.get_ref())
        };
        let test = self.test_kho.as_ref();
        let test = test.map(|test| format!("test_kho.max_mem={}", test.get_ref().max_mem.get_ref().0));
        let agent = self.payload.as_ref().map(|_| PayloadPlan::parameters());
        let all: Vec<String> = self
            .reserve_mem
            .iter()
            .map(region)
            .chain(test)
            .chain(agent)
            .collect();
        all.join(" ")
    }
}

/// Checks `[[reserve_mem]]` and `[test_kho]`.
pub(super) fn check(scenario: &Scenario, ram: u64) -> Result<(), Problem> {
    let page = PAGE_BYTES as u64;
    let memfds = scenario.memfd.iter();
    let mut names: BTreeSet<&str> = memfds
        .clone()
        .map(|memfd| memfd.name.get_ref().as_str())
        .collect();
    let mut total: u64 = memfds.map(|memfd| memfd.size.get_ref().0).sum();
    for (number, region) in scenario.reserve_mem.iter().enumerate() {
        let name = region.name.get_ref();
        require(number < MAX_REGIONS, &region.name, || {
            format!("more than {MAX_REGIONS} regions of reserve_mem, which is the kernel's limit")
        })?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        require(
            !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(plain),
            &region.name,
            || {
                format!(
                    "found name \"{name}\", expected 1 to {MAX_NAME} letters, digits, hyphens, dots and underscores"
                )
            },
        )?;
        require(names.insert(name), &region.name, || {
            format!("found name \"{name}\", expected one that is not taken")
        })?;
        require_pages("region", &region.size)?;
        let Bytes(align) = *region.align.get_ref();
        require(
            align.is_power_of_two() && (page..=1 << 30).contains(&align),
            &region.align,
            || format!("found an alignment of {align} bytes, expected a power of two from 4 KiB to 1 GiB"),
        )?;
        total = total.saturating_add(region.size.get_ref().0);
        require_room("memfds and regions", total, ram, &region.size)?;
        require(scenario.handover.is_none(), &region.name, || {
            "found reserve_mem, and with [handover] there is no first kernel that could reserve it".into()
        })?;
    }
    let Some(test) = &scenario.test_kho else {
        return Ok(());
    };
    let most = test.get_ref().max_mem.get_ref().0;
    require((page..=MAX_TEST).contains(&most), &test.get_ref().max_mem, || {
        format!(
            "found max_mem of {}, expected 4 KiB to {}",
            Bytes(most),
            Bytes(MAX_TEST)
        )
    })?;
    require(scenario.handover.is_none(), test, || {
        "found [test_kho], and with [handover] there is no first kernel that could run it".into()
    })
}

#[cfg(test)]
mod tests {
    use crate::scenario::parse;

    const GOOD: &str =
        "name = \"a\"\n[[reserve_mem]]\nname = \"kept\"\nsize = \"1 MiB\"\nalign = \"2 MiB\"\n";

    #[test]
    fn kernels_are_given_the_regions_and_the_size_of_the_test() {
        let of = |text: &str| parse("s.toml", text).unwrap().own_parameters();
        assert_eq!(of("name = \"a\"\n"), "");
        assert_eq!(of(GOOD), "reserve_mem=1048576:2097152:kept");
        assert_eq!(
            of(&format!("{GOOD}[test_kho]\nmax_mem = \"64 KiB\"\n")),
            "reserve_mem=1048576:2097152:kept test_kho.max_mem=65536"
        );
        assert_eq!(of("name = \"a\"\n[test_kho]\n"), "test_kho.max_mem=1048576");
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused() {
        let error = |text: &str| parse("s.toml", text).unwrap_err().to_string();
        let memfd = "[[memfd]]\nname = \"kept\"\nsize = \"4 KiB\"\ntoken = 1\n";
        let handover = "[handover]\nabi = \"kho-v4\"\n";
        for (text, problem) in [
            (GOOD.replace("\"kept\"", "\"\""), "1 to 15 letters"),
            (
                GOOD.replace("\"kept\"", "\"sixteen-long-one\""),
                "1 to 15 letters",
            ),
            (GOOD.replace("\"kept\"", "\"a:b\""), "1 to 15 letters"),
            (GOOD.replace("1 MiB", "1 B"), "multiple of 4096"),
            (GOOD.replace("1 MiB", "500 MiB"), "three quarters"),
            (GOOD.replace("2 MiB", "3 MiB"), "power of two"),
            (GOOD.replace("2 MiB", "64 B"), "power of two"),
            (format!("{GOOD}{memfd}"), "not taken"),
            (format!("{GOOD}{handover}"), "no first kernel"),
            (format!("name = \"a\"\n[test_kho]\n{handover}"), "no first kernel"),
            (
                "name = \"a\"\n[test_kho]\nmax_mem = \"1 GiB\"\n".into(),
                "4 KiB to",
            ),
            ("name = \"a\"\n[test_kho]\nmax_mem = \"1 B\"\n".into(), "4 KiB to"),
        ] {
            let said = error(&text);
            assert!(said.contains(problem), "{problem}: {said}");
        }
        let many = (0..9).map(|n| format!("[[reserve_mem]]\nname = \"r{n}\"\nsize = \"4 KiB\"\n"));
        assert!(error(&format!("name = \"a\"\n{}", many.collect::<String>())).contains("more than 8"));
    }
}
