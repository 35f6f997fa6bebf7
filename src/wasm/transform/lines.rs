//! What a guest prints, made into lines.
//!
//! Guests print in fragments: `eprintln!` of the Rust SDK calls the host once per piece of its format string.
//! A line is delivered at its end, at the end of the batch, or when it is too long.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::ports::{GuestLines, LineLevel};

/// Bytes at which a line is cut.
const LONGEST_LINE: usize = 8 << 10;
/// Lines of standard error that are kept for the message of a failure.
const LAST_WORDS: usize = 6;
/// Bytes of the last words in the message of a failure.
const LAST_WORDS_BYTES: usize = 1 << 10;

/// Takes the bytes of both outputs apart into lines.
pub(super) struct Lines {
    sink: Arc<dyn GuestLines>,
    out: Vec<u8>,
    error: Vec<u8>,
    last_words: VecDeque<String>,
}

impl Lines {
    pub(super) fn new(sink: Arc<dyn GuestLines>) -> Self {
        Self { sink, out: Vec::new(), error: Vec::new(), last_words: VecDeque::new() }
    }

    /// Takes what was printed.
    pub(super) fn print(&mut self, level: LineLevel, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.append(level, &bytes[..end]);
            self.end_line(level);
            bytes = &bytes[end + 1..];
        }
        self.append(level, bytes);
    }

    /// Delivers lines without an end.
    pub(super) fn flush(&mut self) {
        for level in [LineLevel::Info, LineLevel::Warn] {
            if !self.buffer(level).is_empty() {
                self.end_line(level);
            }
        }
    }

    /// Forgets the last words: they belong to a record that is done.
    pub(super) fn forget_last_words(&mut self) {
        if !self.last_words.is_empty() {
            self.last_words.clear();
        }
    }

    /// What was last said on standard error, as one line.
    pub(super) fn last_words(&self) -> Option<String> {
        let mut words = self.last_words.iter().map(String::as_str).collect::<Vec<_>>().join(" | ");
        if words.len() > LAST_WORDS_BYTES {
            let end = (0..=LAST_WORDS_BYTES).rev().find(|at| words.is_char_boundary(*at)).unwrap_or(0);
            words.truncate(end);
            words.push('…');
        }
        (!words.is_empty()).then_some(words)
    }

    fn buffer(&mut self, level: LineLevel) -> &mut Vec<u8> {
        match level {
            LineLevel::Info => &mut self.out,
            LineLevel::Warn => &mut self.error,
        }
    }

    fn append(&mut self, level: LineLevel, mut bytes: &[u8]) {
        loop {
            let buffer = self.buffer(level);
            let room = LONGEST_LINE - buffer.len();
            if bytes.len() <= room {
                buffer.extend_from_slice(bytes);
                return;
            }
            buffer.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            // A character that the cut would split goes to the next piece.
            let whole = match std::str::from_utf8(buffer) {
                Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
                _ => buffer.len(),
            };
            let rest = buffer.split_off(whole);
            self.end_line(level);
            *self.buffer(level) = rest;
        }
    }

    fn end_line(&mut self, level: LineLevel) {
        let buffer = self.buffer(level);
        let text = shortened(printable(buffer));
        buffer.clear();
        self.sink.line(level, &text);
        // The advice that Rust gives to whoever panics is of no use to a guest.
        let is_advice = text.starts_with("note: run with `RUST_BACKTRACE");
        if level == LineLevel::Warn && !text.trim().is_empty() && !is_advice {
            if self.last_words.len() == LAST_WORDS {
                self.last_words.pop_front();
            }
            self.last_words.push_back(text);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Escapes make up to ten characters of one: what is too long with them is cut, and says so.
fn shortened(mut text: String) -> String {
    const CUT: &str = "…";
    if text.len() > LONGEST_LINE {
        let room = LONGEST_LINE - CUT.len();
        text.truncate((0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push_str(CUT);
    }
    text
}

/// The text without what could harm a terminal: other bytes than UTF-8 are replaced, control characters escaped.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes));
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\t' {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl GuestLines for Kept {
        fn line(&self, level: LineLevel, text: &str) {
            self.0.lock().push(format!("{}{text}", if level == LineLevel::Info { '<' } else { '!' }));
        }
    }

    fn check(prints: &[(LineLevel, &[u8])], expected: &[&str]) {
        let kept = Arc::new(Kept::default());
        let mut lines = Lines::new(kept.clone());
        for (level, bytes) in prints {
            lines.print(*level, bytes);
        }
        drop(lines);
        assert_eq!(*kept.0.lock(), expected);
    }

    #[test]
    fn fragments_become_lines() {
        use LineLevel::{Info, Warn};
        check(
            &[(Info, b"a"), (Warn, b"x"), (Info, b"b\nc"), (Info, b"\n\n"), (Warn, b"y")],
            &["<ab", "<c", "<", "!xy"],
        );
        check(&[(Info, b"bad \xff \x1b[31m\ttab\r\n")], &["<bad \u{fffd} \\u{1b}[31m\ttab"]);
        check(&[], &[]);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let text = "a".to_owned() + &"é".repeat(LONGEST_LINE);
        let kept = Arc::new(Kept::default());
        let mut lines = Lines::new(kept.clone());
        lines.print(LineLevel::Info, text.as_bytes());
        lines.flush();
        let pieces = kept.0.lock();
        assert!(pieces.len() == 3 && pieces.iter().all(|piece| piece.len() <= LONGEST_LINE + 1));
        assert_eq!(pieces.iter().map(|piece| &piece[1..]).collect::<String>(), text);
    }

    #[test]
    fn a_line_is_not_longer_for_its_escapes() {
        let kept = Arc::new(Kept::default());
        let mut lines = Lines::new(kept.clone());
        lines.print(LineLevel::Info, &[vec![0x1b; LONGEST_LINE], b"\n".to_vec()].concat());
        let pieces = kept.0.lock();
        assert!(pieces.iter().all(|piece| piece.len() <= LONGEST_LINE + 1), "with the mark of its level");
        assert!(pieces[0].starts_with("<\\u{1b}") && pieces[0].ends_with('…'));
    }

    #[test]
    fn the_last_words_are_kept_for_the_failure() {
        let mut lines = Lines::new(Arc::new(Kept::default()));
        assert_eq!(lines.last_words(), None);
        lines.print(LineLevel::Warn, b"panicked at main.rs\nthe reason\n");
        assert_eq!(lines.last_words().as_deref(), Some("panicked at main.rs | the reason"));
        lines.print(LineLevel::Warn, &[b"x".repeat(2000), b"\n".to_vec()].concat());
        assert!(lines.last_words().is_some_and(|words| words.len() < 1100));
        lines.forget_last_words();
        assert_eq!(lines.last_words(), None);
    }
}
