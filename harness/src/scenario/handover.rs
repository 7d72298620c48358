//! Checks of `[handover]`, and of keys that make no sense beside it.

use super::check::{Problem, require};
use super::{Buffers, Bytes, Handover, Scenario, Start};
use toml::Spanned;
use vmm::boot::layout::KERNEL_MIN;

/// The kernel makes its largest free blocks of scratch (`MAX_PAGE_ORDER`, include/linux/mmzone.h).
const SCRATCH_ALIGNMENT: u64 = 4 << 20;

pub(super) fn check(scenario: &Scenario, spanned: &Spanned<Handover>) -> Result<(), Problem> {
    let handover = spanned.get_ref();
    require(
        handover.abi.is_some() || handover.model.is_some(),
        spanned,
        || "found neither abi nor model, expected one of them or both".into(),
    )?;
    let (Bytes(scratch), Bytes(ram)) = (*handover.scratch.get_ref(), *scenario.ram.get_ref());
    let most = ram.saturating_sub(KERNEL_MIN) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
    let fits = scratch.is_multiple_of(SCRATCH_ALIGNMENT) && (SCRATCH_ALIGNMENT..=most).contains(&scratch);
    require(fits || handover.model.is_some(), &handover.scratch, || {
        format!(
            "found scratch of {}, expected {} to {}, a multiple of {}",
            Bytes(scratch),
            Bytes(SCRATCH_ALIGNMENT),
            Bytes(most),
            Bytes(SCRATCH_ALIGNMENT)
        )
    })?;
    if let Some(old) = &scenario.kernel.old {
        require(scenario.kernel.new.is_none(), old, || {
            "with [handover] there is no first kernel: expected new alone".into()
        })?;
    }
    require(scenario.kernel.append_old.is_empty(), spanned, || {
        "found append_old in [kernel], and with [handover] there is no first kernel".into()
    })?;
    if let Some(fault) = &scenario.fault {
        require(fault.get_ref().generation > 0, fault, || {
            "found a fault in generation 0, and with [handover] there is no first kernel: expected 1 or more"
                .into()
        })?;
    }
    for inject in &scenario.inject {
        let since = inject.when.get_ref().since();
        require(
            since.is_none_or(|since| since.generation > 0),
            &inject.when,
            || {
                "it waits for generation 0, and with [handover] there is no first kernel: expected generation 1 or more"
                .into()
            },
        )?;
    }
    let Some(dma) = &scenario.dma else {
        return Ok(());
    };
    let of = dma.get_ref();
    require(of.buffers == Buffers::Memfd, dma, || {
        "found buffers that are not preserved, and with [handover] there is only what is handed over".into()
    })?;
    require(of.start == Start::default(), dma, || {
        "found start, and with [handover] the engine has been started before".into()
    })?;
    require(!of.interrupts, dma, || {
        "found interrupts, and with [handover] no driver has set them up before".into()
    })
}

#[cfg(test)]
mod tests {
    use crate::scenario::parse;

    const GOOD: &str =
        "name = \"a\"\n[handover]\nabi = \"kho-v4\"\n[[memfd]]\nname = \"m\"\nsize = \"64 MiB\"\ntoken = 1\n";

    #[test]
    fn what_needs_a_first_kernel_is_refused() {
        let error = |text: &str| parse("s.toml", text).unwrap_err().to_string();
        parse("s.toml", GOOD).unwrap();
        let with = |more: &str| error(&format!("{GOOD}{more}"));
        let replaced = |what: &str, by: &str| error(&GOOD.replace(what, by));
        assert!(
            replaced("kho-v4", "kho-v9").contains("kho-v3"),
            "{}",
            replaced("kho-v4", "kho-v9")
        );
        assert!(replaced("abi = \"kho-v4\"\n", "").contains("neither abi nor model"));
        assert!(replaced("\"kho-v4\"\n", "\"kho-v4\"\nscratch = \"3 MiB\"\n").contains("multiple of 4 MiB"));
        assert!(replaced("\"kho-v4\"\n", "\"kho-v4\"\nscratch = \"512 MiB\"\n").contains("to 496 MiB"));
        let fault = "what.memory.write = { at = 0x1000, bytes = \"00\" }\n";
        for (more, word) in [
            ("[kernel]\nold = \"7.3.4\"\nnew = \"7.2.12\"\n", "new alone"),
            ("[kernel]\nappend_old = \"x\"\n", "append_old"),
            ("[fault]\nmisbehave = \"exit\"\n", "generation 0"),
            (
                &format!("[[inject]]\nwhen.phase = \"armed\"\n{fault}"),
                "generation 0",
            ),
            (
                "[dma]\nrate = \"1 MB/s\"\nbuffers = \"unpreserved\"\n",
                "not preserved",
            ),
            ("[dma]\nrate = \"1 MB/s\"\ninterrupts = true\n", "no driver"),
            (
                "[dma]\nrate = \"1 MB/s\"\nstart = \"before-preservation\"\n",
                "started before",
            ),
        ] {
            assert!(with(more).contains(word), "{}", with(more));
        }
        for good in [
            "[kernel]\nnew = \"7.2.12\"\n",
            "[fault]\nmisbehave = \"exit\"\ngeneration = 1\n",
            &format!("[[inject]]\nwhen.phase = \"restore\"\n{fault}"),
            "[dma]\nrate = \"1 MB/s\"\n",
        ] {
            parse("s.toml", &format!("{GOOD}{good}")).unwrap();
        }
    }
}
