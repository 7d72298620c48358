//! Where a handover lies in guest memory: its records, its scratch areas, and the pages of the agent's objects.

use super::model::folios;
use super::{Source, SourceError};
use crate::evidence::PAGE;
use crate::plan::ObjectPlan;
use crate::scenario::{self, Bytes};
use guest_agent::pagemap::push_frame;
use guest_agent::protocol::PageRun;
use kho_core::blueprint::{FileContentPlan, FilePlan, Kexec, LuoPlan, MemfdPlan, SessionPlan};
use kho_core::{
    Abi, Blueprint, BuildError, FreeRegions, KhoData, MemoryError, PageAllocator, PhysicalMemory, Region,
    SparseMemory,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use vmm::boot::layout::KERNEL_MIN;
use vmm::memory::ram_regions;
use xxhash_rust::xxh3::Xxh3;

/// Memory that firmware, boot loader and real-mode code use. Records come from it only if the model names it as free.
pub const LOW_MEMORY: Region = Region::new(0, 1 << 20);
/// Release of the kernel that hands over, in a handover that has no model.
const PREVIOUS_RELEASE: &str = "baton";

/// A handover in guest memory, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverPlan {
    /// Version of the records.
    pub abi: Abi,
    /// The model's path as the scenario gives it; `None` if the scenario's memfds are the model.
    pub model: Option<String>,
    /// What the `setup_data` node says.
    pub kho: KhoData,
    /// The scratch areas.
    pub scratch: Vec<Region>,
    /// Contents of pages by page frame number: the records, and what the model comes with. All others are zero.
    pub pages: BTreeMap<u64, Vec<u8>>,
    /// Page frames of each object of the plan that is handed over, by its identity, in file order.
    pub objects: BTreeMap<u32, Vec<PageRun>>,
}

impl HandoverPlan {
    /// XXH3 (64 bits) of what is in memory and of where the objects are.
    pub fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        let KhoData { fdt, scratch } = self.kho;
        let runs = self.objects.iter().flat_map(|(object, runs)| {
            let runs = runs.iter().flat_map(|run| [run.first, run.count]);
            [u64::from(*object)].into_iter().chain(runs)
        });
        for word in [fdt.start, fdt.size, scratch.start, scratch.size]
            .into_iter()
            .chain(runs)
        {
            hash.update(&word.to_le_bytes());
        }
        for (frame, page) in &self.pages {
            hash.update(&frame.to_le_bytes());
            hash.update(page);
        }
        hash.digest()
    }
}

/// Why there cannot be such a handover.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// The model cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Neither the scenario nor the model says which version.
    #[error("{model}: it names no ABI: expected abi in [handover]")]
    NoAbi {
        /// The model.
        model: String,
    },
    /// The model is wrong.
    #[error("{model}: {reason}")]
    Model {
        /// The model.
        model: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// Something in the model lies outside RAM.
    #[error("{model}: {region} is outside the guest's RAM of {}", Bytes(*ram))]
    OutsideRam {
        /// The model.
        model: String,
        /// The memory.
        region: Region,
        /// Size of RAM in bytes.
        ram: u64,
    },
    /// A memfd of the scenario is not in the model, or is another there.
    #[error("memfd \"{name}\": {reason}")]
    Memfd {
        /// Its name in the scenario.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The records cannot be built.
    #[error("the handover cannot be built: {0}")]
    Build(#[from] BuildError),
    /// What the model comes with cannot be put into memory.
    #[error("the pages of the model: {0}")]
    Pages(MemoryError),
}

/// Makes the handover that the scenario `file` asks for, in a guest with this much RAM and these objects.
pub fn plan(
    wanted: &scenario::Handover,
    file: &Path,
    ram_bytes: u64,
    objects: &[ObjectPlan],
) -> Result<HandoverPlan, HandoverError> {
    let model = wanted.model.as_ref().map(|model| model.get_ref().clone());
    let source = match &model {
        // A path in a scenario is relative to the scenario.
        Some(model) => Some(Source::load(&file.parent().unwrap_or(Path::new("")).join(model))?),
        None => None,
    };
    let named = || model.clone().unwrap_or_default();
    let of_model = source.as_ref().and_then(|source| source.model.abi);
    let abi = wanted.abi.as_ref().map(|abi| *abi.get_ref()).or(of_model);
    let abi = abi.ok_or_else(|| HandoverError::NoAbi { model: named() })?;
    let ram: Vec<Region> = ram_regions(ram_bytes)
        .into_iter()
        .map(|range| Region::new(range.start, range.end - range.start))
        .collect();
    let mut memory = SparseMemory::new(ram.clone());
    let mut scratch: Vec<Region> = source.iter().flat_map(|source| source.model.scratch()).collect();
    if scratch.is_empty() {
        scratch.push(Region::new(KERNEL_MIN, wanted.scratch.get_ref().0));
    }
    let mut free = free(source.as_ref(), &ram, &scratch);
    let mut blueprint = match &source {
        Some(Source { model, pages }) => {
            let outside = model.placed().into_iter().find(|region| !memory.is_ram(region));
            if let Some(region) = outside {
                let (model, ram) = (named(), ram_bytes);
                return Err(HandoverError::OutsideRam { model, region, ram });
            }
            if let Some(pages) = pages {
                pages.copy_into(&mut memory).map_err(HandoverError::Pages)?;
            }
            let blueprint = model.blueprint(ram_bytes, &mut free);
            blueprint.map_err(|reason| HandoverError::Model {
                model: named(),
                reason,
            })?
        }
        None => of_objects(abi, objects, &mut free)?,
    };
    blueprint.scratch.clone_from(&scratch);
    let mut handed = BTreeMap::new();
    for object in objects {
        if let Some(runs) = pages_of(object, &blueprint)? {
            handed.insert(object.id, runs);
        }
    }
    let kho = kho_core::build(&blueprint, abi, &mut memory, &mut free)?;
    let pages = memory
        .pages()
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    Ok(HandoverPlan {
        abi,
        model,
        kho,
        scratch,
        pages: pages
            .map(|(address, page)| (address / PAGE, page.to_vec()))
            .collect(),
        objects: handed,
    })
}

/// The memory that records and unplaced files go to.
fn free(source: Option<&Source>, ram: &[Region], scratch: &[Region]) -> FreeRegions {
    let placed = source.map(|source| source.model.placed()).unwrap_or_default();
    let named: Vec<Region> = source.iter().flat_map(|source| source.model.free()).collect();
    if !named.is_empty() {
        return FreeRegions::outside(&named, placed);
    }
    let pages = source.and_then(|source| source.pages.as_ref());
    let kept = pages.map(super::Image::frames).unwrap_or_default();
    let kept = kept.into_iter().map(|frame| Region::new(frame * PAGE, PAGE));
    let used = placed.into_iter().chain(kept).chain(scratch.iter().copied());
    FreeRegions::outside(ram, used.chain([LOW_MEMORY]))
}

/// A handover of the objects alone, page by page.
fn of_objects(
    abi: Abi,
    objects: &[ObjectPlan],
    free: &mut dyn PageAllocator,
) -> Result<Blueprint, HandoverError> {
    let mut sessions: Vec<SessionPlan> = Vec::new();
    for object in objects {
        let Some((session, token)) = object.preserve() else {
            continue;
        };
        if abi.luo().is_none() {
            let (name, reason) = (
                object.name.clone(),
                format!("{abi} has no LUO, which hands over files"),
            );
            return Err(HandoverError::Memfd { name, reason });
        }
        let folios = folios(object.bytes / PAGE, 0, free);
        let memfd = MemfdPlan {
            size: object.bytes,
            folios: folios.map_err(|_| BuildError::OutOfMemory { order: 0 })?,
            ..MemfdPlan::default()
        };
        let file = FilePlan {
            token,
            content: FileContentPlan::Memfd(memfd),
        };
        match sessions.iter_mut().find(|known| known.name == *session) {
            Some(known) => known.files.push(file),
            None => sessions.push(SessionPlan {
                name: session.clone(),
                files: vec![file],
            }),
        }
    }
    let luo = LuoPlan {
        liveupdate_number: 1,
        sessions,
        flbs: Vec::new(),
    };
    Ok(Blueprint {
        luo: abi.luo().map(|_| luo),
        kexec_metadata: abi.has_blob_sizes().then(|| Kexec {
            previous_release: PREVIOUS_RELEASE.into(),
            count: 1,
        }),
        ..Blueprint::default()
    })
}

/// The page frames of an object in the blueprint; `None` if it is not one that is handed over.
fn pages_of(object: &ObjectPlan, blueprint: &Blueprint) -> Result<Option<Vec<PageRun>>, HandoverError> {
    let Some((session, token)) = object.preserve() else {
        return Ok(None);
    };
    let wrong = |reason: String| HandoverError::Memfd {
        name: object.name.clone(),
        reason,
    };
    let sessions = blueprint.luo.iter().flat_map(|luo| &luo.sessions);
    let mut files = sessions
        .filter(|known| known.name == *session)
        .flat_map(|session| &session.files)
        .filter(|file| file.token == token);
    let memfd = match files.next().map(|file| &file.content) {
        Some(FileContentPlan::Memfd(memfd)) => memfd,
        Some(FileContentPlan::Other { compatible, .. }) => {
            return Err(wrong(format!(
                "the handover has a file of {compatible} under token {token} of session \"{session}\""
            )));
        }
        None => {
            return Err(wrong(format!(
                "the handover has no file under token {token} of session \"{session}\""
            )));
        }
    };
    if memfd.size != object.bytes {
        let (found, expected) = (Bytes(memfd.size), Bytes(object.bytes));
        return Err(wrong(format!(
            "it has {found} in the handover, expected {expected}"
        )));
    }
    let pages = object.bytes / PAGE;
    let mut frames = BTreeMap::new();
    for folio in &memfd.folios {
        let first = folio.block.address / PAGE;
        let size = 1_u64.checked_shl(folio.block.order.into()).unwrap_or(u64::MAX);
        for page in 0..size.min(pages.saturating_sub(folio.index)) {
            let index = folio.index + page;
            if frames.insert(index, first + page).is_some() {
                return Err(wrong(format!("two folios of the handover have page {index}")));
            }
        }
    }
    let mut runs = Vec::new();
    for index in 0..pages {
        let frame = frames.get(&index);
        let frame = frame.ok_or_else(|| wrong(format!("page {index} has no memory in the handover")))?;
        push_frame(&mut runs, *frame);
    }
    Ok(Some(runs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agent::pagemap::page_count;
    use kho_core::{Handover, PhysicalMemoryMut, SliceMemory};

    const RAM: u64 = 128 << 20;

    /// Two memfds, in two sessions.
    fn objects() -> Vec<ObjectPlan> {
        let text = crate::testing::SCENARIO;
        let second = "[[memfd]]\nname = \"n\"\nsize = \"8 KiB\"\nsession = \"other\"\ntoken = 1\n";
        crate::testing::plan(&format!("{text}{second}")).objects
    }

    fn wanted(text: &str) -> scenario::Handover {
        toml::from_str(text).unwrap()
    }

    /// The handover of a model with this text.
    fn of_model(text: &str) -> Result<HandoverPlan, HandoverError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.toml"), text).unwrap();
        let file = folder.path().join("s.toml");
        plan(&wanted("model = \"m.toml\""), &file, RAM, &objects())
    }

    fn memory(plan: &HandoverPlan) -> SliceMemory<Vec<u8>> {
        let mut memory = SliceMemory::new(0, vec![0; usize::try_from(RAM).unwrap()]);
        for (frame, page) in &plan.pages {
            memory.write(frame * PAGE, page).unwrap();
        }
        memory
    }

    #[test]
    fn every_version_with_luo_can_be_read_again() {
        for abi in Abi::ALL.into_iter().filter(|abi| abi.luo().is_some()) {
            let text = format!("abi = \"{abi}\"\nscratch = \"64 MiB\"");
            let plan = plan(&wanted(&text), Path::new("s.toml"), RAM, &objects()).unwrap();
            let memory = memory(&plan);
            let handover = Handover::read(&memory, plan.kho.fdt, plan.kho.scratch).unwrap();
            assert_eq!(Abi::of(&handover), abi);
            let worst = kho_core::verify(&handover, &memory).findings.worst();
            // Few bitmaps of kho-v1 do not tell their size.
            assert!(worst < Some(kho_core::Severity::Error), "{abi}: {worst:?}");
            let sizes: Vec<u64> = plan.objects.values().map(|runs| page_count(runs)).collect();
            assert_eq!(sizes, [18, 2]);
            let scratch = handover.scratch.iter().map(|area| area.region);
            assert_eq!(scratch.collect::<Vec<_>>(), [Region::new(KERNEL_MIN, 64 << 20)]);
            for run in plan.objects.values().flatten() {
                let memory = Region::new(run.first * PAGE, run.count * PAGE);
                assert!(handover.map.is_preserved(memory.start), "{abi}, {memory}");
                assert!(!memory.overlaps(&plan.scratch[0]) && !memory.overlaps(&LOW_MEMORY));
            }
        }
    }

    #[test]
    fn a_version_without_luo_has_no_place_for_memfds() {
        let text = "abi = \"kho-v1-6.17\"\nscratch = \"64 MiB\"";
        let made = plan(&wanted(text), Path::new("s.toml"), RAM, &objects());
        let error = made.unwrap_err().to_string();
        assert!(
            error.contains("memfd \"m\"") && error.contains("kho-v1-6.17"),
            "{error}"
        );
        plan(&wanted(text), Path::new("s.toml"), RAM, &[]).unwrap();
    }

    #[test]
    fn equal_handovers_and_only_these_have_equal_hashes() {
        let of = |text: &str| plan(&wanted(text), Path::new("s.toml"), RAM, &objects()).unwrap();
        let one = of("abi = \"kho-v4\"\nscratch = \"64 MiB\"");
        assert_eq!(one.hash(), of("abi = \"kho-v4\"\nscratch = \"64 MiB\"").hash());
        assert_ne!(one.hash(), of("abi = \"kho-v3\"\nscratch = \"64 MiB\"").hash());
        let mut moved = one.clone();
        moved.objects.values_mut().for_each(|runs| runs[0].first += 1);
        assert_ne!(one.hash(), moved.hash());
    }

    #[test]
    fn what_is_wrong_with_a_model_is_said() {
        let scratch = "scratch = [{ start = 0x1000000, size = \"64 MiB\" }]\n";
        let file = |memfd: &str| {
            format!(
                "abi = \"kho-v4\"\n{scratch}[[luo.session]]\nname = \"baton\"\nfile = [{{ token = 7, memfd = {memfd} }}]\n\
                 [[luo.session]]\nname = \"other\"\nfile = [{{ token = 1, memfd = {{ size = \"8 KiB\" }} }}]\n"
            )
        };
        let folio = |address: u64, order: u8, index: u64| {
            format!("{{ address = {address}, order = {order}, index = {index} }}")
        };
        let folios = |folios: &[String]| {
            file(&format!(
                "{{ size = \"72 KiB\", folios = [{}] }}",
                folios.join(", ")
            ))
        };
        // Frames follow the folios' indexes, not their order; the tail of the last is beyond the file.
        let good = of_model(&folios(&[folio(0x580_0000, 2, 16), folio(0x600_0000, 4, 0)])).unwrap();
        let run = |first, count| PageRun { first, count };
        assert_eq!(good.objects[&1], [run(0x6000, 16), run(0x5800, 2)]);
        for (text, words) in [
            (scratch.to_owned(), "m.toml: it names no ABI"),
            (
                format!("abi = \"kho-v4\"\n{scratch}"),
                "no file under token 7 of session \"baton\"",
            ),
            (
                file("{ size = \"68 KiB\" }"),
                "68 KiB in the handover, expected 72 KiB",
            ),
            (folios(&[folio(0x600_0000, 4, 0)]), "page 16 has no memory"),
            (
                folios(&[folio(0x600_0000, 4, 0), folio(0x580_0000, 2, 15)]),
                "two folios of the handover have page 15",
            ),
            (
                folios(&[folio(0x4000_0000, 4, 0)]),
                "outside the guest's RAM of 128 MiB",
            ),
            (
                file("{ size = \"72 KiB\" }").replace(
                    "memfd = { size = \"72 KiB\" }",
                    "other = { compatible = \"x\", data = 1 }",
                ),
                "a file of x under token 7",
            ),
        ] {
            let error = of_model(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
