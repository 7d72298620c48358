//! Memory objects (memfds and anonymous buffers): filling them, resolving them to page frames, digesting them.

use crate::changes;
use crate::crew;
use crate::failure::{Failure, Named};
use crate::files;
use crate::sys::{self, Mapping};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;
use guest_agent::device::mailbox;
use guest_agent::pagemap;
use guest_agent::pattern::{PAGE_BYTES, PAGE_WORDS, Pattern};
use guest_agent::protocol::{Change, ObjectId, PageRun, Place};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, OFlags};

/// Bytes in a page, as a `u64`.
const PAGE: u64 = PAGE_BYTES as u64;
/// Entries of /proc/self/pagemap that one system call reads.
const PAGEMAP_CHUNK: usize = 8192;
/// Pages that one page fault brings in (fault_around_bytes is 64 KiB unless debugfs says otherwise).
const FAULT_AROUND_PAGES: usize = 16;
/// Pages that one write to a memfd carries.
const STAGE_PAGES: usize = 16;
/// Bytes that are left to the kernel when an object is filled, for page tables and the image of the next kernel.
const KEPT_FREE: u64 = 8 << 20;
/// Maximum number of runs that [`Objects::resolve`] returns. A reply cannot carry more, because each takes at least 2
/// bytes.
#[allow(clippy::cast_possible_truncation)] // 62 KiB
const MAX_RUNS: usize = mailbox::WINDOW_SIZE as usize / 2;

const PAGEMAP: &str = "/proc/self/pagemap";

/// /proc/self/pagemap.
struct Pagemap(OwnedFd);

impl Pagemap {
    fn open() -> Result<Self, Failure> {
        Ok(Self(files::open(PAGEMAP, OFlags::RDONLY)?))
    }

    /// The entries of `count` pages from virtual page `first` on. Fails unless all can be read.
    fn read(&self, first: u64, count: usize) -> Result<Vec<u64>, Failure> {
        let mut bytes = vec![0; count * pagemap::ENTRY_BYTES];
        let offset = first * pagemap::ENTRY_BYTES as u64;
        let done = files::read_at(&self.0, PAGEMAP, &mut bytes, offset)?;
        if done < bytes.len() {
            let end = offset + done as u64;
            return Err(Failure::refused(
                format!("pread({PAGEMAP})"),
                format!("ends at byte {end:#x}"),
            ));
        }
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|entry| u64::from_le_bytes(*entry))
            .collect())
    }
}

/// A memory object, mapped.
struct Object {
    mapping: Mapping,
    /// The file behind it, if it is a memfd.
    memfd: Option<OwnedFd>,
}

/// A memfd that another process uses.
pub struct Apart {
    mapping: Mapping,
    memfd: OwnedFd,
}

impl Apart {
    /// Changes it.
    pub fn change(&self, change: Change) -> Result<(), Failure> {
        changes::change(&self.mapping, &self.memfd, change)
    }

    /// Its descriptor.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

/// All memory objects, by the host's names for them.
#[derive(Default)]
pub struct Objects {
    objects: BTreeMap<ObjectId, Object>,
}

impl Objects {
    /// Creates a memfd of this size, without pages. `flags` are those of memfd_create(2).
    pub fn create_memfd(&mut self, id: ObjectId, bytes: u64, flags: u32) -> Result<(), Failure> {
        self.check_new(id, bytes)?;
        let flags = MemfdFlags::from_bits_retain(flags) | MemfdFlags::CLOEXEC;
        let memfd = rustix::fs::memfd_create("baton", flags).named(|| "memfd_create")?;
        rustix::fs::ftruncate(&memfd, bytes).named(|| format!("ftruncate({bytes})"))?;
        // Pages of hugetlb come from a pool of their own.
        if !flags.contains(MemfdFlags::HUGETLB) {
            check_free_memory(bytes)?;
        }
        self.insert_memfd(id, memfd, bytes)
    }

    /// Maps and locks anonymous memory.
    pub fn create_buffer(&mut self, id: ObjectId, bytes: u64) -> Result<(), Failure> {
        self.check_new(id, bytes)?;
        check_free_memory(bytes)?;
        let mapping = Mapping::locked(bytes).named(|| format!("mmap and mlock({bytes} bytes)"))?;
        self.objects.insert(id, Object { mapping, memfd: None });
        Ok(())
    }

    /// Fills `pages` pages of an object from `first_page` on with the pattern of `seed`.
    pub fn fill(&self, id: ObjectId, first_page: u64, pages: u64, seed: u64) -> Result<(), Failure> {
        let Object { mapping, memfd } = self.get(id)?;
        check_pages(mapping, id, first_page, pages)?;
        let pattern = Pattern::new(seed);
        crew::share(first_page..first_page + pages, |pages| match memfd {
            Some(file) => fill_part(file, &pattern, pages),
            None => {
                for page in pages {
                    mapping.fill_page(page, pattern.window(page), pattern.mark(page));
                }
                Ok(())
            }
        })
        .map(drop)
    }

    /// Maps a retrieved memfd, whose length is that of the file.
    pub fn adopt_memfd(&mut self, id: ObjectId, memfd: OwnedFd) -> Result<(), Failure> {
        let size = rustix::fs::fstat(&memfd).named(|| "fstat(memfd)")?.st_size;
        let bytes = u64::try_from(size).unwrap_or(0);
        self.check_new(id, bytes)?;
        self.insert_memfd(id, memfd, bytes)
    }

    fn insert_memfd(&mut self, id: ObjectId, memfd: OwnedFd, bytes: u64) -> Result<(), Failure> {
        let mapping = map_memfd(&memfd, bytes)?;
        let memfd = Some(memfd);
        self.objects.insert(id, Object { mapping, memfd });
        Ok(())
    }

    /// Changes a memfd.
    pub fn change(&mut self, id: ObjectId, change: Change) -> Result<(), Failure> {
        let Object { mapping, memfd } = self.objects.remove(&id).ok_or_else(|| unknown(id))?;
        let Some(memfd) = memfd else {
            self.objects.insert(id, Object { mapping, memfd });
            return Err(not_a_memfd(id));
        };
        let bytes = mapping.bytes();
        if let Change::Seal(seals) = change {
            drop(mapping);
            let sealed = changes::seal(&memfd, seals);
            self.insert_memfd(id, memfd, bytes)?;
            return sealed;
        }
        let changed = changes::change(&mapping, &memfd, change);
        let memfd = Some(memfd);
        self.objects.insert(id, Object { mapping, memfd });
        changed
    }

    /// Calls `work` while no memfd is mapped.
    pub fn unmapped(&mut self, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let (files, others): (BTreeMap<_, _>, BTreeMap<_, _>) = mem::take(&mut self.objects)
            .into_iter()
            .partition(|(_, object)| object.memfd.is_some());
        self.objects = others;
        let files: Vec<_> = files
            .into_iter()
            .filter_map(|(id, object)| Some((id, object.mapping.bytes(), object.memfd?)))
            .collect();
        let done = work();
        for (id, bytes, memfd) in files {
            self.insert_memfd(id, memfd, bytes)?;
        }
        done
    }

    /// A memfd with a descriptor and a mapping of its own, for a process that uses it meanwhile.
    pub fn apart(&self, id: ObjectId) -> Result<Apart, Failure> {
        let memfd = rustix::io::dup(self.memfd(id)?).named(|| "dup(memfd)")?;
        let mapping = map_memfd(&memfd, self.get(id)?.mapping.bytes())?;
        Ok(Apart { mapping, memfd })
    }

    /// Refuses a descriptor of another file than that of the object.
    pub fn check_same_file(&self, id: ObjectId, other: &OwnedFd) -> Result<(), Failure> {
        let inode = |file: BorrowedFd<'_>| {
            let stat = rustix::fs::fstat(file).named(|| "fstat(memfd)")?;
            Ok::<_, Failure>((stat.st_dev, stat.st_ino))
        };
        if inode(self.memfd(id)?)? == inode(other.as_fd())? {
            return Ok(());
        }
        Err(Failure::refused(
            format!("object {id}"),
            "the second retrieval gave another file than the first",
        ))
    }

    /// Unmaps and closes an object.
    pub fn close(&mut self, id: ObjectId) -> Result<(), Failure> {
        self.objects.remove(&id).map(drop).ok_or_else(|| unknown(id))
    }

    /// Unmaps an object and forgets its memfd without closing it.
    pub fn keep_open(&mut self, id: ObjectId) -> Result<(), Failure> {
        let object = self.objects.remove(&id).ok_or_else(|| unknown(id))?;
        mem::forget(object.memfd);
        Ok(())
    }

    /// The memfd of an object.
    pub fn memfd(&self, id: ObjectId) -> Result<BorrowedFd<'_>, Failure> {
        let memfd = self.get(id)?.memfd.as_ref();
        memfd.map(AsFd::as_fd).ok_or_else(|| not_a_memfd(id))
    }

    /// Names of all objects.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> {
        self.objects.keys().copied()
    }

    /// Pages in an object.
    pub fn page_count(&self, id: ObjectId) -> Result<u64, Failure> {
        Ok(self.get(id)?.mapping.bytes() / PAGE)
    }

    /// The page frames of `pages` pages of an object from `first_page` on.
    pub fn resolve(&self, id: ObjectId, first_page: u64, pages: u64) -> Result<Vec<PageRun>, Failure> {
        let mapping = &self.get(id)?.mapping;
        check_pages(mapping, id, first_page, pages)?;
        // The kernel maps the neighbours of a page that is touched, up to its fault-around size, so that touching a
        // few of them is far cheaper than populating all. If it has not mapped a page, that page is touched below.
        for page in (first_page..first_page + pages).step_by(FAULT_AROUND_PAGES) {
            mapping.read_u64(page * PAGE);
        }
        let pagemap = Pagemap::open()?;
        let base = mapping.address() / PAGE;
        let mut entries = Vec::new();
        let mut runs = Vec::new();
        for page in first_page..first_page + pages {
            let done = index(page - first_page) % PAGEMAP_CHUNK;
            if done == 0 {
                let left = index(first_page + pages - page);
                entries = pagemap.read(base + page, left.min(PAGEMAP_CHUNK))?;
            }
            let frame = match pagemap::frame(entries[done]) {
                Some(frame) => frame,
                None => {
                    mapping.read_u64(page * PAGE);
                    let entry = pagemap.read(base + page, 1)?[0];
                    pagemap::frame(entry).ok_or_else(|| {
                        let detail = format!("object {id} page {page}: entry {entry:#x} has no frame");
                        Failure::refused("/proc/self/pagemap", detail)
                    })?
                }
            };
            pagemap::push_frame(&mut runs, frame);
            if runs.len() > MAX_RUNS {
                let detail = format!("more than {MAX_RUNS} runs: ask for fewer pages at a time");
                return Err(Failure::refused(format!("resolve object {id}"), detail));
            }
        }
        Ok(runs)
    }

    /// The page frames that hold `bytes` bytes from `place` on.
    pub fn resolve_place(&self, place: Place, bytes: u64) -> Result<Vec<PageRun>, Failure> {
        self.check_place(place, bytes)?;
        let first = place.offset / PAGE;
        let end = (place.offset + bytes).div_ceil(PAGE);
        self.resolve(place.object, first, end - first)
    }

    /// One digest per page.
    pub fn digest(&self, id: ObjectId, first_page: u64, pages: u64) -> Result<Vec<u64>, Failure> {
        let mapping = &self.get(id)?.mapping;
        check_pages(mapping, id, first_page, pages)?;
        let parts = crew::share(first_page..first_page + pages, |pages| {
            Ok(pages.map(|page| mapping.page_digest(page)).collect::<Vec<u64>>())
        })?;
        Ok(parts.concat())
    }

    /// Reads a word of an object; `place` is a multiple of 8.
    pub fn read_u64(&self, place: Place) -> Result<u64, Failure> {
        self.check_place(place, 8)?;
        Ok(self.get(place.object)?.mapping.read_u64(place.offset))
    }

    /// Writes a word of an object; `place` is a multiple of 8.
    pub fn write_u64(&self, place: Place, value: u64) -> Result<(), Failure> {
        self.check_place(place, 8)?;
        self.get(place.object)?.mapping.write_u64(place.offset, value);
        Ok(())
    }

    /// Refuses places that are not multiples of 8 or reach beyond their object.
    fn check_place(&self, place: Place, bytes: u64) -> Result<(), Failure> {
        let size = self.get(place.object)?.mapping.bytes();
        let inside = place.offset.checked_add(bytes).is_some_and(|end| end <= size);
        if inside && place.offset.is_multiple_of(8) {
            return Ok(());
        }
        let detail = format!(
            "{bytes} bytes at {:#x}: expected a multiple of 8 inside {size:#x} bytes",
            place.offset
        );
        Err(Failure::refused(format!("object {}", place.object), detail))
    }

    /// Refuses a name in use.
    pub fn check_free(&self, id: ObjectId) -> Result<(), Failure> {
        if self.objects.contains_key(&id) {
            return Err(Failure::refused(format!("object {id}"), "exists already"));
        }
        Ok(())
    }

    /// Refuses a name in use and an invalid size.
    fn check_new(&self, id: ObjectId, bytes: u64) -> Result<(), Failure> {
        self.check_free(id)?;
        if bytes == 0 || !bytes.is_multiple_of(PAGE) || i64::try_from(bytes).is_err() {
            let detail = format!("{bytes} bytes: expected a positive multiple of {PAGE}");
            return Err(Failure::refused(format!("object {id}"), detail));
        }
        Ok(())
    }

    fn get(&self, id: ObjectId) -> Result<&Object, Failure> {
        self.objects.get(&id).ok_or_else(|| unknown(id))
    }
}

fn unknown(id: ObjectId) -> Failure {
    Failure::refused(format!("object {id}"), "does not exist")
}

fn not_a_memfd(id: ObjectId) -> Failure {
    Failure::refused(format!("object {id}"), "not a memfd")
}

/// Maps a memfd; for reading alone if its seals forbid more.
fn map_memfd(memfd: &OwnedFd, bytes: u64) -> Result<Mapping, Failure> {
    let read_only = changes::forbids_writing(memfd);
    let mapping = if read_only {
        Mapping::file_to_read(memfd, bytes)
    } else {
        Mapping::file(memfd, bytes)
    };
    mapping.named(|| format!("mmap(memfd of {bytes} bytes)"))
}

/// Refuses pages that the object does not have.
fn check_pages(mapping: &Mapping, id: ObjectId, first: u64, pages: u64) -> Result<(), Failure> {
    let size = mapping.bytes() / PAGE;
    if first.checked_add(pages).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(Failure::refused(
        format!("object {id}"),
        format!("{pages} pages from {first}: the object has {size}"),
    ))
}

/// Refuses to fill more memory than is free: the only process that the kernel could kill is this one, and that would
/// panic it. The scratch area of KHO is free too, but the kernel takes none of it for memory that is to be preserved
/// (7.3.4: with 100 MiB of it free, a memfd that takes all else ends in "System is deadlocked on memory").
fn check_free_memory(bytes: u64) -> Result<(), Failure> {
    let info = files::meminfo()?;
    let scratch = info.cma_free_pages.saturating_mul(PAGE);
    let free = info.free_pages.saturating_mul(PAGE).saturating_sub(scratch);
    if bytes <= free.saturating_sub(KEPT_FREE) {
        return Ok(());
    }
    Err(Failure::refused(
        format!("allocate {bytes} bytes"),
        format!(
            "{free} bytes are free besides {scratch} of the scratch area, and {KEPT_FREE} are left to the kernel"
        ),
    ))
}

/// Writes the pattern to some pages of a file. Writing whole pages is cheaper than storing through a mapping, because
/// the kernel need not clear pages first and there are no page faults (2,100 instructions per page instead of 4,900 on
/// 7.3).
fn fill_part(file: &OwnedFd, pattern: &Pattern, part: Range<u64>) -> Result<(), Failure> {
    let mut stage = vec![[0; PAGE_WORDS]; STAGE_PAGES];
    for first in part.clone().step_by(STAGE_PAGES) {
        let pages = index((part.end - first).min(STAGE_PAGES as u64));
        for (page, words) in (first..).zip(&mut stage[..pages]) {
            pattern.fill(page, words);
        }
        write_all(file, sys::bytes_of(stage[..pages].as_flattened()), first * PAGE)?;
    }
    Ok(())
}

/// Writes all of `rest` at `offset` of a file.
pub fn write_all(file: &OwnedFd, mut rest: &[u8], mut offset: u64) -> Result<(), Failure> {
    while !rest.is_empty() {
        let count = rustix::io::pwrite(file, rest, offset).named(|| format!("pwrite(memfd, {offset:#x})"))?;
        if count == 0 {
            return Err(Failure::refused(
                format!("pwrite(memfd, {offset:#x})"),
                "wrote nothing",
            ));
        }
        rest = &rest[count..];
        offset += count as u64;
    }
    Ok(())
}

/// A count that is known to be small.
pub fn index(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
