//! Physical memory in a file: byte 0 of the file is physical address 0.

use crate::evidence::PAGE;
use guest_agent::pattern::PAGE_BYTES;
use kho_core::{MemoryError, PhysicalMemory, PhysicalMemoryMut, Region};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// First bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Most pages other than zero pages in a compressed image: 4 GiB.
const MAX_UNPACKED_PAGES: usize = 1 << 20;
/// log2 of the largest zstd window, in bytes: `zstd --long=30`. The decoder allocates the window.
const MAX_WINDOW_LOG: u32 = 30;
/// Largest unpacked size of a compressed image, in bytes. It bounds the time to unpack zeroes, which take almost no
/// packed space.
const MAX_UNPACKED_BYTES: u64 = 1 << 40;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The operating system refused to open or read it.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// It is not an image of the expected kind; the text says why.
    #[error("{0}")]
    Wrong(String),
}

/// A file that holds RAM.
#[derive(Debug)]
pub enum Image {
    /// A raw image; each access reads the file.
    Raw {
        /// The file.
        file: File,
        /// Its size in bytes.
        size: u64,
    },
    /// A compressed image, unpacked into memory without its zero pages.
    Unpacked {
        /// Pages by page frame number.
        pages: BTreeMap<u64, Box<[u8]>>,
        /// Size of the whole image in bytes.
        size: u64,
    },
}

impl Image {
    /// Opens an image for reading; one in zstd's format is unpacked.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path)?;
        let size = size_of(&file)?;
        let mut magic = [0; 4];
        if size >= 4 {
            file.read_exact_at(&mut magic, 0)?;
        }
        if magic == ZSTD_MAGIC {
            return unpack(file);
        }
        Ok(Self::Raw { file, size })
    }

    /// Opens a raw image for writing.
    pub fn open_writable(path: &Path) -> Result<Self, ImageError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = size_of(&file)?;
        let mut magic = [0; 4];
        if size >= 4 {
            file.read_exact_at(&mut magic, 0)?;
        }
        if magic == ZSTD_MAGIC {
            return Err(ImageError::Wrong(
                "is compressed; a handover can only be built into a raw image".into(),
            ));
        }
        Ok(Self::Raw { file, size })
    }

    /// A second handle on the image. For a raw image both see each other's writes.
    pub fn again(&self) -> Result<Self, ImageError> {
        match self {
            Self::Raw { file, size } => Ok(Self::Raw {
                file: file.try_clone()?,
                size: *size,
            }),
            Self::Unpacked { pages, size } => Ok(Self::Unpacked {
                pages: pages.clone(),
                size: *size,
            }),
        }
    }

    /// Page frames that may hold something else than zeroes, ascending.
    pub fn frames(&self) -> Vec<u64> {
        match self {
            Self::Raw { size, .. } => (0..size / PAGE).collect(),
            Self::Unpacked { pages, .. } => pages.keys().copied().collect(),
        }
    }

    /// Copies all pages that are not zero into other memory.
    pub fn copy_into(&self, into: &mut dyn PhysicalMemoryMut) -> Result<(), MemoryError> {
        let mut page = [0; PAGE_BYTES];
        for frame in self.frames() {
            let at = frame * PAGE;
            self.read(at, &mut page)?;
            if page.iter().any(|byte| *byte != 0) {
                into.write(at, &page)?;
            }
        }
        Ok(())
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Raw { size, .. } | Self::Unpacked { size, .. } => *size,
        }
    }

    /// The whole contents; `None` if there are more than `limit` bytes or they cannot be read.
    pub fn small(&self, limit: u64) -> Option<Vec<u8>> {
        let size = usize::try_from(self.size())
            .ok()
            .filter(|_| self.size() <= limit)?;
        let mut bytes = vec![0; size];
        self.read(0, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// Size of a regular file in bytes; an error for anything else.
fn size_of(file: &File) -> Result<u64, ImageError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ImageError::Wrong("is not a regular file".into()));
    }
    Ok(metadata.len())
}

fn unpack(file: File) -> Result<Image, ImageError> {
    let mut stream = zstd::Decoder::new(file)?;
    stream.window_log_max(MAX_WINDOW_LOG)?;
    let (mut pages, mut size, mut page) = (BTreeMap::new(), 0_u64, vec![0; PAGE_BYTES]);
    loop {
        let filled = fill(&mut stream, &mut page)
            .map_err(|error| ImageError::Wrong(format!("cannot be unpacked: {error}")))?;
        if page.iter().take(filled).any(|byte| *byte != 0) {
            page[filled..].fill(0);
            pages.insert(size / PAGE, page.clone().into_boxed_slice());
        }
        size += filled as u64;
        if filled < PAGE_BYTES {
            return Ok(Image::Unpacked { pages, size });
        }
        if pages.len() > MAX_UNPACKED_PAGES || size > MAX_UNPACKED_BYTES {
            return Err(ImageError::Wrong(
                "unpacks to more than 4 GiB of pages with something in them, or 1 TiB; unpack it to a file first"
                    .into(),
            ));
        }
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut impl Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match stream.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl PhysicalMemory for Image {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let size = buf.len() as u64;
        if address.checked_add(size).is_none_or(|end| end > self.size()) {
            return Err(MemoryError::OutsideRam { address, size });
        }
        match self {
            Self::Raw { file, .. } => file
                .read_exact_at(buf, address)
                .map_err(|_| MemoryError::Failed { address, size }),
            Self::Unpacked { pages, .. } => {
                let (mut at, mut rest) = (address, buf);
                while !rest.is_empty() {
                    let offset = usize::try_from(at % PAGE).unwrap_or(0);
                    let length = rest.len().min(PAGE_BYTES - offset);
                    let (part, others) = rest.split_at_mut(length);
                    match pages.get(&(at / PAGE)) {
                        Some(page) => part.copy_from_slice(&page[offset..offset + length]),
                        None => part.fill(0),
                    }
                    at += length as u64;
                    rest = others;
                }
                Ok(())
            }
        }
    }

    fn ranges(&self) -> Vec<Region> {
        vec![Region::new(0, self.size())]
    }
}

impl PhysicalMemoryMut for Image {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let size = bytes.len() as u64;
        if address.checked_add(size).is_none_or(|end| end > self.size()) {
            return Err(MemoryError::OutsideRam { address, size });
        }
        let failed = MemoryError::Failed { address, size };
        match self {
            Self::Raw { file, .. } => file.write_all_at(bytes, address).map_err(|_| failed),
            Self::Unpacked { .. } => Err(failed),
        }
    }
}
