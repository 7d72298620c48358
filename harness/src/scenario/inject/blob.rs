//! Changes of the handover.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Boundary, Inject};
use crate::bend::{NAMES, literal};
use crate::scenario::check::{Problem, require};

/// How the handover changes: one of its fields, or the `setup_data` node that announces it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobFault {
    /// Path of the field.
    pub field: Option<String>,
    /// Its new value.
    pub set: Option<Setting>,
    /// Which bit of it is flipped.
    pub flip: Option<u32>,
    /// What becomes of the node.
    pub node: Option<NodeFault>,
}

/// A value for a field: the name of a wrong value, a number, `text:...` or `hex:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting(pub String);

/// What becomes of the `setup_data` node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeFault {
    /// It is taken out of the list of nodes.
    Missing,
    /// A copy of it follows it.
    Twice,
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Setting;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, the name of a value such as \"one-more\", \"text:...\" or \"hex:...\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Setting, E> {
                let number = u64::try_from(number);
                let number = number.map_err(|_| E::custom("found a negative number, expected 0 or more"))?;
                Ok(Setting(format!("{number:#x}")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Setting, E> {
                if NAMES.contains(&text) || literal(text).is_some() {
                    return Ok(Setting(text.into()));
                }
                Err(E::custom(format!(
                    "found \"{text:.40}\", expected a number, text:..., hex:... or one of {}",
                    NAMES.join(", ")
                )))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl BlobFault {
    pub(super) fn check(&self, inject: &Inject) -> Result<(), Problem> {
        let Self {
            field,
            set,
            flip,
            node,
        } = self;
        require(field.is_some() != node.is_some(), &inject.what, || {
            "expected one of field and node".into()
        })?;
        let changes = usize::from(set.is_some()) + usize::from(flip.is_some());
        require(changes == usize::from(field.is_some()), &inject.what, || {
            "expected one of set and flip with field, and none with node".into()
        })?;
        require(flip.is_none_or(|bit| bit < MAX_BITS), &inject.what, || {
            format!(
                "found bit {}, expected less than {MAX_BITS}",
                flip.unwrap_or_default()
            )
        })?;
        let when = inject.when.get_ref();
        let at_entry =
            when.at == Some(Boundary::Entry) && when.after.is_none() && when.instructions.is_none();
        require(node.is_none() || at_entry, &inject.what, || {
            "the node is where the new kernel finds it from its entry on: expected when.at = \"entry\"".into()
        })
    }
}

/// No field has more bits: the longest is a string of a page.
const MAX_BITS: u32 = 8 * 4096;

/// The deed in plain words.
impl fmt::Display for BlobFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.field, &self.set, self.flip, self.node) {
            (Some(field), Some(Setting(value)), ..) => write!(f, "{field} of the handover is set to {value}"),
            (Some(field), None, Some(bit), _) => write!(f, "bit {bit} of {field} of the handover is flipped"),
            (_, _, _, Some(NodeFault::Missing)) => {
                f.write_str("the setup_data node of the handover is taken out of its list")
            }
            (_, _, _, Some(NodeFault::Twice)) => {
                f.write_str("the setup_data node of the handover is followed by a copy of it")
            }
            _ => f.write_str("nothing becomes of the handover"),
        }
    }
}
