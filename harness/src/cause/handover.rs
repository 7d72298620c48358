//! Causes that lie between two kernels: what was handed over, and what the new kernel made of it.

use super::{kernel_lines, message, value};
use crate::evidence::{BlobEvidence, Evidence, KernelEvidence, PAGE, Phase};

/// The new kernel runs, but has nothing of what was preserved.
pub(super) fn not_taken(evidence: &Evidence, kernel: &KernelEvidence) -> Option<String> {
    let blob = handed(evidence)?;
    if blob.kho.is_none() {
        return Some(
            "the old kernel handed nothing over: the new kernel's boot parameters name no handover".into(),
        );
    }
    let refused = kernel_lines(&evidence.console)
        .map(message)
        .find(|line| is_refusal(line));
    if let Some(line) = refused {
        return Some(format!("the new kernel refused the handover: {line}"));
    }
    let hello = kernel.hello.as_ref()?;
    (hello.kho_debugfs && !hello.kho_incoming).then(|| "the new kernel never took the handover".to_owned())
}

/// Whether a line of a kernel says that it does not take the handover at all (`kho_populate()`).
pub(crate) fn is_refusal(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.contains("disabling kho revival") || (line.starts_with("kho") && line.contains("incompatible"))
}

/// The new kernel died in early boot, and what it was handed lies above the memory that it was given.
pub(super) fn above_memory(evidence: &Evidence, kernel: &KernelEvidence) -> Option<String> {
    if evidence.outcome.phase != Phase::BootNew {
        return None;
    }
    let limit = size(value(&kernel.command_line, "mem")?)?;
    let blob = handed(evidence)?;
    let kho = blob.kho?;
    let parts = [
        ("the handover's FDT lies", kho.fdt.start, kho.fdt.size),
        (
            "the list of scratch areas lies",
            kho.scratch.start,
            kho.scratch.size,
        ),
    ];
    let areas = scratch_areas(blob).into_iter();
    let areas = areas.map(|(start, size)| ("a scratch area lies", start, size));
    let above = |&(_, start, size): &(&str, u64, u64)| start.saturating_add(size) > limit;
    let (what, start, _) = parts.into_iter().chain(areas).find(above)?;
    Some(format!(
        "{what} at {start:#x}, above the memory that the new kernel was given (mem={})",
        value(&kernel.command_line, "mem").unwrap_or_default()
    ))
}

/// What the kernel before the last one handed over.
fn handed(evidence: &Evidence) -> Option<&BlobEvidence> {
    let left = evidence.outcome.generation.checked_sub(1)?;
    evidence.blobs.iter().find(|blob| blob.generation == left)
}

/// Start and size of the scratch areas, as far as the pages of their list were captured.
fn scratch_areas(blob: &BlobEvidence) -> Vec<(u64, u64)> {
    let Some(list) = blob.kho.map(|kho| kho.scratch) else {
        return Vec::new();
    };
    let Some(page) = blob.pages.get(&(list.start / PAGE)) else {
        return Vec::new();
    };
    let begin = usize::try_from(list.start % PAGE).unwrap_or(usize::MAX);
    let length = usize::try_from(list.size).unwrap_or(usize::MAX);
    let end = begin.saturating_add(length).min(page.len());
    let words = page.get(begin..end).unwrap_or_default().as_chunks().0;
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    // Address and size of each area (include/linux/kexec_handover.h, `struct kho_scratch`).
    let entries = words.as_chunks().0.iter();
    entries
        .map(|[start, size]| (*start, *size))
        .filter(|(_, size)| *size > 0)
        .collect()
}

/// A size as the kernel reads it (lib/cmdline.c, `memparse`): a number, decimal or `0x`, and K, M, G or T.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() && !c.is_ascii_hexdigit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let number = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok()?,
        None => digits.parse::<u64>().ok()?,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernels() {
        assert_eq!(size("400M"), Some(400 << 20));
        assert_eq!(size("0x1000k"), Some(0x1000 << 10));
        assert_eq!(size("1g"), Some(1 << 30));
        assert_eq!(size("nopentium"), None);
        assert_eq!(size("99999999999999T"), None);
    }
}
