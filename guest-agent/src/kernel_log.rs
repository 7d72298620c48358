//! What the kernel has logged, from /dev/kmsg.

use crate::failure::{Failure, Named};
use crate::files;
use alloc::vec;
use alloc::vec::Vec;
use guest_agent::kmsg;
use guest_agent::protocol::{LogRecord, Reply};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;

const PATH: &str = "/dev/kmsg";
/// Longest result of one read, as the kernel forms it (kernel/printk/internal.h, PRINTK_MESSAGE_MAX with escapes).
const MAX_RECORD_BYTES: usize = 8192;
/// Most bytes of text in one reply, with as much again for a record that goes beyond.
const MAX_REPLY_BYTES: usize = 48 << 10;
/// Bytes of a record besides its text, at most.
const RECORD_OVERHEAD: usize = 16;

/// A reader of the kernel's log.
#[derive(Default)]
pub struct KernelLog {
    /// Open from the first request on.
    file: Option<OwnedFd>,
    /// Number of the next record.
    next: u64,
}

impl KernelLog {
    /// What was logged since the last call, as much as fits a reply.
    pub fn read(&mut self) -> Result<Reply, Failure> {
        let file = match self.file.take() {
            Some(file) => file,
            None => files::open(PATH, OFlags::RDONLY | OFlags::NONBLOCK)?,
        };
        let file = &*self.file.insert(file);
        let mut buffer = vec![0; MAX_RECORD_BYTES];
        let (mut records, mut bytes, mut lost): (Vec<LogRecord>, usize, u64) = (Vec::new(), 0, 0);
        let more = loop {
            if bytes >= MAX_REPLY_BYTES {
                break true;
            }
            let length = match rustix::io::read(file, &mut buffer[..]) {
                Ok(0) | Err(Errno::AGAIN) => break false,
                Ok(length) => length,
                // The next record was overwritten; the number of the one after says how many were.
                Err(Errno::PIPE | Errno::INTR) => continue,
                Err(errno) => return Err(errno).named(|| "read(/dev/kmsg)"),
            };
            let Some(found) = kmsg::parse(&buffer[..length]) else {
                lost += 1;
                continue;
            };
            lost += found.sequence.saturating_sub(self.next);
            self.next = found.sequence.saturating_add(1);
            if found.facility == 0 {
                bytes += found.record.text.len() + RECORD_OVERHEAD;
                records.push(found.record);
            }
        };
        Ok(Reply::KernelLog { records, lost, more })
    }
}
