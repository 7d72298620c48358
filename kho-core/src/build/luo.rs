//! LUO's records, in either version.

use alloc::vec::Vec;

use vm_fdt::FdtWriter;

use super::fdt::{self, Child, put_text};
use super::{Abi, BuildError, Placer, memfd};
use crate::abi::block::{BLOCK_SIZE, records_per_block};
use crate::abi::luo::{
    COMPATIBLE_LENGTH, COMPATIBLE_V1, COMPATIBLE_V5, FILE_COMPATIBLE_LENGTH, FILE_PAGES, FILE_SIZE,
    FLB_COMPATIBLE_LENGTH, FLB_COMPATIBLE_V1, FLB_HEADER_SIZE, FLB_NODE_NAME, FLB_PAGES, FLB_SIZE, NODE_NAME,
    PROP_FLB_HEADER, PROP_LIVEUPDATE_NUMBER, PROP_SESSION_HEADER, SESSION_COMPATIBLE_V2, SESSION_HEADER_SIZE,
    SESSION_NAME_LENGTH, SESSION_NODE_NAME, SESSION_PAGES, SESSION_SIZE,
};
use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::blueprint::{FileContentPlan, FilePlan, FlbPlan, LuoPlan, SessionPlan};
use crate::memory::{clamp, len64};
use crate::model::LuoVersion;

/// Writes LUO's records and names them as a child of the root.
pub(super) fn place(placer: &mut Placer<'_>, plan: &LuoPlan, abi: Abi) -> Result<Child, BuildError> {
    if !plan.flbs.is_empty() && !abi.has_flbs() {
        return Err(BuildError::NotInAbi { abi, what: "FLBs" });
    }
    match abi.luo() {
        None => Err(BuildError::NotInAbi { abi, what: "LUO" }),
        Some(LuoVersion::V1) => place_v1(placer, plan, abi),
        Some(LuoVersion::V5) => place_v5(placer, plan, abi),
    }
}

fn place_v5(placer: &mut Placer<'_>, plan: &LuoPlan, abi: Abi) -> Result<Child, BuildError> {
    let mut sessions = Vec::new();
    for session in &plan.sessions {
        let files = files(placer, session, abi)?;
        let head = linked(placer, &files, FILE_SIZE)?;
        put_session(&mut sessions, session, head)?;
    }
    let sessions = linked(placer, &sessions, SESSION_SIZE)?;
    let flbs = flbs(placer, &plan.flbs)?;
    let mut bytes = Vec::new();
    put_text::<COMPATIBLE_LENGTH>(&mut bytes, "version", COMPATIBLE_V5)?;
    for word in [plan.liveupdate_number, sessions, flbs] {
        bytes.extend(word.to_le_bytes());
    }
    Ok(Child {
        name: NODE_NAME.into(),
        address: placer.place(&bytes)?,
        size: len64(bytes.len()),
    })
}

/// Writes records into linked blocks and returns the address of the first; 0 when there are no records.
fn linked(placer: &mut Placer<'_>, records: &[u8], record_size: usize) -> Result<u64, BuildError> {
    let per_block = records_per_block(record_size).saturating_mul(record_size);
    let mut next = 0_u64;
    for records in records.chunks(per_block.max(1)).rev() {
        let count = len64(records.len().checked_div(record_size).unwrap_or(0));
        let mut block = next.to_le_bytes().to_vec();
        block.extend(count.to_le_bytes());
        block.extend(records);
        block.resize(BLOCK_SIZE, 0);
        next = placer.place(&block)?;
    }
    Ok(next)
}

fn place_v1(placer: &mut Placer<'_>, plan: &LuoPlan, abi: Abi) -> Result<Child, BuildError> {
    let mut sessions = len64(plan.sessions.len()).to_le_bytes().to_vec();
    for session in &plan.sessions {
        let files = files(placer, session, abi)?;
        let address = match files.is_empty() {
            true => 0,
            false => array(
                placer,
                "files",
                session.files.len(),
                files,
                FILE_PAGES,
                (0, FILE_SIZE),
            )?,
        };
        put_session(&mut sessions, session, address)?;
    }
    let layout = (SESSION_HEADER_SIZE, SESSION_SIZE);
    let sessions = array(
        placer,
        "sessions",
        plan.sessions.len(),
        sessions,
        SESSION_PAGES,
        layout,
    )?;
    let mut writer = FdtWriter::new()?;
    let root = writer.begin_node("")?;
    writer.property_string("compatible", COMPATIBLE_V1)?;
    writer.property(PROP_LIVEUPDATE_NUMBER, &plan.liveupdate_number.to_le_bytes())?;
    let node = writer.begin_node(SESSION_NODE_NAME)?;
    writer.property_string("compatible", SESSION_COMPATIBLE_V2)?;
    writer.property(PROP_SESSION_HEADER, &sessions.to_le_bytes())?;
    writer.end_node(node)?;
    if abi.has_flbs() {
        let flbs = flbs(placer, &plan.flbs)?;
        let node = writer.begin_node(FLB_NODE_NAME)?;
        writer.property_string("compatible", FLB_COMPATIBLE_V1)?;
        writer.property(PROP_FLB_HEADER, &flbs.to_le_bytes())?;
        writer.end_node(node)?;
    }
    writer.end_node(root)?;
    fdt::place(placer, NODE_NAME, writer)
}

/// Writes an array on as many pages as the kernel gives it.
fn array(
    placer: &mut Placer<'_>,
    what: &'static str,
    count: usize,
    mut bytes: Vec<u8>,
    pages: u64,
    (header, record): (usize, usize),
) -> Result<u64, BuildError> {
    let size = clamp(pages.saturating_mul(PAGE_BYTES));
    if bytes.len() > size {
        let limit = size.saturating_sub(header).checked_div(record).unwrap_or(0);
        return Err(BuildError::TooMany {
            what,
            found: len64(count),
            limit: len64(limit),
        });
    }
    bytes.resize(size, 0);
    placer.place(&bytes)
}

fn put_session(bytes: &mut Vec<u8>, session: &SessionPlan, files: u64) -> Result<(), BuildError> {
    put_text::<SESSION_NAME_LENGTH>(bytes, "session name", &session.name)?;
    bytes.extend(files.to_le_bytes());
    bytes.extend(len64(session.files.len()).to_le_bytes());
    Ok(())
}

fn files(placer: &mut Placer<'_>, session: &SessionPlan, abi: Abi) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    for FilePlan { token, content } in &session.files {
        let (compatible, data) = match content {
            FileContentPlan::Memfd(plan) => (abi.memfd().compatible(), memfd::place(placer, plan, abi)?),
            FileContentPlan::Other { compatible, data } => (compatible.as_str(), *data),
        };
        put_text::<FILE_COMPATIBLE_LENGTH>(&mut bytes, "file handler", compatible)?;
        bytes.extend(data.to_le_bytes());
        bytes.extend(token.to_le_bytes());
    }
    Ok(bytes)
}

fn flbs(placer: &mut Placer<'_>, flbs: &[FlbPlan]) -> Result<u64, BuildError> {
    let mut bytes = FLB_PAGES.to_le_bytes().to_vec();
    bytes.extend(len64(flbs.len()).to_le_bytes());
    for flb in flbs {
        put_text::<FLB_COMPATIBLE_LENGTH>(&mut bytes, "FLB", &flb.compatible)?;
        bytes.extend(flb.data.to_le_bytes());
        bytes.extend(flb.count.to_le_bytes());
    }
    array(
        placer,
        "FLBs",
        flbs.len(),
        bytes,
        FLB_PAGES,
        (FLB_HEADER_SIZE, FLB_SIZE),
    )
}

const _: () = assert!(PAGE_SIZE == BLOCK_SIZE);
