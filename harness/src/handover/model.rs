//! The model file of a handover, in TOML; `docs/blob.md` describes it.

use crate::hex;
use crate::scenario::Bytes;
use kho_core::abi::memfd::{FOLIO_DIRTY, FOLIO_UPTODATE};
use kho_core::blueprint::{
    Blob, FileContentPlan, FilePlan, FlbPlan, FolioPlan, Kexec, LuoPlan, MemfdPlan, NamedRegion, SessionPlan,
};
use kho_core::{Abi, Block, Blueprint, PageAllocator, Region};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// Largest order of a folio on x86-64: 1 GiB.
const MAX_ORDER: u8 = 18;

/// A model file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Version of the records, unless the command line gives one.
    pub abi: Option<Abi>,
    /// Memory for records and for whatever has no address in the model; if empty, any zeroed RAM.
    free: Vec<Area>,
    scratch: Vec<Area>,
    blocks: Vec<BlockModel>,
    reserve_mem: Vec<Reserved>,
    kexec: Option<KexecModel>,
    luo: Option<LuoModel>,
    blob: Vec<BlobModel>,
}

/// Reads a number, or one as text (`"0xffffffffffffffff"`), because TOML's own end at 2^63.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Either;
    impl Visitor<'_> for Either {
        type Value = u64;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a number")
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
            u64::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            hex::address(text).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_any(Either)
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    #[serde(deserialize_with = "number")]
    start: u64,
    size: Bytes,
}

impl Area {
    fn region(&self) -> Region {
        Region::new(self.start, self.size.0)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockModel {
    #[serde(deserialize_with = "number")]
    address: u64,
    #[serde(default)]
    order: u8,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reserved {
    name: String,
    #[serde(deserialize_with = "number")]
    start: u64,
    size: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KexecModel {
    previous_release: String,
    count: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LuoModel {
    #[serde(default = "one", deserialize_with = "number")]
    liveupdate_number: u64,
    #[serde(default)]
    session: Vec<SessionModel>,
    #[serde(default)]
    flb: Vec<FlbModel>,
}

fn one() -> u64 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionModel {
    name: String,
    #[serde(default)]
    file: Vec<FileModel>,
}

/// A preserved file. Exactly one of `memfd` and `other` must be present.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    #[serde(deserialize_with = "number")]
    token: u64,
    memfd: Option<MemfdModel>,
    other: Option<OtherModel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OtherModel {
    compatible: String,
    #[serde(deserialize_with = "number")]
    data: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemfdModel {
    size: Bytes,
    #[serde(default, deserialize_with = "number")]
    position: u64,
    #[serde(default)]
    seals: u32,
    #[serde(default)]
    flags: u32,
    /// Order of the folios that baton places; unused if `folios` is present.
    #[serde(default)]
    order: u8,
    /// The folios; placed in free memory when absent.
    folios: Option<Vec<FolioModel>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FolioModel {
    #[serde(deserialize_with = "number")]
    address: u64,
    #[serde(default)]
    order: u8,
    #[serde(deserialize_with = "number")]
    index: u64,
    #[serde(default = "written")]
    flags: u16,
}

fn written() -> u16 {
    FOLIO_DIRTY | FOLIO_UPTODATE
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlbModel {
    compatible: String,
    #[serde(deserialize_with = "number")]
    data: u64,
    #[serde(deserialize_with = "number")]
    count: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlobModel {
    name: String,
    /// The bytes, two hexadecimal digits each; spaces are ignored.
    hex: String,
}

impl Model {
    /// The memory that it names as free.
    pub fn free(&self) -> impl Iterator<Item = Region> {
        self.free.iter().map(Area::region)
    }

    /// The scratch areas that it names.
    pub fn scratch(&self) -> impl Iterator<Item = Region> {
        self.scratch.iter().map(Area::region)
    }

    /// All memory whose address the model states.
    pub fn placed(&self) -> Vec<Region> {
        let mut placed: Vec<Region> = self.scratch().collect();
        let blocks = self
            .blocks
            .iter()
            .map(|block| Block::new(block.address, block.order).region());
        placed.extend(blocks);
        let reserved = self
            .reserve_mem
            .iter()
            .map(|area| Region::new(area.start, area.size.0));
        placed.extend(reserved);
        let files = self
            .luo
            .iter()
            .flat_map(|luo| &luo.session)
            .flat_map(|session| &session.file);
        for file in files {
            if let Some(memfd) = &file.memfd {
                let folios = memfd.folios.iter().flatten();
                placed.extend(folios.map(|folio| Block::new(folio.address, folio.order).region()));
            }
        }
        placed
    }

    /// Blueprint for kho-core. Files without folios get memory from `free`; no file may be larger than `ram` bytes.
    pub fn blueprint(&self, ram: u64, free: &mut dyn PageAllocator) -> Result<Blueprint, String> {
        let mut luo = None;
        if let Some(model) = &self.luo {
            luo = Some(model.plan(ram, free)?);
        }
        Ok(Blueprint {
            scratch: self.scratch().collect(),
            blocks: self
                .blocks
                .iter()
                .map(|block| Block::new(block.address, block.order))
                .collect(),
            reserve_mem: self
                .reserve_mem
                .iter()
                .map(|area| NamedRegion {
                    name: area.name.clone(),
                    region: Region::new(area.start, area.size.0),
                })
                .collect(),
            luo,
            kexec_metadata: self.kexec.as_ref().map(|kexec| Kexec {
                previous_release: kexec.previous_release.clone(),
                count: kexec.count,
            }),
            blobs: self.blob.iter().map(BlobModel::plan).collect::<Result<_, _>>()?,
        })
    }
}

impl LuoModel {
    fn plan(&self, ram: u64, free: &mut dyn PageAllocator) -> Result<LuoPlan, String> {
        let mut sessions = Vec::new();
        for session in &self.session {
            let mut files = Vec::new();
            for file in &session.file {
                let named = |error| format!("session \"{}\", token {:#x}: {error}", session.name, file.token);
                let content = match (&file.memfd, &file.other) {
                    (Some(memfd), None) => FileContentPlan::Memfd(memfd.plan(ram, free).map_err(named)?),
                    (None, Some(other)) => FileContentPlan::Other {
                        compatible: other.compatible.clone(),
                        data: other.data,
                    },
                    _ => return Err(named("expected either memfd or other".into())),
                };
                files.push(FilePlan {
                    token: file.token,
                    content,
                });
            }
            sessions.push(SessionPlan {
                name: session.name.clone(),
                files,
            });
        }
        let flbs = self.flb.iter().map(|flb| FlbPlan {
            compatible: flb.compatible.clone(),
            data: flb.data,
            count: flb.count,
        });
        Ok(LuoPlan {
            liveupdate_number: self.liveupdate_number,
            sessions,
            flbs: flbs.collect(),
        })
    }
}

impl MemfdModel {
    fn plan(&self, ram: u64, free: &mut dyn PageAllocator) -> Result<MemfdPlan, String> {
        let folios = match &self.folios {
            Some(folios) => folios
                .iter()
                .map(|folio| FolioPlan {
                    block: Block::new(folio.address, folio.order),
                    index: folio.index,
                    flags: folio.flags,
                })
                .collect(),
            None => self.place(ram, free)?,
        };
        Ok(MemfdPlan {
            position: self.position,
            size: self.size.0,
            seals: self.seals,
            flags: self.flags,
            folios,
        })
    }

    fn place(&self, ram: u64, free: &mut dyn PageAllocator) -> Result<Vec<FolioPlan>, String> {
        if self.order > MAX_ORDER {
            return Err(format!("order {}, expected at most {MAX_ORDER}", self.order));
        }
        if self.size.0 > ram {
            return Err(format!("{} do not fit RAM of {}", self.size, Bytes(ram)));
        }
        let count = self.size.0.div_ceil(Block::new(0, self.order).size());
        folios(count, self.order, free).map_err(|number| {
            format!(
                "no free block of order {} for folio {number} of {count}",
                self.order
            )
        })
    }
}

/// Places `count` folios of a file, one after the other. The error is the number of the first for which there is no
/// memory.
pub(super) fn folios(count: u64, order: u8, free: &mut dyn PageAllocator) -> Result<Vec<FolioPlan>, u64> {
    let folio = |number: u64| {
        Ok(FolioPlan {
            block: Block::new(free.allocate(order).ok_or(number)?, order),
            index: number << order,
            flags: written(),
        })
    };
    (0..count).map(folio).collect()
}

impl BlobModel {
    fn plan(&self) -> Result<Blob, String> {
        let digits: String = self.hex.split_ascii_whitespace().collect();
        let bytes = hex::decode(&digits);
        Ok(Blob {
            name: self.name.clone(),
            bytes: bytes
                .ok_or_else(|| format!("blob \"{}\": expected pairs of hexadecimal digits", self.name))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kho_core::FreeRegions;

    fn plan(text: &str) -> Result<Blueprint, String> {
        let model: Model = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        model.blueprint(
            1 << 20,
            &mut FreeRegions::new(vec![Region::new(0x1_0000, 0x1_0000)]),
        )
    }

    #[test]
    fn a_file_without_folios_is_placed_in_free_memory() {
        let text = "[[luo.session]]\nname = \"a\"\n[[luo.session.file]]\ntoken = 1\nmemfd = { size = \"12 KiB\", order = 1 }";
        let plan = plan(text).unwrap();
        let FileContentPlan::Memfd(memfd) = &plan.luo.unwrap().sessions[0].files[0].content else {
            panic!("a memfd");
        };
        let folios: Vec<_> = memfd
            .folios
            .iter()
            .map(|folio| (folio.block.address, folio.block.order, folio.index))
            .collect();
        assert_eq!(folios, [(0x1_0000, 1, 0), (0x1_2000, 1, 2)]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("scrach = []", "scrach"),
            ("[[blob]]\nname = \"b\"\nhex = \"0g\"", "\"b\""),
            ("[[blob]]\nname = \"b\"\nhex = \"012\"", "\"b\""),
            (
                "[[luo.session]]\nname = \"a\"\nfile = [{ token = 7, memfd = { size = \"2 MiB\" } }]",
                "token 0x7",
            ),
            (
                "[[luo.session]]\nname = \"a\"\nfile = [{ token = 7 }]",
                "either memfd or other",
            ),
            (
                "[[luo.session]]\nname = \"a\"\nfile = [{ token = 7, memfd = { size = \"128 KiB\" } }]",
                "no free block",
            ),
            (
                "[[luo.session]]\nname = \"a\"\nfile = [{ token = 7, memfb = { size = \"1 MiB\" } }]",
                "memfb",
            ),
        ] {
            let error = plan(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
