//! Draws the address space as SVG: RAM, scratch, preserved memory by owner.
//!
//! RAM is drawn as rows of equal size, read like text. A cell is one pixel wide. If several classes have memory in a
//! cell, the cell shows the one that is last in the legend, so that a single page of records is visible within other
//! memory. The size of the SVG does not grow with the amount of RAM: at most [`MAX_ROWS`] rows of [`CELLS`] cells are
//! drawn.

use super::classes::{self, Extent};
use super::locate::Located;
use kho_core::tree::Bytes;
use kho_core::{Owner, Owners, Region};
use std::fmt::Write;
use std::path::Path;

/// Cells in a row, one pixel each.
const CELLS: usize = 1024;
/// Most rows.
const MAX_ROWS: u64 = 32;
/// Least memory in a row, in bytes: a page is then four cells wide.
const MIN_ROW: u64 = 1 << 20;
/// Owners of data with a colour of their own; the others share one.
const DATA_COLOURS: [&str; 8] = [
    "#2a7f62", "#e07b39", "#7b5ea7", "#c9a227", "#1f8a9e", "#b0457b", "#6b8e23", "#8c564b",
];
const OTHER_DATA: &str = "#555555";
const RAM: &str = "#e9edf0";
const SCRATCH: &str = "#a9cdf0";
const UNCLAIMED: &str = "#f2a7a0";
const RECORDS: &str = "#14304d";
const MAP: &str = "#d6204e";

const LEFT: usize = 130;
const TOP: usize = 96;
const ROW_HEIGHT: usize = 16;
const ROW_STEP: usize = 21;
const LEGEND_STEP: usize = 22;

/// Memory that is drawn in one colour.
struct Class {
    label: String,
    colour: &'static str,
    regions: Vec<Region>,
}

impl Class {
    fn bytes(&self) -> u64 {
        self.regions
            .iter()
            .fold(0, |sum, region| sum.saturating_add(region.size))
    }
}

/// Draws the handover's memory; returns the SVG document.
pub(super) fn draw(file: &Path, located: &Located) -> String {
    let classes = classes(located);
    let ram = located.image.size();
    let row = ram.div_ceil(MAX_ROWS).next_power_of_two().max(MIN_ROW);
    let rows = usize::try_from(ram.div_ceil(row)).unwrap_or(0);
    let below = TOP + rows * ROW_STEP;
    let height = below + 50 + (classes.len() + 1) * LEGEND_STEP + 12;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>",
        width = LEFT + CELLS + 30
    );
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let found = &located.found;
    words(&mut out, (20, 30), 18, "start", &format!("Handover in {name}"));
    let subtitle = format!(
        "{}, KHO FDT at {:#x}, {} of RAM, {} preserved",
        found.handover.version,
        found.handover.fdt.start,
        Bytes(ram),
        Bytes(preserved(&found.handover))
    );
    words(&mut out, (20, 52), 13, "start", &subtitle);
    axis(&mut out, row);
    for index in 0..rows {
        let memory = Region::new(index as u64 * row, row.min(ram - index as u64 * row));
        draw_row(&mut out, index, memory, row, &classes);
    }
    legend(&mut out, below, row, &classes);
    out.push_str("</svg>\n");
    out
}

fn preserved(handover: &kho_core::Handover) -> u64 {
    let extents = handover.map.extents();
    extents
        .iter()
        .fold(0, |sum, extent| sum.saturating_add(extent.size))
}

/// Classes in drawing order. A later class covers earlier ones, so records and the map come last.
fn classes(located: &Located) -> Vec<Class> {
    let handover = &located.found.handover;
    let extents = classes::extents(handover);
    let of = |wanted: &dyn Fn(Option<Owner>) -> bool| -> Vec<Region> {
        let chosen = extents.iter().filter(|extent: &&Extent| wanted(extent.owner));
        chosen.map(|extent| extent.region).collect()
    };
    let class = |label: &str, colour, regions| Class {
        label: label.into(),
        colour,
        regions,
    };
    let scratch = handover.scratch.iter().map(|area| area.region).collect();
    let mut list = vec![
        class("scratch: free for the next kernel to boot in", SCRATCH, scratch),
        class(
            "preserved, but claimed by nobody that is known",
            UNCLAIMED,
            of(&|owner| owner.is_none()),
        ),
    ];
    let is_data = |owner: &Option<Owner>| owner.is_some_and(|owner| !owner.is_record());
    let mut data: Vec<_> = classes::totals(&extents)
        .into_iter()
        .filter(|(owner, _)| is_data(owner))
        .collect();
    data.sort_by_key(|(owner, bytes)| (std::cmp::Reverse(*bytes), *owner));
    let (own, others) = data.split_at(data.len().min(DATA_COLOURS.len()));
    if !others.is_empty() {
        let others: std::collections::BTreeSet<_> = others.iter().map(|(owner, _)| *owner).collect();
        let label = format!("data of {} other owners", others.len());
        list.push(class(&label, OTHER_DATA, of(&|owner| others.contains(&owner))));
    }
    for ((owner, _), colour) in own.iter().zip(DATA_COLOURS) {
        let label = classes::name(*owner, handover);
        list.push(class(&label, colour, of(&|one| one == *owner)));
    }
    list.push(class(
        "records: KHO FDT, sub-blobs, LUO tables, file records",
        RECORDS,
        of(&|owner| owner.is_some_and(Owner::is_record)),
    ));
    let map = Owners::of(handover).regions(|owner| owner == Owner::KhoMap);
    list.push(class("preserved-memory map (not itself preserved)", MAP, map));
    for class in &mut list {
        // Kernels also write scratch areas of zero bytes.
        class.regions.retain(|region| region.size != 0);
    }
    list.retain(|class| !class.regions.is_empty());
    list
}

/// Draws the axis above the rows: offsets from a row's first byte.
fn axis(out: &mut String, row: u64) {
    for tick in 0..=8_u64 {
        let x = LEFT + CELLS / 8 * usize::try_from(tick).unwrap_or(0);
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\" stroke=\"#888888\"/>",
            TOP - 12,
            TOP - 4
        );
        if tick < 8 {
            words(
                out,
                (x, TOP - 17),
                11,
                "middle",
                &format!("+{}", Bytes(row / 8 * tick)),
            );
        }
    }
}

fn draw_row(out: &mut String, index: usize, memory: Region, row: u64, classes: &[Class]) {
    let y = TOP + index * ROW_STEP;
    words(
        out,
        (LEFT - 10, y + 12),
        12,
        "end",
        &format!("{:#x}", memory.start),
    );
    let cell = row / CELLS as u64;
    let width = usize::try_from(memory.size.div_ceil(cell))
        .unwrap_or(CELLS)
        .min(CELLS);
    rectangle(out, (LEFT, y), width, RAM, "");
    for (first, count, class) in runs(&cells(memory, cell, classes)) {
        let Some(class) = class.and_then(|class| classes.get(class)) else {
            continue;
        };
        let start = memory.start + first as u64 * cell;
        let title = format!("{start:#x}-{:#x} {}", start + count as u64 * cell, class.label);
        rectangle(out, (LEFT + first, y), count, class.colour, &title);
    }
}

/// Index of the class that each cell of a row shows; `None` for plain RAM.
fn cells(memory: Region, cell: u64, classes: &[Class]) -> Vec<Option<usize>> {
    let mut cells = vec![None; CELLS];
    for (index, class) in classes.iter().enumerate() {
        for region in class.regions.iter().filter(|region| region.overlaps(&memory)) {
            let first = region.start.max(memory.start) - memory.start;
            let end = region.end().min(memory.end()) - memory.start;
            let at = |offset: u64| usize::try_from(offset).unwrap_or(CELLS).min(CELLS);
            cells[at(first / cell)..at(end.div_ceil(cell))].fill(Some(index));
        }
    }
    cells
}

/// (first cell, number of cells, class) of each run of one class.
fn runs(cells: &[Option<usize>]) -> Vec<(usize, usize, Option<usize>)> {
    let mut first = 0;
    let mut runs = Vec::new();
    for run in cells.chunk_by(PartialEq::eq) {
        runs.push((first, run.len(), run[0]));
        first += run.len();
    }
    runs
}

fn legend(out: &mut String, below: usize, row: u64, classes: &[Class]) {
    let y = below + 14;
    let _ = writeln!(
        out,
        "<path d=\"M{LEFT} {y}v8h{width}v-8\" fill=\"none\" stroke=\"#333333\"/>",
        width = CELLS / 8
    );
    let scale = format!(
        "scale: {}; a row is {}, a pixel {}",
        Bytes(row / 8),
        Bytes(row),
        Bytes(row / CELLS as u64)
    );
    words(out, (LEFT + CELLS / 8 + 12, y + 8), 12, "start", &scale);
    let ram = ("RAM that the handover leaves to the next kernel", RAM, None);
    let rest = classes
        .iter()
        .map(|class| (class.label.as_str(), class.colour, Some(class.bytes())));
    for (index, (label, colour, bytes)) in std::iter::once(ram).chain(rest).enumerate() {
        let y = below + 40 + index * LEGEND_STEP;
        rectangle(out, (LEFT, y), 28, colour, "");
        let size = bytes.map_or(String::new(), |bytes| Bytes(bytes).to_string());
        words(out, (LEFT + 130, y + 12), 12, "end", &size);
        words(out, (LEFT + 146, y + 12), 12, "start", label);
    }
}

fn rectangle(out: &mut String, (x, y): (usize, usize), width: usize, colour: &str, title: &str) {
    let shape =
        format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{ROW_HEIGHT}\" fill=\"{colour}\"");
    let _ = if title.is_empty() {
        writeln!(out, "{shape}/>")
    } else {
        writeln!(out, "{shape}><title>{}</title></rect>", escape(title))
    };
}

fn words(out: &mut String, (x, y): (usize, usize), size: usize, anchor: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"#222222\">{}</text>",
        escape(text)
    );
}

/// Escapes text for XML, because the guest chooses the names in a handover.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_seen_however_much_memory_a_cell_is() {
        let class = |start, size| Class {
            label: String::new(),
            colour: RAM,
            regions: vec![Region::new(start, size)],
        };
        let classes = [
            class(0, 1 << 30),
            class(0x4000_1000, 0x1000),
            class(0x4000_0000, u64::MAX),
        ];
        let memory = Region::new(0x4000_0000, 1 << 30);
        assert_eq!(cells(memory, 1 << 20, &classes[..2])[..2], [Some(1), None]);
        assert!(
            cells(memory, 1 << 20, &classes)
                .iter()
                .all(|cell| *cell == Some(2))
        );
    }

    #[test]
    fn runs_cover_the_row() {
        let cells = [None, None, Some(1), Some(2), Some(2)];
        assert_eq!(runs(&cells), [(0, 2, None), (2, 1, Some(1)), (3, 2, Some(2))]);
    }

    #[test]
    fn names_cannot_leave_their_element() {
        assert_eq!(escape("</text>&\u{1b}"), "&lt;/text&gt;&amp;\u{fffd}");
    }
}
