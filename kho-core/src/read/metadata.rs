//! The kexec-metadata sub-blob.

use super::{Context, root};
use crate::abi::kexec_metadata::{RELEASE_LENGTH, SIZE, VERSION};
use crate::bytes::Fields;
use crate::finding::Rule;
use crate::memory::len64;
use crate::model::{Content, KexecMetadata, SubBlob};
use crate::owners::Owner;

pub(super) fn read(context: &mut Context<'_>, blob: &mut SubBlob, owner: Owner) -> Content {
    let what = "kexec metadata";
    if blob.size.is_some_and(|size| size < len64(SIZE)) {
        context.finding(
            Rule::CountFits,
            blob.address,
            what,
            "73 bytes",
            blob.size.unwrap_or(0),
        );
        return root::unknown(context, blob, owner);
    }
    let Some(bytes) = context.record(blob.address, SIZE, owner, what) else {
        return Content::Opaque;
    };
    let mut fields = Fields::new(&bytes);
    let version = fields.u32();
    if version != VERSION {
        context.finding(Rule::VersionKnown, blob.address, what, "version 1", version);
        return Content::Opaque;
    }
    let release = fields.text::<RELEASE_LENGTH>();
    let previous_release = context.text(release, blob.address, what);
    Content::KexecMetadata(KexecMetadata {
        version,
        previous_release,
        kexec_count: fields.u32(),
    })
}
