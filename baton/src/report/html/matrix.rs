//! A table of coloured cells: scenarios by rules, scenarios by kernels, or what a sweep or a campaign found.

use maud::{Markup, html};

/// Columns beyond which long headings stand upright.
const LEVEL: usize = 4;
/// Characters of a heading that fit over a narrow column.
const SHORT: usize = 8;

/// What a cell or a word means; shown as a colour and a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Wrong.
    Bad,
    /// Needs a look: not judged, or odd.
    Warn,
    /// Nothing to say.
    Quiet,
}

impl Tone {
    /// The class in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Warn => "warn",
            Self::Quiet => "quiet",
        }
    }

    /// A sign that tells it without colour.
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::Good => "\u{2713}",
            Self::Bad => "\u{2717}",
            Self::Warn => "!",
            Self::Quiet => "\u{2013}",
        }
    }
}

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// What it says: a word or a number.
    pub text: String,
    /// What that means.
    pub tone: Tone,
    /// More about it, shown when the pointer rests on it; may be empty.
    pub note: String,
    /// Identity of an element of the page that the cell leads to.
    pub target: Option<String>,
}

/// A row with one cell per column. Missing cells are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its heading.
    pub name: String,
    /// Its cells.
    pub cells: Vec<Cell>,
}

/// A whole matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// What it shows, in a sentence.
    pub caption: String,
    /// Heading of the column of row headings.
    pub corner: String,
    /// Headings of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A heading of a column, and whether the column has numbers.
pub(super) type Heading<'a> = (&'a str, bool);

/// A table with a caption of identity `id`, in a box that scrolls by itself.
pub(super) fn listing(id: &str, caption: &str, headings: &[Heading<'_>], rows: &Markup) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-labelledby=(id) {
            table {
                caption id=(id) { (caption) }
                thead { tr {
                    @for (name, numbers) in headings { th.num[*numbers] scope="col" { (name) } }
                } }
                tbody { (rows) }
            }
        }
    }
}

/// The matrix as a table in a box that scrolls by itself.
pub fn matrix(matrix: &Matrix) -> Markup {
    let upright =
        matrix.columns.len() > LEVEL && matrix.columns.iter().any(|name| name.chars().count() > SHORT);
    html! {
        div.scroll tabindex="0" role="region" aria-label=(matrix.caption) {
            table.matrix {
                caption { (matrix.caption) }
                thead { tr {
                    th scope="col" { (matrix.corner) }
                    @for name in &matrix.columns {
                        @if upright { th scope="col" { div.up { (name) } } } @else { th scope="col" { (name) } }
                    }
                } }
                tbody {
                    @for row in &matrix.rows {
                        tr {
                            th scope="row" { (row.name) }
                            @for at in 0..matrix.columns.len() {
                                @match row.cells.get(at) { Some(one) => (cell(one)), None => td {} }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cell(cell: &Cell) -> Markup {
    let said = html! { span aria-hidden="true" { (cell.tone.symbol()) " " } (cell.text) };
    let note = (!cell.note.is_empty()).then_some(&cell.note);
    html! {
        td.cell.(cell.tone.class()) title=[note] {
            @match &cell.target { Some(target) => a href={ "#" (target) } { (said) }, None => (said) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cell_is_said_in_words_and_cannot_leave_its_element() {
        let cell = |text: &str, tone| Cell {
            text: text.into(),
            tone,
            note: "\"><script>".into(),
            target: Some("a\" b".into()),
        };
        let text = matrix(&Matrix {
            caption: "<b>".into(),
            corner: "field".into(),
            columns: vec!["7.3.4".into(), "6.19.11".into()],
            rows: vec![Row {
                name: "map/block[3]/order".into(),
                cells: vec![cell("panic", Tone::Bad)],
            }],
        })
        .into_string();
        assert!(
            text.contains("<th scope=\"row\">map/block[3]/order</th>"),
            "{text}"
        );
        assert!(text.contains("panic</a></td><td></td>"), "{text}");
        assert!(
            !text.contains("<script>") && !text.contains("<b>") && !text.contains("\" b"),
            "{text}"
        );
    }

    #[test]
    fn only_many_long_headings_stand_upright() {
        let text = |names: &[&str]| {
            let markup = matrix(&Matrix {
                caption: String::new(),
                corner: String::new(),
                columns: names.iter().map(|name| (*name).to_owned()).collect(),
                rows: Vec::new(),
            });
            markup.into_string()
        };
        assert!(!text(&["a", "b", "c", "d", "e"]).contains("class=\"up\""));
        assert!(!text(&["preserved-content"]).contains("class=\"up\""));
        assert!(text(&["preserved-content", "b", "c", "d", "e"]).contains("class=\"up\""));
    }
}
