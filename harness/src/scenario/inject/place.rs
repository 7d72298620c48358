//! Places in guest memory.

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::What;
use crate::scenario::Scenario;
use crate::scenario::check::{Problem, require};

/// A place in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What lies there.
    pub place: Place,
    /// Which of its pages; `None` for one that the seed chooses.
    pub page: Option<u64>,
    /// Offset in the page.
    pub offset: u64,
}

/// What lies at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Whatever is at this guest physical address.
    Address(u64),
    /// A memory object of the agent, by its name.
    Object(String),
    /// Something that is found while the machine runs.
    Class(Class),
}

/// What is found in memory while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Above all RAM.
    AboveRam,
    /// In the hole below 4 GiB.
    Hole,
    /// The scratch areas.
    Scratch,
    /// The next kernel's image before it is entered.
    StagedKernel,
    /// Its initrd.
    StagedInitrd,
    /// The pages of the handover itself.
    Blob,
    /// The page tables that are used.
    PageTable,
    /// The running kernel's text.
    KernelText,
    /// Memory that belongs to nobody.
    Free,
}

impl Class {
    /// All, with their names in scenarios.
    pub const ALL: [(&'static str, Self); 9] = [
        ("above-ram", Self::AboveRam),
        ("hole", Self::Hole),
        ("scratch", Self::Scratch),
        ("staged-kernel", Self::StagedKernel),
        ("staged-initrd", Self::StagedInitrd),
        ("blob", Self::Blob),
        ("page-table", Self::PageTable),
        ("kernel-text", Self::KernelText),
        ("free", Self::Free),
    ];

    /// What a page of it is, in words.
    fn words(self) -> &'static str {
        match self {
            Self::AboveRam => "above RAM",
            Self::Hole => "in the hole below 4 GiB",
            Self::Scratch => "of scratch",
            Self::StagedKernel => "of the staged kernel",
            Self::StagedInitrd => "of the staged initrd",
            Self::Blob => "of the handover",
            Self::PageTable => "of the page tables",
            Self::KernelText => "of the kernel's text",
            Self::Free => "that belongs to nobody",
        }
    }

    /// The name in scenarios.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(_, class)| *class == self).map_or("", |(name, _)| name)
    }
}

fn class<E: de::Error>(name: &str) -> Result<Place, E> {
    let found = Class::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, class)| Place::Class(*class)).ok_or_else(|| {
        let names: Vec<_> = Class::ALL.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        E::custom(format!(
            "found place \"{name}\", expected an address, {}, or a table with object or place",
            names.join(", ")
        ))
    })
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            object: Option<String>,
            place: Option<String>,
            page: Option<u64>,
            #[serde(default)]
            offset: u64,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Target;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a guest physical address, a place, or a table with object or place")
            }
            fn visit_i64<E: de::Error>(self, address: i64) -> Result<Target, E> {
                let address = u64::try_from(address);
                let address = address.map_err(|_| E::custom("found a negative address"))?;
                Ok(Target {
                    place: Place::Address(address),
                    page: None,
                    offset: 0,
                })
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Target, E> {
                Ok(Target {
                    place: class(name)?,
                    page: None,
                    offset: 0,
                })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Target, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let place = match (table.object, table.place) {
                    (Some(object), None) => Place::Object(object),
                    (None, Some(name)) => class(&name)?,
                    _ => return Err(de::Error::custom("expected one of object and place")),
                };
                Ok(Target {
                    place,
                    page: table.page,
                    offset: table.offset,
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The place in plain words.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Place::Address(address) = self.place {
            return write!(f, "address {:#x}", address.saturating_add(self.offset));
        }
        match self.page {
            Some(page) => write!(f, "page {page} ")?,
            None => f.write_str("a page ")?,
        }
        match &self.place {
            Place::Object(name) => write!(f, "of object \"{name}\"")?,
            Place::Class(class) => f.write_str(class.words())?,
            Place::Address(_) => {}
        }
        match self.offset {
            0 => Ok(()),
            offset => write!(f, " at offset {offset}"),
        }
    }
}

/// Checks a place that a deed names.
pub(super) fn check(scenario: &Scenario, spanned: &Spanned<What>, target: &Target) -> Result<(), Problem> {
    match &target.place {
        Place::Address(_) => Ok(()),
        Place::Object(name) => {
            let memfd = scenario.memfd.iter().find(|memfd| memfd.name.get_ref() == name);
            let Some(memfd) = memfd else {
                return require(false, spanned, || format!("no [[memfd]] is named \"{name}\""));
            };
            let pages = memfd.size.get_ref().0 / crate::evidence::PAGE;
            require(target.page.is_none_or(|page| page < pages), spanned, || {
                format!(
                    "found page {:?}, and \"{name}\" has {pages}",
                    target.page.unwrap_or(0)
                )
            })?;
            in_page(spanned, target)
        }
        Place::Class(_) => in_page(spanned, target),
    }
}

fn in_page(spanned: &Spanned<What>, target: &Target) -> Result<(), Problem> {
    let page = crate::evidence::PAGE;
    require(target.offset < page, spanned, || {
        format!("found offset {}, expected less than {page}", target.offset)
    })
}
