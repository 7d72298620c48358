//! A decoded handover as a tree of labelled lines: what a person, a golden file or a debugger's pane shows.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::abi::PAGE_SHIFT;
use crate::map::order_size;
use crate::memory::len64;
use crate::model::{Content, File, FileContent, Flb, Handover, Luo, Memfd, Session, SubBlob, Vmalloc};
use crate::owners::Owners;

/// Default limit of folios, extents and the like that one node lists before it says how many more there are.
pub const LIST_LIMIT: usize = 16;

/// A line of the tree, and the lines under it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Line {
    /// Physical address of what the line shows; `None` for headings and sums.
    pub at: Option<u64>,
    /// What it is.
    pub label: String,
    /// What is said about it.
    pub text: String,
    /// The lines under it.
    pub children: Vec<Line>,
}

impl Line {
    fn new(at: impl Into<Option<u64>>, label: impl ToString, text: impl ToString) -> Self {
        Self {
            at: at.into(),
            label: label.to_string(),
            text: text.to_string(),
            children: Vec::new(),
        }
    }

    fn with(mut self, children: impl IntoIterator<Item = Line>) -> Self {
        self.children.extend(children);
        self
    }
}

/// Draws the line and all under it; the last line ends without a newline.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        draw(self, f, "", "", "")
    }
}

fn draw(line: &Line, f: &mut fmt::Formatter<'_>, margin: &str, branch: &str, below: &str) -> fmt::Result {
    match line.at {
        Some(at) => write!(f, "{at:#14x}  ")?,
        None => f.write_str("                ")?,
    }
    write!(f, "{margin}{branch}{}", line.label)?;
    if !line.text.is_empty() {
        write!(f, "  {}", line.text)?;
    }
    let margin = format!("{margin}{below}");
    let last = line.children.len().saturating_sub(1);
    for (index, child) in line.children.iter().enumerate() {
        writeln!(f)?;
        let (branch, below) = if index == last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        draw(child, f, &margin, branch, below)?;
    }
    Ok(())
}

/// A number of bytes in the largest unit that is exact: `8 MiB`, `12 KiB`, `73 B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let steps = if self.0 == 0 {
            0
        } else {
            (self.0.trailing_zeros() / 10).min(6)
        };
        let unit = usize::try_from(steps)
            .ok()
            .and_then(|steps| units.get(steps))
            .unwrap_or(&"B");
        f.pad(&format!("{} {unit}", self.0 >> steps.saturating_mul(10)))
    }
}

/// A count and a noun with a regular plural: `1 session`, `2 sessions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted<'a>(pub u64, pub &'a str);

impl<'a> Counted<'a> {
    /// As many as a list has.
    pub fn of(length: usize, what: &'a str) -> Self {
        Self(len64(length), what)
    }
}

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        f.pad(&format!("{} {}{plural}", self.0, self.1))
    }
}

/// Builds the tree of a handover; no node lists more than `limit` folios, extents and the like.
pub fn tree(handover: &Handover, limit: usize) -> Line {
    let tree = Builder { handover, limit };
    let owners = Owners::of(handover);
    let summary = format!(
        "{} of {} preserved in {}, {}, {}, {}",
        handover.version,
        Bytes(handover.map.pages() << PAGE_SHIFT),
        Counted(handover.map.count(), "block"),
        Counted::of(handover.sub_blobs.len(), "sub-blob"),
        Counted::of(handover.sessions().len(), "session"),
        Counted(handover.findings.count(), "finding"),
    );
    Line::new(handover.fdt.start, "KHO FDT", summary).with(
        [scratch(handover), tree.map()]
            .into_iter()
            .chain(handover.sub_blobs.iter().map(|blob| tree.sub_blob(blob)))
            .chain([tree.owned(&owners)])
            .chain((!handover.findings.is_empty()).then(|| tree.findings())),
    )
}

struct Builder<'h> {
    handover: &'h Handover,
    limit: usize,
}

fn scratch(handover: &Handover) -> Line {
    let areas = handover.scratch.iter().enumerate().map(|(index, area)| {
        Line::new(
            area.at,
            format!("area {index}"),
            format!("{} {}", area.region, Bytes(area.region.size)),
        )
    });
    let at = (handover.scratch_array.size != 0).then_some(handover.scratch_array.start);
    Line::new(at, "scratch", Counted::of(handover.scratch.len(), "area")).with(areas)
}

impl Builder<'_> {
    fn map(&self) -> Line {
        let map = &self.handover.map;
        let text = format!(
            "{}: {}, {}",
            map.format(),
            Counted::of(map.nodes().len(), "table"),
            Counted::of(map.bitmaps().len(), "bitmap")
        );
        let by_order = map.bitmaps().chunk_by(|one, other| one.order == other.order);
        let orders = by_order.filter_map(|bitmaps| {
            let order = bitmaps.first()?.order;
            let count = bitmaps
                .iter()
                .map(|bitmap| bitmap.count())
                .fold(0, u64::saturating_add);
            let bytes = Bytes(count.saturating_mul(order_size(order)));
            Some(Line::new(
                None,
                format!("order {order}"),
                format!("{}, {bytes}", Counted(count, "block")),
            ))
        });
        // Takes no more of them than are listed, because even a small map has millions.
        let mut extents = map.extents_by_address();
        let listed: Vec<_> = extents.by_ref().take(self.limit).collect();
        let more = extents.count();
        let count = listed.len().saturating_add(more);
        let lines = listed
            .iter()
            .map(|extent| Line::new(extent.start, "", format!("{extent} {}", Bytes(extent.size))));
        let extents = Line::new(None, "extents", count).with(lines.chain(and_more(more)));
        Line::new(map.root(), "preserved-memory map", text).with(orders.chain([extents]))
    }

    fn sub_blob(&self, blob: &SubBlob) -> Line {
        let size = blob
            .size
            .map_or_else(|| "size unknown".to_string(), |size| Bytes(size).to_string());
        let heading = |text: String| {
            Line::new(
                blob.address,
                format!("\"{}\"", blob.name),
                format!("{size}, {text}"),
            )
        };
        match &blob.content {
            Content::Luo(luo) => {
                let text = format!("{}, live update {}", luo.version, luo.liveupdate_number);
                heading(text).with(self.luo_lines(luo))
            }
            Content::Memblock(memblock) => {
                let regions = Counted::of(memblock.regions.len(), "region");
                heading(format!("memblock-v1, {regions}")).with(memblock.regions.iter().map(|region| {
                    let text = format!("{} {}", region.region, Bytes(region.region.size));
                    Line::new(region.at, format!("reserve_mem \"{}\"", region.name), text)
                }))
            }
            Content::KexecMetadata(metadata) => heading(format!(
                "version {}, kexec {} from \"{}\"",
                metadata.version, metadata.kexec_count, metadata.previous_release
            )),
            Content::TestKho(test) => {
                let folios = Counted(test.count.into(), "folio");
                heading(format!("kho-test-v1, {folios}")).with(
                    test.list.iter().map(|list| self.vmalloc(list)).chain(
                        self.limited(&test.folios, |folio| {
                            Line::new(folio.address, "folio", format!("order {}", folio.order))
                        }),
                    ),
                )
            }
            Content::Fdt { compatible } => {
                heading(format!("unknown FDT \"{}\"", compatible.as_deref().unwrap_or("")))
            }
            Content::Opaque => heading("unknown contents".to_string()),
        }
    }

    fn luo_lines(&self, luo: &Luo) -> Vec<Line> {
        let sessions = luo.sessions.iter().map(|session| self.session_line(session));
        sessions.chain(luo.flbs.iter().map(flb)).collect()
    }

    fn session_line(&self, session: &Session) -> Line {
        Line::new(
            session.at,
            format!("session \"{}\"", session.name),
            Counted::of(session.files.len(), "file"),
        )
        .with(session.files.iter().map(|file| self.file_line(file)))
    }

    fn file_line(&self, file: &File) -> Line {
        let line = Line::new(
            file.at,
            format!("token {:#x}", file.token),
            format!("{}, data {:#x}", file.compatible, file.data),
        );
        match &file.content {
            FileContent::Memfd(memfd) => line.with([self.memfd_line(memfd)]),
            FileContent::Opaque => line,
        }
    }

    fn memfd_line(&self, memfd: &Memfd) -> Line {
        let text = format!(
            "{}, position {}, seals {:#x}, flags {:#x}, {}",
            Bytes(memfd.size),
            memfd.position,
            memfd.seals,
            memfd.flags,
            Counted::of(memfd.folios.len(), "folio")
        );
        let folios = self.limited(&memfd.folios, |folio| {
            let region = self.handover.folio_region(folio);
            let mut text = format!("page {}, {}", folio.index, Bytes(region.size));
            text.push_str(if folio.dirty() { ", dirty" } else { "" });
            text.push_str(if folio.up_to_date() { ", up to date" } else { "" });
            Line::new(folio.address, "folio", text)
        });
        Line::new(memfd.at, "memfd", text).with([self.vmalloc(&memfd.list)].into_iter().chain(folios))
    }

    fn vmalloc(&self, area: &Vmalloc) -> Line {
        let text = format!(
            "{} in {} of order {}, {}",
            Counted(area.total_pages.into(), "page"),
            Counted::of(area.runs.len(), "run"),
            area.order,
            Counted::of(area.chunks.len(), "chunk")
        );
        let chunks = self.limited(&area.chunks, |chunk| Line::new(*chunk, "chunk", ""));
        let runs = self.limited(&area.runs, |run| Line::new(*run, "run", ""));
        Line::new(area.at, "vmalloc area", text).with(chunks.into_iter().chain(runs))
    }

    fn owned(&self, owners: &Owners) -> Line {
        let unowned = self.limited(owners.unowned(), |region| {
            Line::new(
                region.start,
                "owned by nobody",
                format!("{region} {}", Bytes(region.size)),
            )
        });
        let records: Vec<_> = owners.iter().copied().collect();
        let lines = self.limited(&records, |record| {
            let text = format!(
                "{} {}",
                record.owner.describe(self.handover),
                Bytes(record.region.size)
            );
            Line::new(record.region.start, text, "")
        });
        let text = format!("{} preserved that nobody owns", Bytes(owners.unowned_bytes()));
        Line::new(None, "owners", text).with(lines.into_iter().chain(unowned))
    }

    fn findings(&self) -> Line {
        let list: Vec<_> = self.handover.findings.iter().collect();
        let lines = self.limited(&list, |finding| {
            let text = format!(
                "{}: expected {}, found {}",
                finding.what, finding.expected, finding.found
            );
            Line::new(
                finding.at,
                format!("{} {}", finding.severity(), finding.rule),
                text,
            )
        });
        Line::new(None, "findings", self.handover.findings.count()).with(lines)
    }

    /// The first items as lines, and one that counts the others.
    fn limited<T>(&self, items: &[T], line: impl Fn(&T) -> Line) -> Vec<Line> {
        let mut lines: Vec<_> = items.iter().take(self.limit).map(line).collect();
        lines.extend(and_more(items.len().saturating_sub(self.limit)));
        lines
    }
}

/// The line for what is not listed.
fn and_more(more: usize) -> Option<Line> {
    (more > 0).then(|| Line::new(None, format!("and {more} more"), ""))
}

fn flb(flb: &Flb) -> Line {
    let text = format!("data {:#x}, {}", flb.data, Counted(flb.count, "file"));
    Line::new(flb.at, format!("FLB \"{}\"", flb.compatible), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        let shown = |size| Bytes(size).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(73), "73 B");
        assert_eq!(shown(8 << 20), "8 MiB");
        assert_eq!(shown((1 << 20) + 1024), "1025 KiB");
        assert_eq!(shown(u64::MAX), "18446744073709551615 B");
    }

    #[test]
    fn one_of_something_is_not_many() {
        let shown = |count| Counted(count, "page").to_string();
        assert_eq!([0, 1, 2].map(shown), ["0 pages", "1 page", "2 pages"]);
    }

    #[test]
    fn lines_are_drawn_as_a_tree() {
        let tree = Line::new(0x10, "a", "x").with([
            Line::new(None, "b", "").with([Line::new(0x20, "c", "")]),
            Line::new(None, "d", ""),
        ]);
        let drawn =
            "          0x10  a  x\n                ├─ b\n          0x20  │  └─ c\n                └─ d";
        assert_eq!(tree.to_string(), drawn);
    }
}
