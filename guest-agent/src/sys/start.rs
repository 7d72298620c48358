//! Entry point, heap and panic handler, which a C library would provide.

use core::arch::naked_asm;
use core::panic::PanicInfo;
use linked_list_allocator::LockedHeap;

/// Bytes of the heap. It is in .bss, so only the used part costs memory. The largest allocations are a request and a
/// reply of the size of the mailbox window, and their decoded forms.
const HEAP_BYTES: usize = 16 << 20;

static mut HEAP_MEMORY: [u8; HEAP_BYTES] = [0; HEAP_BYTES];

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// The entry point. The kernel jumps here with the argument block at the stack pointer; the agent does not use it.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    // The convention of a call: the stack pointer is a multiple of 16 before the return address is pushed.
    naked_asm!("xor ebp, ebp", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    let memory = (&raw mut HEAP_MEMORY).cast();
    // SAFETY: nothing else names this memory, and this runs once, before anything allocates.
    unsafe { HEAP.lock().init(memory, HEAP_BYTES) };
    crate::run()
}

/// Prints the message and powers the machine off. Also called when the heap is exhausted.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    use core::fmt::Write;
    let mut line = Line {
        text: [0; 256],
        length: 0,
    };
    // A longer line is cut.
    let _ = write!(line, "<2>baton agent: {info}");
    line.end();
    let text = &line.text[..line.length];
    crate::console::write_first(&[("/dev/kmsg", text), ("/dev/console", &text[3..])]);
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    super::exit(1)
}

/// One line of text without a heap.
struct Line {
    text: [u8; 256],
    length: usize,
}

impl Line {
    /// Makes it a line, whatever was written.
    fn end(&mut self) {
        for byte in &mut self.text[..self.length] {
            if *byte == b'\n' {
                *byte = b' ';
            }
        }
        self.text[self.length] = b'\n';
        self.length += 1;
    }
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if self.length + 1 == self.text.len() {
                return Err(core::fmt::Error);
            }
            self.text[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}
