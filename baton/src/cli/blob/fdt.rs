//! Decodes an FDT alone, without the memory that it points to.

use kho_core::fdt::{Fdt, FdtError, Node, Property};
use kho_core::tree::{Bytes, Line};

/// Most bytes shown of a value of unknown type.
const SHOWN: usize = 32;

/// Decodes an FDT to a tree; `at` of each line is the offset in the file.
pub(super) fn decode(bytes: &[u8]) -> Result<Line, FdtError> {
    let fdt = Fdt::parse(bytes)?;
    let mut root = line(fdt.root());
    root.label = "FDT".into();
    root.text = format!(
        "{}{}",
        Bytes(fdt.total_size() as u64),
        fdt.root()
            .compatible()
            .map_or(String::new(), |name| format!(", {name}"))
    );
    Ok(root)
}

fn line(node: Node<'_, '_>) -> Line {
    let properties = node.properties().iter().map(|property| Line {
        at: Some(property.offset as u64),
        label: property.name.into(),
        text: value(property),
        children: Vec::new(),
    });
    Line {
        at: Some(node.offset() as u64),
        label: format!("\"{}\"", node.name()),
        text: String::new(),
        children: properties.chain(node.children().map(line)).collect(),
    }
}

/// Formats a value: a printable string in quotes, four or eight bytes as a native-endian number, anything else as
/// bytes.
fn value(property: &Property<'_>) -> String {
    let readable = |text: &&str| !text.is_empty() && !text.chars().any(char::is_control);
    if let Some(text) = property.as_str().filter(readable) {
        return format!("\"{text}\"");
    }
    if let Some(number) = property.as_u64().or_else(|| property.as_u32().map(u64::from)) {
        return format!("{number:#x}");
    }
    let (count, shown) = (property.value.len(), property.value.len().min(SHOWN));
    let mut text: Vec<String> = property.value[..shown]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if shown < count {
        text.push(format!("... {}", Bytes(count as u64)));
    }
    text.join(" ")
}
