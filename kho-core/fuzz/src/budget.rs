//! An allocator that counts per thread, to measure how much memory a piece of code holds at most.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Bytes that reading an input may take beyond the input's own size.
const OVER_INPUT: usize = 64 << 20;

/// Runs a target on an input, and panics if it ever held more memory than an input of that size may take.
pub fn run(target: fn(&[u8]), input: &[u8]) {
    let peak = peak_of(|| target(input));
    let limit = OVER_INPUT + input.len();
    assert!(peak <= limit, "held {peak} bytes, at most {limit} are allowed");
}

/// Calls `work` and returns the most bytes that it held at any moment, on this thread.
pub fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    work();
    usize::try_from(PEAK.get() - before).unwrap_or(0)
}

thread_local! {
    /// Bytes that this thread holds. Negative if it frees what another thread allocated.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The highest value of [`LIVE`] since it was set.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Adds to what this thread holds.
fn count(bytes: isize) {
    // When a thread ends, it still frees memory after its counters are gone.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        PEAK.try_with(|peak| peak.set(peak.get().max(live.get())))
    });
}

/// Size of a layout. No layout is larger than `isize::MAX`.
fn size(layout: Layout) -> isize {
    isize::try_from(layout.size()).unwrap_or(isize::MAX)
}

/// The system's allocator with a counter.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator unchanged, and so is its result; the counters are plain
// cells of the thread that neither allocate nor unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout));
        // SAFETY: the caller's promise holds for the system's allocator too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout));
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-size(layout));
        // SAFETY: `memory` is from the system's allocator, because all memory of this one is.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // While memory moves, old and new exist at the same time.
        let grown = isize::try_from(new_size).unwrap_or(isize::MAX);
        count(grown);
        count(-size(layout));
        // SAFETY: as for `dealloc`; the new size is the caller's.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}
