//! Guest RAM at one moment: immutable, and shared by any number of machines that continue from it.
//!
//! An image is a list of extents: runs of pages with their offset in a sealed memfd. A page in no extent is zero. A
//! later image of the same machine shares the memfds of an earlier one for all pages that were not written between the
//! two.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::PAGE_BYTES;

/// If an image has more extents than this, all are copied into one memfd, because each extent costs every branch a
/// mapping.
const MAX_EXTENTS: usize = 4096;

/// Pages copied at a time.
const BATCH_PAGES: usize = 256;

/// A run of pages in a memfd. Page numbers count RAM only, not the hole below 4 GiB.
#[derive(Debug, Clone)]
pub(super) struct Extent {
    /// First page of RAM.
    pub page: u64,
    /// Number of pages, not 0.
    pub count: u64,
    /// First page in the file.
    pub at: u64,
    /// A sealed memfd.
    pub file: Arc<File>,
}

impl Extent {
    fn end(&self) -> u64 {
        self.page + self.count
    }

    /// The part of this extent between the pages `from` and `to`; `None` if there is none.
    pub fn part(&self, from: u64, to: u64) -> Option<Self> {
        let (from, to) = (from.max(self.page), to.min(self.end()));
        (from < to).then(|| Self {
            page: from,
            count: to - from,
            at: self.at + (from - self.page),
            file: Arc::clone(&self.file),
        })
    }
}

/// Guest RAM at one moment.
#[derive(Debug, Clone, Default)]
pub struct RamImage {
    pages: u64,
    extents: Vec<Extent>,
}

impl RamImage {
    /// RAM of `pages` zero pages.
    #[must_use]
    pub fn zero(pages: u64) -> Self {
        Self {
            pages,
            extents: Vec::new(),
        }
    }

    /// Size of RAM in pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages that lie in a memfd. The others are zero.
    #[must_use]
    pub fn stored_pages(&self) -> u64 {
        self.extents.iter().map(|extent| extent.count).sum()
    }

    /// The runs of pages in extents, in ascending order: (first page, number of pages). All other pages are zero.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.extents.iter().map(|extent| (extent.page, extent.count))
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Reads `buffer.len()` bytes (whole pages) from page `page` on. Pages in no extent read as zero.
    pub fn read(&self, page: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        buffer.fill(0);
        let to = page + (buffer.len() / PAGE_BYTES) as u64;
        let first = self.extents.partition_point(|extent| extent.end() <= page);
        for extent in &self.extents[first..] {
            let Some(part) = extent.part(page, to) else { break };
            let start = bytes(part.page - page);
            let piece = &mut buffer[start..start + bytes(part.count)];
            part.file.read_exact_at(piece, part.at * PAGE_BYTES as u64)?;
        }
        Ok(())
    }

    /// The first page in which two images differ. Pages that both take from the same place of the same memfd are not
    /// read.
    pub fn first_difference(&self, other: &Self) -> std::io::Result<Option<u64>> {
        let end = self.pages.min(other.pages);
        let mut buffers = [
            vec![0; BATCH_PAGES * PAGE_BYTES],
            vec![0; BATCH_PAGES * PAGE_BYTES],
        ];
        let mut at = 0;
        while at < end {
            let ((ours, our_end), (theirs, their_end)) = (self.place(at), other.place(at));
            let mut until = our_end.min(their_end).min(end);
            if ours != theirs {
                until = until.min(at + BATCH_PAGES as u64);
                let [a, b] = buffers.each_mut().map(|buffer| &mut buffer[..bytes(until - at)]);
                self.read(at, a)?;
                other.read(at, b)?;
                if a != b {
                    let pages = a.chunks_exact(PAGE_BYTES).zip(b.chunks_exact(PAGE_BYTES));
                    let equal = pages.take_while(|(a, b)| a == b).count();
                    return Ok(Some(at + equal as u64));
                }
            }
            at = until;
        }
        Ok((self.pages != other.pages).then_some(end))
    }

    /// Where the content of `page` lies (memfd, page in it; `None` if it is zero), and up to which page that goes on.
    fn place(&self, page: u64) -> (Option<(*const File, u64)>, u64) {
        let next = self.extents.partition_point(|extent| extent.end() <= page);
        match self.extents.get(next) {
            Some(extent) if extent.page <= page => {
                let at = extent.at + (page - extent.page);
                (Some((Arc::as_ptr(&extent.file), at)), extent.end())
            }
            Some(extent) => (None, extent.page),
            None => (None, self.pages),
        }
    }

    /// This image with its pages replaced by those of `changes`.
    pub(super) fn overlaid(&self, changes: Vec<Extent>) -> std::io::Result<Self> {
        let mut extents: Vec<Extent> = Vec::with_capacity(self.extents.len() + 2 * changes.len());
        let mut below = self.extents.iter().peekable();
        let mut from = 0;
        for change in &changes {
            take_between(&mut below, from, change.page, &mut extents);
            push(&mut extents, change.clone());
            from = change.end();
        }
        take_between(&mut below, from, self.pages, &mut extents);
        let image = Self {
            pages: self.pages,
            extents,
        };
        if image.extents.len() > MAX_EXTENTS {
            image.gathered()
        } else {
            Ok(image)
        }
    }

    /// The same content in one memfd, without pages that are zero, except in small gaps.
    fn gathered(&self) -> std::io::Result<Self> {
        let mut store = PageStore::new(self.pages)?;
        let mut buffer = vec![0; BATCH_PAGES * PAGE_BYTES];
        let batch = BATCH_PAGES as u64;
        let mut next = 0;
        for (page, count) in self.runs() {
            // Batches begin at multiples of their size, so that neighbouring runs share one.
            let mut at = next.max(page / batch * batch);
            while at < page + count {
                let count = batch.min(self.pages - at);
                self.read(at, &mut buffer[..bytes(count)])?;
                store.push(at, &buffer[..bytes(count)])?;
                at += count;
                next = at;
            }
        }
        store.finish()
    }
}

/// Moves the parts of `below` that lie between two pages to `extents`.
fn take_between(
    below: &mut std::iter::Peekable<std::slice::Iter<'_, Extent>>,
    from: u64,
    to: u64,
    extents: &mut Vec<Extent>,
) {
    while let Some(extent) = below.peek() {
        if extent.page >= to {
            return;
        }
        if let Some(part) = extent.part(from, to) {
            push(extents, part);
        }
        if extent.end() > to {
            return;
        }
        below.next();
    }
}

/// Appends an extent, and merges it with the one before if it continues that.
fn push(extents: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = extents.last_mut()
        && last.end() == next.page
        && last.at + last.count == next.at
        && Arc::ptr_eq(&last.file, &next.file)
    {
        last.count += next.count;
        return;
    }
    extents.push(next);
}

/// Bytes of `pages` pages of this host's memory.
fn bytes(pages: u64) -> usize {
    usize::try_from(pages)
        .unwrap_or(usize::MAX)
        .saturating_mul(PAGE_BYTES)
}

/// Builds an image. Pages are appended in ascending order.
#[derive(Debug)]
pub struct PageStore {
    file: File,
    pages: u64,
    stored: u64,
    /// Runs so far: first page of RAM, number of pages, first page in the file.
    runs: Vec<(u64, u64, u64)>,
}

impl PageStore {
    /// An image of RAM of `pages` pages, so far all zero.
    pub fn new(pages: u64) -> std::io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        Ok(Self {
            file: File::from(memfd_create("baton-guest-ram", flags)?),
            pages,
            stored: 0,
            runs: Vec::new(),
        })
    }

    /// Sets the pages from `page` on, which must be greater than all pages set before. `content` is whole pages.
    pub fn push(&mut self, page: u64, content: &[u8]) -> std::io::Result<()> {
        self.append(page, (content.len() / PAGE_BYTES) as u64, |file, at| {
            file.write_all_at(content, at)
        })
    }

    /// Sets `count` pages by `write`, which must write them to the given file at the given byte offset.
    pub(super) fn append(
        &mut self,
        page: u64,
        count: u64,
        write: impl FnOnce(&mut File, u64) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let after = self.runs.last().map_or(0, |(page, count, _)| page + count);
        if page < after || page.checked_add(count).is_none_or(|end| end > self.pages) {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!(
                    "pages {page} to {} of guest RAM: expected pages from {after} to {}",
                    page.saturating_add(count),
                    self.pages
                ),
            ));
        }
        if count == 0 {
            return Ok(());
        }
        write(&mut self.file, self.stored * PAGE_BYTES as u64)?;
        match self.runs.last_mut() {
            Some((first, length, _)) if *first + *length == page => *length += count,
            _ => self.runs.push((page, count, self.stored)),
        }
        self.stored += count;
        Ok(())
    }

    /// Seals the memfd against all changes.
    pub fn finish(self) -> std::io::Result<RamImage> {
        let pages = self.pages;
        let extents = self.into_extents()?;
        Ok(RamImage { pages, extents })
    }

    pub(super) fn into_extents(self) -> std::io::Result<Vec<Extent>> {
        ftruncate(&self.file, self.stored * PAGE_BYTES as u64)?;
        // Not SealFlags::WRITE: the host refuses that with EBUSY while anything holds a reference to a page of the
        // file, such as its own reclaim or compaction. It differs only in that it also refuses a file with writable
        // mappings, of which there are none.
        let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&self.file, seals)?;
        let file = Arc::new(File::from(OwnedFd::from(self.file)));
        let extent = |(page, count, at)| Extent {
            page,
            count,
            at,
            file: Arc::clone(&file),
        };
        Ok(self.runs.into_iter().map(extent).collect())
    }
}

impl Extent {
    pub(super) fn mapped_into(
        &self,
        mapping: &mut super::mapping::Mapping,
        first: u64,
    ) -> std::io::Result<()> {
        let (offset, length) = (bytes(self.page - first), bytes(self.count));
        Ok(mapping.overlay(offset, length, self.file.as_fd(), self.at * PAGE_BYTES as u64)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 64;

    fn page(value: u8) -> Vec<u8> {
        vec![value; PAGE_BYTES]
    }

    fn content(image: &RamImage) -> Vec<u8> {
        let mut all = vec![0; bytes(image.pages)];
        image.read(0, &mut all).unwrap();
        all.chunks(PAGE_BYTES).map(|page| page[17]).collect()
    }

    fn changes(values: &[(u64, u8)]) -> Vec<Extent> {
        let mut store = PageStore::new(PAGES).unwrap();
        for (at, value) in values {
            store.push(*at, &page(*value)).unwrap();
        }
        store.into_extents().unwrap()
    }

    #[test]
    fn a_sealed_image_cannot_be_written() {
        let extents = changes(&[(1, 1)]);
        assert!(extents[0].file.write_all_at(&[9], 0).is_err());
        assert!(extents[0].file.set_len(0).is_err());
    }

    /// A pipe that a page was spliced into holds a reference to it, as the host's reclaim and compaction do for a
    /// while.
    #[test]
    fn an_image_can_be_sealed_while_something_holds_its_pages() {
        let mut store = PageStore::new(PAGES).unwrap();
        store.push(1, &page(1)).unwrap();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let none = rustix::pipe::SpliceFlags::empty();
        let spliced = rustix::pipe::splice(&store.file, Some(&mut 0), &writer, None, PAGE_BYTES, none);
        assert_eq!(spliced, Ok(PAGE_BYTES));
        let extents = store.into_extents().unwrap();
        assert!(extents[0].file.write_all_at(&[9], 0).is_err());
    }

    #[test]
    fn pages_come_in_ascending_order_and_within_ram() {
        let mut store = PageStore::new(4).unwrap();
        store.push(2, &page(1)).unwrap();
        assert!(store.push(2, &page(1)).is_err());
        assert!(store.push(1, &page(1)).is_err());
        assert!(store.push(4, &page(1)).is_err());
        assert!(store.push(u64::MAX, &page(1)).is_err());
        store.push(3, &page(2)).unwrap();
        let image = store.finish().unwrap();
        assert_eq!(image.runs().collect::<Vec<_>>(), [(2, 2)]);
        assert_eq!(content(&image), [0, 0, 1, 2]);
    }

    proptest! {
        #[test]
        fn later_pages_hide_earlier_ones(
            layers in proptest::collection::vec(proptest::collection::btree_map(0..PAGES, 1_u8.., 0..20), 0..6)
        ) {
            let (mut image, mut expected) = (RamImage::zero(PAGES), vec![0; bytes(PAGES) / PAGE_BYTES]);
            for layer in &layers {
                let (before, old) = (image.clone(), expected.clone());
                let values: Vec<(u64, u8)> = layer.iter().map(|(page, value)| (*page, *value)).collect();
                image = image.overlaid(changes(&values)).unwrap();
                for (at, value) in values {
                    expected[usize::try_from(at).unwrap()] = value;
                }
                let differs = (0..PAGES).find(|page| old[bytes(*page) / PAGE_BYTES] != expected[bytes(*page) / PAGE_BYTES]);
                prop_assert_eq!(image.first_difference(&before).unwrap(), differs);
                prop_assert!(image.extents.windows(2).all(|pair| pair[0].end() <= pair[1].page));
            }
            prop_assert_eq!(content(&image), expected.clone());
            let gathered = image.gathered().unwrap();
            prop_assert_eq!(image.first_difference(&gathered).unwrap(), None);
            prop_assert_eq!(content(&gathered), expected);
        }
    }
}
