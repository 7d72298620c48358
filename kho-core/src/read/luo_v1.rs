//! luo-v1: an FDT that points to arrays.

use alloc::vec::Vec;

use super::{Context, luo, luo_v5, root};
use crate::abi::PAGE_BYTES;
use crate::abi::luo::{
    COMPATIBLE_V1, FILE_PAGES, FILE_SIZE, FLB_COMPATIBLE_V1, FLB_NODE_NAME, PROP_FLB_HEADER,
    PROP_LIVEUPDATE_NUMBER, PROP_SESSION_HEADER, SESSION_COMPATIBLE_V2, SESSION_HEADER_SIZE,
    SESSION_NODE_NAME, SESSION_PAGES, SESSION_SIZE,
};
use crate::bytes::Fields;
use crate::fdt::Node;
use crate::finding::Rule;
use crate::memory::{clamp, len64};
use crate::model::{Content, Luo, LuoVersion, Session, SubBlob};
use crate::owners::Owner;
use crate::tree::Counted;

pub(super) fn read(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner) -> Content {
    let what = "LUO FDT";
    let Some(bytes) = root::sub_fdt(context, blob, owner) else {
        return Content::Opaque;
    };
    let Some(fdt) = root::parse_fdt(context, blob, what, &bytes) else {
        return Content::Opaque;
    };
    let top = fdt.root();
    let compatible = top.compatible();
    if compatible != Some(COMPATIBLE_V1) {
        return root::other_version(context, blob, what, COMPATIBLE_V1, compatible);
    }
    let liveupdate_number = root::number(context, &top, PROP_LIVEUPDATE_NUMBER, blob.address).unwrap_or(0);
    let sessions = match part(
        context,
        &top,
        (SESSION_NODE_NAME, SESSION_COMPATIBLE_V2),
        blob.address,
    ) {
        Some(node) => match root::number(context, &node, PROP_SESSION_HEADER, blob.address) {
            Some(address) => sessions(context, address),
            None => Vec::new(),
        },
        None => Vec::new(),
    };
    // 6.19 has no FLBs.
    let flbs = match top.child(FLB_NODE_NAME) {
        Some(_) => part(context, &top, (FLB_NODE_NAME, FLB_COMPATIBLE_V1), blob.address)
            .and_then(|node| root::number(context, &node, PROP_FLB_HEADER, blob.address))
            .map(|address| luo_v5::flbs(context, address))
            .unwrap_or_default(),
        None => Vec::new(),
    };
    Content::Luo(Luo {
        at: blob.address,
        version: LuoVersion::V1,
        liveupdate_number,
        sessions,
        flbs,
    })
}

/// A child node that must have a certain `compatible`.
fn part<'f, 'a>(
    context: &mut Context<'_>,
    top: &Node<'f, 'a>,
    (name, version): (&str, &str),
    fdt: u64,
) -> Option<Node<'f, 'a>> {
    let Some(node) = top.child(name) else {
        context.finding(
            Rule::PropertyMissing,
            fdt,
            "LUO FDT",
            alloc::format!("node \"{name}\""),
            "none",
        );
        return None;
    };
    let compatible = node.compatible();
    if compatible != Some(version) {
        let at = fdt.saturating_add(len64(node.offset()));
        context.finding(
            Rule::VersionKnown,
            at,
            "LUO FDT",
            version,
            compatible.unwrap_or("none"),
        );
        return None;
    }
    Some(node)
}

fn sessions(context: &mut Context<'_>, address: u64) -> Vec<Session> {
    let what = "sessions";
    let size = SESSION_PAGES.saturating_mul(PAGE_BYTES);
    let Some(bytes) = context.record(address, clamp(size), Owner::LuoTable, what) else {
        return Vec::new();
    };
    let mut fields = Fields::new(&bytes);
    let count = fields.u64();
    let records = bytes
        .get(SESSION_HEADER_SIZE..)
        .unwrap_or_default()
        .chunks_exact(SESSION_SIZE);
    if count > len64(records.len()) {
        let expected = alloc::format!("at most {}", Counted::of(records.len(), "session"));
        context.finding(Rule::CountFits, address, what, expected, count);
    }
    let mut sessions = Vec::new();
    for (index, bytes) in records.take(clamp(count)).enumerate() {
        let offset = SESSION_HEADER_SIZE.saturating_add(index.saturating_mul(SESSION_SIZE));
        let mut record = luo::session(context, bytes, address.saturating_add(len64(offset)));
        files(context, &mut record, index);
        sessions.push(record.session);
    }
    sessions
}

fn files(context: &mut Context<'_>, record: &mut luo::SessionRecord, session: usize) {
    let what = alloc::format!("files of session \"{}\"", record.session.name);
    if record.count == 0 && record.files == 0 {
        return;
    }
    let size = FILE_PAGES.saturating_mul(PAGE_BYTES);
    let Some(bytes) = context.record(record.files, clamp(size), Owner::LuoTable, &what) else {
        return;
    };
    let records = bytes.chunks_exact(FILE_SIZE);
    if record.count > len64(records.len()) {
        let expected = alloc::format!("at most {}", Counted::of(records.len(), "file"));
        context.finding(Rule::CountFits, record.session.at, &what, expected, record.count);
    }
    for (index, bytes) in records.take(clamp(record.count)).enumerate() {
        let at = record
            .files
            .saturating_add(len64(index.saturating_mul(FILE_SIZE)));
        let file = luo::file(context, bytes, at, (session, &record.session.name), index);
        record.session.files.push(file);
    }
}
