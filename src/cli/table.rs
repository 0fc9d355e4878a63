//! Tables of text: aligned, coloured on a terminal only.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

/// One row of a table.
pub(super) struct Row<const COLUMNS: usize> {
    /// The cells; the last one is not padded.
    pub(super) cells: [String; COLUMNS],
    /// `true`: the cell in the `verdict` column is green, else red.
    pub(super) good: bool,
}

/// Prints the rows to stdout below their headings; the cells in column `verdict` are green or red.
pub(super) fn print<const COLUMNS: usize>(
    headings: [&str; COLUMNS],
    rows: &[Row<COLUMNS>],
    verdict: usize,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(lines(headings, rows, verdict).as_bytes())?;
    out.flush()
}

/// Returns the table as text, coloured when stdout is a terminal.
pub(super) fn lines<const COLUMNS: usize>(
    headings: [&str; COLUMNS],
    rows: &[Row<COLUMNS>],
    verdict: usize,
) -> String {
    let colour =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.cells[column].chars().count());
        cells
            .chain([headings[column].len()])
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |cells: [&str; COLUMNS], paint: Option<&str>| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let paint = paint.filter(|_| column == verdict);
            let (on, off) = paint.map_or(("", ""), |paint| (paint, "\x1b[0m"));
            // Writing to a String cannot fail.
            let _ = write!(text, "{on}{cell:0$}{off}  ", widths[column]);
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(headings, None);
    for row in rows {
        let paint = if row.good { "\x1b[32m" } else { "\x1b[31m" };
        let cells = std::array::from_fn(|column| row.cells[column].as_str());
        text += &line(cells, colour.then_some(paint));
    }
    text
}
