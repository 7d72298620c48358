//! LUO's entry: which version it is, and what all versions share.

use alloc::string::String;

use super::{Context, luo_v1, luo_v5, memfd, root};
use crate::abi::luo::{COMPATIBLE_LENGTH, FILE_COMPATIBLE_LENGTH, SESSION_NAME_LENGTH};
use crate::abi::memfd as memfd_abi;
use crate::bytes::Fields;
use crate::fdt;
use crate::finding::Rule;
use crate::model::{Content, File, FileContent, Flb, MemfdVersion, Session, SubBlob};
use crate::owners::Owner;

pub(super) fn read(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner) -> Content {
    let Some(start) = context.bytes(blob.address, COMPATIBLE_LENGTH, "LUO state") else {
        return Content::Opaque;
    };
    if start.starts_with(&fdt::MAGIC.to_be_bytes()) {
        luo_v1::read(context, blob, owner)
    } else {
        luo_v5::read(context, blob, owner)
    }
}

/// A version that we do not know: the blob stays opaque.
pub(super) fn unknown_version(
    context: &mut Context<'_>,
    blob: &mut SubBlob,
    owner: Owner,
    expected: &str,
    found: &str,
) -> Content {
    context.finding(Rule::VersionKnown, blob.address, "LUO state", expected, found);
    root::unknown(context, blob, owner)
}

/// A session's record, and where its files are.
pub(super) struct SessionRecord {
    pub(super) session: Session,
    pub(super) files: u64,
    pub(super) count: u64,
}

/// Decodes `struct luo_session_ser`, the same in all versions.
pub(super) fn session(context: &mut Context<'_>, record: &[u8], at: u64) -> SessionRecord {
    let mut fields = Fields::new(record);
    let name = fields.text::<SESSION_NAME_LENGTH>();
    let name = context.text(name, at, "session name");
    let session = Session {
        at,
        name,
        files: alloc::vec::Vec::new(),
    };
    SessionRecord {
        session,
        files: fields.u64(),
        count: fields.u64(),
    }
}

/// Decodes `struct luo_file_ser`, the same in all versions, and what its handler keeps.
pub(super) fn file(
    context: &mut Context<'_>,
    record: &[u8],
    at: u64,
    session: (usize, &str),
    index: usize,
) -> File {
    let mut fields = Fields::new(record);
    let compatible = fields.text::<FILE_COMPATIBLE_LENGTH>();
    let compatible: String = context.text(compatible, at, "file handler");
    let (data, token) = (fields.u64(), fields.u64());
    let owner = Owner::FileRecord {
        session: session.0,
        file: index,
    };
    let what = alloc::format!("{compatible} of token {token:#x} in session \"{}\"", session.1);
    let content = match MemfdVersion::from_compatible(&compatible) {
        Some(version) => memfd::read(context, version, data, owner, &what),
        None => {
            // Records of other handlers are left alone. An unknown version of memfd is a finding.
            if compatible.starts_with("memfd-") {
                let expected = alloc::format!("{} or {}", memfd_abi::COMPATIBLE_V1, memfd_abi::COMPATIBLE_V2);
                context.finding(Rule::VersionKnown, at, &what, expected, &compatible);
            }
            FileContent::Opaque
        }
    };
    File {
        at,
        compatible,
        token,
        data,
        content,
    }
}

/// Decodes `struct luo_flb_ser`, the same in all versions.
pub(super) fn flb(context: &mut Context<'_>, record: &[u8], at: u64) -> Flb {
    let mut fields = Fields::new(record);
    let compatible = fields.text::<FILE_COMPATIBLE_LENGTH>();
    let compatible = context.text(compatible, at, "FLB");
    Flb {
        at,
        compatible,
        data: fields.u64(),
        count: fields.u64(),
    }
}
