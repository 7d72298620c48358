//! Memory that devices and the host change while it is mapped. It is accessed through raw pointers only, never by
//! reference.

use core::arch::x86_64::{
    __m128i, _mm_add_epi64, _mm_cvtsi128_si64, _mm_load_si128, _mm_setzero_si128, _mm_unpackhi_epi64,
};
use core::ptr::{NonNull, null_mut};
use core::slice;
use guest_agent::pattern::{PAGE_BYTES, PAGE_WORDS, fold_digest};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};

/// A mapping of whole pages, readable and writable, unmapped when dropped. Accesses outside it panic.
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Maps device registers.
    pub fn registers(bar: &OwnedFd, bytes: u64) -> Result<Self> {
        Self::shared(bar, bytes)
    }

    /// Maps a file. Its pages are faulted in when touched.
    pub fn file(file: &OwnedFd, bytes: u64) -> Result<Self> {
        Self::shared(file, bytes)
    }

    /// Maps a file for reading alone. A store to it ends the agent.
    pub fn file_to_read(file: &OwnedFd, bytes: u64) -> Result<Self> {
        Self::shared_for(file, bytes, ProtFlags::READ)
    }

    /// Maps anonymous memory and locks it, so that all of it is present.
    pub fn locked(bytes: u64) -> Result<Self> {
        let bytes = length(bytes)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(null_mut(), bytes, READ_WRITE, MapFlags::PRIVATE) }?;
        let mapping = Self::of(base.cast(), bytes)?;
        // SAFETY: this names the mapping just made.
        unsafe { mlock(base, bytes) }?;
        Ok(mapping)
    }

    /// Reserves addresses for anonymous memory of which no page exists yet. It is not counted as used
    /// (MAP_NORESERVE), so it may be larger than what is free.
    pub fn empty(bytes: u64) -> Result<Self> {
        let bytes = length(bytes)?;
        let flags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(null_mut(), bytes, READ_WRITE, flags) }?;
        let mapping = Self::of(base.cast(), bytes)?;
        // Single pages, not huge ones, so that every free page can be taken. A kernel without huge pages refuses.
        // SAFETY: this names the mapping just made, and changes no content.
        let _ = unsafe { madvise(base, bytes, Advice::LinuxNoHugepage) };
        Ok(mapping)
    }

    /// Makes the pages from `offset` on exist, as if each were written to. Both numbers are multiples of a page.
    pub fn populate(&self, offset: u64, bytes: u64) -> Result<()> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes());
        if !inside {
            return Err(Errno::INVAL);
        }
        let (offset, bytes) = (length(offset)?, length(bytes)?);
        // SAFETY: inside the mapping.
        let first = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the advice writes no content that could be seen: pages that exist keep theirs.
        unsafe { madvise(first.cast(), bytes, Advice::LinuxPopulateWrite) }
    }

    fn shared(file: &OwnedFd, bytes: u64) -> Result<Self> {
        Self::shared_for(file, bytes, READ_WRITE)
    }

    fn shared_for(file: &OwnedFd, bytes: u64, access: ProtFlags) -> Result<Self> {
        let bytes = length(bytes)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap(null_mut(), bytes, access, MapFlags::SHARED, file, 0) }?;
        Self::of(base.cast(), bytes)
    }

    fn of(base: *mut u8, bytes: usize) -> Result<Self> {
        Ok(Self {
            base: NonNull::new(base).ok_or(Errno::FAULT)?,
            bytes,
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Virtual address of the first byte.
    pub fn address(&self) -> u64 {
        self.base.addr().get() as u64
    }

    /// One 32-bit load at a multiple of 4.
    pub fn read_u32(&self, offset: u64) -> u32 {
        // SAFETY: `at` gives an aligned pointer into the mapping, and any bits are a value.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// One 32-bit store at a multiple of 4.
    pub fn write_u32(&self, offset: u64, value: u32) {
        // SAFETY: `at` gives an aligned pointer into the mapping, which no reference points into.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    /// One 64-bit load at a multiple of 8.
    pub fn read_u64(&self, offset: u64) -> u64 {
        // SAFETY: `at` gives an aligned pointer into the mapping, and any bits are a value.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    /// One 64-bit store at a multiple of 8.
    pub fn write_u64(&self, offset: u64, value: u64) {
        // SAFETY: `at` gives an aligned pointer into the mapping, which no reference points into.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }

    /// Writes `window`, a page of words, to page `index`, with `mark` as its first word.
    pub fn fill_page(&self, index: u64, window: &[u64], mark: u64) {
        assert!(
            window.len() == PAGE_WORDS,
            "a page has {PAGE_WORDS} words, not {}",
            window.len()
        );
        let page = self
            .at::<[u64; PAGE_WORDS]>(index * PAGE_BYTES as u64)
            .cast::<u64>();
        // SAFETY: both are a page of words, `at` vouches for the target, and no reference points into it.
        unsafe { page.copy_from_nonoverlapping(window.as_ptr(), PAGE_WORDS) };
        self.write_u64(index * PAGE_BYTES as u64, mark);
    }

    /// [`guest_agent::pattern::page_digest`] of page `index`.
    pub fn page_digest(&self, index: u64) -> u64 {
        let page = self.at::<[__m128i; PAIRS]>(index * PAGE_BYTES as u64);
        // SAFETY: `at` vouches for the page, and every x86-64 processor has SSE2.
        let (a, b) = unsafe { sums(page.cast()) };
        fold_digest(a, b)
    }

    /// A pointer to a `T` at `offset`, which is inside the mapping and aligned.
    fn at<T>(&self, offset: u64) -> *mut T {
        let size = size_of::<T>() as u64;
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.bytes());
        assert!(
            inside && offset.is_multiple_of(align_of::<T>() as u64),
            "no {size} bytes at {offset:#x} of a mapping"
        );
        #[allow(clippy::cast_possible_truncation)] // inside the mapping
        // SAFETY: checked to be inside.
        unsafe { self.base.as_ptr().add(offset as usize) }.cast()
    }
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: no reference points into the memory, so it is accessed by volatile accesses, copies and sums only, as
// devices and the host may change it at any time; threads that use it at the same time work on different pages.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing points into it any more. It can only fail for a bad range.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
/// Pairs of words in a page.
const PAIRS: usize = PAGE_WORDS / 2;

fn length(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Errno::OVERFLOW)
}

/// Words as the bytes that they are in memory.
pub fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: the same memory for the same time, and any byte is a value.
    unsafe { slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// The sums for [`fold_digest`], in two additions (one of them with a load) per 16 bytes. Each word that a device
/// writes meanwhile may or may not be seen.
///
/// # Safety
/// `page` points to [`PAIRS`] aligned pairs of words.
#[target_feature(enable = "sse2")]
unsafe fn sums(page: *const __m128i) -> ([u64; 2], [u64; 2]) {
    let (mut a, mut b) = (_mm_setzero_si128(), _mm_setzero_si128());
    // Unrolled by hand: a build for size does not unroll loops, and the loop would cost more than the sums.
    macro_rules! steps {
        ($block:ident, $($step:literal)*) => {$(
            // SAFETY: inside the page and aligned.
            a = _mm_add_epi64(a, unsafe { _mm_load_si128($block.add($step)) });
            b = _mm_add_epi64(b, a);
        )*};
    }
    for block in (0..PAIRS).step_by(16) {
        // SAFETY: inside the page.
        let block = unsafe { page.add(block) };
        steps!(block, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
    (lanes(a), lanes(b))
}

/// The two words of a register.
#[target_feature(enable = "sse2")]
fn lanes(register: __m128i) -> [u64; 2] {
    let high = _mm_unpackhi_epi64(register, register);
    [register, high].map(|word| _mm_cvtsi128_si64(word).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agent::pattern::{Pattern, page_digest};

    #[test]
    fn fill_and_digest_are_the_patterns() {
        let mapping = Mapping::locked(3 * PAGE_BYTES as u64).unwrap();
        let pattern = Pattern::new(42);
        for page in 0..3 {
            mapping.fill_page(page, pattern.window(page), pattern.mark(page));
        }
        for page in 0..3 {
            let mut words = [0; PAGE_WORDS];
            pattern.fill(page, &mut words);
            let read: Vec<u64> = (0..PAGE_WORDS as u64)
                .map(|word| mapping.read_u64(page * PAGE_BYTES as u64 + word * 8))
                .collect();
            assert_eq!(read, words);
            assert_eq!(mapping.page_digest(page), page_digest(&words));
        }
    }

    #[test]
    fn the_digest_sees_a_single_bit_anywhere() {
        let mapping = Mapping::locked(PAGE_BYTES as u64).unwrap();
        let clean = mapping.page_digest(0);
        for word in 0..PAGE_WORDS as u64 {
            mapping.write_u64(word * 8, 1 << (word % 64));
            let mut words = [0; PAGE_WORDS];
            words[usize::try_from(word).unwrap()] = 1 << (word % 64);
            assert_ne!(mapping.page_digest(0), clean);
            assert_eq!(mapping.page_digest(0), page_digest(&words));
            mapping.write_u64(word * 8, 0);
        }
    }

    #[test]
    fn an_empty_mapping_is_populated_in_part() {
        let page = PAGE_BYTES as u64;
        let mapping = Mapping::empty(1 << 40).unwrap();
        mapping.populate(page, 2 * page).unwrap();
        mapping.write_u64(page, 7);
        mapping.populate(0, 3 * page).unwrap();
        assert_eq!([0, page].map(|at| mapping.read_u64(at)), [0, 7]);
        assert_eq!(mapping.populate((1 << 40) - page, 2 * page), Err(Errno::INVAL));
    }

    #[test]
    fn a_file_is_mapped_as_it_is() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, PAGE_BYTES as u64).unwrap();
        let mapping = Mapping::file(&file, PAGE_BYTES as u64).unwrap();
        mapping.write_u32(4, 0x0403_0201);
        let mut bytes = [0; 8];
        rustix::io::pread(&file, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(mapping.read_u32(4), 0x0403_0201);
    }

    #[test]
    #[should_panic(expected = "of a mapping")]
    fn outside_is_refused() {
        Mapping::locked(PAGE_BYTES as u64)
            .unwrap()
            .read_u64(PAGE_BYTES as u64);
    }

    #[test]
    #[should_panic(expected = "of a mapping")]
    fn crooked_is_refused() {
        Mapping::locked(PAGE_BYTES as u64).unwrap().read_u64(4);
    }
}
