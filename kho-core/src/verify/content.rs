//! Checks that the contents of records are consistent.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::Verifier;
use crate::abi::{PAGE_BYTES, PAGE_SHIFT, PHYSICAL_BITS, memfd, vmalloc};
use crate::finding::Rule;
use crate::map::MapFormat;
use crate::model::{Content, File, KhoVersion, LuoVersion, Memfd, MemfdVersion};
use crate::tree::Counted;

/// Reports versions that never shipped in one kernel.
pub(super) fn versions(verifier: &mut Verifier<'_>) {
    let rule = Rule::VersionsTogether;
    let handover = verifier.handover;
    let kho = handover.version;
    if let Some(luo) = handover.luo() {
        verifier.judge(rule);
        let expected = match kho {
            KhoVersion::V1 | KhoVersion::V2 | KhoVersion::V3 => LuoVersion::V1,
            KhoVersion::V4 => LuoVersion::V5,
        };
        if luo.version != expected {
            verifier.finding(
                rule,
                luo.at,
                "LUO",
                alloc::format!("{expected} with {kho}"),
                luo.version,
            );
        }
        if handover.map.format() == MapFormat::ChunksOf512 {
            verifier.finding(
                rule,
                luo.at,
                "LUO",
                "no LUO with bitmaps of 512 bytes (6.17)",
                luo.version,
            );
        }
        if kho == KhoVersion::V1 && !luo.flbs.is_empty() {
            verifier.finding(rule, luo.at, "LUO", "no FLBs with kho-v1 (6.19)", luo.flbs.len());
        }
    }
    for file in handover.sessions().iter().flat_map(|session| &session.files) {
        let Some(memfd) = file.memfd() else { continue };
        verifier.judge(rule);
        let fits = match memfd.version {
            MemfdVersion::V1 => kho <= KhoVersion::V2,
            MemfdVersion::V2 => kho >= KhoVersion::V2,
        };
        if !fits {
            let expected = alloc::format!("the memfd version of {kho}");
            verifier.finding(rule, file.at, "file", expected, memfd.version.compatible());
        }
    }
    let metadata = |blob: &&crate::model::SubBlob| matches!(blob.content, Content::KexecMetadata(_));
    if let Some(blob) = handover.sub_blobs.iter().find(metadata) {
        verifier.judge(rule);
        if kho < KhoVersion::V3 {
            verifier.finding(rule, blob.at, "kexec metadata", "kho-v3 or later", kho);
        }
    }
}

/// Names and tokens that must be unique.
pub(super) fn names(verifier: &mut Verifier<'_>) {
    let rule = Rule::NameUnique;
    let handover = verifier.handover;
    let mut seen = BTreeSet::new();
    for blob in &handover.sub_blobs {
        verifier.judge(rule);
        if !seen.insert(blob.name.as_str()) {
            verifier.finding(rule, blob.at, "sub-blob", "a name of its own", &blob.name);
        }
    }
    let mut seen = BTreeSet::new();
    for session in handover.sessions() {
        verifier.judge(rule);
        if !seen.insert(session.name.as_str()) || session.name.is_empty() {
            verifier.finding(rule, session.at, "session", "a name of its own", &session.name);
        }
        let mut tokens = BTreeSet::new();
        for file in &session.files {
            if !tokens.insert(file.token) {
                let what = alloc::format!("file of session \"{}\"", session.name);
                verifier.finding(
                    rule,
                    file.at,
                    what,
                    "a token of its own",
                    alloc::format!("{:#x}", file.token),
                );
            }
        }
    }
}

/// The size, folios, flags and seals of a memfd are consistent.
pub(super) fn files(verifier: &mut Verifier<'_>) {
    let handover = verifier.handover;
    for session in handover.sessions() {
        for file in &session.files {
            if let Some(memfd) = file.memfd() {
                verifier.judge(Rule::FileConsistent);
                fields(verifier, file, memfd);
                folios(verifier, file, memfd);
            }
        }
    }
}

fn fields(verifier: &mut Verifier<'_>, file: &File, memfd: &Memfd) {
    let rule = Rule::FileConsistent;
    let what = alloc::format!("memfd of token {:#x}", file.token);
    if memfd.seals & !memfd::ALL_SEALS != 0 {
        let expected = alloc::format!("seals among {:#x}", memfd::ALL_SEALS);
        verifier.finding(
            rule,
            memfd.at,
            &what,
            expected,
            alloc::format!("{:#x}", memfd.seals),
        );
    }
    if memfd.flags != 0 {
        verifier.finding(
            rule,
            memfd.at,
            &what,
            "no flags",
            alloc::format!("{:#x}", memfd.flags),
        );
    }
    if memfd.list.flags & !(vmalloc::FLAG_ALLOC | vmalloc::FLAG_HUGE_VMAP) != 0 {
        let found = alloc::format!("{:#x}", memfd.list.flags);
        verifier.finding(rule, memfd.list.at, &what, "vmalloc flags among 0x3", found);
    }
}

fn folios(verifier: &mut Verifier<'_>, file: &File, memfd: &Memfd) {
    let rule = Rule::FileConsistent;
    let what = alloc::format!("memfd of token {:#x}", file.token);
    for (index, folio) in memfd.folios.iter().enumerate() {
        let at = memfd.record_of(index).unwrap_or(memfd.at);
        if folio.flags & !(memfd::FOLIO_DIRTY | memfd::FOLIO_UPTODATE) != 0 {
            verifier.finding(
                rule,
                at,
                &what,
                "folio flags among 0x3",
                alloc::format!("{:#x}", folio.flags),
            );
        }
        if folio.address >> PHYSICAL_BITS != 0 {
            let found = alloc::format!("{:#x}", folio.address);
            verifier.finding(rule, at, &what, "a physical address of at most 52 bits", found);
        }
    }
    // The kernel allocates every page of the file before it preserves it, so there are neither holes nor overlaps.
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for folio in &memfd.folios {
        let pages = verifier.handover.folio_region(folio).size >> PAGE_SHIFT;
        spans.push((folio.index, folio.index.saturating_add(pages)));
    }
    spans.sort_unstable();
    let mut expected = 0_u64;
    for (start, end) in &spans {
        if *start != expected {
            let expected = alloc::format!("a folio for page {expected} of the file");
            verifier.finding(
                rule,
                memfd.at,
                &what,
                expected,
                alloc::format!("page {start} next"),
            );
            return;
        }
        expected = *end;
    }
    let pages = memfd.size.div_ceil(PAGE_BYTES);
    // The last folio may reach past the end of the file.
    let last = spans.last().map_or(0, |(start, _)| start.saturating_add(1));
    if expected < pages || last > pages {
        verifier.finding(
            rule,
            memfd.at,
            &what,
            alloc::format!("folios for {}", Counted(pages, "page")),
            expected,
        );
    }
}

/// Counters start at 1, and the release is one that uname(2) can return.
pub(super) fn metadata(verifier: &mut Verifier<'_>) {
    let rule = Rule::MetadataPlausible;
    let handover = verifier.handover;
    if let Some(luo) = handover.luo() {
        verifier.judge(rule);
        if luo.liveupdate_number == 0 {
            verifier.finding(rule, luo.at, "LUO", "live updates counted from 1", 0);
        }
        for flb in luo.flbs.iter().filter(|flb| flb.count == 0) {
            verifier.finding(rule, flb.at, &flb.compatible, "an FLB with files", 0);
        }
    }
    for blob in &handover.sub_blobs {
        let Content::KexecMetadata(metadata) = &blob.content else {
            continue;
        };
        verifier.judge(rule);
        if metadata.kexec_count == 0 {
            verifier.finding(rule, blob.address, "kexec metadata", "kexecs counted from 1", 0);
        }
        let release = &metadata.previous_release;
        if release.is_empty() || !release.bytes().all(|byte| byte.is_ascii_graphic()) {
            verifier.finding(rule, blob.address, "kexec metadata", "a kernel release", release);
        }
    }
}
