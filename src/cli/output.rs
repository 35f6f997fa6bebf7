//! What commands print: tables for people, JSON and YAML for programs, progress for whoever watches.
//!
//! Results go to standard output, everything else to standard error. Every write is checked, so that a reader
//! that goes away ends the command instead of making it panic.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;

/// How a table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// `-o`, for every command that prints a table.
#[derive(Debug, Clone, Copy, Args)]
pub struct FormatArgs {
    /// How to print it
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "table")]
    pub format: Format,
}

impl FormatArgs {
    /// Prints the table, or what it is made of where a program reads it.
    pub fn print(self, value: &impl Serialize, table: impl FnOnce(bool) -> Table) -> anyhow::Result<()> {
        match self.format {
            Format::Table => emit(&table(false).render()),
            Format::Wide => emit(&table(true).render()),
            Format::Json => emit(&json(value)?),
            Format::Yaml => emit(&serde_yaml::to_string(value)?),
        }
    }

    /// Whether a program is to read it.
    pub fn is_structured(self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }
}

/// Pretty JSON with a line end.
pub fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Standard output, buffered: flush it.
pub fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// Prints a finished text.
pub fn emit(text: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints a line.
pub fn say(line: &str) -> anyhow::Result<()> {
    emit(&format!("{line}\n"))
}

/// Tells a person at the terminal something that is no result; says nothing in a pipe.
pub fn note(line: &str) {
    if io::stderr().is_terminal() {
        // A terminal that went away does not matter: the command's result does.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Tells, also in a pipe, what whoever ran the command may not have meant.
pub fn warn(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says why the command failed: on one line, the causes after it.
pub fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "error: {error:#}");
}

/// So many of something, in the singular or the plural.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Columns with a head.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|column| (*column).to_owned()).collect()] }
    }

    /// Appends a row with as many cells as there are columns.
    pub fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().map(|cell| clean(&cell)).collect());
    }

    /// The table as text: two spaces between columns, none at the ends of lines.
    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text that came from elsewhere, safe for a terminal: control characters are shown, not obeyed.
pub fn clean(text: &str) -> String {
    let show = |c: char| {
        if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
    };
    text.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_show_control_characters() {
        let mut table = Table::new(&["NAME", "DESCRIPTION"]);
        table.push(["größer".into(), "a\u{1b}[31mred\n".into()]);
        table.push(["b".into(), String::new()]);
        assert_eq!(table.render(), "NAME    DESCRIPTION\ngrößer  a\\u{1b}[31mred\\n\nb\n");
    }
}
