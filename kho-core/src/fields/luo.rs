//! The fields of LUO's records.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::ops::ControlFlow;

use super::Kind;
use super::place;
use super::walk::{Part, Walk, chain};
use crate::abi::block::MAX_BLOCKS;
use crate::abi::luo::{
    COMPATIBLE_LENGTH, FILE_COMPATIBLE_LENGTH, FLB_COMPATIBLE_LENGTH, FLB_NODE_NAME, PROP_FLB_HEADER,
    PROP_SESSION_HEADER, SESSION_NAME_LENGTH, SESSION_NODE_NAME,
};
use crate::fdt::{Fdt, HEADER_SIZE, total_size};
use crate::memory::{clamp, len64, read_pieces};
use crate::model::{Luo, LuoVersion, Session};
use crate::read::MAX_FDT_SIZE;

impl Walk<'_, '_> {
    pub(super) fn luo(&mut self, luo: &Luo) -> ControlFlow<()> {
        let (sessions, flbs) = match luo.version {
            LuoVersion::V1 => {
                self.fdt("luo", luo.at)?;
                let header = |node, property| self.header_of(luo.at, node, property);
                let (sessions, flbs) = (
                    header(SESSION_NODE_NAME, PROP_SESSION_HEADER),
                    header(FLB_NODE_NAME, PROP_FLB_HEADER),
                );
                if let Some(at) = sessions {
                    self.record("luo/sessions", at, SESSION_HEADER)?;
                }
                (None, flbs)
            }
            LuoVersion::V5 => {
                self.record("luo", luo.at, LUO)?;
                let pointer = |offset| self.number_at(luo.at.saturating_add(offset));
                let after = len64(COMPATIBLE_LENGTH);
                (
                    pointer(after.saturating_add(8)),
                    pointer(after.saturating_add(16)),
                )
            }
        };
        if let Some(first) = sessions {
            self.blocks("luo/session_block", first)?;
        }
        for (index, session) in luo.sessions.iter().enumerate().take(self.limit) {
            let prefix = format!("luo/session[{}]", label(&luo.sessions, index));
            self.session(&prefix, session, luo.version)?;
        }
        if let Some(at) = flbs.filter(|at| *at != 0) {
            self.record("luo/flbs", at, FLB_HEADER)?;
        }
        for (index, flb) in luo.flbs.iter().enumerate().take(self.limit) {
            self.record(&format!("luo/flb[{index}]"), flb.at, FLB)?;
        }
        ControlFlow::Continue(())
    }

    fn session(&mut self, prefix: &str, session: &Session, version: LuoVersion) -> ControlFlow<()> {
        self.record(prefix, session.at, SESSION)?;
        let files = session.at.saturating_add(len64(SESSION_NAME_LENGTH));
        if let (LuoVersion::V5, Some(first)) = (version, self.number_at(files)) {
            self.blocks(&format!("{prefix}/file_block"), first)?;
        }
        for (index, file) in session.files.iter().enumerate().take(self.limit) {
            self.record(&format!("{prefix}/file[{index}]"), file.at, FILE)?;
        }
        ControlFlow::Continue(())
    }

    /// Headers of linked blocks.
    fn blocks(&mut self, prefix: &str, first: u64) -> ControlFlow<()> {
        let most = MAX_BLOCKS.min(self.limit);
        for (index, at) in chain(self.memory, first, most).into_iter().enumerate() {
            self.record(&format!("{prefix}[{index}]"), at, BLOCK)?;
        }
        ControlFlow::Continue(())
    }

    /// The address in a property of a node of LUO's FDT.
    fn header_of(&self, fdt: u64, node: &str, property: &str) -> Option<u64> {
        let header = place::read(self.memory, fdt, HEADER_SIZE)?;
        let size = u64::from(total_size(&header).ok()?).min(MAX_FDT_SIZE);
        let bytes = read_pieces(self.memory, fdt, clamp(size)).ok()?;
        let parsed = Fdt::parse(&bytes).ok()?;
        parsed.root().child(node)?.property(property)?.as_u64()
    }
}

/// How paths name a session: by its name if that is plain and no other session has it, otherwise by its index.
fn label(sessions: &[Session], index: usize) -> String {
    let Some(session) = sessions.get(index) else {
        return index.to_string();
    };
    let name = session.name.as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_index = name.bytes().all(|byte| byte.is_ascii_digit());
    let same = sessions.iter().filter(|other| other.name == name).count();
    if name.chars().all(plain) && !is_index && same == 1 {
        name.to_owned()
    } else {
        index.to_string()
    }
}

/// The path with the session's name in place of its index.
pub(super) fn with_names(path: &str, sessions: &[Session]) -> String {
    let named = || {
        let rest = path.strip_prefix("luo/session[")?;
        let (index, rest) = rest.split_once(']')?;
        let index = index.parse().ok()?;
        Some(format!("luo/session[{}]{rest}", label(sessions, index)))
    };
    named().unwrap_or_else(|| path.to_owned())
}

/// `struct luo_ser` of luo-v5 (include/linux/kho/abi/luo.h).
const LUO: &[Part] = &[
    ("compatible", Kind::Text, COMPATIBLE_LENGTH),
    ("liveupdate_num", Kind::Number, 8),
    ("sessions_pa", Kind::Address, 8),
    ("flbs_pa", Kind::Address, 8),
];
/// `struct luo_session_header_ser` of luo-v1.
const SESSION_HEADER: &[Part] = &[("count", Kind::Count, 8)];
/// `struct luo_session_ser`.
const SESSION: &[Part] = &[
    ("name", Kind::Text, SESSION_NAME_LENGTH),
    ("files", Kind::Address, 8),
    ("count", Kind::Count, 8),
];
/// `struct luo_file_ser`.
const FILE: &[Part] = &[
    ("compatible", Kind::Text, FILE_COMPATIBLE_LENGTH),
    ("data", Kind::Address, 8),
    ("token", Kind::Number, 8),
];
/// `struct kho_block_header_ser` (include/linux/kho/abi/block.h).
const BLOCK: &[Part] = &[("next", Kind::Address, 8), ("count", Kind::Count, 8)];
/// `struct luo_flb_header_ser`.
const FLB_HEADER: &[Part] = &[("pgcnt", Kind::Count, 8), ("count", Kind::Count, 8)];
/// `struct luo_flb_ser`.
const FLB: &[Part] = &[
    ("name", Kind::Text, FLB_COMPATIBLE_LENGTH),
    ("data", Kind::Address, 8),
    ("count", Kind::Count, 8),
];
